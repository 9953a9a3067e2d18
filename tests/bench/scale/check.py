"""Measures the costs of the model, and compares its predictions with two loads of other sizes.

The costs of api and Redis come from one api without other services: one update at a time, as many
as are answered, the same over a hundred boards, some rates in between, and reads. Those of flusher,
PostgreSQL and streamer come from a whole system under a small and a large load. The loads that are
compared were not used for the costs, and the second one has two processes of each kind and two
partitions.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import redis
from msgspec import Struct

from cli.embedded.ports import find_free_port
from tests.bench.flush.stage import Servers
from tests.bench.rows import Recorder
from tests.bench.scale.model import OPERATIONS, Costs, Counts, Load, split, use
from tests.bench.scale.processes import Flushing, batches, flusher, make_stored_board
from tests.bench.scale.stage import (
    USERS,
    Api,
    Cost,
    Parts,
    Redis,
    apis,
    board_of,
    drive,
    make_boards,
    metric,
    quietest,
    servers,
    valkey,
    writes,
)
from tests.bench.ws.__main__ import VIEWERS_MODULE, ViewersProcess, serving

BOARD: Final = "main"
WIDE: Final = board_of("wide", 8)
MANY: Final = [f"board-{number}" for number in range(100)]
RATES: Final = (1_000.0, 3_000.0)
"""Updates per second of one api, between one at a time and as many as are answered."""

SUBSCRIBERS: Final = 50
NOTICES: Final = 4_000
FEW_VIEWERS: Final = 20
MANY_VIEWERS: Final = 1_000
PARTS: Final = {
    "api": "api",
    "redis": "Redis",
    "streamer": "streamer",
    "flusher": "flusher",
    "postgres": "PostgreSQL",
}


class Size(Struct, frozen=True):
    """A load to compare, and the processes that carry it."""

    name: str
    updates_per_s: float
    viewers: int
    counts: Counts


SIZES: Final = (
    Size("small", 800.0, 200, Counts()),
    Size("large", 3_000.0, 800, Counts(partitions=2, apis=2, streamers=2, flushers=2)),
)


class System:
    """A running system: its apis, its streamers, its flushers, its servers."""

    def __init__(
        self,
        stage: Servers,
        found: Sequence[Api],
        streamers: Sequence[tuple[int, int, int]],
        flushers: Sequence[Flushing],
    ) -> None:
        """``streamers`` are port, pid and port of the metrics of each."""
        self._apis = found
        self._streamers = streamers
        self._flushers = flushers
        self._holders: list[ViewersProcess] = []
        pids = {
            "api": [one.pid for one in found],
            "streamer": [pid for _, pid, _ in streamers],
            "flusher": [one.service.pid for one in flushers],
            "PostgreSQL": [stage.postgres.pid or 0],
        }
        self._parts = Parts(Redis.of(stage.valkey), pids, self._counts)

    def _counts(self) -> dict[str, float]:
        series = "scoreboard_ws_frames_sent_total"
        return {
            "writes": writes(self._apis),
            "batches": batches(self._flushers),
            "frames": sum(metric(port, series) for _, _, port in self._streamers),
        }

    def add_viewers(self, count: int) -> None:
        """Connect viewers, the same number to each streamer."""
        for port, _, _ in self._streamers:
            self._holders.append(
                ViewersProcess(VIEWERS_MODULE, port, count // len(self._streamers), 0)
            )

    def close(self) -> None:
        """Disconnect the viewers."""
        for holder in self._holders:
            holder.close()

    def load(self, run: str, seconds: float, **plan: Any) -> Cost:
        """Send updates for some seconds; return what they cost."""
        ports = [one.port for one in self._apis]
        return drive(self._parts, ports, {"run": run, "seconds": seconds, **plan})


@contextmanager
def changing_top(redis_url: str) -> Iterator[None]:
    """Change the first ten rows ten times a second: users that score in turn would not."""
    words = ["-m", "tests.bench.scale.changes"]
    environment = {**os.environ, "REDIS_URL": redis_url}
    with subprocess.Popen([sys.executable, *words], env=environment) as process:
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def system(counts: Counts) -> Iterator[System]:
    """Run a system without viewers."""
    with ExitStack() as stack:
        stage = stack.enter_context(servers())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        asyncio.run(make_stored_board(stage, board_of(BOARD, counts.partitions)))
        found = stack.enter_context(apis(counts.apis, stage.valkey.url))
        streamers: list[tuple[int, int, int]] = []
        for _ in range(counts.streamers):
            port = find_free_port()
            settings = {"SCOREBOARD_WS_METRICS_PORT": str(port)}
            running = serving("ours", stage.valkey.url, folder, settings)
            streamers.append((*stack.enter_context(running), port))
        flushers = [stack.enter_context(flusher(stage, [BOARD])) for _ in range(counts.flushers)]
        made = System(stage, found, streamers, flushers)
        stack.callback(made.close)
        stack.enter_context(changing_top(stage.valkey.url))
        yield made


def measure(recorder: Recorder, rounds: int, seconds: float) -> None:
    """Measure the costs, then two loads, and add what the model says of them."""
    found: list[Costs] = []
    for _ in range(rounds):
        found.append(measure_costs(recorder, seconds))
        for name, value in msgspec.structs.asdict(found[-1]).items():
            if name in OPERATIONS:
                recorder.add("cost", "system", {"operation": name}, "CPU", "µs", value)
        for number, (rate, of) in enumerate(found[-1].writes, 1):
            for metric_name, value in (("updates", rate), ("writes", of)):
                parameters = {"point": number}
                recorder.add("batching", "system", parameters, metric_name, "/s", value)
    costs = median_of(found)
    for number in range(rounds):
        for size in SIZES if number % 2 == 0 else reversed(SIZES):
            load, used = measure_size(recorder, size, seconds)
            predicted = msgspec.structs.asdict(use(load, size.counts, costs))
            for name, title in PARTS.items():
                ratio = predicted[name] / used[name] if used[name] else 0.0
                for metric_name, unit, value in (
                    ("predicted, of the measured", "×", ratio),
                    ("predicted", "cores", predicted[name]),
                    ("measured", "cores", used[name]),
                ):
                    parameters = {"load": size.name, "part": title}
                    recorder.add("plan", "model", parameters, metric_name, unit, value)


def median_of(found: Sequence[Costs]) -> Costs:
    """Return the median of each cost."""
    middle = {
        name: statistics.median(getattr(one, name) for one in found)
        for name in (*OPERATIONS, "cycles_per_s")
    }
    points = [
        (statistics.median(rate for rate, _ in at), statistics.median(of for _, of in at))
        for at in zip(*(one.writes for one in found), strict=True)
    ]
    return Costs(**middle, writes=tuple(sorted(points)))


def measure_costs(recorder: Recorder, seconds: float) -> Costs:
    """Measure the cost of each operation once."""
    costs = _api_costs(recorder, seconds) | _notice_cost()
    with system(Counts()) as running:
        running.add_viewers(FEW_VIEWERS)
        running.load("warm", 0.5, warm_requests=USERS)
        few = quietest(recorder, lambda: running.load("few", seconds, connections=1))
        running.add_viewers(MANY_VIEWERS - FEW_VIEWERS)
        running.load("warm-2", 0.5)
        many = quietest(recorder, lambda: running.load("many", seconds))
    boards = [few.counted["frames"] / FEW_VIEWERS, many.counted["frames"] / MANY_VIEWERS]
    for names, part, first, second in (
        (("flusher_event", "flusher_batch"), "flusher", [few.done, many.done], "batches"),
        (("postgres_event", "postgres_batch"), "PostgreSQL", [few.done, many.done], "batches"),
        (("streamer_board", "streamer_frame"), "streamer", boards, "frames"),
    ):
        bills = [
            (count, one.counted[second], one.spent_s[part] * 1e6)
            for one, count in zip((few, many), first, strict=True)
        ]
        costs |= dict(zip(names, split(*bills), strict=True))
    # The flusher reads and removes each event: what Redis used beyond the updates and the reads.
    lone = costs["redis_call"] + costs["redis_cycle"]
    known_us = many.done * costs["redis_update"] + many.counted["writes"] * lone
    known_us += boards[1] * costs["redis_read"]
    costs["redis_event"] = max(0.0, many.spent_s["Redis"] * 1e6 - known_us) / many.done
    return msgspec.convert(costs, Costs)


def _api_costs(recorder: Recorder, seconds: float) -> dict[str, Any]:
    """Measure api and Redis without other services."""
    boards = [board_of(BOARD), WIDE, *map(board_of, MANY)]
    with valkey() as server:
        asyncio.run(make_boards(server.url, boards[:2], USERS))
        asyncio.run(make_boards(server.url, boards[2:]))
        with apis(1, server.url) as (api,):
            parts = Parts(Redis.of(server), {"api": [api.pid]}, lambda: {"writes": writes([api])})

            def load(run: str, **plan: Any) -> Cost:
                whole = {"run": run, "seconds": seconds, **plan}
                return quietest(recorder, partial(drive, parts, [api.port], whole))

            load("warm", warm_requests=USERS, boards=[BOARD, *MANY])
            lone, busy = load("lone", connections=1), load("busy")
            spread_out = load("spread", boards=MANY)
            rates = [load(f"rate-{rate}", rate=rate) for rate in RATES]
            ranks = [load("rank", work="user", boards=[name]) for name in (BOARD, WIDE.name)]
            tops = [
                load("top", work="leaderboard-unkept", boards=[name], connections=1)
                for name in (BOARD, WIDE.name)
            ]
    api_update, api_write = split(_bill(lone, "api"), _bill(busy, "api"))
    redis_update, redis_write = split(_bill(lone, "Redis"), _bill(busy, "Redis"))
    # Over many boards each update is a call of its own, and shares its write with others.
    alone = spread_out.counted["calls"] - spread_out.counted["writes"]
    more_us = spread_out.spent_s["Redis"] * 1e6
    more_us -= spread_out.done * redis_update + spread_out.counted["writes"] * redis_write
    redis_call = min(redis_write, max(0.0, more_us / alone))
    others = WIDE.layout.partitions - 1
    points = sorted((one.rate, one.counted["writes"] / one.seconds) for one in (*rates, busy))
    return {
        "api_update": api_update,
        "api_write": api_write,
        "redis_update": redis_update,
        "redis_call": redis_call,
        "redis_cycle": redis_write - redis_call,
        "api_rank": ranks[0].us["api"],
        "api_rank_partition": (ranks[1].us["api"] - ranks[0].us["api"]) / others,
        "redis_rank": ranks[0].us["Redis"],
        "redis_rank_partition": (ranks[1].us["Redis"] - ranks[0].us["Redis"]) / others,
        "redis_read": tops[0].us["Redis"],
        "redis_read_partition": (tops[1].us["Redis"] - tops[0].us["Redis"]) / others,
        "writes": points,
        "cycles_per_s": max(of for _, of in points),
    }


def _bill(cost: Cost, part: str) -> tuple[float, float, float]:
    return cost.done, cost.counted["writes"], cost.spent_s[part] * 1e6


def _notice_cost() -> dict[str, float]:
    """Measure what a notification costs Redis for each subscriber."""
    with valkey() as server, ExitStack() as stack:
        client = stack.enter_context(redis.Redis.from_url(server.url))
        found = Redis.of(server)

        def publish_s() -> float:
            before_s = found.cpu_s()
            for _ in range(NOTICES):
                client.publish("channel", "1:1")
            return found.cpu_s() - before_s

        publish_s()
        alone_s = publish_s()
        for _ in range(SUBSCRIBERS):
            subscriber = stack.enter_context(client.pubsub())
            subscriber.subscribe("channel")
            assert subscriber.get_message(timeout=5) is not None
        with_s = publish_s()
    return {"redis_notice": max(0.0, with_s - alone_s) / NOTICES / SUBSCRIBERS * 1e6}


def measure_size(
    recorder: Recorder, size: Size, seconds: float
) -> tuple[Load, Mapping[str, float]]:
    """Run a load; return what it was, and the cores that each part used, by the model's names."""
    with system(size.counts) as running:
        running.add_viewers(size.viewers)
        running.load("warm", 0.5, warm_requests=USERS)
        running.load("settle", 1.0, rate=size.updates_per_s)

        def run() -> Cost:
            return running.load("size", 2 * seconds, rate=size.updates_per_s)

        found = quietest(recorder, run)
    load = Load(
        updates_per_s=found.rate,
        viewers=size.viewers,
        frames_per_s=found.counted["frames"] / size.viewers / found.seconds,
    )
    return load, {name: found.spent_s[title] / found.seconds for name, title in PARTS.items()}
