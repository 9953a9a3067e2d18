"""The leases of one process: how many partitions it leads, and when it leaves one to another.

Each flusher waits for the lease of every partition, so the first one would keep all of them. A
process that leads more than its share yields one lease at a time, to the flusher that has waited
longest. A process without a primary of Redis neither waits for a lease nor keeps one that another
process waits for. One that cannot reach the primary of a partition does not keep its lease either.
No I/O.
"""

import time
from collections.abc import Callable, Sized
from typing import Final

from scoreboard.model import Partition

YIELD_EVERY_S: Final = 2.0
"""Time between two leases that a process yields, so that their new leaders are counted."""


class Leases:
    """The partitions that this process leads, of those that it flushes or waits for."""

    def __init__(self, partitions: Sized, clock: Callable[[], float] = time.monotonic) -> None:
        """``partitions`` are those that this process flushes or waits for; it may grow."""
        self.is_redis_up = True
        """Whether a primary of Redis answers this process."""
        self._partitions = partitions
        self._clock = clock
        self._led: set[Partition] = set()
        self._yielded_at_s = float("-inf")

    def take(self, partition: Partition) -> None:
        """Count a partition that this process leads from now on."""
        self._led.add(partition)

    def leave(self, partition: Partition) -> None:
        """Stop counting a partition whose lease was released."""
        self._led.discard(partition)

    def must_yield(
        self, partition: Partition, flushers: int, *, is_unreachable: bool = False
    ) -> bool:
        """Return whether to yield the lease of a partition that has this many flushers.

        ``is_unreachable`` says that its primary does not answer this process, though others may.
        The partition then no longer counts, also while its last batch is committed.
        """
        if is_unreachable or not self.is_redis_up:
            return flushers > 1
        share = -(-len(self._partitions) // max(flushers, 1))
        is_due = self._clock() - self._yielded_at_s >= YIELD_EVERY_S
        if len(self._led) <= share or not is_due:
            return False
        self._yielded_at_s = self._clock()
        self._led.discard(partition)
        return True
