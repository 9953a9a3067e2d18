"""A system of two versions under load, in which processes are replaced one at a time.

Every process has the deployed rights: its own login to Valkey and to PostgreSQL. Updates, viewers
and event streams reach the api and the streamer through load balancers; besides, each process has a
viewer of its own, so that both versions are watched while they run side by side.
"""

import asyncio
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psycopg
import redis.asyncio as aioredis
from redis import Redis

from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedPostgres
from cli.running.service import Service
from flusher.session import LEASE_LOCK
from scoreboard.ledger.boards import insert_board
from scoreboard.ledger.pool import connect
from scoreboard.model import DEFAULT_RULES, Board, Partition
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.security.tokens import LOCAL_ISSUER, READ, UPDATE_ANY, LocalIssuer
from scoreboard.store.keys import PartitionKeys
from tests.faults.clients import Load
from tests.support.eventually import eventually_async
from tests.support.servers.postgres_template import copy_postgres
from tests.support.servers.rights import acl_lines, as_user, make_roles
from tests.support.servers.system import make_valkey_with_acl_file
from tests.upgrade.balancer import Balancer
from tests.upgrade.versions import Version
from tests.upgrade.watchers import EventWatcher, Page, RollingClient, Watcher

ORDER = ("flusher", "streamer", "api")
"""The order of docs/how-to/upgrade.md."""

COMMANDS = (
    ("status", "--interval", "0.1"),
    ("config", "check"),
    ("verify",),
    ("repair", "--dry-run"),
    ("board", "list"),
    ("board", "top"),
    ("user", "set", "player-1", "--name", "One"),
    ("user", "show", "player-1"),
    ("action", "set", "quest", "7"),
    ("action", "list"),
    ("reseed", "--force", "--yes"),
    ("dead", "list"),
    ("backup", "record", "nowhere", "--check", "restored"),
    ("backup", "list"),
    ("db", "status"),
    ("audit", "list"),
    ("audit", "verify"),
)
"""Commands that a version runs while the services are of both versions."""

UNREACHABLE = 69
"""The exit code of a command that may be repeated: a server did not answer in time."""
UNREACHABLE_MAX = 3

PASSWORD = "deployed"
KEYS = PartitionKeys(Partition("main"))
SHOWN_WITHIN_S = 10.0
"""Longest wait for a board: two seconds by I8, and more on a busy machine."""


@dataclass
class Step:
    """What happened in one step of an upgrade."""

    name: str
    seconds: float
    acknowledged: int
    repeats: Counter[str]


@dataclass
class Process:
    """A process of a service, with a viewer of its own if it has viewers."""

    role: str
    version: Version
    service: Service
    port: int
    health: int
    watcher: Watcher | None = None
    watching: "asyncio.Task[None] | None" = None


@dataclass
class Report:
    """The result of a drill."""

    steps: list[Step] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    acknowledged: int = 0
    slowest_update_s: float = 0.0
    reconnects: Counter[str] = field(default_factory=Counter)
    longest_gap_s: dict[str, float] = field(default_factory=dict)

    @property
    def repeats(self) -> Counter[str]:
        """Answers after which clients repeated an action, by status."""
        return sum((step.repeats for step in self.steps), Counter())

    def __str__(self) -> str:
        lines = [
            f"{step.name:36} {step.seconds:6.1f} s  {step.acknowledged:6} actions  "
            f"repeated after {dict(step.repeats) or 'none'}"
            for step in self.steps
        ]
        lines += [
            f"actions acknowledged  {self.acknowledged}, each counted once"
            if not self.violations
            else f"actions acknowledged  {self.acknowledged}",
            f"slowest update        {self.slowest_update_s:.2f} s",
            f"reconnects            {dict(self.reconnects)}",
            "longest gap of viewers "
            + ", ".join(f"{kind} {gap:.2f} s" for kind, gap in self.longest_gap_s.items()),
            *(f"VIOLATED {sentence}" for sentence in self.violations),
        ]
        return "\n".join(lines)


