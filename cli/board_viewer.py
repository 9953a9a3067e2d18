"""Follows a board over the WebSocket, as any viewer does. Called by `scoreboard board watch`.

A lost connection is made again, later and later; what refuses us for good ends the command.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, nullcontext
from typing import Any, Final
from urllib.parse import quote

import msgspec
from msgspec import Struct
from rich.live import Live
from rich.table import Table
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from cli.output import is_terminal, plain_console, print_lines, print_message
from cli.text import escape_unsafe
from scoreboard.errors import (
    Forbidden,
    Malformed,
    ScoreboardError,
    Unauthenticated,
    Unavailable,
    UnknownBoard,
)
from scoreboard.model import Row
from scoreboard.runtime.lifecycle import backoff_s

SUBPROTOCOL: Final = Subprotocol("scoreboard.v1")
CONNECT_TIMEOUT_S: Final = 5.0
FRAME_BYTES: Final = 65_536
LOST: Final = (OSError, TimeoutError, InvalidHandshake, ConnectionClosed)
"""How a connection ends or is not made; it may succeed later."""
SOMETHING_ELSE: Final = (InvalidURI, ValueError, msgspec.MsgspecError)
"""What comes of an address, or of messages, that are not a streamer's."""
STATUS_FOR_GOOD: Final = {401: Unauthenticated, 403: Forbidden, 404: UnknownBoard}
CLOSED_FOR_GOOD: Final = {4401: Unauthenticated, 4403: Forbidden}


class Shown(Struct, frozen=True):
    """One board as the streamer sent it."""

    board: str
    epoch: int
    seq: int
    leaderboard: tuple[Row, ...]


async def follow(
    url: str, board: str | None, *, token: str | None, count: int | None, as_json: bool
) -> None:
    """Print every board the streamer sends, ``count`` of them or until cancelled.

    Raises Malformed (no such address), UnknownBoard, Unauthenticated, Forbidden, Unavailable.
    """
    console = plain_console()
    separator = "&" if "?" in url else "?"
    address = url if board is None else f"{url}{separator}board={quote(board)}"
    is_drawn = is_terminal(sys.stdout) and not as_json
    with Live(console=console, auto_refresh=False) if is_drawn else nullcontext() as screen:
        async with aclosing(_boards(address, token)) as boards:
            number = 0
            async for shown, text in boards:
                if screen is not None:
                    screen.update(_table(shown), refresh=True)
                else:
                    print_lines([text if as_json else _line(shown)])
                number += 1
                if number == count:
                    return


async def _boards(url: str, token: str | None) -> AsyncGenerator[tuple[Shown, str], None]:
    was_connected = False
    attempt = 0
    while True:
        try:
            async with aclosing(_visit(url, token)) as shown_ones:
                async for shown in shown_ones:
                    was_connected, attempt = True, 0
                    yield shown
        except (*LOST, *SOMETHING_ELSE) as error:
            kind = _final(error)
            if kind is not None:
                raise kind from error
            if not was_connected:
                raise Unavailable(f"No streamer answers at {url}") from error
        print_message("The connection was lost; connecting again")
        await asyncio.sleep(backoff_s(attempt))
        attempt += 1


async def _visit(url: str, token: str | None) -> AsyncGenerator[tuple[Shown, str], None]:
    """Give the boards of one connection, as parsed and as sent."""
    async with connect(
        url,
        subprotocols=[SUBPROTOCOL],
        additional_headers={"Authorization": f"Bearer {token}"} if token else {},
        compression=None,
        open_timeout=CONNECT_TIMEOUT_S,
        max_size=FRAME_BYTES,
        user_agent_header="scoreboard-cli",
        proxy=None,  # the streamer of the target itself, whatever the environment says
    ) as viewer:
        async for frame in viewer:
            text = frame if isinstance(frame, str) else frame.decode()
            message = msgspec.json.decode(text, type=dict[str, Any])
            if message.get("type") == "leaderboard":
                yield msgspec.convert(message, Shown), text
            elif message.get("type") == "status":
                print_message(f"The board is {message.get('state')}")


def _final(error: Exception) -> ScoreboardError | None:
    """Give what trying again would not change; None where it may help."""
    if isinstance(error, SOMETHING_ELSE):
        return Malformed("The URL is not an address of a streamer")
    if isinstance(error, InvalidStatus):
        kind = STATUS_FOR_GOOD.get(error.response.status_code)
    elif isinstance(error, ConnectionClosed):
        kind = CLOSED_FOR_GOOD.get(error.rcvd.code if error.rcvd else 0)
    else:
        kind = None
    return kind() if kind else None


def _line(shown: Shown) -> str:
    places = [f"{row.rank} {escape_unsafe(row.user_id)} {row.score}" for row in shown.leaderboard]
    return "\t".join([f"{shown.epoch}:{shown.seq}", *places])


def _table(shown: Shown) -> Table:
    table = Table(box=None, title=escape_unsafe(f"{shown.board}  {shown.epoch}:{shown.seq}"))
    table.add_column("rank", justify="right")
    table.add_column("user")
    table.add_column("score", justify="right")
    for row in shown.leaderboard:
        table.add_row(str(row.rank), escape_unsafe(row.user_id), str(row.score))
    return table
