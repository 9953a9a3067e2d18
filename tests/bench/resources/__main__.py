"""`make bench-resources`: memory, CPU time and open files of each process, idle and at load.

Runs each service and each command as its own process on real servers that sync to disk, and prints
a table. Memory is the resident set (RSS) and its peak since the start; it does not contain the
kernel's buffers of sockets. CPU is in cores. Compare CPU per operation and memory between machines;
times depend on what else runs.
"""

import argparse
import asyncio
import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import uvloop
from msgspec import Struct

from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedPostgres, EmbeddedValkey
from scoreboard.ledger.migrations import migrate
from scoreboard.runtime.telemetry import setup_logging
from tests.bench.api.stage import api_settings, measure, open_main
from tests.bench.api.tokens import prepare
from tests.bench.flush.__main__ import feed, is_committed
from tests.bench.flush.stage import Servers, fill, make_board
from tests.bench.machine import family_cpu_s
from tests.bench.reseed.__main__ import fill as fill_ledger
from tests.bench.resources.processes import Service, Use, run_job, service, use_of
from tests.bench.rows import Recorder
from tests.bench.ws.__main__ import VIEWERS_MODULE, ViewersProcess, publish
from tests.support.eventually import eventually
from tests.support.fakes.tokens import ISSUER
from tests.support.servers.rotated import Rotated

SETTLE_S = 2.0
"""Time after the start until a process counts as idle."""


class Row(Struct, frozen=True):
    """A line of the table."""

    process: str
    state: str
    use: Use
    cores: float | None = None
    per_operation_us: float | None = None

    def record(self, recorder: Recorder) -> None:
        values = {
            ("RSS", "MB"): self.use.rss_mb,
            ("peak RSS", "MB"): self.use.peak_mb,
            ("core", "%"): None if self.cores is None else 100 * self.cores,
            ("CPU per operation", "µs"): self.per_operation_us,
            ("open files", ""): self.use.files,
            ("threads", ""): self.use.threads,
        }
        for (metric, unit), value in values.items():
            if value is not None:
                recorder.add(self.process, self.state, {}, metric, unit, value)

    def render(self) -> str:
        def shown(value: float | None, digits: int) -> str:
            return "" if value is None else f"{value:,.{digits}f}"

        return (
            f"| {self.process} | {self.state} | {self.use.rss_mb:.0f} | {self.use.peak_mb:.0f} "
            f"| {shown(self.cores, 3)} | {shown(self.per_operation_us, 1)} "
            f"| {self.use.files} | {self.use.threads} |"
        )


USERS = 500
"""Users who send updates."""
TITLE = (
    "| process | state | RSS MB | peak MB | CPU cores | CPU µs per operation | files | threads |\n"
    "|---|---|---|---|---|---|---|---|"
)


