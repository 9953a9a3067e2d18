"""`make soak`: the highest steady rate of the whole system, held for a time, and what is beyond it.

Raises the rate of updates in short steps until a limit is exceeded: p99 of updates, lag of the
flusher, p99 of the viewers' delay. Holds the largest share of it that a trial of a minute finds
within the limits (or the rate of --rate), and samples memory, files and sizes. Then goes beyond
the highest rate, reports which limit is exceeded first, and how long the system takes to recover.
In the end every acknowledged update must be in the ledger once, and `verify` must find nothing.
Exit code 1: a limit was exceeded in the hold, memory grew, or an update was lost or counted twice.
3: the machine was busy, so --write has changed nothing.
"""

import asyncio
import contextlib
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import click
import psycopg
import redis.asyncio as aioredis
import uvloop

from scoreboard.ledger.pool import connect
from scoreboard.model import Board
from scoreboard.recovery.reseed import SESSION, report_nothing
from scoreboard.recovery.verify import verify
from scoreboard.runtime.telemetry import setup_logging
from scoreboard.store.client import make_client
from tests.bench.__main__ import BUSY, describe_run, publish, write_pages
from tests.bench.api.client import Plan, updates
from tests.bench.api.tokens import prepare
from tests.bench.flush.__main__ import is_committed
from tests.bench.rows import Recorder
from tests.bench.soak.load import Load, Viewer, view
from tests.bench.soak.system import BOARD, KEYS, Stored, System, read_stored, running
from tests.bench.tables import Published, is_busy, number, render
from tests.support.eventually import eventually, eventually_async

LIMITS_MS = {"update p99": 50.0, "flusher lag p99": 1000.0, "viewer delay p99": 250.0}
HOLD_SHARES = (0.9, 0.75, 0.6, 0.45, 0.3)
"""Shares of the highest rate of the short steps that are tried for the hold. Work in the background
(a rewrite of the append-only file, a checkpoint) shows only in a longer time."""
TRIAL_STEPS = 8
"""Length of a trial, in steps."""
GROWTH_MB_PER_MINUTE = 0.5
"""Above this slope over the last half of the hold, the memory of a service is not flat."""
OWN_CORE_SHARE = 0.4
USERS, CONNECTIONS = 4_000, 256
BEYOND = (1.25, 1.5, 2.0, 3.0, 4.0)
FIRST_RATE, LEAST_RATE, FACTOR, REFINEMENTS = 500.0, 50.0, 1.5, 2
LAG_S = 0.1
SETTLE_S = 60.0
"""Longest time to wait for a calm system after a limit was exceeded."""


class Interval(NamedTuple):
    """The figures of an interval, in ms; ``failed`` counts what was not applied."""

    seconds: float
    rate: float
    figures: dict[str, float]
    p50s: dict[str, float]
    failed: dict[str, int]

    def over_limit(self) -> list[str]:
        """Return the limits that are exceeded."""
        return [name for name, limit in LIMITS_MS.items() if self.figures[name] > limit]

    def exceeded(self) -> list[str]:
        """Return the limits that are exceeded, and the updates that were not applied."""
        return self.over_limit() + [f"{count} × {what}" for what, count in self.failed.items()]


class Sample(NamedTuple):
    """Memory and sizes at a moment of the hold."""

    minute: float
    processes: dict[str, tuple[float, int]]
    stored: Stored


