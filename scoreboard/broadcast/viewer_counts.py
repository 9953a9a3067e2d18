"""The number of viewers of each board over all processes.

Each process writes its own number for each board that it has viewers of, all boards in one round
trip, and is told the sum. Nothing is written per viewer or message.

Invariants: without Redis a number is forgotten after ``FORGET_S``, and nothing else happens; a
board without viewers costs nothing.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Final

import redis.asyncio as aioredis
from msgspec import UNSET, UnsetType

from scoreboard.errors import ScoreboardError
from scoreboard.runtime.lifecycle import jitter
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.viewer_counts import count_viewers

COUNT_S: Final = 5.0
"""Interval between two counts of a process; a count of all is at most twice as old."""

COUNT_SPREAD: Final = 0.1

FORGET_S: Final = 20.0
"""A count that could not be renewed for this time is not sent any more."""

_log = get_logger(__name__)


class ViewerCounts:
    """Counts the viewers of one process together with all others. Start ``run`` in a task."""

    def __init__(
        self,
        client: aioredis.Redis,
        *,
        viewers_here: Callable[[], Mapping[str, int]],
        on_counted: Callable[[str, int | UnsetType], None],
    ) -> None:
        """``viewers_here`` returns the viewers of this process by board, without boards of none.

        ``on_counted`` is called with the viewers of a board over all processes, or UNSET when they
        are not known any more.
        """
        self._client = client
        self._viewers_here = viewers_here
        self._on_counted = on_counted
        self._process = uuid.uuid4().hex
        self._counted: dict[str, float] = {}
        """When each board was last counted (monotonic)."""
        self._is_failing = False

    async def run(self) -> None:
        """Count until cancelled."""
        while True:
            await asyncio.sleep(jitter(COUNT_S, COUNT_SPREAD))
            await self.count()

    async def count(self) -> None:
        """Count once. A board that cannot be counted keeps its count, and no other waits for it."""
        here = self._viewers_here()
        left = self._counted.keys() - here.keys()
        try:
            totals, failure = await count_viewers(
                self._client, self._process, {**here, **dict.fromkeys(left, 0)}
            )
        except ScoreboardError as error:
            totals, failure = {}, error
        if failure is not None and not self._is_failing:
            _log.warning("viewers_not_counted", reason=failure.detail)
        self._is_failing = failure is not None
        self._forget()
        now_s = time.monotonic()
        for board, total in totals.items():
            if board in left:
                self._counted.pop(board, None)
                self._on_counted(board, UNSET)
            else:
                self._on_counted(board, total)
                self._counted[board] = now_s

    def _forget(self) -> None:
        """Forget the counts that are too old."""
        before_s = time.monotonic() - FORGET_S
        for board, counted_at_s in tuple(self._counted.items()):
            if counted_at_s < before_s:
                del self._counted[board]
                self._on_counted(board, UNSET)
