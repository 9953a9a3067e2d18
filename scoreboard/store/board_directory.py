"""The boards that a process knows: found in Redis's list when they are asked for, then kept.

A board that is made while the process runs is found by the first request for it. The default boards
(SCOREBOARD_BOARDS) exist in any case. Invariants: memory is bounded; a board is unknown only if
there is a list without it, so an emptied Redis is not taken for one without boards.
"""

import time
from typing import Final

from msgspec import Struct

from scoreboard.errors import RedisUnavailable, UnexpectedReply, Uninitialised, UnknownBoard
from scoreboard.model import BOARDS_KEPT_MAX, Board, is_board_name
from scoreboard.runtime.recent import Recent
from scoreboard.runtime.settings import Settings
from scoreboard.store.board_list import BoardList

REFRESH_S: Final = 30.0
"""Time after which a board is read again. Its rules are fixed; its state may change."""

RETRY_S: Final = 2.0
"""Time after which a default board that the list does not have yet is looked up again."""

UNKNOWN_S: Final = 1.0
"""Time for which a name without a board is remembered; a new board is served after it."""


class _Kept(Struct):
    board: Board
    fresh_until_s: float


class BoardDirectory:
    """Boards by name."""

    def __init__(self, settings: Settings, boards: BoardList) -> None:
        """Read the settings; connect to nothing."""
        self._boards = boards
        self._defaults = settings.boards
        self._kept: Recent[_Kept] = Recent(BOARDS_KEPT_MAX)
        self._unknown_until_s: Recent[float] = Recent(BOARDS_KEPT_MAX)

    def known(self, name: str | None) -> Board | None:
        """Return a board if it was read lately; None is the name of the default board."""
        kept = self._kept.get(self._defaults[0] if name is None else name)
        return kept.board if kept is not None and time.monotonic() < kept.fresh_until_s else None

    async def find(self, name: str | None) -> Board:
        """Return a board, from Redis if it was not read lately.

        Raises UnknownBoard; Uninitialised if Redis has no list of boards; RedisUnavailable. A board
        that was read before is returned instead of the last two.
        """
        name = self._defaults[0] if name is None else name
        now_s = time.monotonic()
        kept = self._kept.get(name)
        if kept is not None and now_s < kept.fresh_until_s:
            return kept.board
        if not is_board_name(name) or now_s < self._unknown_until_s.get(name, 0.0):
            raise self._unknown()
        wait_s = REFRESH_S
        if kept is not None:
            kept.fresh_until_s = now_s + RETRY_S  # concurrent callers use it during the read
        try:
            board = await self._boards.listed(name)
        except (RedisUnavailable, UnexpectedReply) as error:
            board, wait_s = self._replacement(name), RETRY_S
            if board is None:
                raise Uninitialised if isinstance(error, UnexpectedReply) else error from error
        if board is None and name in self._defaults:
            board, wait_s = self._replacement(name), RETRY_S
        if board is None:
            self._kept.pop(name, None)
            self._unknown_until_s.keep(name, now_s + UNKNOWN_S)
            raise self._unknown()
        self._kept.keep(name, _Kept(board, time.monotonic() + wait_s))
        return board

    def forget(self, name: str) -> None:
        """Read a board again when it is next asked for: Redis has nothing of it, for example.

        Default boards exist in any case and are kept.
        """
        if name not in self._defaults:
            self._kept.pop(name, None)

    def _replacement(self, name: str) -> Board | None:
        """Return what is known of a board that cannot be read from the list."""
        kept = self._kept.get(name)
        if kept is not None:
            return kept.board
        return Board(name) if name in self._defaults else None

    def _unknown(self) -> UnknownBoard:
        return UnknownBoard(f"No such board; for example, there is {self._defaults[0]}")
