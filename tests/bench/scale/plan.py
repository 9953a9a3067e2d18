"""Tells how many processes and primaries a load needs, from the published costs.

`python -m tests.bench.scale.plan --updates 100000 --viewers 1000000`
"""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec

from tests.bench.rows import Row
from tests.bench.scale.model import OPERATIONS, Costs, Load, predict
from tests.bench.tables import Published, number

PUBLISHED: Final = Path(__file__).parents[1] / "published" / "scale-model.json"
LOADS: Final = (
    Load(updates_per_s=1_000, viewers=1_000),
    Load(updates_per_s=10_000, viewers=10_000),
    Load(updates_per_s=50_000, viewers=100_000),
    Load(updates_per_s=100_000, viewers=1_000_000),
)
"""The loads of the table in docs/explanation/scaling.md."""

COLUMNS: Final = ("primaries", "partitions", "apis", "streamers", "flushers")
CORES: Final = ("redis", "api", "streamer", "flusher", "postgres")


def costs_of(rows: Iterable[Row]) -> Costs:
    """Return the costs that the rows of the part `model` contain.

    Raises KeyError if one is missing.
    """
    costs: dict[str, float] = {}
    points: dict[object, dict[str, float]] = {}
    for row in rows:
        if row.work == "cost":
            costs[str(row.parameters["operation"])] = statistics.median(row.values)
        elif row.work == "batching":
            point = points.setdefault(row.parameters["point"], {})
            point[row.metric] = statistics.median(row.values)
    writes = sorted((one["updates"], one["writes"]) for one in points.values())
    return Costs(
        **{name: costs[name] for name in OPERATIONS},
        writes=tuple(writes),
        cycles_per_s=max(of for _, of in writes),
    )


def published_costs() -> Costs:
    """Return the published costs.

    Raises OSError if none are published.
    """
    found = msgspec.json.decode(PUBLISHED.read_bytes(), type=Published)
    return costs_of(found.figures.rows)


def render_plans(costs: Costs, loads: Sequence[Load] = LOADS) -> str:
    """Return the table of what loads need."""
    titles = ["updates/s", "viewers", *COLUMNS, *(f"{name}, cores" for name in CORES)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for load in loads:
        plan = predict(load, costs)
        counts, cores = msgspec.structs.asdict(plan.counts), msgspec.structs.asdict(plan.cores)
        cells = [f"{load.updates_per_s:,.0f}", f"{load.viewers:,}"]
        cells += [f"{counts[name]:,}" for name in COLUMNS]
        cells += [number(cores[name]) for name in CORES]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.option("--updates", type=click.FloatRange(min=0), required=True, help="Updates per second.")
@click.option("--viewers", type=click.IntRange(min=0), default=0, help="Viewers at once.")
@click.option("--frames", type=click.FloatRange(min=0), help="Boards per second and viewer.")
@click.option("--ranks", type=click.FloatRange(min=0), default=0.0, help="Ranks read per second.")
def main(updates: float, viewers: int, frames: float | None, ranks: float) -> None:
    """Print what a load needs."""
    load = Load(updates_per_s=updates, viewers=viewers, ranks_per_s=ranks)
    if frames is not None:
        load = msgspec.structs.replace(load, frames_per_s=frames)
    try:
        click.echo(render_plans(published_costs(), [load]))
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main(prog_name="python -m tests.bench.scale.plan")