class Rollout:
    """The servers, the processes of both versions, and the clients. Made by ``rolling``."""

    def __init__(self, folder: Path, *, fsync: bool) -> None:
        self.folder = folder
        self.valkey = make_valkey_with_acl_file(folder)
        self.postgres = EmbeddedPostgres(copy_postgres(folder / "postgres"), fsync=fsync)
        self.issuer = LocalIssuer.create(folder / "issuer")
        self.balancers = {"api": Balancer(), "streamer": Balancer()}
        self.processes: dict[str, list[Process]] = {role: [] for role in ORDER}
        self.report = Report()
        self.rewound_epochs: set[int] = set()
        self.load: Load
        self.watchers: list[Watcher] = []
        self.page: Page
        self._numbers = itertools.count(1)
        self._tasks: asyncio.TaskGroup

    # Servers and rights ------------------------------------------------------------------------

    def url_of(self, server: str, name: str) -> str:
        """Return the address of a server with the login of a service or the operator."""
        if server == "redis":
            return as_user(self.valkey.url, name, PASSWORD)
        return as_user(self.postgres.url, f"scoreboard_{name}_a", PASSWORD)

    @property
    def operator(self) -> dict[str, str]:
        """The environment of the operator's commands: all processes, whatever their version."""
        running = itertools.chain.from_iterable(self.processes.values())
        services = [f"{one.role}=http://127.0.0.1:{one.health}" for one in running]
        return {
            "REDIS_URL": self.url_of("redis", "operator"),
            "DATABASE_URL": self.url_of("postgres", "operator"),
            "SCOREBOARD_JWKS_FILE": str(self.issuer.jwks_file),
            "SCOREBOARD_ISSUER": LOCAL_ISSUER,
            "SCOREBOARD_SERVICES": ",".join(services),
        }

    async def operate(
        self, *versions: Version, commands: Sequence[Sequence[str]] = COMMANDS
    ) -> None:
        """Run commands of each version, all of which must succeed."""
        for version in versions:
            for command in commands:
                for _ in range(UNREACHABLE_MAX):
                    done = await asyncio.to_thread(version.run, *command, **self.operator)
                    if done.returncode != UNREACHABLE:
                        break
                if done.returncode and not _is_expected(command, done.stdout):
                    self.report.violations.append(
                        f"{' '.join(command)} of {version.name}: {done.returncode} "
                        f"{done.stdout} {done.stderr}"
                    )

    @asynccontextmanager
    async def redis(self) -> AsyncIterator["aioredis.Redis"]:
        """Open a plain client with all rights."""
        async with aioredis.Redis.from_url(self.valkey.url) as client:
            yield client

    @asynccontextmanager
    async def servers(self) -> AsyncIterator[list["aioredis.Redis"]]:
        """Open a plain client of each server that has keys."""
        async with self.redis() as client:
            yield [client]

    @contextmanager
    def sql(self) -> Iterator[psycopg.Connection]:
        """Open a plain connection with all rights."""
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            yield connection

    def set_rights(self, version: Version) -> None:
        """Load the users of a version, and create the roles that are missing."""
        file = Path(self.valkey.settings["aclfile"])
        own = [line for line in file.read_text().splitlines() if line.startswith("user default ")]
        file.write_text("\n".join([*own, *acl_lines(PASSWORD, docker=version.docker)]) + "\n")
        with Redis.from_url(self.valkey.url) as admin:
            admin.acl_load()
        make_roles(self.postgres.url, PASSWORD, docker=version.docker)

    def migrate(self, version: Version) -> None:
        """Run `scoreboard db migrate` of a version, as the owner of the database."""
        done = version.run("db", "migrate", DATABASE_URL=self.postgres.url)
        assert done.returncode == 0, done.stderr

    async def prepare(self, version: Version, board: Board | None) -> None:
        """Start the servers, create an open board, and start one process of each service.

        Without ``board`` the version creates one of its own, with its defaults.
        """
        await asyncio.gather(
            asyncio.to_thread(self.valkey.start), asyncio.to_thread(self.postgres.start)
        )
        await asyncio.to_thread(self.set_rights, version)
        await asyncio.to_thread(self.migrate, version)
        if board is not None:  # the command refuses seasons of some seconds
            database = Secret(self.postgres.url)
            settings = Settings(redis_url=Secret(self.valkey.url), database_url=database)
            async with await connect(settings, name="test") as connection:
                await insert_board(connection, board)
        create = ("board", "create", "main")
        for arguments in (*([] if board else [create]), ("reseed", "--if-uninitialised")):
            done = await asyncio.to_thread(version.run, *arguments, **self.operator)
            assert done.returncode == 0, done.stderr
        await asyncio.gather(*(self.start(role, version) for role in ORDER))

    # Processes ---------------------------------------------------------------------------------

    def environment(self, role: str, version: Version, port: int, health: int) -> dict[str, str]:
        """Return the environment of a process."""
        database = "" if role == "streamer" else self.url_of("postgres", role)
        return {
            **version.environment,
            "REDIS_URL": self.url_of("redis", role),
            "DATABASE_URL": database,
            "SCOREBOARD_JWKS_FILE": str(self.issuer.jwks_file),
            "SCOREBOARD_ISSUER": LOCAL_ISSUER,
            "SCOREBOARD_UNKNOWN_KINDS": "default",
            "SCOREBOARD_RATE_LIMIT": "gateway",
            "SCOREBOARD_API_PORT": str(port),
            "SCOREBOARD_API_METRICS_PORT": str(health if role == "api" else 0),
            "SCOREBOARD_WS_PORT": str(port),
            "SCOREBOARD_WS_METRICS_PORT": str(health if role == "streamer" else 0),
            "SCOREBOARD_FLUSHER_METRICS_PORT": str(health if role == "flusher" else 0),
            "SCOREBOARD_DRAIN_S": "5",
        }

    def process(self, role: str, version: Version) -> Process:
        """Return a process that is not yet started."""
        port, health = find_free_port(), find_free_port()
        probed = port if role == "api" else health
        service = Service(
            f"{role} ({version.name})",
            ["-P", "-m", role],
            self.environment(role, version, port, health),
            self.folder / "logs" / f"{role}-{version.name}-{next(self._numbers)}.log",
            ready_url=f"http://127.0.0.1:{probed}/health/ready",
        )
        return Process(role, version, service, port, health)

    async def start(self, role: str, version: Version) -> Process:
        """Start a process beside those that run, and send it its share of the clients."""
        process = self.process(role, version)
        self.processes[role].append(process)
        await asyncio.to_thread(process.service.start)
        await self._until_ready(process)
        if role in self.balancers:
            self.balancers[role].targets.append(process.port)
            make = Watcher if role == "streamer" else EventWatcher
            process.watcher = make(process.port, f"own {role}")
            process.watching = self._tasks.create_task(process.watcher.run())
        return process

    async def _until_ready(self, process: Process) -> None:
        def is_ready() -> bool:
            process.service.check()
            return not process.service.probe_ready()

        await eventually_async(partial(asyncio.to_thread, is_ready), within_s=60)

    async def end(self, process: Process) -> None:
        """Take a process out of its load balancer and stop it: SIGTERM, and wait."""
        if process.role in self.balancers:
            self.balancers[process.role].targets.remove(process.port)
        assert await asyncio.to_thread(process.service.stop), f"{process.service.name} was killed"
        self.processes[process.role].remove(process)
        if process.watcher is not None and process.watching is not None:
            process.watching.cancel()
            self.report.violations += process.watcher.violations

    async def crash(self, role: str, *, actions: int) -> None:
        """Kill a process and start it again, as a supervisor does."""
        process = self.processes[role][0]
        assert process.service.pid is not None
        async with self.step(f"{role}: {process.version.name} killed, started"):
            os.kill(process.service.pid, signal.SIGKILL)
            await eventually_async(lambda: not process.service.is_running)
            await asyncio.to_thread(process.service.start)
            await self._until_ready(process)
            await self.run_on(actions)

    # Steps -------------------------------------------------------------------------------------

    @property
    def clients(self) -> list[RollingClient]:
        """The clients that send updates."""
        return [client for client in self.load._clients if isinstance(client, RollingClient)]

    def _repeats(self) -> Counter[str]:
        return sum((client.repeats for client in self.clients), Counter())

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[None]:
        """Measure a step."""
        began_s, before = time.monotonic(), self.load.history.acknowledged
        repeats = self._repeats()
        yield
        self.report.steps.append(
            Step(
                name,
                time.monotonic() - began_s,
                self.load.history.acknowledged - before,
                self._repeats() - repeats,
            )
        )

    async def run_on(self, actions: int) -> None:
        """Let the clients count more actions; every viewer must then have a newer board."""
        target = self.load.history.acknowledged + actions
        await eventually_async(partial(asyncio.to_thread, self._has_one_leader))

        def is_reached() -> bool:
            self.load.check()
            for process in itertools.chain.from_iterable(self.processes.values()):
                process.service.check()
            return self.load.history.acknowledged >= target

        await eventually_async(is_reached, within_s=60)
        async with self.redis() as client:
            epoch, seq = (int(one or 0) for one in await client.hmget(KEYS.meta, "epoch", "seq"))
        own = [
            process.watcher
            for process in itertools.chain.from_iterable(self.processes.values())
            if process.watcher is not None
        ]
        for watcher in [*self.watchers, *own]:
            await eventually_async(
                lambda watcher=watcher: watcher.position >= (epoch, seq), within_s=SHOWN_WITHIN_S
            )

    def _has_one_leader(self) -> bool:
        """Return whether one flusher holds the lease and the others wait for the same lock."""
        with self.sql() as connection:
            rows = connection.execute(
                "SELECT count(*) FILTER (WHERE granted), count(*) FROM pg_locks "
                "WHERE locktype = 'advisory' AND classid = %s GROUP BY objid",
                (LEASE_LOCK,),
            ).fetchall()
        return rows == [(1, len(self.processes["flusher"]))]

    async def replace(self, role: str, version: Version, *, actions: int) -> None:
        """Replace the process of a service; both run side by side for ``actions`` actions."""
        (old,) = self.processes[role]
        async with self.step(f"{role}: {old.version.name} and {version.name}"):
            await self.start(role, version)
            await self.run_on(actions)
        async with self.step(f"{role}: {version.name}"):
            await self.end(old)
            await self.run_on(actions)

    async def replace_all(
        self,
        version: Version,
        order: Sequence[str] = ORDER,
        *,
        actions: int,
        commands: Sequence[Sequence[str]] = (),
    ) -> None:
        """Start a process of each service beside the old ones, then end the old ones in order."""
        old = {role: processes[0] for role, processes in self.processes.items()}
        async with self.step(f"all: {old['api'].version.name} and {version.name}"):
            await asyncio.gather(*(self.start(role, version) for role in order))
            await self.run_on(actions)
            await self.operate(old["api"].version, version, commands=commands)
        async with self.step(f"all: {version.name}"):
            for role in order:
                await self.end(old[role])
            await self.run_on(actions)

    async def prepare_upgrade(self, version: Version, *, actions: int) -> None:
        """Add the rights of a version and migrate, while the processes of another one run."""
        async with self.step(f"rights of {version.name}"):
            await asyncio.to_thread(self.set_rights, version)
            await self.run_on(actions)
        async with self.step(f"migrations of {version.name}"):
            await asyncio.to_thread(self.migrate, version)
            await self.run_on(actions)

    async def upgrade(self, version: Version, order: Sequence[str], *, actions: int) -> None:
        """Upgrade as docs/how-to/upgrade.md describes, with the services in any order."""
        await self.prepare_upgrade(version, actions=actions)
        for role in order:
            await self.replace(role, version, actions=actions)

    async def roll_back(self, version: Version, order: Sequence[str], *, actions: int) -> None:
        """Return to a version, on the schema and with the rights of the newer one."""
        for role in reversed(order):
            await self.replace(role, version, actions=actions)

    async def finish(self) -> None:
        """Stop the load and compare every answer with both stores."""
        from tests.faults.checks import check, drain

        await self.load.finish()
        await drain(self)
        report, history = self.report, self.load.history
        for watcher in (*self.watchers, self.page):
            report.violations += await check(self, history, watcher)
        for watcher in self.watchers:
            report.reconnects[watcher.kind] += max(0, watcher.connections - 1)
            gap = report.longest_gap_s.get(watcher.kind, 0.0)
            report.longest_gap_s[watcher.kind] = max(gap, watcher.longest_gap_s)
        with self.sql() as connection:
            for table in ("dead_events", "rejected_events"):
                row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
                if row != (0,):
                    report.violations.append(f"{table} has {row} rows")
        report.acknowledged = history.acknowledged
        report.slowest_update_s = max(client.slowest_s for client in self.clients)

    async def stop(self) -> None:
        """Stop everything."""
        for process in itertools.chain.from_iterable(self.processes.values()):
            if process.watching is not None:
                process.watching.cancel()
            await asyncio.to_thread(process.service.stop)
        await asyncio.to_thread(self.valkey.stop)
        await asyncio.to_thread(self.postgres.stop)


