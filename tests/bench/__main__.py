"""Runs every benchmark and rewrites the tables of docs/explanation/benchmarks.md: `make bench`.

Exit codes: 0: all tables are written (or shown, with --no-write). 1: a benchmark failed; its table
is unchanged. 3: the machine was busy in a benchmark and in its repetition; its table is unchanged.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from cli.embedded import binaries
from tests.bench.aims import judge
from tests.bench.machine import Foreign
from tests.bench.rows import read
from tests.bench.scale.plan import costs_of, render_plans
from tests.bench.tables import Published, is_busy, render, render_aims, replace_blocks

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "benchmarks.md"
SCALING_PAGE = ROOT / "docs" / "explanation" / "scaling.md"
SCALING = "scale-"
"""The figures whose names begin so are tables of the page on scaling."""
PUBLISHED = Path(__file__).with_name("published")
"""A file for each benchmark: what the tables are made from."""
FAILED, BUSY = 1, 3


class Benchmark(NamedTuple):
    """A part of `make bench`: a module, and which variant is this project's."""

    module: str
    words: tuple[str, ...] = ()
    quick: tuple[str, ...] = ("--quick",)
    own: str = ""
    minutes: float = 10.0
    """It is ended and counts as failed after this time."""


def _api(works: str) -> Benchmark:
    words = ("--work", works)
    return Benchmark(
        "api", (*words, "--seconds", "3", "--repeat-busy"), (*words, "--quick"), own="api"
    )


BENCHMARKS = {
    "api": _api("update,update-many-users"),
    "tokens": _api("first-token"),
    "reads": _api("leaderboard,user-million"),
    "ws": Benchmark("ws", ("--viewers", "2000,5000", "--seconds", "4"), own="streamer"),
    "places": Benchmark("places"),
    "lua": Benchmark("lua", own="submit.lua"),
    "flush": Benchmark("flush", ("--rounds", "3"), own="COPY"),
    "system": Benchmark("system", own="scoreboard"),
    "reseed": Benchmark("reseed", ("--rounds", "2")),
    "memory": Benchmark("memory"),
    "resources": Benchmark("resources", ("--seconds", "3")),
}


@click.command()
@click.option("--only", default=",".join(BENCHMARKS), help="Benchmarks, by comma.")
@click.option("--quick", is_flag=True, help="The smallest sizes. The figures are not published.")
@click.option("--no-write", is_flag=True, help="Print the tables; do not change any file.")
def main(only: str, quick: bool, no_write: bool) -> None:
    """Run benchmarks and publish their figures."""
    names = only.split(",")
    if unknown := set(names) - set(BENCHMARKS):
        raise click.BadParameter(f"unknown benchmarks: {', '.join(sorted(unknown))}")
    began_s = time.monotonic()
    failed, busy = [], []
    with tempfile.TemporaryDirectory(prefix="scoreboard-bench-") as folder:
        for name in names:
            click.echo(f"== {name}", err=True)
            found = run(name, Path(folder) / f"{name}.json", quick=quick)
            if found is None:
                failed.append(name)
                continue
            if is_busy(found.figures) and not quick:
                busy.append(name)
            if quick or no_write:
                click.echo(f"\n{render(found, BENCHMARKS[name].own)}\n")
            elif name not in busy:
                publish(name, found)
                write_pages()
    click.echo(f"{(time.monotonic() - began_s) / 60:.1f} minutes", err=True)
    if failed:
        click.echo(f"failed, the tables are unchanged: {', '.join(failed)}", err=True)
    if busy:
        click.echo(
            f"busy: other programs used the CPU during {', '.join(busy)}, also when repeated. "
            "These tables are unchanged. Run `make bench` again on a quiet machine.",
            err=True,
        )
    sys.exit(FAILED if failed else BUSY if busy else 0)


def run(name: str, file: Path, *, quick: bool) -> Published | None:
    """Run a benchmark, a second time if the machine was busy; None if it failed."""
    found = run_once(name, file, quick=quick)
    if found is not None and is_busy(found.figures) and not quick:
        click.echo(f"{name}: the machine was busy; repeating", err=True)
        found = run_once(name, file, quick=quick)
    return found


def run_once(name: str, file: Path, *, quick: bool) -> Published | None:
    """Run a benchmark; None if it failed."""
    benchmark = BENCHMARKS[name]
    words = benchmark.quick if quick else benchmark.words
    facts = describe_run()
    foreign = Foreign()
    file.unlink(missing_ok=True)
    try:
        subprocess.run(
            [sys.executable, "-m", f"tests.bench.{benchmark.module}", *words, "--json", str(file)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            timeout=60 * benchmark.minutes,
            check=True,
        )
        figures = read(file)
    except (subprocess.SubprocessError, OSError, msgspec.MsgspecError) as error:
        click.echo(f"{name}: {error}", err=True)
        return None
    if not figures.foreign:  # the benchmark measures none itself: the share of the whole run
        figures = msgspec.structs.replace(figures, foreign=[foreign.share()])
    return Published(figures, facts)


def describe_run() -> dict[str, str]:
    """Return date, commit, machine, versions and load before a benchmark."""
    return {
        "Measured": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "Linux": platform.release(),
        "Python": platform.python_version(),
        "Valkey": _version(binaries.find_valkey()),
        "PostgreSQL": _version(binaries.find_postgres().path("postgres")),
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def publish(name: str, found: Published) -> None:
    """Keep the figures that a table is made from."""
    PUBLISHED.mkdir(exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(found))
    (PUBLISHED / f"{name}.json").write_bytes(text + b"\n")


def published() -> dict[str, Published]:
    """Read all published figures."""
    return {
        path.stem: msgspec.json.decode(path.read_bytes(), type=Published)
        for path in sorted(PUBLISHED.glob("*.json"))
    }


def page_blocks() -> dict[Path, dict[str, str]]:
    """Return the blocks of each page, made from the published figures."""
    found = published()
    if not found:
        return {}
    pages: dict[Path, dict[str, str]] = {PAGE: {}}
    for name, one in found.items():
        own = BENCHMARKS[name].own if name in BENCHMARKS else ""
        page = SCALING_PAGE if name.startswith(SCALING) else PAGE
        pages.setdefault(page, {})[name] = render(one, own)
    rows = {name: one.figures.rows for name, one in found.items()}
    pages[PAGE]["aims"] = render_aims(judge(rows))
    if model := rows.get(f"{SCALING}model"):
        pages[SCALING_PAGE][f"{SCALING}plans"] = render_plans(costs_of(model))
    return pages


def write_pages() -> None:
    """Rewrite the tables of the pages."""
    for page, blocks in page_blocks().items():
        page.write_text(replace_blocks(page.read_text(encoding="utf-8"), blocks), "utf-8")


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    commit = git("rev-parse", "--short=10", "HEAD") or "unknown"
    changed = git("status", "--porcelain", "--", ":!docs", ":!tests/bench/published")
    return f"{commit} with changes" if changed else commit


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(program: Path | str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    words = done.stdout.replace("v=", "").split()
    return next(word for word in words if word[0].isdigit())


if __name__ == "__main__":
    main(prog_name="make bench")
