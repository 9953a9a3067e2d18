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
        here: Callable[[], Mapping[str, int]],
        on_counted: Callable[[str, int | UnsetType], None],
    ) -> None:
        """Take ``here``, which returns the boards that this process has viewers of, with numbers.

        ``on_counted`` is called with the viewers of a board over all processes, or UNSET when they
        are not known any more.
        """
        self._client = client
        self._here = here
        self._on_counted = on_counted
        self._process = uuid.uuid4().hex
        self._counted: dict[str, float] = {}
        """When each board was last counted (monotonic)."""
        self._fails = False

    async def run(self) -> None:
        """Count until cancelled."""
        while True:
            await asyncio.sleep(jitter(COUNT_S, COUNT_SPREAD))
            await self.count()

    async def count(self) -> None:
        """Count once."""
        here = self._here()
        left = dict.fromkeys(self._counted.keys() - here.keys(), 0)
        try:
            totals = await count_viewers(self._client, self._process, {**here, **left})
        except ScoreboardError as error:
            if not self._fails:
                _log.warning("viewers_not_counted", reason=error.detail)
            self._fails = True
            self._forget()
            return
        self._fails = False
        now_s = time.monotonic()
        for board, total in totals.items():
            self._on_counted(board, total)
            self._counted[board] = now_s
        for board in left:
            del self._counted[board]
            self._on_counted(board, UNSET)

    def _forget(self) -> None:
        """Forget the counts that are too old."""
        before_s = time.monotonic() - FORGET_S
        for board, counted_at_s in tuple(self._counted.items()):
            if counted_at_s < before_s:
                del self._counted[board]
                self._on_counted(board, UNSET)