class Soak:
    """One run on a running system."""

    def __init__(self, system: System, load: Load, lags: "deque[float]") -> None:
        self.system, self.load, self.lags = system, load, lags

    async def interval(self, rate: float, seconds: float) -> Interval:
        """Load at a rate and return what happened."""
        self.load.rate = rate
        self.load.take()
        self.lags.clear()
        began_s = time.perf_counter()
        await asyncio.sleep(seconds)
        elapsed_s = time.perf_counter() - began_s
        window = self.load.take()
        measured = {
            "update": window.latencies_s,
            "flusher lag": self.lags,
            "viewer delay": window.delays_s,
        }
        failed = dict(window.failures)
        if window.unsent:
            failed["unsent"] = window.unsent
        return Interval(
            elapsed_s,
            window.applied / elapsed_s,
            {f"{name} p99": 1000 * percentile(values, 0.99) for name, values in measured.items()},
            {f"{name} p50": 1000 * percentile(values, 0.50) for name, values in measured.items()},
            failed,
        )

    async def settle(self, rate: float) -> float:
        """Load at a low rate until a second is within the limits; return the seconds it took."""
        began_s = time.perf_counter()
        while time.perf_counter() - began_s < SETTLE_S:
            if not (await self.interval(rate, 1.0)).exceeded():
                break
        return time.perf_counter() - began_s - 1.0

    async def search(self, step_s: float) -> float:
        """Return the highest rate whose step was within the limits."""
        await self.interval(FIRST_RATE, step_s)  # warms the system
        good, bad, rate = 0.0, 0.0, FIRST_RATE
        refinements = REFINEMENTS
        while True:
            found = await self.interval(rate, step_s)
            exceeded = found.exceeded() or (
                ["rate not reached"] if found.rate < 0.97 * rate else []
            )
            say(
                f"{rate:,.0f}/s: {describe(found)}{' exceeded: ' if exceeded else ''}"
                f"{', '.join(exceeded)}"
            )
            if exceeded:
                bad = rate
                await self.settle(FIRST_RATE)
            else:
                good = rate
            if not bad:
                rate *= FACTOR
            elif not good and rate > LEAST_RATE:
                rate /= 2
            elif refinements and good:
                refinements -= 1
                rate = (good + bad) / 2
            else:
                return good

    async def steady(self, highest: float, step_s: float) -> float:
        """Return the largest share of a rate that a longer trial finds within the limits."""
        for share in HOLD_SHARES[:-1]:
            found = await self.interval(share * highest, TRIAL_STEPS * step_s)
            say(f"trial, {share:.0%}: {describe(found)} {', '.join(found.exceeded())}")
            if not found.exceeded():
                return share * highest
            await self.settle(FIRST_RATE)
        return HOLD_SHARES[-1] * highest

    async def hold(self, rate: float, minutes: float) -> tuple[list[Interval], list[Sample]]:
        """Hold a rate; return its intervals, and samples of memory."""
        count = max(6, min(60, round(minutes * 2)))
        intervals: list[Interval] = []
        samples: list[Sample] = []
        began_s = time.perf_counter()
        for _ in range(count):
            intervals.append(await self.interval(rate, 60 * minutes / count))
            minute = (time.perf_counter() - began_s) / 60
            stored = await asyncio.to_thread(read_stored, self.system)
            samples.append(Sample(minute, self.system.memory(), stored))
            say(
                f"{minute:.1f} min: {describe(intervals[-1])} {', '.join(intervals[-1].exceeded())}"
            )
        return intervals, samples

    async def beyond(self, highest: float, seconds: int) -> tuple[list[str], dict[str, int]]:
        """Raise the rate until updates are not applied; return what was exceeded, in order.

        A limit is exceeded at a rate if half of the seconds exceed it. The second result counts
        the updates that were not applied, by outcome.
        """
        order: dict[str, str] = {}
        failed: Counter[str] = Counter()
        for factor in BEYOND:
            rate = factor * highest
            exceeded: Counter[str] = Counter()
            for _ in range(seconds):
                found = await self.interval(rate, 1.0)
                exceeded.update(found.over_limit())
                failed.update(found.failed)
            say(f"beyond, {rate:,.0f}/s: {describe(found)} {', '.join(found.exceeded())}")
            over = [name for name, count in exceeded.items() if 2 * count >= seconds]
            for name in (*over, *failed):
                order.setdefault(name, f"{name} at {rate:,.0f}/s")
            if failed:
                break
        return list(order.values()), dict(failed)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def describe(found: Interval) -> str:
    figures = ", ".join(f"{name} {value:.0f} ms" for name, value in found.figures.items())
    return f"{found.rate:,.0f} applied/s, {figures}"


def say(text: str) -> None:
    sys.stderr.write(text.rstrip() + "\n")


