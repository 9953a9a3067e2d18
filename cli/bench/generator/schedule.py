"""When requests are due, and which of them are measured. No I/O, and no clock of its own."""

from typing import Final

from msgspec import Struct

TICK_S: Final = 0.000_25
"""Shortest interval between two looks at the schedule: the error of a send time."""


_ROUNDING_S: Final = 1e-6


class Window(Struct, frozen=True):
    """The measured part of a run, by the clock of ``time.perf_counter``."""

    begin_s: float
    end_s: float

    def __contains__(self, at_s: object) -> bool:
        # The sums of a schedule are rounded, and a request at the edge must not be lost by that.
        at = at_s + _ROUNDING_S if isinstance(at_s, float) else -1.0
        return self.begin_s <= at < self.end_s


class Schedule:
    """The intended send times of an open loop: one every ``1 / rate`` seconds until the end.

    They do not depend on answers. A server that stalls therefore delays requests that are already
    due, and their latencies show it.
    """

    def __init__(self, rate: float, start_s: float, end_s: float) -> None:
        self._rate = rate
        self._start_s = start_s
        self._count = 0
        self._total = max(round((end_s - start_s) * rate), 0)

    @property
    def tick_s(self) -> float:
        """How often to look at the schedule."""
        return max(min(1 / self._rate, 0.01), TICK_S)

    @property
    def is_over(self) -> bool:
        """Return whether every request has become due."""
        return self._count >= self._total

    def due(self, now_s: float) -> list[float]:
        """Return the intended times of the requests that have become due since the last call."""
        count = min(int((now_s - self._start_s) * self._rate) + 1, self._total)
        times = [self._start_s + n / self._rate for n in range(self._count, count)]
        self._count = max(count, self._count)
        return times
