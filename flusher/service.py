"""The flusher service: creates clients, the probe, the verification, the search and the roster.

Start: Redis must be durable and the schema of PostgreSQL current; the flusher waits while either is
unreachable. It then serves the partitions of the configured boards, also of those that are made
later, and those of all other boards while they have work (flusher.search finds them, flusher.roster
serves them). Stop: each partition's task stops reading, commits and acknowledges its batch, and
releases its lease, which a standby then takes.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from flusher.partition import PartitionFlusher
from flusher.probe import Probe
from flusher.roster import Roster
from flusher.search import Search
from flusher.seasons import Seasons
from flusher.session import require_ready
from flusher.verification import Verification
from scoreboard.errors import Unavailable
from scoreboard.http.operator_port import OperatorPort, bind_operators
from scoreboard.ledger.pool import Connection, connect
from scoreboard.ledger.sessions import require_session
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

_log = get_logger(__name__)


class Flusher:
    """The service; ``serve`` runs it until it is stopped."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tracing = make_tracing(settings, "flusher")
        self._roster: Roster | None = None

    @property
    def partitions(self) -> list[PartitionFlusher]:
        """Return the flushers of the partitions that are served now."""
        return [] if self._roster is None else self._roster.flushers

    async def serve(self, stop: StopEvent) -> None:
        """Flush every partition that has work until ``stop``.

        Raises UnsafeRedis, SchemaMismatch, UnsafeDatabase at the start.
        """
        await require_secrets(self._settings, "redis", "database")
        async with AsyncExitStack() as stack:
            if self._tracing is not None:
                await stack.enter_async_context(self._tracing.running())
            client = make_client(self._settings, name="flusher", connections=4)
            store = Store(await stack.enter_async_context(client))
            roster = self._roster = Roster(self._settings, store, stop, tracing=self._tracing)
            search = Search(self._settings, roster, store)
            verification = Verification(self._settings, lambda: roster.flushers)
            probe = Probe(
                roster,
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
            async with roster, asyncio.TaskGroup() as group:
                group.create_task(probe.observe(stop))
                group.create_task(verification.run(stop))
                group.create_task(refresh_secrets(stop))
                group.create_task(search.run(stop))
                group.create_task(Seasons(self._settings, store).run(stop))
        _log.info("flusher_stopped")

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
