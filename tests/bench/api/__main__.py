"""Measures the api and a plain implementation, alternately, in one run: `make bench-api`.

Both get the same requests from the same client, several times, on the same real Valkey with
appendfsync always. The server has one core; the client and Valkey share another. The output is the
CPU time of the server and of Valkey per request (user and system, from /proc), which is least
affected by other load, then throughput and latency.
"""

import asyncio
import platform
import tempfile
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import NamedTuple

import click

from cli.embedded.servers import EmbeddedValkey
from tests.bench.api.stage import MODULES, WORKS, api_settings, measure, open_main, server
from tests.bench.api.tokens import prepare
from tests.bench.machine import pin, two_cores
from tests.bench.rows import Recorder
from tests.bench.tables import Published, render

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
@click.option("--repeat-busy", is_flag=True, help="Measure again where the machine was busy.")
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
    repeat_busy: bool,
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
    recorder = Recorder("api", repeats_busy=repeat_busy, **facts())
    cores = two_cores()
    with tempfile.TemporaryDirectory(prefix="scoreboard-bench-") as folder:
        settings = {"appendfsync": "always"}
        with EmbeddedValkey(Path(folder) / "valkey", settings=settings) as valkey:
            if cores and valkey.pid:
                pin(valkey.pid, {cores[1]})
            bench = Bench(valkey, cores, before, is_quick=quick, seconds=seconds, rate=rate)
            for work, number, count in product(chosen, range(repeat), counts):
                for name in names if number % 2 == 0 else reversed(names):
                    found = recorder.measure(partial(bench.run, work, name, count))
                    parameters = {"connections": count, "users": bench.users(work)}
                    for (metric, unit), value in found.items():
                        recorder.add(work, name, parameters, metric, unit, value)
                    shown = ", ".join(f"{key[0]} {value:,.1f}" for key, value in found.items())
                    click.echo(f"{work}, {count} connections, {name}: {shown}", err=True)
    click.echo(render(Published(recorder.figures, {}), "api"))
    if json_file:
        recorder.write(json_file)


class Bench(NamedTuple):
    """What all runs share."""

    valkey: EmbeddedValkey
    cores: tuple[int, int] | None
    before: Path | None
    is_quick: bool
    seconds: float
    rate: float

    def users(self, work: str) -> int:
        users = WORKS[work].users
        return min(users, QUICK_USERS * 10) if self.is_quick else users

    def run(self, work: str, name: str, count: int) -> dict[tuple[str, str], float]:
        """Measure one server with one work and one number of connections."""
        users = self.users(work)
        chosen = WORKS[work]
        asyncio.run(open_main(self.valkey.url, min(chosen.members, users)))
        tokens = prepare(users if chosen.request == "update" else 1)
        warm_requests = 0 if name in REMEMBERS_NOTHING else min(chosen.warm_requests, users)
        plan = {
            "work": chosen.request,
            "connections": count,
            "users": users,
            "tokens": str(tokens.tokens),
            "warm_s": 0.1 if self.is_quick else 1.0,
            "warm_requests": warm_requests,
            "is_once": chosen.is_once,
            "seconds": self.seconds,
            "run": "bench",
            "rate": self.rate,
            "core": self.cores and self.cores[1],
        }
        environ = api_settings(self.valkey.url, tokens)
        core = self.cores and self.cores[0]
        with server(name, environ, core, self.before) as (pid, port):
            found = measure(pid, self.valkey.pid, plan | {"port": port})
        found["client_cpu_percent"] = 100 * found["client_cpu_share"]
        return {(metric, unit): found[key] for metric, unit, key in METRICS}


def facts() -> dict[str, str]:
    """Return the versions of what is measured."""
    names = ("litestar", "uvicorn", "uvloop", "redis", "hiredis")
    return {"Python": platform.python_version()} | {name: version(name) for name in names}


if __name__ == "__main__":
    main()
