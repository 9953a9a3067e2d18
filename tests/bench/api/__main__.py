"""Measures the api and a plain implementation, alternately, in one run: `make bench-api`.

Both get the same requests from the same client, several times, on the same real Valkey with
appendfsync always. The server has one core; the client and Valkey share another. The output is the
CPU time of the server and of Valkey per request (user and system, from /proc), which is least
affected by other load, then throughput and latency.
"""

import asyncio
import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from cli.embedded.servers import EmbeddedValkey
from tests.bench.api.stage import MODULES, WORKS, api_settings, measure, open_main, server
from tests.bench.api.tokens import prepare
from tests.bench.machine import pin, two_cores
from tests.bench.rows import Figures, Recorder

REMEMBERS_NOTHING = {"baseline"}
"""Servers that need no warm-up by every user."""
QUICK_USERS = 300
METRICS = (
    ("server CPU", "µs", "cpu_us"),
    ("Redis CPU", "µs", "redis_cpu_us"),
    ("rate", "/s", "rate"),
    ("p50", "ms", "p50_ms"),
    ("p99", "ms", "p99_ms"),
    ("client CPU", "%", "client_cpu_percent"),
)


@click.command()
@click.option("--work", "works", default="update", help=f"By comma: {', '.join(WORKS)}, or all.")
@click.option("--connections", default="1,64", help="Numbers of connections, by comma.")
@click.option("--repeat", default=3, help="Rounds; the median is shown.")
@click.option(
    "--seconds", default=4.0, help="Measured seconds of a run, after a second of warming."
)
@click.option("--rate", default=0.0, help="Open loop: requests per second; 0 for closed loop.")
@click.option("--against", default="baseline", help="By comma: baseline, without-metrics, before.")
@click.option("--before", type=click.Path(exists=True, path_type=Path), help="Another clone.")
@click.option("--only", type=click.Choice(list(MODULES)), help="Measure one server.")
@click.option("--json", "json_file", type=click.Path(), help="Write the figures to this file.")
@click.option("--quick", is_flag=True, help="Only check that everything works, with few users.")
def main(
    works: str,
    connections: str,
    repeat: int,
    seconds: float,
    rate: float,
    against: str,
    before: Path | None,
    only: str | None,
    json_file: str | None,
    quick: bool,
) -> None:
    """Compare the api with a plain implementation, or with another commit."""
    names = [only] if only else [*against.split(","), "api"]
    chosen = list(WORKS) if works == "all" else works.split(",")
    counts = [int(count) for count in connections.split(",")]
    if unknown := [*(set(names) - set(MODULES)), *(set(chosen) - set(WORKS))]:
        raise click.BadParameter(f"unknown: {', '.join(unknown)}")
    if ("before" in names) != (before is not None):
        raise click.BadParameter("--against before and --before PATH need each other")
    if quick:
        repeat, seconds, counts = 1, 0.2, counts[-1:]
    recorder = Recorder("api", **facts())
    cores = two_cores()
    with tempfile.TemporaryDirectory(prefix="scoreboard-bench-") as folder:
        settings = {"appendfsync": "always"}
        with EmbeddedValkey(Path(folder) / "valkey", settings=settings) as valkey:
            assert valkey.pid is not None
            if cores:
                pin(valkey.pid, {cores[1]})
            for work in chosen:
                for number in range(repeat):
                    for count in counts:
                        for name in names if number % 2 == 0 else reversed(names):
                            one = Run(work, name, count, number, quick=quick)
                            plan = one.plan(seconds, rate)
                            asyncio.run(open_main(valkey.url, one.members))
                            tokens = prepare(one.users if plan["work"] == "update" else 1)
                            plan |= {"tokens": str(tokens.tokens), "core": cores and cores[1]}
                            environ = api_settings(valkey.url, tokens)
                            with server(name, environ, cores and cores[0], before) as (pid, port):
                                found = one.measure(
                                    recorder, pid, valkey.pid, plan | {"port": port}
                                )
                            sys.stderr.write(
                                f"{work}, {count} connections, {name}: {json.dumps(found)}\n"
                            )
    report(recorder.figures)
    if json_file:
        recorder.write(json_file)


class Run:
    """One server with one work and one number of connections."""

    def __init__(self, work: str, name: str, count: int, number: int, *, quick: bool) -> None:
        self.work, self.name, self.count, self.number = work, name, count, number
        self._work = WORKS[work]
        most = QUICK_USERS if quick else sys.maxsize
        self.users = min(self._work.users, most * (10 if self._work.is_once else 1))
        self.members = min(self._work.members, most)
        self.is_quick = quick

    def plan(self, seconds: float, rate: float) -> dict[str, Any]:
        warm_requests = 0 if self.name in REMEMBERS_NOTHING else self._work.warm_requests
        return {
            "work": self._work.request,
            "connections": self.count,
            "users": self.users,
            "warm_s": 0.1 if self.is_quick else 1.0,
            "warm_requests": min(warm_requests, 2 * self.users),
            "is_once": self._work.is_once,
            "seconds": seconds,
            "run": f"{self.name}-{self.count}-{self.number}",
            "rate": rate,
        }

    def measure(
        self, recorder: Recorder, pid: int, redis_pid: int, plan: dict[str, Any]
    ) -> dict[str, float]:
        with recorder.measurement():
            found = measure(pid, redis_pid, plan)
        found["client_cpu_percent"] = 100 * found.pop("client_cpu_share")
        parameters = {"connections": self.count, "users": self.users}
        for metric, unit, key in METRICS:
            recorder.add(self.work, self.name, parameters, metric, unit, found[key])
        return {key: round(value, 2) for key, value in found.items()}


def facts() -> dict[str, str]:
    """Return the versions of what is measured."""
    names = ("litestar", "uvicorn", "uvloop", "redis", "hiredis")
    return {"Python": platform.python_version()} | {name: version(name) for name in names}


def report(figures: Figures) -> None:
    """Print medians, with the spread of the CPU figures, and the ratios to the api."""
    click.echo(
        "| work | connections | server | server CPU µs | Redis CPU µs | /s | p50 ms | p99 ms |"
    )
    click.echo("|---|---|---|---|---|---|---|---|")
    cells: dict[tuple[str, Any, str], dict[str, str]] = {}
    cpu: dict[tuple[str, Any], dict[str, float]] = {}
    for row in figures.rows:
        key = (row.work, row.parameters["connections"])
        text = f"{row.median:,.0f}" if row.median >= 100 else f"{row.median:.1f}"
        if row.unit == "µs":
            text += f" ({min(row.values):.0f}–{max(row.values):.0f})"
        cells.setdefault((*key, row.variant), {})[row.metric] = text
        if row.metric == "server CPU":
            cpu.setdefault(key, {})[row.variant] = row.median
    for (work, count, name), shown in cells.items():
        columns = [shown[metric] for metric, _, _ in METRICS[:-1]]
        click.echo(f"| {work} | {count} | {name} | {' | '.join(columns)} |")
    for (work, count), medians in cpu.items():
        for name, other in medians.items():
            if name != "api" and "api" in medians:
                ratio = medians["api"] / other
                click.echo(f"{work}, {count} connections: {ratio:.2f} of the CPU of {name}")
    click.echo(f"foreign CPU: {max(figures.foreign):.0%} of the machine at most")


if __name__ == "__main__":
    main()
