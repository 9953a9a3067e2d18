"""`make bench-places`: what it costs that viewers see their own place.

One viewer each for 5,000 users of a board with a million, as raw sockets in another process. Two
loads, each with viewers that watch their user and with viewers that do not, alternately: ten
changes a second of the first ten rows, after which every place shows another distance to the top
ten, and a quiet top. In both, twenty users a second change their own score. Reports the CPU time of
streamer and Redis, the CPU time of writing a frame to a viewer, the delay of
frames, and what the difference between both variants is, with the time from just before a user's
update was sent until its viewer has the place.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

import redis.asyncio as aioredis

from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedValkey
from scoreboard.model import SLOT_COUNT, Partition, pack
from scoreboard.runtime.settings import load
from scoreboard.runtime.telemetry import setup_logging
from scoreboard.store.keys import PartitionKeys
from tests.bench.machine import cpu_s
from tests.bench.places.viewers import user_id
from tests.bench.rows import Recorder
from tests.bench.ws.__main__ import WARM_UP_S, ViewersProcess, open_main, serving
from tests.support.clients.viewer import playing

KEYS = PartitionKeys(Partition("main"))
SPACING = 7
"""Points between two users of the million."""

LOADS = {"10 boards/s": 10.0, "quiet top": 0.0}
"""Changes a second of the first ten rows."""

OWN_PER_S = 20.0
SETTLE_S = 4.0
"""Time for the last places to arrive."""

VARIANTS = ("without places", "with places")
METRICS = (
    ("streamer CPU", "%", "streamer_percent"),
    ("Redis CPU", "%", "redis_percent"),
    ("CPU of a frame", "µs", "frame_us"),
    ("frame sent p50", "ms", "frame_p50_ms"),
    ("frame sent p99", "ms", "frame_p99_ms"),
)
PLACE_METRICS = (
    ("places read", "/s", "reads_per_s"),
    ("places sent", "/s", "places_per_s"),
    ("turns are late, mean", "ms", "late_ms"),
    ("streamer CPU per place read", "µs", "streamer_us_per_read"),
    ("Redis CPU per place read", "µs", "redis_us_per_read"),
    ("change to place p50", "ms", "place_p50_ms"),
    ("change to place p99", "ms", "place_p99_ms"),
    ("change to place, longest", "ms", "place_max_ms"),
)

Figures = dict[str, float]


async def fill(redis_url: str, members: int) -> None:
    """Make a board of ten players at the top and users a few points apart."""
    await open_main(redis_url)
    top = SPACING * (members + 1000)
    async with aioredis.Redis.from_url(redis_url) as client:
        players = {f"player-{number:0>28}": pack(top + 9 - number, 1) for number in range(10)}
        await client.zadd(KEYS.board, players)  # type: ignore[arg-type]
        for start in range(0, members, 10_000):
            page = {
                user_id(number): pack(SPACING * (members - number), SLOT_COUNT - 1)
                for number in range(start, min(start + 10_000, members))
            }
            await client.zadd(KEYS.board, page)  # type: ignore[arg-type]
        await client.hincrby(KEYS.meta, "seq", 1)


async def change(
    redis_url: str, seconds: float, top_per_s: float, users: Sequence[str]
) -> tuple[dict[int, float], list[tuple[str, int, float]]]:
    """Change the top, and the scores of users, at random intervals.

    Returns when each change of the top was sent, by seq, and for the users (id, new score, time).
    """
    settings = load({"REDIS_URL": redis_url, "SCOREBOARD_ISSUER": "https://issuer.test/"})
    sent: dict[int, float] = {}
    own: list[tuple[str, int, float]] = []
    scores: dict[str, int] = {}
    loop = asyncio.get_running_loop()
    until_s = loop.time() + seconds
    async with aioredis.Redis.from_url(redis_url) as client, playing(settings) as submit:

        async def change_top() -> None:
            number, next_s = 0, loop.time()
            while next_s < until_s:
                number += 1
                before_s = time.monotonic()
                sent[await submit(f"player-{number % 10:0>28}", 10_000)] = before_s
                next_s += random.uniform(0.9, 1.1) / top_per_s
                await asyncio.sleep(max(0.0, next_s - loop.time()))  # pace: of the load

        async def change_users() -> None:
            next_s = loop.time()
            while next_s < until_s:
                user = random.choice(users)
                if user not in scores:
                    packed = await client.zscore(KEYS.board, user)
                    scores[user] = int(packed or 0) // SLOT_COUNT
                scores[user] += 1
                before_s = time.monotonic()
                await submit(user, 1)
                own.append((user, scores[user], before_s))
                next_s += random.uniform(0.5, 1.5) / OWN_PER_S
                await asyncio.sleep(max(0.0, next_s - loop.time()))  # pace: of the load

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(change_users())
            if top_per_s:
                tasks.create_task(change_top())
    return sent, own


def scrape(port: int) -> dict[str, float]:
    """Return the streamer's metrics without labels."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    pairs = [line.split(" ") for line in lines if line and line[0] != "#" and "{" not in line]
    return {name.removeprefix("scoreboard_"): float(value) for name, value in pairs}


