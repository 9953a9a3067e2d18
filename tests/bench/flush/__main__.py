"""`make bench-flush`: the flusher's throughput, CPU time and lag.

Part one drains full streams alternately with the flusher's COPY and with one statement per row,
several times. Part two submits updates at a steady rate through submit.lua to a flusher process.
Prints a table; ``--json`` prints only the figures.
"""

import argparse
import asyncio
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import psycopg
import redis
import uvloop

from flusher.consumer import Consumer
from flusher.leases import Leases
from flusher.partition import PartitionFlusher
from flusher.writer import Writer
from scoreboard.errors import Unavailable
from scoreboard.model import Action, Partition
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import setup_logging
from scoreboard.store.client import make_client
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from tests.bench.flush.contenders import CONTENDERS, ContenderSessions
from tests.bench.flush.stage import (
    Servers,
    check,
    fill,
    make_board,
    servers,
)
from tests.bench.machine import cpu_s, family_cpu_s
from tests.bench.rows import Recorder
from tests.support.eventually import eventually_async

USERS = 10_000
WARM_UP_S = 3.0
TURN_S = 0.01
SAMPLE_S = 0.05
TARGET = 2.5
"""The required ratio of the flusher's throughput to that of one statement per row."""


async def drain(
    stage: Servers, settings: Settings, partition: Partition, events: int, writer: type[Writer]
) -> tuple[float, float, float]:
    """Flush a full stream; return seconds, the flusher's CPU seconds and PostgreSQL's."""
    reader = make_client(settings, name="reader", decode=False)
    scripts = make_client(settings, name="scripts")
    store = Store(scripts)
    stop = StopEvent(5.0)
    sessions = ContenderSessions(settings, writer)
    flusher = PartitionFlusher(
        partition,
        settings,
        Consumer(reader, store, partition, timeout_s=settings.redis_timeout_s),
        store,
        Leases([partition]),
        sessions=sessions,
    )
    postgres = stage.postgres.pid or 0
    costs = (time.monotonic(), time.process_time(), family_cpu_s(postgres))
    task = asyncio.create_task(flusher.run(stop))
    await eventually_async(
        lambda: (
            task.done()
            or (flusher.status.position is not None and flusher.status.position.seq >= events)
        ),
        within_s=300,
        every_s=0.005,
    )
    after = (time.monotonic(), time.process_time(), family_cpu_s(postgres))
    stop.set()
    await task
    assert sessions.opened > 0, "the flusher wrote with a session of its own"
    await reader.aclose()
    await scripts.aclose()
    return after[0] - costs[0], after[1] - costs[1], after[2] - costs[2]