class Watched:
    """What a server and its processes used between two moments."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = (time.monotonic(), family_cpu_s(pid))
        self._after = self._before

    def end(self) -> None:
        self._after = (time.monotonic(), family_cpu_s(self._pid))

    def row(self, process: str, state: str, operations: float) -> Row:
        used_s = self._after[1] - self._before[1]
        elapsed_s = self._after[0] - self._before[0]
        return Row(process, state, use_of(self._pid), used_s / elapsed_s, used_s / operations * 1e6)


@contextmanager
def watched(pid: int | None) -> Iterator[Watched]:
    """Measure the CPU time of a server during the block."""
    assert pid is not None
    found = Watched(pid)
    yield found
    found.end()


@contextmanager
def stage() -> Iterator[tuple[Servers, Path]]:
    """Start new, empty servers that sync to disk; yield them and a folder."""
    with tempfile.TemporaryDirectory(prefix="scoreboard-bench-") as name:
        folder = Path(name)
        with (
            EmbeddedValkey(folder / "valkey") as valkey,
            EmbeddedPostgres(folder / "postgres") as postgres,
        ):
            yield Servers(valkey, postgres), folder


def cores(before: Use, after: Use) -> float:
    """Return the mean number of cores used between two readings."""
    return (after.cpu_s - before.cpu_s) / (after.at_s - before.at_s)


def idle(name: str, process: Service, seconds: float) -> Iterator[Row]:
    """Measure a process that has just started."""
    start = process.use()
    yield Row(name, f"ready after {process.ready_s:.1f} s, {start.cpu_s:.1f} s of CPU", start)
    time.sleep(SETTLE_S)
    before = process.use()
    time.sleep(seconds)
    after = process.use()
    yield Row(name, "idle", after, cores(before, after))


def api(servers: Servers, _: Path, *, seconds: float) -> Iterator[Row]:
    """Measure the api: idle, with updates, and with many open connections."""
    asyncio.run(open_main(servers.valkey.url))
    tokens = prepare(USERS)
    port, probe_port = find_free_port(), find_free_port()
    variables = api_settings(servers.valkey.url, tokens) | {
        "SCOREBOARD_CONNECTIONS_PER_ADDRESS": "5000",
        "SCOREBOARD_VIEWERS_PER_ADDRESS": "5000",
        "SCOREBOARD_NEW_VIEWERS_BURST": "5000",
        "SCOREBOARD_API_PORT": str(port),
        "SCOREBOARD_API_METRICS_PORT": str(probe_port),
    }
    plan = {"port": port, "connections": 64, "warm_s": 1.0, "seconds": seconds}
    plan |= {"users": USERS, "warm_requests": 2 * USERS, "tokens": str(tokens.tokens)}
    with service("api", variables, probe_port) as process:
        yield from idle("api", process, seconds)
        for rate in (1_000.0, 5_000.0, 0.0):
            with watched(servers.valkey.pid) as valkey:
                found = measure(process.pid, None, plan | {"run": f"rate-{rate:.0f}", "rate": rate})
            yield Row(
                "api",
                f"{found['rate']:,.0f} updates/s, 64 connections",
                process.use(),
                found["rate"] * found["cpu_us"] / 1e6,
                found["cpu_us"],
            )
            # The client's warm-up is a part of its time and of its updates.
            done = found["rate"] * (seconds + plan["warm_s"])
            yield valkey.row("Valkey", f"the same: {found['rate']:,.0f} updates/s", done)
        for count, path in ((4_000, "/health/live"), (1_000, "/api/scores/stream")):
            with connections(port, count, path):
                before = process.use()
                time.sleep(seconds)
                after = process.use()
                yield Row("api", f"{count:,} connections, {path}", after, cores(before, after))


@contextmanager
def connections(port: int, count: int, path: str) -> Iterator[None]:
    """Keep connections open, each after a request."""
    request = f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
    with ExitStack() as stack:
        for _ in range(count):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            one.sendall(request)
            assert b" 200 " in one.recv(4096)
        yield


def streamer(servers: Servers, _: Path, *, seconds: float) -> Iterator[Row]:
    """Measure the streamer: idle, and ten boards a second to viewers."""
    asyncio.run(open_main(servers.valkey.url))
    port, probe_port = find_free_port(), find_free_port()
    variables = {
        "REDIS_URL": servers.valkey.url,
        "SCOREBOARD_ISSUER": ISSUER,
        "SCOREBOARD_JWKS_FILE": str(prepare(0).jwks),
        "SCOREBOARD_WS_PORT": str(port),
        "SCOREBOARD_WS_METRICS_PORT": str(probe_port),
        "SCOREBOARD_VIEWERS_PER_ADDRESS": "100000",
        "SCOREBOARD_NEW_VIEWERS_PER_SECOND": "100000",
        "SCOREBOARD_NEW_VIEWERS_BURST": "100000",
        "SCOREBOARD_DRAIN_S": "0.2",
    }
    for count in (0, 1_000, 5_000):
        with service("streamer", variables, probe_port) as process:
            if not count:
                yield from idle("streamer", process, seconds)
                continue
            viewers = ViewersProcess(VIEWERS_MODULE, port, count, 0)
            try:
                before = process.use()
                time.sleep(seconds)
                after = process.use()
                yield Row("streamer", f"{count:,} viewers, no change", after, cores(before, after))
                viewers.begin()
                before = process.use()
                asyncio.run(publish(servers.valkey.url, seconds))
                after = process.use()
                frames = len(viewers.end())
            finally:
                viewers.close()
            yield Row(
                "streamer",
                f"{count:,} viewers, {frames / count / seconds:.0f} boards/s",
                after,
                cores(before, after),
                (after.cpu_s - before.cpu_s) / max(1, frames) * 1e6,
            )


def flusher(servers: Servers, _: Path, *, seconds: float) -> Iterator[Row]:
    """Measure the flusher: idle, at steady rates, and in catch-up of a long stream."""
    migrate(servers.postgres.url)
    for rate in (0, 1_000, 5_000):
        board = f"rate-{rate}"
        make_board(servers, board)
        with flushing(servers, board) as process:
            if not rate:
                yield from idle("flusher", process, seconds)
                continue
            settings = servers.settings(board)
            uvloop.run(feed(settings, board, rate, 2.0, part="warm"))
            eventually(lambda board=board: is_committed(servers, board), within_s=120)
            before = process.use()
            with watched(servers.valkey.pid) as valkey, watched(servers.postgres.pid) as postgres:
                sent, refused = uvloop.run(feed(settings, board, rate, seconds, part="win"))
            after = process.use()
            accepted = sent - refused
            yield Row(
                "flusher",
                f"{accepted / seconds:,.0f} events/s",
                after,
                cores(before, after),
                (after.cpu_s - before.cpu_s) / accepted * 1e6,
            )
            yield valkey.row("Valkey", f"the same: {accepted / seconds:,.0f} events/s", accepted)
            yield postgres.row(
                "PostgreSQL, all", f"the same: {accepted / seconds:,.0f} events/s", accepted
            )
            eventually(lambda board=board: is_committed(servers, board), within_s=120)
    events = 200_000
    fill(servers, make_board(servers, "long"), events, 10_000)
    with flushing(servers, "long") as process:
        eventually(lambda: is_committed(servers, "long"), within_s=300)
        after = process.use()
        yield Row(
            "flusher",
            f"catch-up of {events:,} events",
            after,
            None,
            after.cpu_s / events * 1e6,
        )


@contextmanager
def flushing(servers: Servers, board: str) -> Iterator[Service]:
    """Run a flusher of one board."""
    probe_port = find_free_port()
    variables = {
        "REDIS_URL": servers.valkey.url,
        "DATABASE_URL": servers.postgres.url,
        "SCOREBOARD_BOARDS": board,
        "SCOREBOARD_FLUSHER_METRICS_PORT": str(probe_port),
    }
    with service("flusher", variables, probe_port) as process:
        yield process


def jobs(servers: Servers, folder: Path, *, users: int) -> Iterator[Row]:
    """Measure the commands that run as jobs."""
    command = ["-m", "cli"]
    urls = {"REDIS_URL": servers.valkey.url, "DATABASE_URL": servers.postgres.url}

    def row(state: str, words: list[str], variables: dict[str, str], for_s: float = 300) -> Row:
        return Row("scoreboard", state, run_job([*command, *words], variables, for_s=for_s))

    yield row("db migrate", ["db", "migrate"], urls)
    fill_ledger(servers.postgres.url, users=users, actions=users // 5)
    yield row(f"reseed, {users:,} users", ["reseed", "--yes"], urls)
    yield row(f"verify --full, {users:,} users", ["verify", "--full"], urls)
    gateway = {
        "REDIS_URL": "redis://kong@127.0.0.1:6379/0",
        "SCOREBOARD_ISSUER": ISSUER,
        "SCOREBOARD_JWKS_FILE": str(prepare(0).jwks),
    }
    sync = ["kong", "sync", "--output", str(folder / "kong.yml"), "--interval", "1"]
    sync += ["--admin", f"http://127.0.0.1:{find_free_port()}", "--probe-port", "0"]
    yield row("kong sync", sync, gateway, for_s=8.0)
    yield from rotation(folder / "rotated")


def rotation(folder: Path) -> Iterator[Row]:
    """Measure a rotation of all logins of PostgreSQL."""
    rotated = Rotated(folder)
    try:
        variables = {
            "REDIS_URL": f"redis://127.0.0.1:{rotated.system.valkey.port}/0",
            "DATABASE_URL": f"postgresql://127.0.0.1:{rotated.system.postgres.port}/scoreboard",
            **rotated.secret_variables("rotator"),
        }
        words = ["-m", "cli", "secrets", "rotate", "db", "--grace", "0"]
        yield Row("scoreboard", "secrets rotate db", run_job(words, variables))
    finally:
        rotated.close()


def main() -> int:
    """Measure what was chosen and print the table."""
    parser = argparse.ArgumentParser(prog="make bench-resources", description=__doc__)
    parser.add_argument("--only", choices=["api", "streamer", "flusher", "jobs"], action="append")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each measurement")
    parser.add_argument("--users", type=int, default=200_000, help="of reseed and verify")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="only check that the api's part works")
    options = parser.parse_args()
    if options.quick:
        options.only, options.seconds = ["api"], 0.3
    recorder = Recorder("resources")
    setup_logging("bench", level="error", form="console", environment="bench")
    sys.stdout.write(
        f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"load average {os.getloadavg()[0]:.1f}\n\n{TITLE}\n"
    )
    parts: dict[str, Callable[[Servers, Path], Iterator[Row]]] = {
        "api": partial(api, seconds=options.seconds),
        "streamer": partial(streamer, seconds=options.seconds),
        "flusher": partial(flusher, seconds=options.seconds),
        "jobs": partial(jobs, users=options.users),
    }
    for name in options.only or parts:
        with stage() as (servers, folder), recorder.measurement():
            for row in parts[name](servers, folder):
                row.record(recorder)
                sys.stdout.write(row.render() + "\n")
                sys.stdout.flush()
    if options.json:
        recorder.write(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
