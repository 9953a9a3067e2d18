"""`make bench-boards`: what many boards cost while they are idle, and while some are active.

Runs api, streamer and flusher as processes on real servers that sync to disk, with one board and
with many idle ones; then measures the time until the first update of idle boards is committed, and
boards that are all active at once, with enough turns for them and with the default number.
"""

import argparse
import asyncio
import random
import re
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import psycopg
import redis

from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedPostgres, EmbeddedValkey
from scoreboard.ledger.migrations import migrate
from scoreboard.model import Action, Layout, Partition
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import GROUP, PartitionKeys
from tests.bench.api.stage import api_settings
from tests.bench.api.tokens import prepare
from tests.bench.flush.stage import Servers
from tests.bench.machine import family_cpu_s
from tests.bench.resources.processes import Service, service
from tests.support.eventually import eventually
from tests.support.fakes.tokens import ISSUER

SETTLE_S = 5.0
"""Time after the start until a process counts as idle."""

FIRST_UPDATES = 30
"""Idle boards that get an update, one after the other."""

PAGE = 1000


@contextmanager
def stage() -> Iterator[Servers]:
    """Start new, empty servers that sync to disk."""
    with tempfile.TemporaryDirectory(prefix="scoreboard-bench-") as name:
        folder = Path(name)
        with (
            EmbeddedValkey(folder / "valkey") as valkey,
            EmbeddedPostgres(folder / "postgres", settings={"max_connections": "400"}) as postgres,
        ):
            migrate(postgres.url)
            yield Servers(valkey, postgres)


def add_boards(servers: Servers, names: Sequence[str]) -> None:
    """Create empty, open boards in both stores."""
    with psycopg.connect(servers.postgres.url) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO boards VALUES (%s, 1, 43200, 64, true)", [(name,) for name in names]
        )
        cursor.executemany(
            "INSERT INTO flush_state VALUES (%s, 0, 1, 0, '0-0')", [(name,) for name in names]
        )
    facts = {"epoch": 1, "seq": 0, "state": "open", "layout": str(Layout()), "public": 1}
    with redis.Redis.from_url(servers.valkey.url) as client:
        for start in range(0, len(names), PAGE):
            with client.pipeline(transaction=False) as pipe:
                for name in names[start : start + PAGE]:
                    keys = PartitionKeys(Partition(name))
                    pipe.hset(keys.meta, mapping=facts)
                    pipe.xgroup_create(keys.events, GROUP, id="0", mkstream=True)
                pipe.execute()


def make_services(servers: Servers) -> dict[str, tuple[dict[str, str], int]]:
    """Return the variables and the probe's port of each service."""
    tokens = prepare(1)
    ports = {name: find_free_port() for name in ("api", "streamer", "flusher")}
    return {
        "api": (
            api_settings(servers.valkey.url, tokens)
            | {
                "SCOREBOARD_API_PORT": str(find_free_port()),
                "SCOREBOARD_API_METRICS_PORT": str(ports["api"]),
            },
            ports["api"],
        ),
        "streamer": (
            {
                "REDIS_URL": servers.valkey.url,
                "SCOREBOARD_ISSUER": ISSUER,
                "SCOREBOARD_JWKS_FILE": str(tokens.jwks),
                "SCOREBOARD_WS_PORT": str(find_free_port()),
                "SCOREBOARD_WS_METRICS_PORT": str(ports["streamer"]),
            },
            ports["streamer"],
        ),
        "flusher": (
            {
                "REDIS_URL": servers.valkey.url,
                "DATABASE_URL": servers.postgres.url,
                "SCOREBOARD_FLUSHER_METRICS_PORT": str(ports["flusher"]),
            },
            ports["flusher"],
        ),
    }


class Meter:
    """What processes and Redis use between two moments."""

    def __init__(self, servers: Servers, processes: Mapping[str, Service]) -> None:
        self._servers = servers
        self._processes = processes
        self._before = self._read()

    def _read(self) -> dict[str, float]:
        with redis.Redis.from_url(self._servers.valkey.url) as client:
            commands = float(client.info("stats")["total_commands_processed"])
        cpu = {name: process.use().cpu_s for name, process in self._processes.items()}
        assert self._servers.valkey.pid is not None
        assert self._servers.postgres.pid is not None
        return {
            "commands": commands,
            "Valkey": family_cpu_s(self._servers.valkey.pid),
            "PostgreSQL": family_cpu_s(self._servers.postgres.pid),
            **cpu,
            "at": time.monotonic(),
        }

    def show(self, state: str) -> None:
        """Print a line for each process, and one for each server."""
        after = self._read()
        passed_s = after["at"] - self._before["at"]
        for name in (*self._processes, "Valkey", "PostgreSQL"):
            cores = (after[name] - self._before[name]) / passed_s
            process = self._processes.get(name)
            memory = f"{process.use().rss_mb:.0f}" if process else ""
            print(f"| {name} | {state} | {memory} | {cores:.4f} |")
        rate = (after["commands"] - self._before["commands"]) / passed_s
        print(f"| Redis commands/s | {state} | | {rate:,.0f} |", flush=True)


