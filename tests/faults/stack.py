"""The system for fault tests: real servers, the services as processes, and proxies between them.

Services reach Redis and PostgreSQL through proxies, so that connections can be cut, frozen and
delayed; every process can be killed, stopped and started again. With ``source`` the services run
from a changed copy of the code, for the mutations.
"""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import psycopg
import redis.asyncio as aioredis

from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedPostgres, EmbeddedValkey
from cli.running.service import Service
from scoreboard.errors import OperatorMistake, WaitTimeout
from scoreboard.ledger import migrations
from scoreboard.ledger import pool as postgres
from scoreboard.ledger.boards import insert_board
from scoreboard.model import Board, Layout, Partition
from scoreboard.recovery.reseed import SESSION, find_unavailable, reseed
from scoreboard.recovery.reshard import reshard
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.security.tokens import LOCAL_ISSUER, READ, UPDATE_ANY, LocalIssuer
from scoreboard.store.client import make_client
from scoreboard.store.store import Store
from tests.faults.clients import Load
from tests.support.eventually import eventually_async
from tests.support.fakes.proxy import Proxy
from tests.support.servers.forked_service import ForkedService
from tests.support.servers.postgres_template import copy_postgres

LAYOUT = Layout(partitions=1, seen_seconds=3600, seen_shards=16)
SERVICES = ("flusher", "api", "streamer")
RESEED_S = 60.0
STREAM_CAP = 200_000