def slope_per_minute(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope over the last half of (minute, value)."""
    half = points[len(points) // 2 :]
    if len(half) < 2:
        return 0.0
    return statistics.linear_regression([x for x, _ in half], [y for _, y in half]).slope


async def watch_lag(system: System, lags: "deque[float]") -> None:
    """Note several times a second since when PostgreSQL lacks the oldest action."""
    accepted: deque[tuple[int, float]] = deque()
    client = aioredis.Redis.from_url(system.stage.valkey.url)
    database = await psycopg.AsyncConnection.connect(system.stage.postgres.url, autocommit=True)
    async with client, database:
        while True:
            seq = await client.hget(KEYS.meta, "seq")  # type: ignore[misc]
            accepted.append((int(seq or 0), time.perf_counter()))
            cursor = await database.execute(
                "SELECT seq FROM flush_state WHERE board = %s", (BOARD,)
            )
            row = await cursor.fetchone()
            lags.append(lag_s(accepted, row[0] if row else 0, time.perf_counter()))
            await asyncio.sleep(LAG_S)


def lag_s(accepted: "deque[tuple[int, float]]", committed: int, now_s: float) -> float:
    """Return the age of the oldest uncommitted action, and drop what is older.

    ``accepted`` has readings of (last accepted seq, time). Between two readings, actions are taken
    as evenly spread.
    """
    while len(accepted) > 1 and accepted[1][0] <= committed:
        accepted.popleft()
    seq, at_s = accepted[0]
    if committed < seq:
        return now_s - at_s
    if len(accepted) == 1:
        return 0.0
    next_seq, next_s = accepted[1]
    return now_s - (at_s + (next_s - at_s) * (committed - seq) / (next_seq - seq))


def count_once(system: System, outcomes: bytes) -> tuple[int, int]:
    """Return how many acknowledged updates the ledger lacks, and how many it has twice."""
    counted = bytearray(len(outcomes))
    twice = 0
    with psycopg.connect(system.stage.postgres.url) as database, database.cursor() as cursor:
        query = (
            "COPY (SELECT action_id FROM score_events WHERE action_id LIKE 'win:soak-%') TO STDOUT"
        )
        with cursor.copy(query) as rows:
            rest = b""
            for block in rows:
                *lines, rest = (rest + bytes(block)).split(b"\n")
                for line in lines:
                    index = int(line[9:])
                    twice += counted[index]
                    counted[index] = 1
    lost = sum(1 for wanted, found in zip(outcomes, counted, strict=True) if wanted and not found)
    return lost, twice


async def is_sound(system: System) -> bool:
    """Return whether a complete verification finds nothing."""
    settings = system.settings
    async with (
        make_client(settings, name="soak") as client,
        await connect(settings, name="soak", **SESSION) as connection,
    ):
        verdict = await verify(client, connection, Board(), sample=None, report=report_nothing)
    return verdict.is_sound


async def run(
    system: System,
    recorder: Recorder,
    *,
    minutes: float,
    viewers: int,
    step_s: float,
    rate: float | None,
) -> tuple[list[str], bytes]:
    """Run all phases; return what is wrong, and which updates were acknowledged."""
    tokens = str(prepare(USERS).tokens)
    plan = Plan(system.api_port, CONNECTIONS, 0.0, "soak", users=USERS, tokens=tokens)
    load = Load(system.api_port, updates(plan))
    lags: deque[float] = deque()
    await load.connect(CONNECTIONS)
    parts = (load.pace(), load.keep_connected(), watch_lag(system, lags))
    tasks = [asyncio.create_task(part) for part in parts]
    seen: list[Viewer] = await view(load, system.ws_port, viewers)
    soak = Soak(system, load, lags)
    wrong: list[str] = []
    if rate is None:
        highest = await soak.search(step_s)
        if not highest:
            raise click.ClickException(f"{LEAST_RATE:,.0f} updates/s already exceed a limit")
        recorder.add("highest rate in short steps", "system", {}, "updates", "/s", highest)
        rate = await soak.steady(highest, step_s)
    else:
        highest = rate
    own_s, system_s = time.process_time(), system.cpu_s()
    with recorder.measurement():
        intervals, samples = await soak.hold(rate, minutes)
    seconds = sum(one.seconds for one in intervals)
    applied = sum(one.rate * one.seconds for one in intervals)
    own_share = (time.process_time() - own_s) / seconds
    record(recorder, rate, intervals, samples)
    add = recorder.add
    add("hold", "system", {}, "CPU per update", "µs", (system.cpu_s() - system_s) / applied * 1e6)
    add("hold", "system", {}, "CPU of the generator", "%", 100 * own_share)
    exceeded = [one.exceeded() for one in intervals if one.exceeded()]
    if exceeded:
        wrong.append(
            f"{len(exceeded)} of {len(intervals)} intervals of the hold: {', '.join(exceeded[0])}"
        )
    if own_share > OWN_CORE_SHARE:
        wrong.append(f"the generator used {own_share:.0%} of a core")
    if minutes >= 10:  # caches fill in the first minutes
        wrong += [
            f"the memory of {row.variant} grows by {row.median:.2f} {row.unit}"
            for row in recorder.figures.rows
            if row.metric == "growth"
            and row.variant != "Valkey"  # it remembers actions until the dedup window ends
            and row.median > GROWTH_MB_PER_MINUTE
        ]
    order, failed = await soak.beyond(highest, 3 if minutes < 10 else 10)
    recovery_s = await soak.settle(rate / 2)
    add("beyond", "system", {}, "recovery", "s", max(0.0, recovery_s))
    recorder.facts["exceeded beyond it, in this order:"] = ", ".join(order) or "no limit"
    if failed:
        shown = ", ".join(f"{count:,} × {what}" for what, count in failed.items())
        recorder.facts["not applied beyond it:"] = shown
    load.rate = 0.0
    await eventually_async(lambda: load.is_idle, within_s=SETTLE_S)
    load.close()
    for viewer in seen:
        viewer.transport.close()
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return wrong, bytes(load.outcomes)


def record(
    recorder: Recorder,
    rate: float,
    intervals: Sequence[Interval],
    samples: Sequence[Sample],
) -> None:
    """Add the figures of the hold."""
    add = recorder.add
    add("hold", "system", {}, "rate", "/s", rate)
    for one in intervals:
        for (p50, low), (p99, high) in zip(one.p50s.items(), one.figures.items(), strict=True):
            add("hold", "system", {}, p50, "ms", low)
            add("hold", "system", {}, p99, "ms", high)
    for name in samples[0].processes:
        memory = [(sample.minute, sample.processes[name][0]) for sample in samples]
        values = {
            ("RSS at the start", "MB"): memory[0][1],
            ("RSS at the end", "MB"): memory[-1][1],
            ("growth", "MB/min"): slope_per_minute(memory),
            ("open files at the start", ""): samples[0].processes[name][1],
            ("open files at the end", ""): samples[-1].processes[name][1],
        }
        for (metric, unit), value in values.items():
            add("process", name, {}, metric, unit, value)
    stores: dict[tuple[str, str], Callable[[Stored], float]] = {
        ("Redis, remembered actions", "MB"): lambda stored: stored.seen_mb,
        ("Redis, all else", "MB"): lambda stored: stored.rest_mb,
        ("PostgreSQL", "MB"): lambda stored: stored.postgres_mb,
        ("stream", "entries"): lambda stored: stored.stream,
    }
    for (name, unit), read in stores.items():
        points = [(sample.minute, read(sample.stored)) for sample in samples]
        values = {
            "start": points[0][1],
            "end": points[-1][1],
            "growth per minute": slope_per_minute(points),
        }
        for metric, value in values.items():
            add("store", name, {"unit": unit}, metric, "", value)


@click.command()
@click.option("--minutes", default=30.0, help="Length of the hold.")
@click.option("--viewers", default=500, help="Viewers of the board.")
@click.option("--step", "step_s", default=8.0, help="Seconds of a step of the search.")
@click.option("--json", "json_file", type=click.Path(), help="Write the figures to this file.")
@click.option("--rate", type=click.FloatRange(min=LEAST_RATE), help="Hold it; do not search.")
@click.option("--quick", is_flag=True, help="Only check that everything works.")
@click.option("--write", is_flag=True, help="Write the table of docs/explanation/benchmarks.md.")
def main(
    minutes: float,
    viewers: int,
    step_s: float,
    rate: float | None,
    json_file: str | None,
    quick: bool,
    write: bool,
) -> None:
    """Find and hold the highest steady rate of the whole system."""
    setup_logging("bench", level="error", form="console", environment="bench")
    if quick:
        minutes, viewers, step_s = 0.1, 20, 1.0
    facts = describe_run()
    recorder = Recorder("soak", minutes=number(minutes), viewers=str(viewers))
    with running() as system:
        wrong, outcomes = uvloop.run(
            run(system, recorder, minutes=minutes, viewers=viewers, step_s=step_s, rate=rate)
        )
        eventually(lambda: is_committed(system.stage, BOARD), within_s=120)
        lost, twice = count_once(system, outcomes)
        acknowledged = sum(outcomes)
        recorder.facts["acknowledged"] = f"{acknowledged:,}, lost {lost}, counted twice {twice}"
        if lost or twice:
            wrong.append(f"{lost} updates lost, {twice} counted twice")
        if not asyncio.run(is_sound(system)):
            wrong.append("verify found differences")
    recorder.facts["verdict"] = "; ".join(wrong) or "all limits hold"
    found = Published(recorder.figures, facts)
    click.echo(render(found))
    if json_file:
        recorder.write(json_file)
    busy = write and is_busy(found.figures)
    if busy:
        click.echo("busy: other programs used the CPU. The table is unchanged.", err=True)
    elif write:
        publish("soak", found)
        write_pages()
    sys.exit(1 if wrong else BUSY if busy else 0)


if __name__ == "__main__":
    main(prog_name="make soak")
