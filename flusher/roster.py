"""The partitions that this process serves, each in a task with its own client of Redis.

The partitions of the configured boards are served from the start to the end. Others are served from
when they get work until they have none: thousands of idle boards need neither tasks nor
connections. At most ``flush_partitions`` of them are served at once, because each needs a session
of PostgreSQL; the others wait in order, and those that are served are given back early.

Invariant: a partition that was woken is served, waits for its turn, or is remembered while it is
being given back.
"""

import asyncio
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Self

import redis.asyncio as aioredis

from flusher import metrics
from flusher.consumer import Consumer
from flusher.leases import Leases
from flusher.partition import PartitionFlusher
from flusher.spare_sessions import SpareSessions
from scoreboard.model import Partition
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.client import make_client
from scoreboard.store.store import Store

if TYPE_CHECKING:
    from scoreboard.runtime.otel import Tracing

_log = get_logger(__name__)


class Roster:
    """Starts and ends partition flushers. An async context manager: its end waits for them."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        stop: StopEvent,
        *,
        tracing: "Tracing | None" = None,
    ) -> None:
        """Partitions are served until ``stop``."""
        self._settings = settings
        self._store = store
        self._stop = stop
        self._tracing = tracing
        self._sessions = SpareSessions(settings)
        self._group = asyncio.TaskGroup()
        self._flushers: dict[Partition, PartitionFlusher] = {}
        self._turns: set[Partition] = set()
        """The partitions that are served and may be given back."""
        self._waiting: dict[Partition, None] = {}
        """Those that wait for a turn, or for their own end, in order."""
        self.leases = Leases(self._flushers)
        self.is_listening = False
        """Whether this process is told of partitions that get work."""

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._group.__aexit__(kind, error, trace)
        finally:
            await self._sessions.close_all()

    @property
    def flushers(self) -> list[PartitionFlusher]:
        """Return the flushers of the partitions that are served now."""
        return list(self._flushers.values())

    @property
    def waiting(self) -> int:
        """Return how many partitions wait."""
        return len(self._waiting)

    @property
    def is_contended(self) -> bool:
        """Return whether partitions with work wait for a turn."""
        return bool(self._waiting) and len(self._turns) >= self._settings.flush_partitions

    def serves(self, partition: Partition) -> bool:
        """Return whether a partition is served now."""
        return partition in self._flushers

    def keep(self, partition: Partition) -> None:
        """Serve a partition from now on until the end of the process.

        Does nothing while it is being given back: call it again.
        """
        flusher = self._flushers.get(partition)
        if flusher is None:
            self._waiting.pop(partition, None)
            self._begin(partition, is_kept=True)
        elif partition in self._turns and not flusher.is_leaving:
            flusher.keep()
            self._turns.discard(partition)
            self._fill()

    def wake(self, partition: Partition) -> None:
        """Serve a partition that has work, now or in its turn."""
        flusher = self._flushers.get(partition)
        if flusher is not None and not flusher.is_leaving:
            flusher.wake()
            return
        self._waiting[partition] = None
        self._fill()

    def _fill(self) -> None:
        """Start partitions that wait, while there are turns."""
        if not self._stop.is_set:
            free = max(0, self._settings.flush_partitions - len(self._turns))
            # One that is being given back is started when that has ended.
            ready = (one for one in self._waiting if one not in self._flushers)
            for partition in list(islice(ready, free)):
                del self._waiting[partition]
                self._begin(partition, is_kept=False)
        metrics.WAITING.set(len(self._waiting))

    def _begin(self, partition: Partition, *, is_kept: bool) -> None:
        # Each partition has its own client: a blocking read occupies the connection.
        client = make_client(self._settings, name="flusher-reader", decode=False, connections=2)
        timeout_s = self._settings.redis_timeout_s
        flusher = self._flushers[partition] = PartitionFlusher(
            partition,
            self._settings,
            Consumer(client, self._store, partition, timeout_s=timeout_s),
            self._store,
            self.leases,
            turns=None if is_kept else self,
            sessions=self._sessions,
            tracing=self._tracing,
        )
        if not is_kept:
            self._turns.add(partition)
        self._group.create_task(self._serve(flusher, client))

    async def _serve(self, flusher: PartitionFlusher, client: aioredis.Redis) -> None:
        async with client:
            await flusher.run(self._stop)
        if not flusher.is_leaving:
            return  # the process ends; the health check shows the partition as stopped
        partition = flusher.partition
        del self._flushers[partition]
        self._turns.discard(partition)
        metrics.forget_partition(partition)
        reason = "its turn is over" if flusher.has_work else "no work"
        _log.debug("partition_given_back", partition=str(partition), reason=reason)
        if flusher.has_work:
            self._waiting[partition] = None
        self._fill()
