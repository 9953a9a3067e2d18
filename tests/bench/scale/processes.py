"""More processes of each service: what an update, a frame or an event costs one and two of them."""

import asyncio
import os
import re
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import psycopg
import redis

from cli.embedded.ports import find_free_port
from scoreboard.ledger.boards import insert_board
from scoreboard.ledger.pool import connect
from scoreboard.model import Action, Board, Partition
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import PartitionKeys
from tests.bench.flush.stage import Servers
from tests.bench.machine import cpu_s, family_cpu_s
from tests.bench.resources.processes import Service, service
from tests.bench.rows import Recorder
from tests.bench.scale.stage import (
    CONNECTIONS,
    USERS,
    Cost,
    Parts,
    Redis,
    apis,
    board_of,
    drive,
    make_boards,
    metrics,
    quietest,
    servers,
    valkey,
)
from tests.bench.ws.__main__ import VIEWERS_MODULE, ViewersProcess, open_main, publish, serving
from tests.support.eventually import eventually

COUNTS: Final = (1, 2)
PARTITIONS: Final = 4
RATE: Final = 2_000
"""Updates per second that the flushers of a board of PARTITIONS commit."""

API_RATE: Final = 500
"""Updates per second of each api, when they are sent at a rate."""

VIEWERS: Final = 1_000
SHARE_S: Final = 60.0
POLL_S: Final = 0.01


def measure_apis(recorder: Recorder, rounds: int, seconds: float) -> None:
    """Measure updates of one board through one api and through two."""
    with valkey() as server:
        asyncio.run(make_boards(server.url, [board_of("main")]))
        with apis(2, server.url) as both:
            for number in range(rounds + 1):  # the first round warms up
                for rate in (0, API_RATE):
                    found: dict[int, Cost] = {}
                    for count in COUNTS if number % 2 else reversed(COUNTS):
                        chosen = both[:count]
                        parts = Parts(Redis.of(server), {"api": [api.pid for api in chosen]})
                        plan = {
                            "run": f"a{number}-{rate}-{count}",
                            "seconds": seconds,
                            "rate": float(rate * count),
                        }
                        run = partial(drive, parts, [api.port for api in chosen], plan)
                        found[count] = quietest(recorder, run)
                    load = f"{rate:,}/s each" if rate else f"{CONNECTIONS} in turn"
                    for count in COUNTS if number else ():
                        _add_apis(recorder, load, count, found[count], found[1])


def _add_apis(recorder: Recorder, load: str, count: int, cost: Cost, first: Cost) -> None:
    cores = len(os.sched_getaffinity(0))
    together_us = cost.together_us + cost.us["clients"]
    for metric, unit, value in (
        ("api CPU", "µs", cost.us["api"]),
        ("Redis CPU", "µs", cost.us["Redis"]),
        ("api, of the first", "×", cost.us["api"] / first.us["api"]),
        ("Redis, of the first", "×", cost.us["Redis"] / first.us["Redis"]),
        ("rate", "/s", cost.rate),
        ("rate, of the first", "×", cost.rate / first.rate),
        # What the machine could do at most if nothing else ran on it.
        ("rate that the cores allow", "/s", cores / together_us * 1e6),
    ):
        parameters = {"load": load, "api processes": count}
        recorder.add("update", "system", parameters, metric, unit, value)


def measure_streamers(
    recorder: Recorder, rounds: int, seconds: float, viewers: int = VIEWERS
) -> None:
    """Measure ten boards a second to viewers of one streamer, and of two with half of them each."""
    with valkey() as server, tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            found: dict[int, dict[str, float]] = {}
            for count in COUNTS if number % 2 else reversed(COUNTS):
                run = partial(_show, server.url, folder, count, viewers, seconds)
                found[count] = quietest(recorder, run)
            for count, one in sorted(found.items()):
                for metric, unit, value in (
                    ("streamer CPU", "µs", one["streamer_us"]),
                    ("streamer, of the first", "×", one["streamer_us"] / found[1]["streamer_us"]),
                    ("frames", "/s", one["frames_per_s"]),
                ):
                    parameters = {"streamers": count, "viewers": viewers}
                    recorder.add("frame", "system", parameters, metric, unit, value)


