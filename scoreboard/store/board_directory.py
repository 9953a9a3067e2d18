"""The boards that a process knows: found in Redis's list when they are asked for, then kept.

A board that is made while the process runs is found by the first request for it. The default boards
(SCOREBOARD_BOARDS) exist in any case. Boards that are asked for while others are read are read
together, and with them those that are due next. Invariants: memory is bounded; a board is unknown
only if there is a list without it, so an emptied Redis is not taken for one without boards.
"""

import asyncio
import time
from collections.abc import Mapping
from itertools import islice
from typing import Final

from msgspec import Struct

from scoreboard.errors import (
    RedisUnavailable,
    ScoreboardError,
    UnexpectedReply,
    Uninitialised,
    UnknownBoard,
)
from scoreboard.model import BOARDS_KEPT_MAX, Board, is_board_name
from scoreboard.runtime.recent import Recent
from scoreboard.runtime.settings import Settings
from scoreboard.store.board_list import BoardList

REFRESH_S: Final = 30.0
"""Time after which a board is read again. Its rules are fixed; its state may change."""

AHEAD_S: Final = 10.0
"""Time before its next reading from which a board is read together with others."""

TOGETHER_MAX: Final = 250
"""Most boards that are read with those asked for: less than a ms of the event loop's time."""

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
        """In the order of their last reading."""
        self._unknown_until_s: Recent[float] = Recent(BOARDS_KEPT_MAX)
        self._asked: dict[str, asyncio.Future[Board]] = {}
        """Boards that the next reading reads, and what it will return."""
        self._reading: asyncio.Task[None] | None = None
        """Ends with what is asked for; each result, and each error, is that of a future."""

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
        if kept is not None:
            kept.fresh_until_s = now_s + RETRY_S  # concurrent callers use it during the read
        future = self._asked.get(name)
        if future is None:
            future = self._asked[name] = asyncio.get_running_loop().create_future()
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_asked())
        return await asyncio.shield(future)

    def forget(self, name: str) -> None:
        """Read a board again when it is next asked for: Redis has nothing of it, for example.

        Default boards exist in any case and are kept.
        """
        if name not in self._defaults:
            self._kept.pop(name, None)

    async def _read_asked(self) -> None:
        """Read what is asked for, and what is asked for meanwhile."""
        try:
            while self._asked:
                asked, self._asked = self._asked, {}
                try:
                    await self._read(asked)
                except Exception as error:  # noqa: BLE001 (who asked gets it)
                    for future in asked.values():
                        if not future.done():
                            future.set_exception(error)
                            future.exception()  # as below
                finally:
                    for future in asked.values():
                        future.cancel()  # only if the process ends: all others have a result
        finally:
            self._reading = None

    async def _read(self, asked: Mapping[str, asyncio.Future[Board]]) -> None:
        """Read boards, and others that are due soon, in one round trip."""
        now_s = time.monotonic()
        names = list(asked)
        for name, kept in islice(self._kept.items(), TOGETHER_MAX):
            if kept.fresh_until_s >= now_s + AHEAD_S:
                break
            if name not in asked:
                kept.fresh_until_s = max(kept.fresh_until_s, now_s + RETRY_S)
                names.append(name)
        failure: ScoreboardError = Uninitialised()
        try:
            found = await self._boards.listed(names)
        except UnexpectedReply:
            found = {}
        except RedisUnavailable as error:
            found, failure = {}, error
        for name in names if found else asked:
            board = self._keep(name, found)
            if (future := asked.get(name)) is None or future.done():
                continue
            if board is not None:
                future.set_result(board)
            else:
                future.set_exception(self._unknown() if name in found else failure)
                future.exception()  # mark it as retrieved: its callers may be gone

    def _keep(self, name: str, found: Mapping[str, Board | None]) -> Board | None:
        """Keep what was found of a board, and return it; or that there is no such board."""
        board, wait_s = found.get(name), REFRESH_S
        if board is None and (name not in found or name in self._defaults):
            board, wait_s = self._replacement(name), RETRY_S
        if board is not None:
            self._kept.keep(name, _Kept(board, time.monotonic() + wait_s))
        elif name in found:
            self._kept.pop(name, None)
            self._unknown_until_s.keep(name, time.monotonic() + UNKNOWN_S)
        return board

    def _replacement(self, name: str) -> Board | None:
        """Return what is known of a board that cannot be read from the list."""
        kept = self._kept.get(name)
        if kept is not None:
            return kept.board
        return Board(name) if name in self._defaults else None

    def _unknown(self) -> UnknownBoard:
        return UnknownBoard(f"No such board; for example, there is {self._defaults[0]}")