async def redis_cpu_s(redis_url: str) -> float:
    async with aioredis.Redis.from_url(redis_url) as client:
        info = await client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def delays_ms(
    own: Sequence[tuple[str, int, float]], places: Sequence[tuple[str, int, float]]
) -> list[float]:
    """Return for each change the time until a place had its score or a higher one."""
    by_user: dict[str, list[tuple[int, float]]] = {}
    for user, score, at_s in places:
        by_user.setdefault(user, []).append((score, at_s))
    found: list[float] = []
    missing = 0
    for user, score, sent_s in own:
        shown = by_user.get(user, [])
        at = bisect_left(shown, (score, 0.0))
        if at == len(shown):
            missing += 1
        else:
            found.append((shown[at][1] - sent_s) * 1000)
    assert not missing, f"{missing} of {len(own)} changes were not shown"
    return found


def measure(
    redis_url: str, *, viewers: int, members: int, top_per_s: float, seconds: float, watches: bool
) -> Figures:
    """Run one streamer under one load."""
    every = members // viewers
    users = [user_id(number * every) for number in range(viewers)]
    metrics_port = find_free_port()
    more = {"SCOREBOARD_WS_METRICS_PORT": str(metrics_port)}
    with (
        tempfile.TemporaryDirectory() as folder,
        serving("ours", redis_url, Path(folder), more) as (port, pid),
    ):
        process = ViewersProcess(
            "tests.bench.places.viewers", port, viewers, every if watches else 0
        )
        try:
            asyncio.run(change(redis_url, WARM_UP_S, top_per_s, users))
            time.sleep(SETTLE_S)  # pace: part of the measured time
            process.begin()
            before, cpu_before_s, began_s = scrape(metrics_port), cpu_s(pid), time.monotonic()
            redis_before_s = asyncio.run(redis_cpu_s(redis_url))
            sent, own = asyncio.run(change(redis_url, seconds, top_per_s, users))
            time.sleep(SETTLE_S)  # pace: part of the measured time
            elapsed_s = time.monotonic() - began_s
            used_s = cpu_s(pid) - cpu_before_s
            redis_s = asyncio.run(redis_cpu_s(redis_url)) - redis_before_s
            after = scrape(metrics_port)
            seen, places = process.end()
        finally:
            process.close()
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    figures = {
        "streamer_percent": used_s / elapsed_s * 100,
        "redis_percent": redis_s / elapsed_s * 100,
    }
    if top_per_s:
        shown_ms = [(at_s - sent[seq]) * 1000 for seq, at_s, _ in seen if seq in sent]
        figures |= {
            "frame_us": grown["ws_sweep_cpu_seconds_total"] / grown["ws_frames_sent_total"] * 1e6,
            "frame_p50_ms": percentile(shown_ms, 0.5),
            "frame_p99_ms": percentile(shown_ms, 0.99),
        }
    if watches:
        took_ms = delays_ms(own, places)
        figures |= {
            "reads_per_s": grown["ws_places_read_total"] / elapsed_s,
            "places_per_s": grown["ws_places_sent_total"] / elapsed_s,
            "late_ms": grown["ws_place_late_seconds_sum"]
            / grown["ws_place_late_seconds_count"]
            * 1000,
            "place_p50_ms": percentile(took_ms, 0.5),
            "place_p99_ms": percentile(took_ms, 0.99),
            "place_max_ms": max(took_ms),
        }
    return figures


def cost_of_places(without: Figures, with_places: Figures) -> Figures:
    """Return what the places of one round cost: the difference of both variants."""
    streamer_ms = (with_places["streamer_percent"] - without["streamer_percent"]) * 10
    redis_ms = (with_places["redis_percent"] - without["redis_percent"]) * 10
    reads = with_places["reads_per_s"]
    return with_places | {
        "streamer_us_per_read": max(0.0, streamer_ms / reads * 1000),
        "redis_us_per_read": max(0.0, redis_ms / reads * 1000),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.places", description=__doc__)
    parser.add_argument("--viewers", type=int, default=5000)
    parser.add_argument("--members", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="only check that everything works")
    options = parser.parse_args()
    if options.quick:
        options.viewers, options.members, options.seconds, options.rounds = 100, 5000, 1.0, 1
    recorder = Recorder("places")
    setup_logging("bench", level="error", form="console", environment="bench")
    parameters = {"viewers": options.viewers, "users": options.members}
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(Path(folder)) as valkey:
        asyncio.run(fill(valkey.url, options.members))
        for number in range(options.rounds):
            for load_name, top_per_s in LOADS.items():
                found: dict[str, Figures] = {}
                for variant in VARIANTS:
                    with recorder.measurement():
                        found[variant] = measure(
                            valkey.url,
                            viewers=options.viewers,
                            members=options.members,
                            top_per_s=top_per_s,
                            seconds=options.seconds,
                            watches=variant == VARIANTS[1],
                        )
                    print(f"round {number + 1}: {load_name}, {variant}", found[variant],
                          file=sys.stderr)  # fmt: skip
                    for metric, unit, key in METRICS:
                        if key in found[variant]:
                            value = found[variant][key]
                            recorder.add(load_name, variant, parameters, metric, unit, value)
                cost = cost_of_places(*(found[variant] for variant in VARIANTS))
                for metric, unit, key in PLACE_METRICS:
                    recorder.add("places", load_name, parameters, metric, unit, cost[key])
    if options.json:
        recorder.write(options.json)


if __name__ == "__main__":
    main()
