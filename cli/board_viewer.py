"""A WebSocket viewer of a board, for `scoreboard board watch`.

A lost connection is made again after growing waits; an error that a retry cannot fix is raised.
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
from scoreboard.broadcast.messages import SUBPROTOCOL
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

CONNECT_TIMEOUT_S: Final = 5.0
FRAME_BYTES: Final = 65_536
CONNECTION_ERRORS: Final = (OSError, TimeoutError, InvalidHandshake, ConnectionClosed)
"""A connection failed or was closed; a retry may succeed."""
PROTOCOL_ERRORS: Final = (InvalidURI, ValueError, msgspec.MsgspecError)
"""The address or the messages are not those of a streamer."""
FATAL_STATUSES: Final = {401: Unauthenticated, 403: Forbidden, 404: UnknownBoard}
FATAL_CLOSE_CODES: Final = {4401: Unauthenticated, 4403: Forbidden}


class BoardMessage(Struct, frozen=True):
    """A board as the streamer sent it."""

    board: str
    epoch: int
    seq: int
    leaderboard: tuple[Row, ...]


async def follow(
    url: str, board: str | None, *, token: str | None, count: int | None, as_json: bool
) -> None:
    """Print every board that the streamer sends, until ``count`` or until cancelled.

    Raises Malformed (invalid address), UnknownBoard, Unauthenticated, Forbidden, Unavailable.
    """
    console = plain_console()
    separator = "&" if "?" in url else "?"
    address = url if board is None else f"{url}{separator}board={quote(board)}"
    is_drawn = is_terminal(sys.stdout) and not as_json
    with Live(console=console, auto_refresh=False) if is_drawn else nullcontext() as screen:
        async with aclosing(_boards(address, token)) as boards:
            number = 0
            async for message, text in boards:
                if screen is not None:
                    screen.update(_table(message), refresh=True)
                else:
                    print_lines([text if as_json else _line(message)])
                number += 1
                if number == count:
                    return


async def _boards(url: str, token: str | None) -> AsyncGenerator[tuple[BoardMessage, str], None]:
    """Yield the boards of all connections, parsed and as sent."""
    was_connected = False
    attempt = 0
    while True:
        try:
            async with aclosing(_receive(url, token)) as received:
                async for message in received:
                    was_connected, attempt = True, 0
                    yield message
        except (*CONNECTION_ERRORS, *PROTOCOL_ERRORS) as error:
            fatal = _fatal_error(error)
            if fatal is not None:
                raise fatal from error
            if not was_connected:
                raise Unavailable(f"No streamer answers at {url}") from error
        print_message("Connection lost, reconnecting")
        await asyncio.sleep(backoff_s(attempt))
        attempt += 1


async def _receive(url: str, token: str | None) -> AsyncGenerator[tuple[BoardMessage, str], None]:
    """Yield the boards of one connection, parsed and as sent."""
    async with connect(
        url,
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        additional_headers={"Authorization": f"Bearer {token}"} if token else {},
        compression=None,
        open_timeout=CONNECT_TIMEOUT_S,
        max_size=FRAME_BYTES,
        user_agent_header="scoreboard-cli",
        proxy=None,  # connect to the target itself, whatever proxy the environment names
    ) as viewer:
        async for frame in viewer:
            text = frame if isinstance(frame, str) else frame.decode()
            message = msgspec.json.decode(text, type=dict[str, Any])
            if message.get("type") == "leaderboard":
                yield msgspec.convert(message, BoardMessage), text
            elif message.get("type") == "status":
                print_message(f"The board is {message.get('state')}")


def _fatal_error(error: Exception) -> ScoreboardError | None:
    """Return the error to raise if a retry cannot help, else None."""
    if isinstance(error, PROTOCOL_ERRORS):
        return Malformed("The URL is not the address of a streamer")
    if isinstance(error, InvalidStatus):
        kind = FATAL_STATUSES.get(error.response.status_code)
    elif isinstance(error, ConnectionClosed):
        kind = FATAL_CLOSE_CODES.get(error.rcvd.code if error.rcvd else 0)
    else:
        kind = None
    return kind() if kind else None


def _line(message: BoardMessage) -> str:
    rows = [f"{row.rank} {escape_unsafe(row.user_id)} {row.score}" for row in message.leaderboard]
    return "\t".join([f"{message.epoch}:{message.seq}", *rows])


def _table(message: BoardMessage) -> Table:
    title = escape_unsafe(f"{message.board}  {message.epoch}:{message.seq}")
    table = Table(box=None, title=title)
    table.add_column("rank", justify="right")
    table.add_column("user")
    table.add_column("name")
    table.add_column("score", justify="right")
    for row in message.leaderboard:
        name = escape_unsafe(row.name) if row.name else ""
        table.add_row(str(row.rank), escape_unsafe(row.user_id), name, str(row.score))
    return table
