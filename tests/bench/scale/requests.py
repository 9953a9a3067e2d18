"""Updates and reads against the number of partitions and of boards: the same api, the same Redis.

An update is sent by one of 4,000 users, with 64 connections. A read of the top has eleven rows,
because an api keeps the first ten while nothing changes; ranks and neighbours are those of many
users in turn.
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from tests.bench.rows import Parameter, Recorder
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
    quietest,
    valkey,
)

PARTITIONS: Final = (1, 2, 4, 8)
BOARDS: Final = (1, 10, 100, 1_000, 10_000)
READS: Final = {"top": "leaderboard-unkept", "rank": "user", "around": "around"}
MEMBERS: Final = 100_000


def add(
    recorder: Recorder, work: str, parameters: Mapping[str, Parameter], cost: Cost, first: Cost
) -> None:
    """Add a measurement, and its ratios to the first one of its round."""
    rows = {
        ("api CPU", "µs"): cost.us["api"],
        ("Redis CPU", "µs"): cost.us["Redis"],
        ("both, of the first", "×"): cost.together_us / first.together_us,
        ("api, of the first", "×"): cost.us["api"] / first.us["api"],
        ("Redis, of the first", "×"): cost.us["Redis"] / first.us["Redis"],
        ("script calls", ""): cost.calls_per_operation,
        ("rate", "/s"): cost.rate,
    }
    for (metric, unit), value in rows.items():
        recorder.add(work, "system", parameters, metric, unit, value)


def in_turn(items: Sequence[Any], number: int) -> list[Any]:
    """Return the items of a round: every other round goes backwards, after the first item.

    The first item is what the others are compared with, so it is measured in the middle of them.
    """
    others = list(items[1:]) if number % 2 == 0 else list(reversed(items[1:]))
    half = len(others) // 2
    return [*others[:half], items[0], *others[half:]]


def measure_partitions(recorder: Recorder, rounds: int, seconds: float) -> None:
    """Measure updates of one board with 1 to 8 partitions, with 64 and with 256 connections."""
    boards = {count: board_of(f"parts-{count}", count) for count in PARTITIONS}
    with valkey() as server:
        asyncio.run(make_boards(server.url, [board_of("main"), *boards.values()], USERS))
        with apis(1, server.url) as (api,):
            parts = Parts(Redis.of(server), {"api": [api.pid]})
            for number in range(rounds + 1):  # the first round warms up
                for connections in (CONNECTIONS, 4 * CONNECTIONS):
                    found: dict[int, Cost] = {}
                    for count in in_turn(PARTITIONS, number):
                        plan = {
                            "run": f"p{number}-{connections}-{count}",
                            "boards": [boards[count].name],
                            "connections": connections,
                            "seconds": seconds if number else min(seconds, 1.0),
                        }
                        run = partial(drive, parts, [api.port], plan)
                        found[count] = quietest(recorder, run)
                    for count in PARTITIONS if number else ():
                        parameters = {"partitions": count, "connections": connections}
                        add(recorder, "update", parameters, found[count], found[1])


def measure_boards(
    recorder: Recorder, rounds: int, seconds: float, sizes: Sequence[int] = BOARDS
) -> None:
    """Measure updates that are spread over 1 to 10,000 boards, each with one partition."""
    names = [f"board-{number}" for number in range(max(sizes))]
    with valkey() as server:
        asyncio.run(make_boards(server.url, [board_of(name) for name in ("main", *names)]))
        with apis(1, server.url) as (api,):
            parts = Parts(Redis.of(server), {"api": [api.pid]})
            warm = {"run": "warm", "boards": names, "seconds": 0.1}
            # Each board is looked up once, and each token verified, before anything is measured.
            drive(parts, [api.port], warm | {"warm_requests": len(names) + USERS})
            for number in range(rounds):
                found: dict[int, Cost] = {}
                for count in in_turn(sizes, number):
                    plan = {
                        "run": f"b{number}-{count}",
                        "boards": names[:count],
                        "seconds": seconds,
                    }
                    run = partial(drive, parts, [api.port], plan)
                    found[count] = quietest(recorder, run)
                for count in sizes:
                    add(recorder, "update", {"boards": count}, found[count], found[1])


def measure_reads(recorder: Recorder, rounds: int, seconds: float, members: int = MEMBERS) -> None:
    """Measure reads of a board with 1 to 8 partitions."""
    boards = {count: board_of(f"parts-{count}", count) for count in PARTITIONS}
    with valkey() as server:
        asyncio.run(make_boards(server.url, [board_of("main"), *boards.values()], members))
        with apis(1, server.url) as (api,):
            parts = Parts(Redis.of(server), {"api": [api.pid]})
            for number in range(rounds + 1):  # the first round warms up
                for read, work in READS.items():
                    found: dict[int, Cost] = {}
                    for count in in_turn(PARTITIONS, number):
                        plan = {
                            "run": "read",
                            "work": work,
                            "boards": [boards[count].name],
                            "users": min(members, USERS),
                            "seconds": seconds if number else min(seconds, 0.5),
                        }
                        run = partial(drive, parts, [api.port], plan)
                        found[count] = quietest(recorder, run)
                    for count in PARTITIONS if number else ():
                        parameters = {"read": read, "partitions": count}
                        add(recorder, "read", parameters, found[count], found[1])
