"""Servers, processes and boards of the scaling benchmark, and the CPU time that a load costs them.

A load is measured between two moments that all its clients agree on. What is compared runs in the
same servers, in turn, so that other programs on the machine change both sides of a ratio alike.
"""

import http.client
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import redis
from msgspec import Struct

from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedPostgres, EmbeddedValkey
from scoreboard.ledger.migrations import migrate
from scoreboard.model import Board, Layout, Partition, pack, partition_of
from scoreboard.runtime.settings import load
from scoreboard.store.client import make_client
from scoreboard.store.keys import GROUP, PartitionKeys
from scoreboard.store.store import Store
from tests.bench.api.stage import SCORES, NotMeasuredError, api_settings, server
from tests.bench.api.tokens import prepare, user_id
from tests.bench.flush.stage import Servers
from tests.bench.machine import Foreign, cpu_s, family_cpu_s
from tests.bench.rows import BUSY_SHARE, Recorder

ROOT = Path(__file__).parents[3]
PAGE = 1000
USERS = 4_000
"""Users with tokens, who send updates in turn."""
CONNECTIONS = 64
TRIES_MAX = 2
MEMORY_BYTES = 4 << 30
SERVER = {"auto-aof-rewrite-percentage": "0"}
"""Settings of each Redis: rewrites of the append-only file would take CPU time at any moment."""

Found = TypeVar("Found")


class Api(NamedTuple):
    """A running api, its port, and the port of its metrics."""

    pid: int
    port: int
    metrics: int


@contextmanager
def valkey() -> Iterator[EmbeddedValkey]:
    """Run a Valkey that syncs to disk, in a temporary folder."""
    with (
        tempfile.TemporaryDirectory(prefix="scoreboard-bench-") as name,
        EmbeddedValkey(Path(name), maxmemory_bytes=MEMORY_BYTES, settings=SERVER) as found,
    ):
        yield found


@contextmanager
def servers() -> Iterator[Servers]:
    """Run a Valkey and a PostgreSQL that sync to disk, in a temporary folder."""
    settings = {"shared_buffers": "256MB", "max_wal_size": "4GB", "max_connections": "200"}
    with (
        tempfile.TemporaryDirectory(prefix="scoreboard-bench-") as name,
        valkey() as redis_server,
        EmbeddedPostgres(Path(name) / "postgres", settings=settings) as postgres,
    ):
        migrate(postgres.url)
        yield Servers(redis_server, postgres)


@contextmanager
def apis(
    count: int, redis_url: str, settings: Mapping[str, str] | None = None
) -> Iterator[list[Api]]:
    """Run api processes on one Redis; each has a port of its own, as behind a load balancer."""
    variables = api_settings(redis_url, prepare(USERS)) | dict(settings or {})
    with ExitStack() as stack:
        found: list[Api] = []
        for _ in range(count):
            port = find_free_port()
            own = variables | {"SCOREBOARD_API_METRICS_PORT": str(port)}
            found.append(Api(*stack.enter_context(server("api", own, None)), port))
        yield found


