"""`make bench-system`: the CPU time of an update in all processes, until PostgreSQL has it.

An api and a flusher run as processes, with Valkey (appendfsync always) and PostgreSQL (fsync).
Users with tokens send updates, at a steady rate or as fast as they are answered. The CPU time of
each process, from the start of the load until the flusher has committed everything, is divided by
the number of updates. PostgreSQL is the sum of its processes; that of the flusher's session is
also shown alone, the rest is checkpoints, WAL and autovacuum. `--before PATH` measures the
api and the flusher of another clone in the same rounds.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import click
import psycopg
import redis

from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedPostgres, EmbeddedValkey
from scoreboard.ledger.migrations import migrate
from scoreboard.model import Partition
from scoreboard.store.keys import PartitionKeys
from tests.bench.api.stage import ROOT, api_settings, measure, open_main, server
from tests.bench.api.tokens import prepare
from tests.bench.flush.__main__ import is_committed
from tests.bench.flush.stage import Servers
from tests.bench.machine import cpu_s, family_cpu_s
from tests.bench.resources.processes import environment
from tests.bench.rows import Figures, Recorder
from tests.support.eventually import eventually

OWN, BEFORE = "scoreboard", "before"
BOARD: Final = "main"
CONNECTIONS: Final = 64
PROCESSES: Final = ("api", "Redis", "flusher", "PostgreSQL", "flusher's session", "together")
CATCH_UP_S: Final = 120.0
STOP_S: Final = 20.0


class Stage:
    """A running system."""

    def __init__(self, servers: Servers, api_pid: int, port: int, flusher_pid: int) -> None:
        self.servers = servers
        self.api_pid = api_pid
        self.port = port
        self._flusher_pid = flusher_pid

    def seq(self) -> int:
        """Return the number of updates that Redis has applied."""
        with redis.Redis.from_url(self.servers.valkey.url) as client:
            return int(client.hget(PartitionKeys(Partition(BOARD)).meta, "seq") or 0)

    def used_s(self) -> dict[str, float]:
        """Return the CPU time of each process."""
        postgres = self.servers.postgres.pid or 0
        used = {
            "api": cpu_s(self.api_pid),
            "Redis": cpu_s(self.servers.valkey.pid or 0),
            "flusher": cpu_s(self._flusher_pid),
            "PostgreSQL": family_cpu_s(postgres),
        }
        return used | {
            "flusher's session": sum(map(cpu_s, self._sessions())),
            "together": sum(used.values()),
        }

    def _sessions(self) -> list[int]:
        """Return the processes of the flusher's sessions."""
        with psycopg.connect(self.servers.postgres.url) as connection:
            rows = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name LIKE '%flusher%'"
            ).fetchall()
        return [row[0] for row in rows]

    def wait(self) -> None:
        """Wait until the flusher has committed every update."""
        eventually(lambda: is_committed(self.servers, BOARD), within_s=CATCH_UP_S)


