"""The copy of the list of boards in Redis: services find boards that are made while they run."""

from collections.abc import Collection, Iterable, Iterator
from typing import Final, TypeVar

import msgspec
from msgspec import Struct, field

from scoreboard.errors import UnexpectedReply
from scoreboard.model import Board, BoardState, Layout, Limits
from scoreboard.store.keys import BOARDS
from scoreboard.store.replies import read_reply
from scoreboard.store.store_client import StoreClient

PAGE: Final = 1000
"""Boards of one call: it must not hold Redis."""

_Value = TypeVar("_Value")


class _Entry(Struct, omit_defaults=True):
    """The value of a board in the hash. Fields that a later version adds are ignored."""

    layout: str
    is_public: bool = field(name="public")
    state: BoardState
    limits: str = ""


_decode = msgspec.json.Decoder(_Entry).decode


def _parse(name: str, text: str) -> Board | None:
    """Return a board; None for a value that this version cannot read."""
    try:
        entry = _decode(text)
        layout, limits = Layout.parse(entry.layout), Limits.parse(entry.limits)
        return Board(name, layout, entry.is_public, entry.state, limits)
    except (ValueError, msgspec.MsgspecError):
        return None


class BoardList(StoreClient):
    """The copy of the list of boards in Redis."""

    async def listed(self, name: str) -> Board | None:
        """Read a board from the list; None if the list has no such board.

        Raises UnexpectedReply if there is no list: Redis was emptied, or no service has copied it
        yet; or if the value cannot be read. Raises RedisUnavailable.
        """
        what = f"HMGET {BOARDS}"
        (text,) = await read_reply(self._client.hmget(BOARDS, [name]), tuple[str | None], what)
        if text is None:
            if not await self.has_list():
                raise UnexpectedReply(f"{BOARDS}: there is no list of boards")
            return None
        board = _parse(name, text)
        if board is None:
            raise UnexpectedReply(f"{what}: the value of {name} is not a board")
        return board

    async def has_list(self) -> bool:
        """Return whether there is a list: it has at least one board.

        Raises RedisUnavailable, UnexpectedReply.
        """
        return await read_reply(self._client.hlen(BOARDS), int, f"HLEN {BOARDS}") > 0

    async def list_boards(self) -> dict[str, Board]:
        """Read all boards of the list; values that cannot be read are omitted.

        Raises RedisUnavailable, UnexpectedReply.
        """
        found = await read_reply(self._client.hgetall(BOARDS), dict[str, str], f"HGETALL {BOARDS}")
        boards = (_parse(name, text) for name, text in found.items())
        return {board.name: board for board in boards if board is not None}

    async def write_boards(self, boards: Iterable[Board], removed: Collection[str] = ()) -> None:
        """Write boards to the list and remove others; the caller holds ``lock_boards``.

        Raises RedisUnavailable, UnexpectedReply.
        """
        values = {
            board.name: msgspec.json.encode(
                _Entry(str(board.layout), board.is_public, board.state, str(board.limits))
            ).decode()
            for board in boards
        }
        for page in _pages(list(values.items())):
            await read_reply(self._client.hset(BOARDS, mapping=dict(page)), int, f"HSET {BOARDS}")
        for page in _pages(list(removed)):
            await read_reply(self._client.hdel(BOARDS, *page), int, f"HDEL {BOARDS}")


def _pages(values: list[_Value]) -> Iterator[list[_Value]]:
    for start in range(0, len(values), PAGE):
        yield values[start : start + PAGE]
