"""`make bench-scale`: what each step of scaling out costs, as ratios of CPU time.

Each part is a benchmark of its own with a table in docs/explanation/scaling.md. What is compared
takes turns in the same servers, in the same round. A measurement is repeated once if other programs
use the machine, and the quieter one is kept.

Exit codes: 0. 3: the machine was busy in a part, so --write has not changed its table; --even-busy
publishes it with the share of CPU time that other programs used.
"""

import sys

import click

from scoreboard.runtime.telemetry import setup_logging
from tests.bench.__main__ import BUSY, SCALING, describe_run, publish, write_pages
from tests.bench.rows import Recorder
from tests.bench.scale import check, cluster, processes, requests
from tests.bench.tables import Published, is_busy, render

PARTS = {
    "partitions": requests.measure_partitions,
    "boards": requests.measure_boards,
    "reads": requests.measure_reads,
    "apis": processes.measure_apis,
    "streamers": processes.measure_streamers,
    "flushers": processes.measure_flushers,
    "lanes": cluster.measure_lanes,
    "replicas": cluster.measure_replicas,
    "notices": cluster.measure_notices,
    "model": check.measure,
}


@click.command()
@click.option("--only", default=",".join(PARTS), help="Parts, by comma.")
@click.option("--rounds", default=3, help="Rounds; the median is shown.")
@click.option("--seconds", default=3.0, help="Length of a load.")
@click.option("--json", "json_file", type=click.Path(), help="Write the figures of one part.")
@click.option("--quick", is_flag=True, help="Only check that everything works.")
@click.option("--write", is_flag=True, help="Write the tables of docs/explanation/scaling.md.")
@click.option("--even-busy", is_flag=True, help="Write them also if the machine was busy.")
def main(
    only: str,
    rounds: int,
    seconds: float,
    json_file: str | None,
    quick: bool,
    write: bool,
    even_busy: bool,
) -> None:
    """Measure what each step of scaling out costs."""
    setup_logging("bench", level="error", form="console", environment="bench")
    names = only.split(",")
    if unknown := set(names) - set(PARTS):
        raise click.BadParameter(f"unknown parts: {', '.join(sorted(unknown))}")
    if json_file and len(names) > 1:
        raise click.BadParameter("--json needs --only with one part")
    if quick:
        rounds, seconds = 1, 0.3
    busy: list[str] = []
    for name in names:
        click.echo(f"== {name}", err=True)
        facts = describe_run()
        recorder = Recorder(SCALING + name, rounds=str(rounds), seconds=f"{seconds:g}")
        PARTS[name](recorder, rounds, seconds)
        found = Published(recorder.figures, facts)
        click.echo(f"{render(found)}\n")
        if json_file:
            recorder.write(json_file)
        if write and is_busy(found.figures) and not even_busy:
            busy.append(name)
        elif write:
            publish(SCALING + name, found)
            write_pages()
    if busy:
        click.echo(f"busy, the tables are unchanged: {', '.join(busy)}", err=True)
    sys.exit(BUSY if busy else 0)


if __name__ == "__main__":
    main(prog_name="make bench-scale")