@asynccontextmanager
async def dispatching(servers: Servers) -> AsyncIterator[Dispatcher]:
    """Submit updates as an api does."""
    dispatcher = Dispatcher(Settings(redis_url=Secret(servers.valkey.url)))
    task = asyncio.create_task(dispatcher.run())
    try:
        yield dispatcher
    finally:
        dispatcher.close()
        await task


async def first_updates(servers: Servers, names: Sequence[str]) -> list[float]:
    """Return the times from an update of an idle board until it is committed, in seconds."""
    times: list[float] = []
    async with (
        dispatching(servers) as dispatcher,
        await psycopg.AsyncConnection.connect(servers.postgres.url, autocommit=True) as watcher,
    ):
        for name in names:
            began_s = time.monotonic()
            await dispatcher.submit(name, Action("alice", "win:1", 1))
            while True:
                found = await watcher.execute(
                    "SELECT seq FROM flush_state WHERE board = %s", (name,)
                )
                row = await found.fetchone()
                if row and row[0]:
                    break
                await asyncio.sleep(0.001)
            times.append(time.monotonic() - began_s)
    return times


async def keep_active(servers: Servers, names: Sequence[str], seconds: float) -> None:
    """Send one update a second to each board, spread over the second."""
    async with dispatching(servers) as dispatcher:
        began_s = time.monotonic()
        for number in range(int(seconds * len(names))):
            await asyncio.sleep(began_s + number / len(names) - time.monotonic())
            action = Action(f"user-{number % 50}", f"win:{began_s:.0f}-{number}", 1)
            await dispatcher.submit(names[number % len(names)], action)


def delays(port: int) -> dict[float, float]:
    """Return the buckets of the time from acceptance to COMMIT."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    pattern = r'scoreboard_accept_to_commit_seconds_bucket\{.*?le="([^"]+)".*?\} (\S+)'
    return {float(most): float(count) for most, count in re.findall(pattern, text)}


def quantile(before: Mapping[float, float], after: Mapping[float, float], share: float) -> float:
    """Return the upper bound of the bucket in which a quantile is."""
    wanted = share * (after[float("inf")] - before.get(float("inf"), 0))
    return next(most for most in sorted(after) if after[most] - before.get(most, 0) >= wanted)


def uncommitted(servers: Servers, names: Sequence[str]) -> int:
    with redis.Redis.from_url(servers.valkey.url) as client, client.pipeline(False) as pipe:
        for name in names:
            pipe.xlen(PartitionKeys(Partition(name)).events)
        return sum(pipe.execute())


def main() -> None:
    """Run all measurements and print their table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boards", type=int, default=10_000)
    parser.add_argument("--active", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    names = [f"board-{number}" for number in range(options.boards)]
    print("| process | state | RSS MB | CPU cores |\n|---|---|---|---|", flush=True)
    with stage() as servers:
        add_boards(servers, ["main"])
        services = make_services(servers)
        for state in ("one board", f"{options.boards:,} idle boards"):
            if state != "one board":
                add_boards(servers, names)
            with ExitStack() as stack:
                processes = {
                    name: stack.enter_context(service(name, variables, port))
                    for name, (variables, port) in services.items()
                }
                time.sleep(SETTLE_S)
                meter = Meter(servers, processes)
                time.sleep(options.seconds)
                meter.show(state)
                if state == "one board":
                    continue
                times = asyncio.run(
                    first_updates(servers, random.Random(1).sample(names, FIRST_UPDATES))
                )
                print(
                    f"first update of an idle board: committed after {statistics.median(times):.3f}"
                    f" s, at most {max(times):.3f} s",
                    flush=True,
                )
        variables, port = services["flusher"]
        for turns in (options.active + FIRST_UPDATES, 32):
            own = {**variables, "SCOREBOARD_FLUSH_PARTITIONS": str(turns)}
            with service("flusher", own, port) as process:
                some = names[: options.active]
                asyncio.run(keep_active(servers, some, 5.0))
                before, meter = delays(port), Meter(servers, {"flusher": process})
                asyncio.run(keep_active(servers, some, options.seconds))
                state = f"{options.active} active boards, {turns} turns"
                meter.show(state)
                eventually(lambda: not uncommitted(servers, names[: options.active]))
                after = delays(port)
                print(
                    f"{state}: committed after at most {quantile(before, after, 0.5):g} s (median),"
                    f" {quantile(before, after, 0.99):g} s (p99)",
                    flush=True,
                )


if __name__ == "__main__":
    main()