def _show(url: str, folder: str, count: int, viewers: int, seconds: float) -> dict[str, float]:
    """Show changes to viewers of some streamers; return CPU per frame of a viewer."""
    asyncio.run(open_main(url))
    with ExitStack() as stack:
        running = [stack.enter_context(serving("ours", url, Path(folder))) for _ in range(count)]
        holders = [ViewersProcess(VIEWERS_MODULE, port, viewers // count, 0) for port, _ in running]
        for holder in holders:
            stack.callback(holder.close)
        asyncio.run(publish(url, 1.0))
        for holder in holders:
            holder.begin()
        before_s, began_s = sum(cpu_s(pid) for _, pid in running), time.monotonic()
        asyncio.run(publish(url, seconds))
        time.sleep(0.3)  # pace: the last frames arrive
        used_s = sum(cpu_s(pid) for _, pid in running) - before_s
        took_s = time.monotonic() - began_s
        seen = [one for holder in holders for one in holder.end()]
    assert seen, "no frame arrived"
    return {"streamer_us": used_s / len(seen) * 1e6, "frames_per_s": len(seen) / took_s}


class Flushing(NamedTuple):
    """A running flusher, and the port of its metrics."""

    service: Service
    port: int


@contextmanager
def flusher(stage: Servers, boards: Sequence[str]) -> Iterator[Flushing]:
    """Run a flusher that serves boards from its start."""
    port = find_free_port()
    variables = {
        "REDIS_URL": stage.valkey.url,
        "DATABASE_URL": stage.postgres.url,
        "SCOREBOARD_BOARDS": ",".join(boards),
        "SCOREBOARD_FLUSHER_METRICS_PORT": str(port),
    }
    with service("flusher", variables, port) as found:
        yield Flushing(found, port)


async def make_stored_board(stage: Servers, board: Board) -> None:
    """Create an empty board in both stores."""
    settings = Settings(redis_url=Secret(stage.valkey.url), database_url=Secret(stage.postgres.url))
    async with await connect(settings, name="bench") as connection:
        await insert_board(connection, board)
    await make_boards(stage.valkey.url, [board])


@asynccontextmanager
async def feeding(
    stage: Servers, board: Board, rate: float, run: str
) -> AsyncIterator[list[float]]:
    """Send updates at a rate, as an api does; yield a list that has the time of each answer."""
    dispatcher = Dispatcher(Settings(redis_url=Secret(stage.valkey.url)))
    answered: list[float] = []
    async with asyncio.TaskGroup() as group:
        serving_task = group.create_task(dispatcher.run())
        pending: set[asyncio.Task[None]] = set()

        async def send(number: int) -> None:
            action = Action(f"user-{number % USERS}", f"win:{run}-{number}", 1)
            await dispatcher.submit(board.name, action)
            answered.append(time.monotonic())

        async def pace() -> None:
            """Make updates due at the rate, whatever became of those before."""
            began_s, number = time.monotonic(), 0
            while True:
                while number < (time.monotonic() - began_s) * rate:
                    task = asyncio.create_task(send(number))
                    pending.add(task)
                    task.add_done_callback(pending.discard)
                    number += 1
                await asyncio.sleep(0.005)  # pace: of the rate

        pacing = group.create_task(pace())
        try:
            yield answered
        finally:
            pacing.cancel()
            await asyncio.gather(*pending)
            dispatcher.close()
            await serving_task


def leading(one: Flushing, board: str) -> set[int]:
    """Return the partitions of a board that a flusher leads."""
    text = metrics(one.port)
    pattern = rf'scoreboard_flusher_leading\{{board="{board}",part="(\d+)"\}} 1\.0'
    return {int(number) for number in re.findall(pattern, text)}


def batches(flushers: Sequence[Flushing]) -> float:
    """Return how many batches flushers have committed."""
    pattern = r"scoreboard_flusher_flush_duration_seconds_count(?:\{[^}]*\})? (\S+)"
    texts = [metrics(one.port) for one in flushers]
    return sum(float(count) for text in texts for count in re.findall(pattern, text))


def committed(stage: Servers, board: str) -> dict[int, int]:
    """Return the last committed seq of each partition."""
    with psycopg.connect(stage.postgres.url) as connection:
        query = "SELECT part, seq FROM flush_state WHERE board = %s"
        return dict(connection.execute(query, (board,)).fetchall())


def accepted(stage: Servers, board: Board) -> dict[int, int]:
    """Return the last accepted seq of each partition."""
    numbers = range(board.layout.partitions)
    with redis.Redis.from_url(stage.valkey.url) as client:
        return {
            number: int(client.hget(PartitionKeys(Partition(board.name, number)).meta, "seq") or 0)
            for number in numbers
        }


def measure_flushers(recorder: Recorder, rounds: int, seconds: float, rate: float = RATE) -> None:
    """Measure events of a board of four partitions with one flusher and with two; kill one."""
    board = board_of("main", PARTITIONS)
    with servers() as stage:
        asyncio.run(make_stored_board(stage, board))
        for number in range(rounds):
            found: dict[int, dict[str, float]] = {}
            for count in COUNTS if number % 2 else reversed(COUNTS):
                run = partial(_flush, stage, board, count, seconds, rate)
                found[count] = quietest(recorder, run)
            for count, one in sorted(found.items()):
                for metric, unit, value in (
                    ("flusher CPU", "µs", one["flusher_us"]),
                    ("flusher, of the first", "×", one["flusher_us"] / found[1]["flusher_us"]),
                    ("PostgreSQL CPU", "µs", one["postgres_us"]),
                    ("most partitions of one", "", one["most"]),
                    ("evenly after", "s", one["shared_s"]),
                    ("moved after a kill", "s", one["moved_s"]),
                ):
                    if count > 1 or metric not in {"evenly after", "moved after a kill"}:
                        parameters = {"flushers": count, "partitions": PARTITIONS}
                        recorder.add("event", "system", parameters, metric, unit, value)


def _flush(
    stage: Servers, board: Board, count: int, seconds: float, rate: float
) -> dict[str, float]:
    return asyncio.run(_flush_for(stage, board, count, seconds, rate))


async def _flush_for(
    stage: Servers, board: Board, count: int, seconds: float, rate: float
) -> dict[str, float]:
    run = f"{time.monotonic_ns():x}"
    with ExitStack() as stack:
        flushers = [stack.enter_context(flusher(stage, [board.name])) for _ in range(count)]
        began_s = time.monotonic()
        share = -(-PARTITIONS // count)

        def is_shared() -> bool:
            held = [len(leading(one, board.name)) for one in flushers]
            return sum(held) == PARTITIONS and max(held) == share

        async with feeding(stage, board, rate, run) as answered:
            await asyncio.to_thread(eventually, is_shared, within_s=SHARE_S)
            shared_s = time.monotonic() - began_s
            before = _spent(stage, flushers, answered)
            await asyncio.sleep(seconds)  # pace: the time that is measured
            after = _spent(stage, flushers, answered)
            held = [len(leading(one, board.name)) for one in flushers]
            moved_s = 0.0
            if count > 1:
                moved_s = await asyncio.to_thread(_kill, stage, board, flushers[0])
        is_done = lambda: committed(stage, board.name) == accepted(stage, board)  # noqa: E731
        await asyncio.to_thread(eventually, is_done, within_s=SHARE_S)
    events = after["events"] - before["events"]
    return {
        "flusher_us": (after["flusher"] - before["flusher"]) / events * 1e6,
        "postgres_us": (after["postgres"] - before["postgres"]) / events * 1e6,
        "most": max(held),
        "shared_s": shared_s,
        "moved_s": moved_s,
    }


def _spent(
    stage: Servers, flushers: Sequence[Flushing], answered: Sequence[float]
) -> Mapping[str, float]:
    return {
        "flusher": sum(cpu_s(one.service.pid) for one in flushers),
        "postgres": family_cpu_s(stage.postgres.pid or 0),
        "events": len(answered),
    }


def _kill(stage: Servers, board: Board, one: Flushing) -> float:
    """Kill a flusher; return the time until every partition has committed something since."""
    held = leading(one, board.name)
    assert held, "the flusher leads nothing"
    os.kill(one.service.pid, signal.SIGKILL)
    killed_s = time.monotonic()
    first = committed(stage, board.name)

    def have_moved() -> bool:
        now = committed(stage, board.name)
        return all(now[number] > first[number] for number in held)

    eventually(have_moved, within_s=SHARE_S)
    return time.monotonic() - killed_s
