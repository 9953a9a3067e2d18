"""Waiting for the parts of a run."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from msgspec import Struct

REPORT_S: Final = 0.25
"""Interval of reports on the progress."""


class Course(Struct, frozen=True):
    """The moments of a run, by the clock of ``time.perf_counter``; ``report`` gets the share."""

    start_s: float
    end_s: float
    stop: asyncio.Event
    report: Callable[[float], None]

    async def wait_until(self, at_s: float) -> None:
        """Wait until a moment, or until the run is stopped."""
        while not self.stop.is_set() and (left_s := at_s - time.perf_counter()) > 0:
            self.report((time.perf_counter() - self.start_s) / (self.end_s - self.start_s))
            try:
                async with asyncio.timeout(min(left_s, REPORT_S)):
                    await self.stop.wait()
            except TimeoutError:
                pass
