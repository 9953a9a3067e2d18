"""Redis Cluster against one server: the lanes of the api, replicas, and notifications."""

import asyncio
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import redis

from tests.bench.rows import Recorder
from tests.bench.scale.requests import in_turn
from tests.bench.scale.stage import (
    SERVER,
    USERS,
    Api,
    Cost,
    Parts,
    Redis,
    apis,
    board_of,
    drive,
    make_boards,
    quietest,
    valkey,
    writes,
)
from tests.support.servers.clusters import Cluster

ONE_SERVER: Final = "one server"
PRIMARIES: Final = (1, 2, 3)
BOARD: Final = board_of("main", 12)
"""Enough partitions that each primary has some."""

ACKNOWLEDGES: Final = ("fsync", "replicated")
NODE_TIMEOUT_MS: Final = 30_000
"""Other programs on the machine must not make a primary look lost."""

MESSAGES: Final = 20_000
SUBSCRIBERS: Final = 20


@contextmanager
def cluster(primaries: int, replicas: int) -> Iterator[Cluster]:
    """Form a cluster in a temporary folder."""
    with (
        tempfile.TemporaryDirectory(prefix="scoreboard-bench-") as name,
        Cluster(
            Path(name),
            primaries=primaries,
            replicas=replicas,
            min_replicas_to_write=min(replicas, 1),
            node_timeout_ms=NODE_TIMEOUT_MS,
            settings=SERVER,
        ) as found,
    ):
        yield found


def redis_of(found: Cluster) -> Redis:
    """Return the primaries and replicas of a cluster, for their CPU time."""
    primaries = found.primaries()
    replicas = [node.pid or 0 for node in found.nodes if node not in primaries]
    return Redis({node.url: node.pid or 0 for node in primaries}, *replicas)


def measure_lanes(recorder: Recorder, rounds: int, seconds: float) -> None:
    """Measure updates of a board with twelve partitions on one server and on clusters."""
    with ExitStack() as stack:
        server = stack.enter_context(valkey())
        urls = {ONE_SERVER: server.url}
        stores = {ONE_SERVER: Redis.of(server)}
        for count in PRIMARIES:
            formed = stack.enter_context(cluster(count, 0))
            urls[f"cluster of {count}"] = formed.url
            stores[f"cluster of {count}"] = redis_of(formed)
        running: dict[str, Api] = {}
        for name, url in urls.items():
            asyncio.run(make_boards(url, [BOARD]))
            (running[name],) = stack.enter_context(apis(1, url))
        for number in range(rounds + 1):  # the first round warms up
            found: dict[str, Cost] = {}
            for name in in_turn(list(urls), number):
                api = running[name]
                parts = Parts(
                    stores[name], {"api": [api.pid]}, lambda api=api: {"writes": writes([api])}
                )
                plan = {
                    "run": f"l{number}",
                    "seconds": seconds,
                    "warm_requests": 0 if number else USERS,
                }
                found[name] = quietest(recorder, partial(drive, parts, [api.port], plan))
            for name in urls if number else ():
                _add_lanes(recorder, name, found[name], found[ONE_SERVER])


def _add_lanes(recorder: Recorder, name: str, cost: Cost, first: Cost) -> None:
    for metric, unit, value in (
        ("api CPU", "µs", cost.us["api"]),
        ("Redis CPU", "µs", cost.us["Redis"]),
        ("api, of one server", "×", cost.us["api"] / first.us["api"]),
        ("Redis, of one server", "×", cost.us["Redis"] / first.us["Redis"]),
        ("writes", "", cost.counted["writes"] / cost.done),
    ):
        recorder.add("update", "system", {"Redis": name}, metric, unit, value)


def measure_replicas(recorder: Recorder, rounds: int, seconds: float) -> None:
    """Measure updates that wait for a replica, against updates that do not, on one cluster."""
    with ExitStack() as stack:
        formed = stack.enter_context(cluster(3, 1))
        store = redis_of(formed)
        asyncio.run(make_boards(formed.url, [BOARD]))
        running: dict[str, Api] = {}
        for name in ACKNOWLEDGES:
            settings = {"SCOREBOARD_ACKNOWLEDGE": name}
            (running[name],) = stack.enter_context(apis(1, formed.url, settings))
        for number in range(rounds + 1):  # the first round warms up
            found: dict[str, Cost] = {}
            for name in ACKNOWLEDGES if number % 2 else reversed(ACKNOWLEDGES):
                parts = Parts(store, {"api": [running[name].pid]})
                plan = {
                    "run": f"r{number}",
                    "seconds": seconds,
                    "warm_requests": 0 if number else USERS,
                }
                run = partial(drive, parts, [running[name].port], plan)
                found[name] = quietest(recorder, run)
            for name in ACKNOWLEDGES if number else ():
                _add_replicas(recorder, name, found)


def _add_replicas(recorder: Recorder, name: str, found: Mapping[str, Cost]) -> None:
    cost, first = found[name], found[ACKNOWLEDGES[0]]
    for metric, unit, value in (
        ("api CPU", "µs", cost.us["api"]),
        ("primaries CPU", "µs", cost.us["Redis"]),
        ("replicas CPU", "µs", cost.us["replicas"]),
        ("api, of fsync", "×", cost.us["api"] / first.us["api"]),
        ("primaries, of fsync", "×", cost.us["Redis"] / first.us["Redis"]),
    ):
        recorder.add("update", "system", {"acknowledge": name}, metric, unit, value)


def measure_notices(recorder: Recorder, rounds: int, seconds: float) -> None:
    """Measure notifications to 20 subscribers, and to nobody, on one server and on a cluster."""
    messages = MESSAGES if seconds >= 1 else MESSAGES // 50
    with ExitStack() as stack:
        server = stack.enter_context(valkey())
        formed = stack.enter_context(cluster(3, 0))
        node = formed.primary_of("{channel}")
        ways = {
            (ONE_SERVER, "PUBLISH"): (server.url, Redis.of(server)),
            ("cluster of 3", "PUBLISH"): (node.url, redis_of(formed)),
            ("cluster of 3", "SPUBLISH"): (node.url, redis_of(formed)),
        }
        for _ in range(rounds):
            for subscribers in (0, SUBSCRIBERS):
                for (where, command), (url, store) in ways.items():
                    run = partial(_notice, url, store, command, subscribers, messages)
                    parameters = {
                        "Redis": where,
                        "command": command,
                        "subscribers": subscribers,
                    }
                    recorder.add(
                        "notification",
                        "system",
                        parameters,
                        "Redis CPU, all servers",
                        "µs",
                        quietest(recorder, run),
                    )


def _notice(url: str, store: Redis, command: str, subscribers: int, messages: int) -> float:
    """Send messages; return the CPU time of all servers for each, in µs."""
    with redis.Redis.from_url(url) as client, ExitStack() as stack:
        for _ in range(subscribers):
            subscriber = stack.enter_context(client.pubsub())
            if command == "SPUBLISH":
                subscriber.ssubscribe("{channel}")
            else:
                subscriber.subscribe("{channel}")
        before_s = store.cpu_s()
        for _ in range(messages):
            client.execute_command(command, "{channel}", "1:1")
        return (store.cpu_s() - before_s) / messages * 1e6
