"""Verifies the boards that this process does not serve, a few steps in each turn.

One process at a time does so. It visits the boards in order of their names; a visit compares all
users of a board, or as many as its steps allow, and the next visit goes on from there. So each
board has its turn, however large others are. Boards that differ are compared again in every turn
until they are repaired.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Collection
from contextlib import suppress
from typing import Final

import redis.asyncio as aioredis

from flusher import metrics
from scoreboard.errors import (
    Busy,
    DatabaseUnavailable,
    Fenced,
    Outdated,
    ScoreboardError,
    Uninitialised,
    WaitTimeout,
)
from scoreboard.health import checks
from scoreboard.health.checks import Check
from scoreboard.ledger.boards import lock_verification, select_boards_after
from scoreboard.ledger.pool import Connection
from scoreboard.model import Board
from scoreboard.recovery.rolling_check import RollingCheck
from scoreboard.runtime.telemetry import get_logger

SHARE_S: Final = 0.05
"""Longest time of the steps of a turn, after the first: a small share of a core."""

VISIT_STEPS: Final = 50
"""Most steps of a visit; a large board is verified in several."""

PAGE: Final = 100
"""Boards that are read at once."""

UNFINISHED_MAX: Final = 100
"""Large boards whose next visit goes on where the last one ended."""

DRIFTED_MAX: Final = 20
"""Most differing boards that are compared in every turn and have a series."""

POSTPONED: Final = (Busy, Outdated, Fenced, Uninitialised, WaitTimeout)
"""The board cannot be compared at the moment, for a reason that is reported elsewhere."""

_log = get_logger(__name__)


class IdleBoards:
    """The boards that no partition flusher of this process serves."""

    def __init__(self, users_per_step: int) -> None:
        self._users_per_step = users_per_step
        for result in metrics.VERIFICATION_RESULTS if users_per_step else ():
            metrics.VERIFICATIONS[metrics.OTHER_BOARDS, result].inc(0)
        self._page: deque[Board] = deque()
        self._after = ""
        self._visited: RollingCheck | None = None
        self._steps = 0
        self._unfinished: OrderedDict[str, RollingCheck] = OrderedDict()
        self._drifted: dict[str, RollingCheck] = {}
        self._failure = ""
        self._locked: Connection | None = None
        """The connection that holds the lock."""

    async def take_turn(
        self, client: aioredis.Redis, connection: Connection, served: Collection[str]
    ) -> None:
        """Take steps for boards other than ``served``, if no other process does.

        Raises DatabaseUnavailable, TimeoutError (of the caller): the connection has to be replaced.
        """
        if self._locked is not connection:
            if not await lock_verification(connection):
                return
            self._locked = connection
        await self._compare_again(connection)
        ends_at_s = time.monotonic() + SHARE_S
        is_first = True
        while is_first or time.monotonic() < ends_at_s:
            is_first = False
            visited = self._visited
            if visited is None:
                board = await self._following(connection)
                if board is None:
                    return
                if board.name in served or board.name in self._drifted:
                    continue
                visited = self._unfinished.pop(board.name, None)
                if visited is None or visited.board != board:
                    visited = RollingCheck(client, board, is_whole=True)
                self._visited, self._steps = visited, 0
            await self._visit(visited, connection)

    def checks(self) -> dict[str, Check]:
        """Return the checks of boards that differ."""
        return {
            checks.drift_name(name): checks.describe_drift(name, len(check.drifted), 0.0)
            for name, check in self._drifted.items()
        }

    def hand_over(self, name: str) -> RollingCheck | None:
        """Return the comparison of a board that differs and is served now; None if it does not."""
        return self._drifted.pop(name, None)

    def leave(self) -> None:
        """Remove the series of this process: its connection and its lock are lost."""
        for name in list(self._drifted):
            self._forget(name)
        self._locked = self._visited = None

    async def _following(self, connection: Connection) -> Board | None:
        """Return the next board; None after the last one, and the next call begins again."""
        if not self._page:
            self._page.extend(await select_boards_after(connection, after=self._after, limit=PAGE))
            if not self._page:
                self._after = ""
                return None
        board = self._page.popleft()
        self._after = board.name
        return board

    async def _visit(self, check: RollingCheck, connection: Connection) -> None:
        """Take a step for the visited board; end the visit when it was its last one."""
        self._steps += 1
        is_done = await self._guard(check, connection)
        if is_done and not check.passes and self._steps < VISIT_STEPS:
            return
        self._visited = None
        name = check.board.name
        if check.drifted:
            _log.error(
                "drift_found",
                board=name,
                users=len(check.drifted),
                advice=checks.describe_drift(name, len(check.drifted), 0.0).advice,
            )
            if len(self._drifted) < DRIFTED_MAX:
                self._drifted[name] = check
                metrics.DRIFT_USERS.labels(name).set(len(check.drifted))
        elif is_done and not check.passes:
            self._unfinished[name] = check
            if len(self._unfinished) > UNFINISHED_MAX:
                self._unfinished.popitem(last=False)

    async def _compare_again(self, connection: Connection) -> None:
        """Compare the board again that differs and was not compared for the longest time."""
        name = next(iter(self._drifted), None)
        if name is None:
            return
        check = self._drifted[name] = self._drifted.pop(name)
        await self._guard(check, connection)
        if name not in self._drifted:
            return  # it was handed over meanwhile
        metrics.DRIFT_USERS.labels(name).set(len(check.drifted))
        if not check.drifted:
            self._forget(name)
            _log.info("drift_ended", board=name)

    async def _guard(self, check: RollingCheck, connection: Connection) -> bool:
        """Take a step, count it, and return whether it succeeded.

        Raises DatabaseUnavailable.
        """
        error: Exception
        try:
            await check.step(connection, self._users_per_step)
        except POSTPONED:
            metrics.VERIFICATIONS[metrics.OTHER_BOARDS, "postponed"].inc()
            return False
        except DatabaseUnavailable:
            metrics.VERIFICATIONS[metrics.OTHER_BOARDS, "failed"].inc()
            raise
        except Exception as failure:  # noqa: BLE001 (other boards are verified, and all are flushed)
            error = failure
        else:
            self._failure = ""
            result = "drift" if check.drifted else "sound"
            metrics.VERIFICATIONS[metrics.OTHER_BOARDS, result].inc()
            metrics.VERIFIED_AT.labels(metrics.OTHER_BOARDS).set(time.time())
            return True
        metrics.VERIFICATIONS[metrics.OTHER_BOARDS, "failed"].inc()
        known = isinstance(error, ScoreboardError)
        cause = error.code if known else type(error).__name__
        if cause != self._failure:
            self._failure = cause
            _log.warning(
                "verification_failed",
                board=check.board.name,
                reason=error.detail if known else cause,
                exc_info=None if known else error,
            )
        return False

    def _forget(self, name: str) -> None:
        del self._drifted[name]
        with suppress(KeyError):
            metrics.DRIFT_USERS.remove(name)