def metrics(port: int) -> str:
    """Read the metrics of a process."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def metric(port: int, series: str) -> float:
    """Read a series of a process; 0 if it has none yet."""
    text = metrics(port)
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def writes(found: Iterable[Api]) -> float:
    """Return how many writes have carried the updates of apis to Redis."""
    series = 'scoreboard_redis_call_duration_seconds_count{script="submit"}'
    return sum(metric(one.metrics, series) for one in found)


async def make_boards(url: str, boards: Sequence[Board], members: int = 0) -> None:
    """Open boards, each with a number of users, on a new server; list them for the api."""
    async with make_client(load({"REDIS_URL": url}), name="bench") as client:
        await Store(client).write_boards(boards)
        for start in range(0, len(boards), PAGE):
            async with client.pipeline(transaction=False) as pipe:
                for board in boards[start : start + PAGE]:
                    for number in range(board.layout.partitions):
                        keys = PartitionKeys(Partition(board.name, number))
                        facts: dict[Any, Any] = {"epoch": 1, "seq": 0, "state": "open", "public": 1}
                        pipe.hset(keys.meta, mapping=facts | {"layout": str(board.layout)})
                        pipe.xgroup_create(keys.events, GROUP, id="0", mkstream=True)
                await pipe.execute()
        for board in boards if members else ():
            await _fill(client, board, members)


async def _fill(client: Any, board: Board, members: int) -> None:
    for first in range(0, members, PAGE):
        pages: dict[str, dict[str, int]] = {}
        for number in range(first, min(first + PAGE, members)):
            user = user_id(number)
            part = Partition(board.name, partition_of(user, board.layout.partitions))
            score = pack(number * 7919 % SCORES, number // 1000)
            pages.setdefault(PartitionKeys(part).board, {})[user] = score
        async with client.pipeline(transaction=False) as pipe:
            for key, page in pages.items():
                pipe.zadd(key, page)
            await pipe.execute()


def board_of(name: str, partitions: int = 1) -> Board:
    """Return a public board with a number of partitions."""
    return Board(name, Layout(partitions=partitions))


class Redis:
    """One Redis, or the primaries of a cluster: their CPU time and their counters."""

    def __init__(self, nodes: Mapping[str, int], *others: int) -> None:
        """Take URL and pid of each primary, and the pids of replicas."""
        self._nodes = nodes
        self._others = others

    def cpu_s(self) -> float:
        """Return the CPU time of the primaries."""
        return sum(map(cpu_s, self._nodes.values()))

    def replicas_cpu_s(self) -> float:
        """Return the CPU time of the replicas."""
        return sum(map(cpu_s, self._others))

    def calls(self) -> int:
        """Return how many scripts were called."""
        found = 0
        for url in self._nodes:
            with redis.Redis.from_url(url) as client:
                for name, facts in client.info("commandstats").items():
                    if name in {"cmdstat_evalsha", "cmdstat_evalsha_ro"}:
                        found += int(facts["calls"])
        return found

    @classmethod
    def of(cls, one: EmbeddedValkey) -> "Redis":
        """Return that of one server."""
        return cls({one.url: one.pid or 0})


class Reading(NamedTuple):
    """Counters at a moment."""

    at_s: float
    of: Mapping[str, float]


class Cost(Struct, frozen=True):
    """What a load cost: CPU time of each part, in all and per operation, and what was counted."""

    done: int
    seconds: float
    us: dict[str, float]
    spent_s: dict[str, float]
    counted: dict[str, float]
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        return self.done / self.seconds

    @property
    def together_us(self) -> float:
        """The CPU time of api and Redis."""
        return self.us["api"] + self.us["Redis"]

    @property
    def calls_per_operation(self) -> float:
        return self.counted["calls"] / self.done


def quietest(recorder: Recorder, run: Callable[[], Found]) -> Found:
    """Measure up to twice, until other programs leave the machine alone.

    Returns what was found while they used the least, and keeps their share of that time.
    """
    tries: list[tuple[float, Found]] = []
    while len(tries) < TRIES_MAX and (not tries or tries[-1][0] > BUSY_SHARE):
        foreign = Foreign()
        found = run()
        tries.append((foreign.share(), found))
    share, found = min(tries, key=lambda one: one[0])
    recorder.foreign.append(share)
    return found


class Parts:
    """The processes that a load uses, by part; each may have children.

    ``counters`` returns other counts that are of interest, such as frames.
    """

    def __init__(
        self,
        found: Redis,
        pids: Mapping[str, Iterable[int]],
        counters: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self.redis = found
        self.counters = counters
        self._pids = {name: list(of) for name, of in pids.items()}

    def used_s(self) -> Reading:
        """Read the CPU time of each part."""
        now_s = time.monotonic()
        used = {name: sum(map(family_cpu_s, pids)) for name, pids in self._pids.items()}
        servers = {"Redis": self.redis.cpu_s(), "replicas": self.redis.replicas_cpu_s()}
        return Reading(now_s, used | servers)

    def counts(self) -> Reading:
        """Read the script calls, and the counters: this costs the processes CPU time."""
        now_s = time.monotonic()
        return Reading(now_s, {"calls": self.redis.calls(), **self.counters()})


def drive(parts: Parts, ports: Sequence[int], plan: Mapping[str, Any]) -> Cost:
    """Run a client for each port with the plan, whose connections and rate they share.

    Raises NotMeasuredError if a request was not answered as expected.
    """
    count = len(ports)
    shared = {
        "users": USERS,
        "tokens": str(prepare(USERS).tokens),
        "warm_s": 0.3,
        **plan,
        "connections": max(1, plan.get("connections", CONNECTIONS) // count),
        "rate": plan.get("rate", 0.0) / count,
    }
    with ExitStack() as stack:
        clients = []
        for port in ports:
            run = f"{plan['run']}-{time.monotonic_ns():x}"  # a second try has other actions
            clients.append(_start(stack, {**shared, "port": port, "run": run}))
        _expect(clients, b"measuring\n")
        first = parts.counts()
        before = parts.used_s()
        _expect(clients, b"measured\n")
        after = parts.used_s()
        last = parts.counts()
        found = [json.loads(client.stdout.readline()) for client in clients if client.stdout]
    done = sum(one["done"] for one in found)
    if not done or any(one["failures"] for one in found):
        raise NotMeasuredError(f"not every request was answered as expected: {found}")
    seconds = max(one["seconds"] for one in found)
    spent_s = between(before, after, seconds)
    spent_s["clients"] = sum(one["client_cpu_share"] * one["seconds"] for one in found)
    return Cost(
        done=done,
        seconds=seconds,
        us={name: spent / done * 1e6 for name, spent in spent_s.items()},
        spent_s=spent_s,
        counted=between(first, last, seconds),
        p50_ms=sum(one["p50_ms"] for one in found) / count,
        p99_ms=max(one["p99_ms"] for one in found),
    )


def between(before: Reading, after: Reading, seconds: float) -> dict[str, float]:
    """Return how much was added in some seconds, at the pace between two readings."""
    share = seconds / (after.at_s - before.at_s)
    return {name: share * (after.of[name] - value) for name, value in before.of.items()}


def _start(stack: ExitStack, plan: Mapping[str, Any]) -> "subprocess.Popen[bytes]":
    client = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.api.client"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    )
    assert client.stdin is not None
    client.stdin.write(json.dumps(plan).encode())
    client.stdin.close()
    return client


def _expect(clients: Iterable["subprocess.Popen[bytes]"], line: bytes) -> None:
    for client in clients:
        assert client.stdout is not None
        found = client.stdout.readline()
        if found != line:
            raise NotMeasuredError(f"a client wrote {found!r} instead of {line!r}")
