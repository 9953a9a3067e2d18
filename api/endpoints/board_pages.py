"""Pages of the list of boards, from Redis's list; each process reads it at most once a second."""

import time
from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter
from typing import Final

from msgspec import UNSET, Struct

from api.documents.schemas import BoardReply, BoardRules, BoardsReply
from api.endpoints.board_reader import SingleFlight
from scoreboard.errors import Uninitialised
from scoreboard.model import Board
from scoreboard.store.board_list import BoardList

PAGE_MAX: Final = 100
"""Maximum boards of a page."""

LIST_TTL_S: Final = 1.0
"""How long the list of boards is kept."""


class _Listing(Struct):
    """The boards by name: all, and the public ones."""

    everything: Sequence[Board]
    public: Sequence[Board]
    expires_at_s: float


class BoardPages:
    """Pages of the list of boards."""

    def __init__(self, boards: BoardList) -> None:
        self._boards = boards
        self._listing: _Listing | None = None
        self._reads: SingleFlight[_Listing] = SingleFlight()

    async def page(self, *, after: str, limit: int, is_public: bool) -> BoardsReply:
        """Return the boards after a name, only public ones if ``is_public``.

        Raises Uninitialised if Redis has no list of boards, RedisUnavailable.
        """
        listing = self._listing
        if listing is None or time.monotonic() >= listing.expires_at_s:
            listing = await self._reads.get("list", self._read)
        boards = listing.public if is_public else listing.everything
        start = bisect_right(boards, after, key=attrgetter("name"))
        found = boards[start : start + limit]
        has_more = start + limit < len(boards)
        return BoardsReply(
            tuple(describe_board(board) for board in found),
            found[-1].name if has_more else UNSET,
        )

    async def _read(self) -> _Listing:
        found = await self._boards.list_boards()
        if not found:
            raise Uninitialised
        everything = sorted(found.values(), key=attrgetter("name"))
        public = [board for board in everything if board.is_public]
        self._listing = _Listing(everything, public, time.monotonic() + LIST_TTL_S)
        return self._listing


def describe_board(board: Board) -> BoardReply:
    """Return a board as the API shows it."""
    rules = BoardRules.of(board.layout.rules)
    return BoardReply(board.name, board.is_public, board.state, rules)