class Stack:
    """The servers, services and proxies. ``started`` starts and stops them."""

    def __init__(
        self,
        folder: Path,
        *,
        boards: Sequence[Board],
        source: Path | None = None,
        valkey: EmbeddedValkey | None = None,
    ) -> None:
        """``valkey`` replaces the default server, for other settings or another environment."""
        self.valkey = valkey or EmbeddedValkey(folder / "valkey")
        self.postgres = EmbeddedPostgres(
            copy_postgres(folder / "postgres"),
            settings={"max_connections": "60", "deadlock_timeout": "200ms"},
        )
        self.redis_proxy = Proxy(self.valkey.port)
        self.database_proxy = Proxy(self.postgres.port)
        self.issuer = LocalIssuer.create(folder / "issuer")
        self.token = self.issuer.issue("game-server", [UPDATE_ANY, READ], 86_400)
        self.api_port, self.ws_port, self.flusher_port = (
            find_free_port(),
            find_free_port(),
            find_free_port(),
        )
        self.services: dict[str, Service] = {}
        self.load: Load
        self.rewound_epochs: set[int] = set()
        self.boards = boards
        self._folder = folder
        self._source = source

    @property
    def settings(self) -> Settings:
        """Return settings that bypass the proxies, for checks and operators."""
        return Settings(redis_url=Secret(self.redis_url), database_url=Secret(self.postgres.url))

    @property
    def redis_url(self) -> str:
        """Return the address of Redis, without proxies."""
        return self.valkey.url

    @property
    def redis_variables(self) -> dict[str, str]:
        """Return the variables by which services know Redis."""
        return {
            "REDIS_URL": self.redis_proxy.through(self.valkey.url),
            # Required by the test of a Redis whose settings can lose data.
            "SCOREBOARD_UNSAFE_REDIS": "true",
        }

    @property
    def partitions(self) -> list[Partition]:
        """Return the partitions of all boards."""
        return [
            Partition(board.name, number)
            for board in self.boards
            for number in range(board.layout.partitions)
        ]

    @property
    def append_only_file(self) -> Path:
        """Return the current append-only file of Redis."""
        # appendonly.aof.<number>.incr.aof; a killed rewrite leaves the previous one.
        files = self.valkey.folder.path.rglob("*.incr.aof")
        return max(files, key=lambda file: int(file.name.split(".")[-3]))

    def copy_redis_files(self) -> Path:
        """Copy the files of Redis, while nothing is written; return the copy."""
        copy = self._folder / "older"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.append_only_file.parent, copy)
        return copy

    def restore_redis_files(self, copy: Path) -> None:
        """Replace the files of a stopped Redis by a copy."""
        place = self.append_only_file.parent
        shutil.rmtree(place)
        shutil.copytree(copy, place)

    @asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        """Open a store with its own connection."""
        client = make_client(self.settings, name="faults")
        try:
            yield Store(client)
        finally:
            await client.aclose()

    @asynccontextmanager
    async def redis(self) -> AsyncIterator["aioredis.Redis"]:
        """Open a plain client, for faults."""
        client = make_client(self.settings, name="faults", decode=False)
        try:
            yield client
        finally:
            await client.aclose()

    @asynccontextmanager
    async def servers(self) -> AsyncIterator[list["aioredis.Redis"]]:
        """Open a plain client of each server that has keys."""
        async with self.redis() as client:
            yield [client]

    @contextmanager
    def sql(self) -> Iterator[psycopg.Connection]:
        """Open a plain connection to the database."""
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            yield connection

    async def prepare(self) -> None:
        """Start the servers and open the board."""
        await self.start_redis()
        await asyncio.to_thread(self.postgres.start)
        await asyncio.to_thread(migrations.migrate, self.postgres.url)
        connection = await postgres.connect(self.settings, name="faults")
        async with connection:
            for board in self.boards:
                await insert_board(connection, board)
        for board in self.boards:
            await self.reseed(board)
        for name in SERVICES:
            self.services[name] = self._service(name)

    async def start_redis(self) -> None:
        """Start the servers of Redis."""
        await asyncio.to_thread(self.valkey.start)

    async def stop_redis(self) -> None:
        """Stop the servers of Redis."""
        await asyncio.to_thread(self.valkey.stop)

    async def reseed(self, board: Board) -> None:
        """Rebuild a board from PostgreSQL; try again while another operator works on it."""
        async with asyncio.timeout(RESEED_S):
            while True:
                try:
                    return await self._reseed(board)
                except OperatorMistake as error:
                    if "Another operator" not in error.detail:
                        raise
                await asyncio.sleep(0.1)

    async def reshard(self, board: Board, partitions: int) -> None:
        """Change the number of partitions; try again while another operator works on the board."""
        async with asyncio.timeout(RESEED_S):
            while True:
                connection = await postgres.connect(self.settings, name="faults", **SESSION)
                try:
                    async with self.store() as store, connection:
                        await reshard(store, connection, board.name, partitions, actor="faults")
                        return
                except (OperatorMistake, WaitTimeout) as error:
                    if "Another operator" not in error.detail and "goes on" not in error.detail:
                        raise
                await asyncio.sleep(0.1)

    async def _reseed(self, board: Board) -> None:
        connection = await postgres.connect(self.settings, name="faults", **SESSION)
        async with self.store() as store, connection:
            closed = await find_unavailable(store, board)
            numbers = closed or list(range(board.layout.partitions))
            await reseed(store, connection, board, numbers, actor="faults")

    async def start(self, *names: str) -> None:
        """Start services and wait until they answer; all of them by default."""
        for name in names or SERVICES:
            await asyncio.to_thread(self.services[name].start)
        for name in names or SERVICES:
            service = self.services[name]
            await eventually_async(partial(asyncio.to_thread, _is_ready, service))

    async def stop(self) -> None:
        """Stop everything, services first."""
        for service in reversed(list(self.services.values())):
            if service.pid is not None:
                os.kill(service.pid, signal.SIGCONT)
            await asyncio.to_thread(service.stop)
        await self.stop_redis()
        await asyncio.to_thread(self.postgres.stop)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a service or server."""
        servers = {"valkey": self.valkey, "postgres": self.postgres}
        pid = servers[name].pid if name in servers else self.services[name].pid
        if pid is not None:
            os.kill(pid, number)

    def _service(self, name: str) -> Service:
        environment = {
            **{key: value for key, value in os.environ.items() if "SCOREBOARD" not in key},
            **self.redis_variables,
            "DATABASE_URL": self.database_proxy.through(self.postgres.url),
            "SCOREBOARD_JWKS_FILE": str(self.issuer.jwks_file),
            "SCOREBOARD_UNKNOWN_KINDS": "default",
            "SCOREBOARD_ISSUER": LOCAL_ISSUER,
            "SCOREBOARD_RATE_LIMIT": "gateway",
            "SCOREBOARD_API_PORT": str(self.api_port),
            "SCOREBOARD_API_METRICS_PORT": "0",
            "SCOREBOARD_WS_PORT": str(self.ws_port),
            "SCOREBOARD_WS_METRICS_PORT": str(find_free_port()),
            "SCOREBOARD_FLUSHER_METRICS_PORT": str(self.flusher_port),
            "SCOREBOARD_STREAM_CAP": str(STREAM_CAP),
            "SCOREBOARD_REDIS_TIMEOUT_S": "1",
            "SCOREBOARD_DRAIN_S": "5",
        }
        ready = {
            "api": f"http://127.0.0.1:{self.api_port}/health/ready",
            "streamer": f"http://127.0.0.1:{environment['SCOREBOARD_WS_METRICS_PORT']}/health/ready",
            "flusher": f"http://127.0.0.1:{self.flusher_port}/health/ready",
        }
        log = self._folder / "logs" / f"{name}.log"
        if self._source is None:
            return ForkedService(name, ["-m", name], environment, log, ready_url=ready[name])
        environment["PYTHONPATH"] = str(self._source)
        arguments = ["-P", "-m", name]  # without the working directory in sys.path
        return Service(name, arguments, environment, log, ready_url=ready[name])


def _is_ready(service: Service) -> bool:
    # Runs in a thread, because the proxies run on the loop.
    service.check()
    return not service.probe_ready()


@asynccontextmanager
async def started(stack: Stack) -> AsyncIterator[None]:
    """Start the servers, boards and services of a stack; always stop them."""
    async with stack.redis_proxy, stack.database_proxy:
        try:
            await stack.prepare()
            await stack.start()
            yield
        finally:
            await stack.stop()
