"""Results of a run: their figures, marks, and how people and programs read them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from cli.bench.generator.latencies import LatencySummary
from cli.bench.generator.measurement import Measurement, Snapshot
from cli.bench.report.cpu import GENERATOR, MACHINE
from cli.bench.report.criteria import Criterion
from cli.bench.report.environment import Environment

GENERATOR_SHARE: Final = 0.9
"""Share of a core above which the generator is the limit."""

FOREIGN_SHARE: Final = 0.1
"""Share of the machine used by other programs above which a result is marked."""


class Result(Struct, frozen=True, kw_only=True):
    """What one run measured. Latencies are in ms, ``cpu_us`` in µs per operation by part."""

    kind: str
    loop: str
    """`open`, or `closed`, whose latencies hide stalls."""
    system: str
    board: str
    rate_requested: float | None
    rate: float
    """Operations per second that succeeded in the measured time."""
    duration_s: float
    warm_up_s: float
    connections: int
    operations: int
    outcomes: dict[str, int]
    unsent: int
    late: int
    reconciled: dict[str, int]
    """What unknown outcomes proved to be when their actions were repeated after the run."""
    latency: LatencySummary
    cpu_us: dict[str, float]
    generator_cores: float
    """CPU seconds of the generator per second: 1 is a whole core."""
    generator_us: float
    foreign_share: float | None
    """Share of the machine's CPU time that other programs used; None if it is not known."""
    details: dict[str, Any]
    marks: list[str]
    """Why the figures may not be those of the system."""
    environment: Environment

    @property
    def figures(self) -> dict[str, float | None]:
        """The figures that criteria name; times in ms."""
        latency = self.latency
        failed = self.operations - sum(
            self.outcomes.get(name, 0) for name in ("applied", "replayed", "ok")
        )
        has_latency = latency.count > 0
        return {
            **{name: ms if has_latency else None for name, ms in latency.percentiles_ms.items()},
            "max": latency.max_ms if has_latency else None,
            "mean": latency.mean_ms if has_latency else None,
            "errors": failed / self.operations if self.operations else None,
            "rate": self.rate,
            "cpu": sum(self.cpu_us.values()) / 1e3 if self.cpu_us else None,
        }


class Costs(Struct, frozen=True):
    """CPU time between two snapshots, for each completed operation."""

    cpu_us: dict[str, float]
    generator_cores: float
    generator_us: float
    foreign_share: float | None


def compute_costs(first: Snapshot, last: Snapshot, cores: int) -> Costs:
    """Return what the parts used between two snapshots."""
    seconds = max(last.at_s - first.at_s, 1e-9)
    operations = max(last.completed - first.completed, 1)
    used = {
        name: last.cpu_s[name] - first.cpu_s[name] for name in last.cpu_s if name in first.cpu_s
    }
    machine = used.pop(MACHINE, None)
    generator = used.pop(GENERATOR, 0.0)
    foreign = None
    if machine is not None:
        foreign = max(machine - generator - sum(used.values()), 0.0) / (seconds * cores)
    return Costs(
        {name: round(value / operations * 1e6, 1) for name, value in sorted(used.items())},
        round(generator / seconds, 3),
        round(generator / operations * 1e6, 1),
        None if foreign is None else round(foreign, 3),
    )


def find_marks(
    measurement: Measurement, costs: Costs, *, is_busy: bool, was_stopped: bool
) -> list[str]:
    """Return why the figures may not be those of the system."""
    marks: list[str] = []
    if costs.generator_cores >= GENERATOR_SHARE:
        marks.append(
            f"the generator is the limit: it used {costs.generator_cores:.0%} of a core; use a "
            "lower rate or several generators"
        )
    elif measurement.is_schedule_missed:
        marks.append(
            f"the generator is the limit: it sent {measurement.late} requests later than intended"
        )
    if measurement.unsent:
        marks.append(
            f"the system did not keep up: {measurement.unsent} requests were due and never sent; "
            "they are not in the latencies"
        )
    if any(name.startswith("429") for name in measurement.outcomes):
        marks.append(
            "requests were limited (429): use more --users, or --trusted with "
            "SCOREBOARD_TRUSTED_UPDATES_PER_MINUTE=0"
        )
    elif not measurement.succeeded:
        marks.append("no request succeeded: the outcomes say why")
    if is_busy:
        marks.append("the machine was busy before the run")
    if costs.foreign_share is not None and costs.foreign_share > FOREIGN_SHARE:
        marks.append(f"other programs used {costs.foreign_share:.0%} of this machine's CPU time")
    if was_stopped:
        marks.append("the run was stopped before its end")
    return marks


def find_failures(results: Iterable[Result], criteria: Iterable[Criterion]) -> list[str]:
    """Return the criteria by which results fail, with their figures."""
    chosen = list(criteria)
    return [
        f"{result.kind}: {criterion.text} ({_show(criterion.figure, result.figures)})"
        for result in results
        for criterion in chosen
        if criterion.is_met_by(result.figures)
    ]


def _show(figure: str, figures: Mapping[str, float | None]) -> str:
    value = figures.get(figure)
    if value is None:
        return "not measured"
    if figure == "errors":
        return f"{value:.3%}"
    if figure == "rate":
        return f"{value:,.0f}/s"
    return format_ms(value)


def format_ms(value: float) -> str:
    """Return a time in a readable unit."""
    if value < 1:
        return f"{value * 1e3:.0f} µs"
    return f"{value:.2f} ms" if value < 1000 else f"{value / 1e3:.2f} s"


def describe(result: Result) -> Iterator[tuple[str, str]]:
    """Yield the rows that describe a result to people."""
    loop = "closed loop: latencies hide stalls" if result.loop == "closed" else "open loop"
    asked = "" if result.rate_requested is None else f" of {result.rate_requested:,.0f}/s requested"
    yield "run", f"{result.kind} on {result.system}, board {result.board}, {loop}"
    yield "rate", f"{result.rate:,.0f}/s{asked}, for {result.duration_s:.1f} s"
    if result.latency.count:
        percentiles = result.latency.percentiles_ms.items()
        yield "latency", "  ".join(f"{name} {format_ms(ms)}" for name, ms in percentiles)
        longest, mean = result.latency.max_ms, result.latency.mean_ms
        yield "", f"max {format_ms(longest)}  mean {format_ms(mean)}"
    counted = {**result.outcomes, **({"unsent": result.unsent} if result.unsent else {})}
    yield "outcomes", "  ".join(f"{name} {count:,}" for name, count in sorted(counted.items()))
    if result.reconciled:
        found = "  ".join(f"{name} {count:,}" for name, count in sorted(result.reconciled.items()))
        yield "unknown", f"repeated after the run: {found}"
    if result.cpu_us:
        parts = "  ".join(f"{name} {cost:.0f}" for name, cost in result.cpu_us.items())
        total = sum(result.cpu_us.values())
        yield "CPU µs", f"{parts}  together {total:.0f} for each operation"
    yield "generator", f"{result.generator_us:.0f} µs, {result.generator_cores:.0%} of a core"
    for name, value in result.details.items():
        yield name, str(value)
    for mark in result.marks:
        yield "note", mark
