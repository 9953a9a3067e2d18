"""The copy of the list of boards in Redis: services find boards that are made while they run."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final, TypeVar

import msgspec
from msgspec import Struct, field

from scoreboard.errors import UnexpectedReply
from scoreboard.model import Board, BoardState, Layout, Limits
from scoreboard.store.keys import BOARDS
from scoreboard.store.replies import checking_reply, read_reply
from scoreboard.store.store_client import StoreClient

PAGE: Final = 1000
"""Boards of one call: it must not hold Redis."""

TEXTS_KEPT_MAX: Final = 1000
"""Values whose properties are kept: most boards have the same few."""

_Value = TypeVar("_Value")


class _Entry(Struct, omit_defaults=True):
    """The value of a board in the hash. Fields that a later version adds are ignored."""

    layout: str
    is_public: bool = field(name="public")
    state: BoardState
    limits: str = ""


_decode = msgspec.json.Decoder(_Entry).decode


@lru_cache(maxsize=TEXTS_KEPT_MAX)
def _parse_properties(text: str) -> Board | None:
    """Return a board with the properties that a value states, and no name of its own."""
    try:
        entry = _decode(text)
        layout, limits = Layout.parse(entry.layout), Limits.parse(entry.limits)
        return Board("", layout, entry.is_public, entry.state, limits)
    except (ValueError, msgspec.MsgspecError):
        return None


def _parse(name: str, text: str) -> Board | None:
    """Return a board; None for a value that this version cannot read."""
    found = _parse_properties(text)
    if found is None:
        return None
    return Board(name, found.layout, found.is_public, found.state, found.limits)


class BoardList(StoreClient):
    """The copy of the list of boards in Redis."""

    async def listed(self, names: Sequence[str]) -> dict[str, Board | None]:
        """Read boards from the list by name; None for a name that the list does not have.

        A board whose value cannot be read is omitted. Raises UnexpectedReply if there is no list:
        Redis was emptied, or no service has copied it yet. Raises RedisUnavailable.
        """
        what = f"HMGET {BOARDS}"
        found: dict[str, Board | None] = {}
        for page in _pages(names):
            sent = self._client.hmget(BOARDS, list(page))
            texts = await read_reply(sent, list[str | None], what)
            with checking_reply(what):
                values = dict(zip(page, texts, strict=True))
            if set(texts) == {None} and not await self.has_list():
                raise UnexpectedReply(f"{BOARDS}: there is no list of boards")
            for name, text in values.items():
                board = None if text is None else _parse(name, text)
                if text is None or board is not None:
                    found[name] = board
        return found

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


def _pages(values: Sequence[_Value]) -> Iterator[Sequence[_Value]]:
    for start in range(0, len(values), PAGE):
        yield values[start : start + PAGE]
