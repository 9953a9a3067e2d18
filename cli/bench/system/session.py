"""What the loads of one command share: the system, the options, and how a result is made."""

import asyncio
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import redis.asyncio as aioredis
from msgspec import Struct

from cli.bench.generator.http_load import Address
from cli.bench.generator.measurement import Measurement, Snapshot
from cli.bench.report.cpu import CpuReader, postmaster_of
from cli.bench.report.environment import DATABASE, Environment, describe_environment, is_busy
from cli.bench.report.results import Result, compute_costs, find_marks
from cli.target import open_database
from scoreboard.errors import Malformed, ScoreboardError
from scoreboard.health.services import service_urls
from scoreboard.ledger.load_tests import read_parameters
from scoreboard.runtime.settings import Settings
from scoreboard.store.client import make_client

PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class Target(Struct, frozen=True):
    """The system under load; ``api`` and ``ws`` are empty if they are not known."""

    settings: Settings
    name: str
    api: str = ""
    ws: str = ""
    pids: dict[str, int] = {}
    data_dir: Path | None = None


class Options(Struct, frozen=True):
    """The options of every load; ``rate`` None is the closed loop."""

    rate: float | None
    connections: int
    duration_s: float
    warm_up_s: float


class Session:
    """One load test of a system; make it with ``open``."""

    def __init__(
        self,
        target: Target,
        options: Options,
        client: aioredis.Redis,
        *,
        environment: Environment,
        pids: dict[str, int],
        stop: asyncio.Event,
        report: Callable[[str, float], None],
    ) -> None:
        self.target = target
        self.options = options
        self.redis = client
        self.environment = environment
        self.stop = stop
        self.run_id = secrets.token_hex(4)
        """Makes the actions of this run unique."""
        self.results: list[Result] = []
        """What was measured so far."""
        self._report = report
        self._cpu = CpuReader(client, pids, service_urls(target.settings))

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        target: Target,
        options: Options,
        stop: asyncio.Event,
        report: Callable[[str, float], None],
    ) -> AsyncIterator[Self]:
        """Connect to the stores and read the surroundings."""
        async with make_client(target.settings, name="bench") as client:
            database, postmaster = await _ask_database(target.settings)
            environment = await describe_environment(target.settings, client, database)
            # Redis tells its own CPU time.
            pids = {name: pid for name, pid in target.pids.items() if name != "redis"}
            if postmaster is not None:
                pids.setdefault("postgres", postmaster)
            yield cls(
                target,
                options,
                client,
                environment=environment,
                pids=pids,
                stop=stop,
                report=report,
            )

    async def read_cpu(self) -> dict[str, float]:
        """Return the CPU seconds used so far by part."""
        return await self._cpu.read()

    def progress(self, step: str) -> Callable[[float], None]:
        """Return a function that reports the elapsed share of a step."""
        return lambda share: self._report(step, share)

    def add_result(
        self,
        kind: str,
        board: str,
        measurement: Measurement,
        snapshots: tuple[Snapshot, Snapshot],
        *,
        parts: Iterable[str],
        reconciled: dict[str, int] | None = None,
        details: dict[str, Any] | None = None,
        adapt: Callable[[Result], Result] = lambda result: result,
    ) -> None:
        """Add the result of a load; ``parts`` are those whose CPU time belongs to it.

        There is none of a load that was stopped before its measured time.
        ``adapt`` changes it where its operations are not those of the measurement.
        """
        window = measurement.window
        seconds = window.end_s - window.begin_s
        if seconds <= 0:
            return
        first, last = snapshots
        costs = compute_costs(first, last, self.environment.machine["cores"])
        chosen = frozenset(parts)
        result = Result(
            kind=kind,
            loop="closed" if self.options.rate is None else "open",
            system=self.target.name,
            board=board,
            rate_requested=self.options.rate,
            rate=round(measurement.succeeded / seconds, 1),
            duration_s=round(seconds, 3),
            warm_up_s=self.options.warm_up_s,
            connections=self.options.connections,
            operations=measurement.total,
            outcomes=dict(measurement.outcomes),
            unsent=measurement.unsent,
            late=measurement.late,
            reconciled=reconciled or {},
            latency=measurement.latencies.summary(),
            cpu_us={name: cost for name, cost in costs.cpu_us.items() if name in chosen},
            generator_cores=costs.generator_cores,
            generator_us=costs.generator_us,
            foreign_share=costs.foreign_share,
            details=details or {},
            marks=find_marks(
                measurement,
                costs,
                is_busy=is_busy(self.environment),
                was_stopped=self.stop.is_set(),
            ),
            environment=self.environment,
        )
        self.results.append(adapt(result))


def parse_address(url: str, option: str) -> tuple[Address, str]:
    """Return where to connect and the path of a URL.

    Raises Malformed.
    """
    parts = urlsplit(url)
    try:
        port = parts.port or PORTS[parts.scheme]
    except (KeyError, ValueError):
        raise Malformed(f"{option} must be an address such as http://127.0.0.1:8000") from None
    if not parts.hostname or parts.username:
        raise Malformed(f"{option} must be an address without credentials")
    tls = ssl.create_default_context() if parts.scheme in {"https", "wss"} else None
    return Address(parts.hostname, port, parts.netloc, tls), parts.path.rstrip("/")


async def _ask_database(settings: Settings) -> tuple[dict[str, str], int | None]:
    """Return parameters of PostgreSQL, and its process if it runs on this machine."""
    try:
        async with open_database(settings) as connection:
            parameters = await read_parameters(connection, DATABASE)
            host = connection.info.host
            is_local = host in {"127.0.0.1", "::1", "localhost"} or host.startswith("/")
            return parameters, postmaster_of(connection.info.backend_pid) if is_local else None
    except ScoreboardError:
        return {}, None