@contextmanager
def run_flusher(root: Path, python: str, variables: dict[str, str]) -> Iterator[int]:
    """Run the flusher of a clone; yield its pid."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [python, "-m", "flusher"],
            cwd=root,
            env=environment(variables),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process.pid
        except Exception as error:
            output.seek(0)
            error.add_note(output.read().decode(errors="replace")[-4000:])
            raise
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def system(before: Path | None, users: int, settings: dict[str, str]) -> Iterator[Stage]:
    """Start a system with an empty, open board."""
    root = before or ROOT
    python = str(root / ".venv/bin/python") if before else sys.executable
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scoreboard-bench-")))
        servers = Servers(
            stack.enter_context(EmbeddedValkey(folder / "valkey")),
            stack.enter_context(
                EmbeddedPostgres(folder / "postgres", settings={"shared_buffers": "256MB"})
            ),
        )
        migrate(servers.postgres.url)
        asyncio.run(open_main(servers.valkey.url))
        with psycopg.connect(servers.postgres.url) as connection:
            connection.execute("INSERT INTO boards VALUES (%s, 1, 43200, 64, true)", (BOARD,))
            connection.execute("INSERT INTO flush_state VALUES (%s, 0, 1, 0, '0-0')", (BOARD,))
        variables = api_settings(servers.valkey.url, prepare(users)) | settings
        flusher = {
            "REDIS_URL": servers.valkey.url,
            "DATABASE_URL": servers.postgres.url,
            "SCOREBOARD_FLUSHER_METRICS_PORT": str(find_free_port()),
            **settings,
        }
        flusher_pid = stack.enter_context(run_flusher(root, python, flusher))
        name = "before" if before else "api"
        pid, port = stack.enter_context(server(name, variables, None, before))
        yield Stage(servers, pid, port, flusher_pid)


def measure_load(
    stage: Stage, recorder: Recorder, variant: str, rate: float, users: int, seconds: float
) -> None:
    """Measure one kind of load."""
    plan: dict[str, Any] = {
        "port": stage.port,
        "connections": CONNECTIONS,
        "users": users,
        "tokens": str(prepare(users).tokens),
        "warm_s": 0.2,
        "rate": rate,
    }
    run = f"{variant}-{time.monotonic_ns()}"
    measure(
        stage.api_pid, None, plan | {"run": f"{run}-w", "rate": 0.0, "seconds": 0.5} | _warm(users)
    )
    stage.wait()
    before, first = stage.used_s(), stage.seq()
    with recorder.measurement():
        found = measure(stage.api_pid, None, plan | {"run": run, "seconds": seconds})
        stage.wait()
    after, updates = stage.used_s(), stage.seq() - first
    parameters = {"load": f"{rate:,.0f}/s" if rate else f"{CONNECTIONS} in turn", "users": users}
    for name in PROCESSES:
        used_us = (after[name] - before[name]) / updates * 1e6
        recorder.add("update", variant, parameters, f"{name} CPU", "µs", used_us)
    for metric, unit, key in (
        ("rate", "/s", "rate"),
        ("p50", "ms", "p50_ms"),
        ("p99", "ms", "p99_ms"),
    ):
        recorder.add("update", variant, parameters, metric, unit, found[key])


def _warm(users: int) -> dict[str, Any]:
    """Return the part of a plan that lets the api verify each token before."""
    return {"warm_requests": 2 * users}


def report(figures: Figures) -> None:
    """Print medians with minimum and maximum, and the ratios to the other clone."""
    metrics = [*(f"{name} CPU" for name in PROCESSES), "rate", "p50", "p99"]
    click.echo(f"| load | system | {' | '.join(metrics)} |\n|---|---{'|---' * len(metrics)}|")
    cells: dict[tuple[Any, str], dict[str, list[float]]] = {}
    for row in figures.rows:
        cells.setdefault((row.parameters["load"], row.variant), {})[row.metric] = row.values
    for (load, variant), values in cells.items():
        shown = " | ".join(_figure(values[one]) for one in metrics)
        click.echo(f"| {load} | {variant} | {shown} |")
        if variant == OWN and (load, BEFORE) in cells:
            ratios = [
                statistics.median(
                    new / old
                    for new, old in zip(values[one], cells[load, BEFORE][one], strict=True)
                    if old
                )
                for one in metrics
            ]
            click.echo(f"| {load} | *ratio* | {' | '.join(f'{one:.2f}' for one in ratios)} |")
    click.echo(f"foreign CPU: {max(figures.foreign):.0%} of the machine at most")


def _figure(values: list[float]) -> str:
    return f"{statistics.median(values):,.1f} ({min(values):,.1f}–{max(values):,.1f})"


@click.command()
@click.option("--rates", default="1000,2000,4000,0", help="Updates/s by comma; 0: closed loop.")
@click.option("--users", default=4000, help="Users, each with a token.")
@click.option("--rounds", default=3, help="Rounds; the median is shown.")
@click.option("--seconds", default=5.0, help="Length of a load.")
@click.option("--acknowledge", default="fsync", help="SCOREBOARD_ACKNOWLEDGE of the api.")
@click.option("--before", type=click.Path(exists=True, path_type=Path), help="Another clone.")
@click.option("--json", "json_file", type=click.Path(), help="Write the figures to this file.")
@click.option("--quick", is_flag=True, help="Only check that everything works, with few users.")
def main(
    rates: str,
    users: int,
    rounds: int,
    seconds: float,
    acknowledge: str,
    before: Path | None,
    json_file: str | None,
    quick: bool,
) -> None:
    """Measure the CPU time of an update in all processes."""
    if quick:
        rates, users, rounds, seconds = "500", 100, 1, 0.5
    recorder = Recorder("system", acknowledge=acknowledge)
    clones = {BEFORE: before, OWN: None} if before else {OWN: None}
    settings = {"SCOREBOARD_ACKNOWLEDGE": acknowledge}
    for number in range(rounds):
        for variant in clones if number % 2 == 0 else reversed(clones):
            with system(clones[variant], users, settings) as stage:
                for rate in rates.split(","):
                    measure_load(stage, recorder, variant, float(rate), users, seconds)
            sys.stderr.write(f"round {number + 1}: {variant}\n")
    report(recorder.figures)
    if json_file:
        recorder.write(json_file)


if __name__ == "__main__":
    main()
