"""The flusher service: creates clients, the probe, the verification and one task per partition.

Start: Redis must be durable and the schema of PostgreSQL current; the flusher waits while either is
unreachable, and for boards that do not exist yet. It then searches periodically for partitions to
flush: those of the boards in the settings, those that a board no longer has and that are not
retired, and those of other boards whose streams hold entries. Stop: each task stops reading,
commits and acknowledges its batch, and releases its lease, which a standby then takes.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

from flusher import metrics
from flusher.consumer import Consumer
from flusher.leases import Leases
from flusher.partition import PartitionFlusher
from flusher.probe import Probe
from flusher.session import require_ready
from flusher.verification import Verification
from scoreboard.errors import (
    DatabaseUnavailable,
    ScoreboardError,
    Unavailable,
    UnexpectedReply,
)
from scoreboard.http.operator_port import OperatorPort, bind_operators
from scoreboard.ledger.boards import select_boards
from scoreboard.ledger.dead_letters import count_dead_letters
from scoreboard.ledger.pool import POSTGRES_UP, Connection, connect
from scoreboard.ledger.positions import select_partitions
from scoreboard.ledger.sessions import require_session
from scoreboard.model import Board, Partition
from scoreboard.runtime.audit import audit_start
from scoreboard.runtime.lifecycle import StopEvent, backoff_s
from scoreboard.runtime.service_manager import READY, notify
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger
from scoreboard.runtime.tracing import make_tracing
from scoreboard.security.credentials import refresh_secrets, require_secrets
from scoreboard.store.client import make_client
from scoreboard.store.durability import require_durability
from scoreboard.store.durability_metrics import measure_durability
from scoreboard.store.store import Store

SEARCH_EVERY_S: Final = 2.0
"""Interval of searches for new partitions: the longest delay for a new board."""

SEARCH_LIMIT_S: Final = 10.0
"""Longest search; after it the connection is replaced."""

_log = get_logger(__name__)


class Flusher:
    """The service; ``serve`` runs it until it is stopped."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tracing = make_tracing(settings, "flusher")
        self.partitions: list[PartitionFlusher] = []
        """One for each partition found so far."""
        self._leases = Leases(self.partitions)
        self._missing_boards: set[str] = set()
        self._unreadable: set[Partition] = set()

    async def serve(self, stop: StopEvent) -> None:
        """Flush every partition of every board until ``stop``.

        Raises UnsafeRedis, SchemaMismatch, UnsafeDatabase at the start.
        """
        await require_secrets(self._settings, "redis", "database")
        async with AsyncExitStack() as stack:
            if self._tracing is not None:
                await stack.enter_async_context(self._tracing.running())
            client = make_client(self._settings, name="flusher", connections=4)
            store = Store(await stack.enter_async_context(client))
            verification = Verification(self._settings, self.partitions)
            probe = Probe(
                self.partitions,
                self._leases,
                store,
                verification.checks,
                partial(measure_durability, client, self._settings),
            )
            operators = bind_operators(
                self._settings.metrics_host,
                self._settings.flusher_metrics_port,
                variables="SCOREBOARD_METRICS_HOST, SCOREBOARD_FLUSHER_METRICS_PORT",
            )
            # Before the waits: the process is alive, and not ready, while a server is unreachable.
            await stack.enter_async_context(OperatorPort(operators, probe.health))
            await _wait_until_ready(self._require_redis, stop)
            await _wait_until_ready(self._require_database, stop)
            audit_start(self._settings)
            notify(READY)
            async with asyncio.TaskGroup() as group:
                group.create_task(probe.observe(stop))
                group.create_task(verification.run(stop))
                group.create_task(refresh_secrets(stop))
                group.create_task(self._search(group, stack, store, stop))
        _log.info("flusher_stopped")

    async def _search(
        self, group: asyncio.TaskGroup, clients: AsyncExitStack, store: Store, stop: StopEvent
    ) -> None:
        """Start a task for every partition without one, until ``stop``."""
        attempt = 0
        while not stop.is_set:
            try:
                async with self._connection() as connection:
                    while not stop.is_set and not connection.is_login_outdated:
                        async with asyncio.timeout(SEARCH_LIMIT_S):
                            found = await self._find(connection, store)
                            await _count_dead_letters(connection)
                        POSTGRES_UP.set(1)
                        for partition in found:
                            flusher = self._add_partition(clients, store, partition)
                            group.create_task(flusher.run(stop))
                        attempt = 0
                        await stop.sleep(SEARCH_EVERY_S)
            except (ScoreboardError, TimeoutError) as error:
                if isinstance(error, DatabaseUnavailable | TimeoutError):
                    POSTGRES_UP.set(0)
                if attempt == 0:
                    reason = error.detail if isinstance(error, ScoreboardError) else "no answer"
                    _log.warning("partition_search_failed", reason=reason)
            await stop.sleep(backoff_s(attempt, most_s=SEARCH_EVERY_S))
            attempt += 1

    async def _find(self, connection: Connection, store: Store) -> list[Partition]:
        """List the partitions that need a task and have none."""
        boards = await select_boards(connection)
        missing = set(self._settings.boards) - {board.name for board in boards}
        for name in sorted(missing - self._missing_boards):
            _log.warning("board_missing", board=name)
        self._missing_boards = missing
        return [
            partition
            for board in boards
            for partition in await self._unserved(connection, store, board)
        ]

    async def _unserved(
        self, connection: Connection, store: Store, board: Board
    ) -> list[Partition]:
        served = {flusher.partition for flusher in self.partitions}
        numbers = range(board.layout.partitions)
        is_ours = board.name in self._settings.boards
        found: list[Partition] = []
        for number in {*numbers, *await select_partitions(connection, board.name)}:
            partition = Partition(board.name, number)
            if partition in served:
                continue
            is_regular = is_ours and number in numbers
            if is_regular or await self._is_left_over(store, partition, is_ours=is_ours):
                found.append(partition)
        return sorted(found, key=lambda partition: partition.number)

    async def _is_left_over(self, store: Store, partition: Partition, *, is_ours: bool) -> bool:
        """Return whether a partition outside of the configured boards still needs flushing; log it.

        A partition whose keys cannot be parsed does not affect others.
        """
        try:
            if is_ours:
                is_used = bool((await store.state(partition)).epoch)
            else:
                is_used = bool((await store.backlog(partition)).entries)
        except UnexpectedReply as error:
            if partition not in self._unreadable:
                self._unreadable.add(partition)
                _log.error("partition_unreadable", partition=str(partition), reason=error.detail)
            return False
        self._unreadable.discard(partition)
        if is_used and is_ours:
            _log.warning("partition_not_retired", partition=str(partition))
        elif is_used:
            _log.warning("board_not_in_settings", partition=str(partition))
        return is_used

    def _add_partition(
        self, clients: AsyncExitStack, store: Store, partition: Partition
    ) -> PartitionFlusher:
        # Each partition has its own client: a blocking read occupies the connection.
        client = make_client(self._settings, name="flusher-reader", decode=False, connections=2)
        clients.push_async_callback(client.aclose)
        consumer = Consumer(client, store, partition, timeout_s=self._settings.redis_timeout_s)
        flusher = PartitionFlusher(
            partition, self._settings, consumer, store, self._leases, tracing=self._tracing
        )
        self.partitions.append(flusher)
        return flusher

    async def _require_redis(self) -> None:
        async with make_client(self._settings, name="flusher-check", connections=1) as client:
            await require_durability(client, self._settings)

    async def _require_database(self) -> None:
        async with self._connection() as connection:
            await require_session(self._settings, connection)
            await require_ready(connection)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        connection = await connect(self._settings, name="flusher")
        try:
            yield connection
        finally:
            await connection.close()


async def _count_dead_letters(connection: Connection) -> None:
    for board, count in (await count_dead_letters(connection)).items():
        metrics.OPEN_DEAD_LETTERS[board].set(count)


async def _wait_until_ready(check: Callable[[], Awaitable[None]], stop: StopEvent) -> None:
    """Repeat a check until its server is available."""
    attempt = 0
    while not stop.is_set:
        try:
            await check()
        except Unavailable as error:
            if attempt == 0:
                _log.warning("dependency_unavailable", code=error.code, reason=error.detail)
        else:
            return
        await stop.sleep(backoff_s(attempt))
        attempt += 1