def race(stage: Servers, events: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Drain equal streams with each contender alternately."""
    found: dict[str, dict[str, list[float]]] = {
        name: {"events_per_s": [], "flusher_us": [], "postgres_us": []} for name in CONTENDERS
    }
    for number in range(rounds):
        names = list(CONTENDERS)
        for name in names if number % 2 == 0 else reversed(names):
            board = f"race-{number}-{name}"
            partition = make_board(stage, board)
            fill(stage, partition, events, USERS)
            settings = stage.settings(board)
            took_s, ours_s, theirs_s = uvloop.run(
                drain(stage, settings, partition, events, CONTENDERS[name])
            )
            check(stage, board, events)
            found[name]["events_per_s"].append(events / took_s)
            found[name]["flusher_us"].append(ours_s / events * 1e6)
            found[name]["postgres_us"].append(theirs_s / events * 1e6)
            sys.stderr.write(f"{board}: {events / took_s:,.0f} events/s\n")
    return found


async def feed(
    settings: Settings, board: str, rate: int, seconds: float, *, part: str
) -> tuple[int, int]:
    """Submit updates at a steady rate that does not depend on the answers.

    Returns the numbers of sent and of refused updates.
    """
    dispatcher = Dispatcher(settings)
    runner = asyncio.create_task(dispatcher.run())
    started_at = time.monotonic()
    sent = 0
    tasks: list[asyncio.Task[bool]] = []

    async def attempt(action: Action) -> bool:
        try:
            await dispatcher.submit(board, action)
        except Unavailable:
            return False
        return True

    async with asyncio.TaskGroup() as group:
        while (elapsed_s := time.monotonic() - started_at) < seconds:
            while sent < elapsed_s * rate:
                action = Action(f"user-{sent % USERS:06}", f"{part}:{sent:016}", 10)
                tasks.append(group.create_task(attempt(action)))
                sent += 1
            await asyncio.sleep(TURN_S)
    dispatcher.close()
    await runner
    return sent, sum(not task.result() for task in tasks)


async def sample(
    stage: Servers, settings: Settings, partition: Partition, stop: StopEvent
) -> list[tuple[float, int]]:
    """Return samples of (time, uncommitted actions) until ``stop``."""
    client = make_client(settings, name="sampler")
    store = Store(client)
    found: list[tuple[float, int]] = []
    connection = await psycopg.AsyncConnection.connect(stage.postgres.url, autocommit=True)
    async with connection:
        while not await stop.sleep(SAMPLE_S):
            cursor = await connection.execute(
                "SELECT seq FROM flush_state WHERE board = %s", (partition.board,)
            )
            row = await cursor.fetchone()
            state = await store.state(partition)
            found.append((time.monotonic(), max(0, state.seq - (row[0] if row else 0))))
    await client.aclose()
    return found


def is_committed(stage: Servers, board: str) -> bool:
    """Return whether a flusher has committed every action."""
    with psycopg.connect(stage.postgres.url) as connection:
        row = connection.execute(
            "SELECT seq FROM flush_state WHERE board = %s", (board,)
        ).fetchone()
    with redis.Redis.from_url(stage.valkey.url) as client:
        return row is not None and row[0] == int(
            client.hget(PartitionKeys(Partition(board)).meta, "seq") or 0
        )


def steady(stage: Servers, rate: int, seconds: float) -> dict[str, float]:
    """Submit to a flusher process at a rate; return its lag and CPU time."""
    board = "steady"
    partition = make_board(stage, board)
    settings = stage.settings(board)
    environment = {
        **{name: value for name, value in os.environ.items() if "SCOREBOARD_" not in name},
        "REDIS_URL": settings.redis_url.reveal(),
        "DATABASE_URL": settings.database_url.reveal(),
        "SCOREBOARD_BOARDS": board,
        "SCOREBOARD_FLUSHER_METRICS_PORT": "0",
        "SCOREBOARD_LOG_LEVEL": "warning",
    }
    flusher = subprocess.Popen([sys.executable, "-m", "flusher"], env=environment)

    async def run() -> tuple[int, list[tuple[float, int]], float, float]:
        stop = StopEvent(5.0)
        sampling = asyncio.create_task(sample(stage, settings, partition, stop))
        await feed(settings, board, 100, 0.1, part="first")
        await eventually_async(lambda: is_committed(stage, board), within_s=60)
        await feed(settings, board, rate, WARM_UP_S, part="warm")
        await eventually_async(lambda: is_committed(stage, board), within_s=60)
        began_at = time.monotonic()
        costs = (cpu_s(flusher.pid), family_cpu_s(stage.postgres.pid or 0))
        fed, refused = await feed(settings, board, rate, seconds, part="win")
        spent = (
            cpu_s(flusher.pid) - costs[0],
            family_cpu_s(stage.postgres.pid or 0) - costs[1],
        )
        stop.set()
        samples = [one for one in await sampling if one[0] >= began_at]
        return fed - refused, samples, *spent

    try:
        fed, samples, ours_s, theirs_s = uvloop.run(run())
    finally:
        flusher.terminate()
        flusher.wait(20)
    lags = sorted(lag for _, lag in samples)
    return {
        "rate": fed / seconds,
        "lag_median": statistics.median(lags),
        "lag_p99": lags[int(len(lags) * 0.99) - 1],
        "lag_max": lags[-1],
        "flusher_us": ours_s / fed * 1e6,
        "postgres_us": theirs_s / fed * 1e6,
        "flusher_core_share": ours_s / seconds,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both parts and print them."""
    parser = argparse.ArgumentParser(prog="make bench-flush", description=__doc__)
    parser.add_argument("--events", type=int, default=100_000, help="events of a full stream")
    parser.add_argument("--rounds", type=int, default=5, help="streams of each contender")
    parser.add_argument("--rate", type=int, default=5_000, help="steady updates per second")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the steady part")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="only check that everything works")
    options = parser.parse_args(arguments)
    setup_logging("bench", level="error", form="console", environment="bench")
    if options.quick:
        options.events, options.rounds, options.rate, options.seconds = 500, 1, 100, 1.0
    recorder = Recorder("flush", events=f"{options.events:,}", users=f"{USERS:,}")
    with servers() as stage:
        with recorder.measurement():
            found = race(stage, options.events, options.rounds)
        with recorder.measurement():
            held = steady(stage, options.rate, options.seconds)
    record(recorder, found, held, options.rate)
    if options.json:
        recorder.write(options.json)
    figures = {
        "machine": {
            "cores": os.cpu_count(),
            "load_before": os.getloadavg()[0],
            "python": platform.python_version(),
        },
        "events": options.events,
        "rounds": options.rounds,
        "race": {
            name: {what: spread(values) for what, values in measured.items()}
            for name, measured in found.items()
        },
        "times_executemany": spread(
            [
                ours / theirs
                for ours, theirs in zip(
                    found["copy"]["events_per_s"],
                    found["executemany"]["events_per_s"],
                    strict=True,
                )
            ]
        ),
        "steady": held,
    }
    sys.stdout.write(render(figures) + "\n")
    return 0 if options.json or figures["times_executemany"]["median"] >= TARGET else 1


def record(
    recorder: Recorder,
    found: dict[str, dict[str, list[float]]],
    held: dict[str, float],
    rate: int,
) -> None:
    """Add the figures of both parts."""
    metrics = {
        "events_per_s": ("events", "/s"),
        "flusher_us": ("flusher CPU", "µs"),
        "postgres_us": ("PostgreSQL CPU", "µs"),
    }
    for name, measured in found.items():
        title = {"copy": "COPY"}.get(name, name)
        for what in ("flusher_us", "postgres_us", "events_per_s"):
            for value in measured[what]:
                recorder.add("drain", title, {}, *metrics[what], value)
    per_action_s = 1 / held["rate"]
    for name in ("median", "p99", "max"):
        lag_s = held[f"lag_{name}"] * per_action_s
        recorder.add("steady", "COPY", {"rate": rate}, f"lag {name}", "s", lag_s)
    for what in ("flusher_us", "postgres_us"):
        recorder.add("steady", "COPY", {"rate": rate}, *metrics[what], held[what])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def render(figures: dict[str, Any]) -> str:
    """Return the figures as the Markdown of docs/explanation/benchmarks.md."""
    lines = [
        "| writing | events/s, median (min…max) | flusher, CPU per event | PostgreSQL |",
        "|---|---|---|---|",
    ]
    for name, measured in figures["race"].items():
        rate, ours, theirs = (
            measured[what] for what in ("events_per_s", "flusher_us", "postgres_us")
        )
        lines.append(
            f"| {name} | {rate['median']:,.0f} ({rate['min']:,.0f}…{rate['max']:,.0f})"
            f" | {ours['median']:.0f} µs | {theirs['median']:.0f} µs |"
        )
    times, held = figures["times_executemany"], figures["steady"]
    lines += [
        "",
        (
            f"COPY against executemany, round by round: {times['median']:.1f} ×"
            f" ({times['min']:.1f}…{times['max']:.1f})."
        ),
        "",
        (
            f"Steady {held['rate']:,.0f}/s: lag median {held['lag_median']:,.0f} actions,"
            f" p99 {held['lag_p99']:,.0f}, max {held['lag_max']:,.0f};"
            f" flusher {held['flusher_us']:.0f} µs and PostgreSQL {held['postgres_us']:.0f} µs"
            f" of CPU per event; the flusher uses {held['flusher_core_share']:.0%} of a core."
        ),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