def _is_expected(command: Sequence[str], output: str) -> bool:
    """Return whether `status` only says that there are two versions."""
    if command[0] != "status":
        return False
    actions = [line for line in output.splitlines() if not line.startswith("ok\t")]
    return bool(actions) and all("use one version everywhere" in line for line in actions)


@asynccontextmanager
async def rolling(
    folder: Path,
    version: Version,
    *,
    clients: int,
    pace_s: float,
    fsync: bool = False,
    board: Board | None = None,
) -> AsyncIterator[Rollout]:
    """Run a system of one version under load; always stop it. ``board`` replaces the default."""
    made = Rollout(folder, fsync=fsync)
    async with AsyncExitStack() as stack:
        for balancer in made.balancers.values():
            await stack.enter_async_context(balancer)
        made._tasks = await stack.enter_async_context(asyncio.TaskGroup())
        stack.push_async_callback(made.stop)
        await made.prepare(version, board)
        token = made.issuer.issue("game-server", [UPDATE_ANY, READ], 86_400)
        made.watchers = [
            Watcher(made.balancers["streamer"].port, "WebSocket"),
            EventWatcher(made.balancers["api"].port, "events"),
        ]
        client = version.folder / "web/scoreboard-client.js"
        made.page = Page(made.balancers["streamer"].port, client)
        watching = [made._tasks.create_task(one.run()) for one in (*made.watchers, made.page)]
        made.load = Load(
            folder,
            made.balancers["api"].port,
            token,
            clients=clients,
            pace_s=pace_s,
            make=RollingClient,
            rules=board.layout.rules if board else DEFAULT_RULES,
        )
        try:
            async with made.load:
                yield made
        finally:
            for task in watching:
                task.cancel()
