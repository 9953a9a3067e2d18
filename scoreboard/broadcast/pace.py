"""How often a board is read and sent: at once after a quiet time, paced after that. No I/O.

The pace is that of a token bucket (GCRA): one board per interval, up to ``BURST`` of them saved up.
Two boards of a burst are at least ``interval / BURST`` apart, and at least ``LOAD_FACTOR`` times as
long as the last board took to be written to all connections. A process with many connections thus
sends less often, and keeps time for handshakes, pings and Redis.

Invariants: in any time T at most ``BURST + T / interval`` boards; the next one is never further
away than the larger of ``GAP_MAX_S`` and the interval.
"""

from math import inf
from typing import Final

BURST: Final = 5
LOAD_FACTOR: Final = 2.0
"""Half of the process's time is left for everything but boards."""

GAP_MAX_S: Final = 2.0


class Pace:
    """The pace of one board in one process; times are the loop's clock."""

    __slots__ = ("_full_at_s", "_interval_s", "_taken_at_s")

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._taken_at_s = -inf
        self._full_at_s = -inf
        """When the whole burst is available again."""

    def next_at_s(self, fan_out_s: float) -> float:
        """Return from when on the next board may be sent.

        ``fan_out_s`` is how long the last one took to be written to all connections.
        """
        interval_s = self._interval_s
        gap_s = max(interval_s / BURST, min(fan_out_s * LOAD_FACTOR, GAP_MAX_S))
        return max(self._taken_at_s + gap_s, self._full_at_s - (BURST - 1) * interval_s)

    def take(self, now_s: float) -> None:
        """Count a board that is sent now."""
        self._taken_at_s = now_s
        self._full_at_s = max(self._full_at_s, now_s) + self._interval_s
