"""How often a board is read and sent: at once after a quiet time, paced after that. No I/O.

The pace is that of a token bucket (GCRA): one board per interval, up to ``BURST`` of them saved up.
Two boards of a burst are at least ``interval / BURST`` apart, and at least ``gap_after`` the last
one was written to all connections. A process with many connections thus sends less often, and keeps
time for handshakes, pings and Redis.

Invariants: in any time T at most ``BURST + T / interval`` boards; the next one is never further
away than the larger of ``GAP_MAX_S`` and the interval.
"""

from math import inf
from typing import Final

BURST: Final = 5
LOAD_FACTOR: Final = 2.0
"""Half of the process's CPU time is left for everything but boards."""

GAP_MAX_S: Final = 2.0


def gap_after(took_s: float, used_s: float) -> float:
    """Return the least time from a board to the next one.

    Writing it to all connections took ``took_s``, of which ``used_s`` is CPU time: other processes
    that compete for the core must not slow the pace more than necessary.
    """
    return min(max(took_s, used_s * LOAD_FACTOR), GAP_MAX_S)


class Pace:
    """The pace of one board in one process; times are the loop's clock."""

    __slots__ = ("_full_at_s", "_interval_s", "_taken_at_s")

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._taken_at_s = -inf
        self._full_at_s = -inf
        """When the whole burst is available again."""

    def next_at_s(self, gap_s: float) -> float:
        """Return from when on the next board may be sent; ``gap_s`` is that of ``gap_after``."""
        interval_s = self._interval_s
        gap_s = max(interval_s / BURST, gap_s)
        return max(self._taken_at_s + gap_s, self._full_at_s - (BURST - 1) * interval_s)

    def take(self, now_s: float) -> None:
        """Count a board that is sent now."""
        self._taken_at_s = now_s
        self._full_at_s = max(self._full_at_s, now_s) + self._interval_s
