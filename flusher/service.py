"""Wires the flusher: clients, probe, one lane for each partition of each board; owns their tasks.

Start: Redis must be durable and PostgreSQL current; while either is away the flusher waits, and it
waits for boards that do not exist yet. Stop: lanes stop reading, commit and acknowledge what they
hold, and give up their leases, which standbys take over at once.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version

from flusher.consumer import Consumer, RedisClient
from flusher.lane import Lane
from flusher.probe import Probe
from flusher.session import require_ready
from scoreboard import archive
from scoreboard.credentials import keep_fresh
from scoreboard.errors import Unavailable, UnknownBoard
from scoreboard.lifecycle import Stop, backoff_s
from scoreboard.live import Live
from scoreboard.model import Board, Partition
from scoreboard.operator_port import OperatorPort, bind_operators
from scoreboard.postgres import Connection, connect
from scoreboard.redis_client import make_client, require_durability
from scoreboard.settings import Settings
from scoreboard.telemetry import BUILD_INFO, REDIS_DURABLE, get_logger

_log = get_logger(__name__)


class Flusher:
    """The service; ``serve`` runs it to its end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.lanes: list[Lane] = []
        """One for each partition of each board that was found."""

    async def serve(self, stop: Stop) -> None:
        """Flush every partition of every board until ``stop``.

        Raises UnsafeRedis, SchemaMismatch, UnsafeDatabase at the start.
        """
        BUILD_INFO.labels(version("scoreboard"), "flusher").set(1)
        async with AsyncExitStack() as stack:
            live = Live(await stack.enter_async_context(self._client("flusher")))
            await _patiently(self._require_redis, stop)
            await _patiently(self._require_database, stop)
            probe = Probe(self.lanes, live)
            operators = bind_operators(
                self._settings.metrics_host,
                self._settings.flusher_metrics_port,
                variables="SCOREBOARD_METRICS_HOST, SCOREBOARD_FLUSHER_METRICS_PORT",
            )
            await stack.enter_async_context(OperatorPort(operators, probe.health))
            async with asyncio.TaskGroup() as group:
                group.create_task(probe.observe(stop))
                group.create_task(keep_fresh(stop))
                for name in self._settings.boards:
                    group.create_task(self._flush_board(name, live, stop))
        _log.info("flusher_stopped")

    async def _flush_board(self, name: str, live: Live, stop: Stop) -> None:
        board = await self._find_board(name, stop)
        if board is None:
            return
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            for number in range(board.layout.partitions):
                # A client each: a blocking read occupies its connection.
                client = await stack.enter_async_context(
                    self._client("flusher-reader", decode=False, connections=2)
                )
                partition = Partition(name, number)
                consumer = Consumer(
                    client, live, partition, timeout_s=self._settings.redis_timeout_s
                )
                lane = Lane(partition, self._settings, consumer, live)
                self.lanes.append(lane)
                group.create_task(lane.run(stop))

    async def _find_board(self, name: str, stop: Stop) -> Board | None:
        """Wait for a board to be made; None when asked to stop before."""
        attempt = 0
        while not stop.is_set:
            try:
                async with self._connection() as connection:
                    return await archive.select_board(connection, name)
            except (UnknownBoard, Unavailable) as error:
                if attempt == 0:
                    _log.warning("board_awaited", board=name, reason=error.detail)
            await stop.sleep(backoff_s(attempt, most_s=2.0))
            attempt += 1
        return None

    async def _require_redis(self) -> None:
        async with self._client("flusher-check", connections=1) as client:
            found = await require_durability(client, self._settings)
        REDIS_DURABLE.set(found.is_safe)

    async def _require_database(self) -> None:
        async with self._connection() as connection:
            await require_ready(connection)

    @asynccontextmanager
    async def _client(
        self, name: str, *, decode: bool = True, connections: int = 4
    ) -> AsyncIterator[RedisClient]:
        client = make_client(self._settings, name=name, decode=decode, connections=connections)
        try:
            yield client
        finally:
            await client.aclose()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        connection = await connect(self._settings, name="flusher")
        try:
            yield connection
        finally:
            await connection.close()


async def _patiently(check: Callable[[], Awaitable[None]], stop: Stop) -> None:
    """Repeat a check until its server answers."""
    attempt = 0
    while not stop.is_set:
        try:
            await check()
        except Unavailable as error:
            if attempt == 0:
                _log.warning("server_awaited", code=error.code, reason=error.detail)
        else:
            return
        await stop.sleep(backoff_s(attempt))
        attempt += 1
