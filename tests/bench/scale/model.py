"""How many processes and primaries a load needs, from the measured cost of each operation.

Pure functions. The costs are those that `make bench-scale` measures (tests.bench.scale.plan reads
the published ones). It also compares what the model says of two loads with what these loads used.

The unit of cost is CPU time in µs. A batch has a price of its own, in the api and in Redis (a
*write*: system calls, and in Redis the fsync) as well as in the flusher and in PostgreSQL (a
*batch*: a transaction). More load makes larger batches, so both prices are kept apart.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from msgspec import Struct

HALF: Final = 0.5
"""Share of a core at which a process, and a primary, is planned."""

VIEWERS_MAX: Final = 5_000
"""Viewers of a streamer (SCOREBOARD_VIEWERS)."""

FRAMES_PER_S: Final = 9.0
"""Boards that a viewer gets per second while the top changes continuously."""

BATCHES_PER_S: Final = 9.0
"""Batches per second and partition under load: a flusher commits one in 0.1 s and its time."""

PARTITIONS_PER_PRIMARY: Final = 2
"""The slot of a partition is a hash. Whoever moves slots can give each primary as many of them."""

CORES_MAX: Final = 10_000
"""Primaries, or processes of a kind, above which a load counts as impossible."""


class Load(Struct, frozen=True, kw_only=True):
    """What a system must carry, all of it on one board.

    ``frames_per_s`` are boards that a viewer gets per second,
    ``changes_per_s`` notifications of a changed top, ``ranks_per_s`` reads of a user's rank.
    """

    updates_per_s: float
    viewers: int = 0
    frames_per_s: float = FRAMES_PER_S
    changes_per_s: float = 10.0
    ranks_per_s: float = 0.0


class Costs(Struct, frozen=True, kw_only=True):
    """CPU time in µs of each operation.

    ``writes`` are pairs: updates per second that an api sends to one primary, and the writes per
    second that carry them. ``cycles_per_s`` is the most writes with an fsync of their own that a
    primary does in a second; more of them share an fsync.
    """

    api_update: float
    api_write: float
    redis_update: float
    redis_call: float
    redis_cycle: float
    redis_event: float
    flusher_event: float
    flusher_batch: float
    postgres_event: float
    postgres_batch: float
    streamer_board: float
    streamer_frame: float
    redis_read: float
    redis_read_partition: float
    redis_notice: float
    api_rank: float
    api_rank_partition: float
    redis_rank: float
    redis_rank_partition: float
    writes: tuple[tuple[float, float], ...]
    cycles_per_s: float


OPERATIONS: Final = tuple(
    name for name in Costs.__struct_fields__ if name not in {"writes", "cycles_per_s"}
)
"""The names of the costs in µs."""


class Counts(Struct, frozen=True, kw_only=True):
    """Processes of each kind, primaries of Redis, and partitions of the board."""

    primaries: int = 1
    partitions: int = 1
    apis: int = 1
    streamers: int = 1
    flushers: int = 1


class Cores(Struct, frozen=True, kw_only=True):
    """CPU time per second of all processes of a kind together, in cores."""

    redis: float
    api: float
    streamer: float
    flusher: float
    postgres: float


class Plan(Struct, frozen=True, kw_only=True):
    """What a load needs: counts with headroom, and the cores that they use."""

    counts: Counts
    cores: Cores


def writes_per_s(costs: Costs, updates_per_s: float) -> float:
    """Return how many writes carry the updates that one api sends to one primary.

    Few updates are sent alone. More of them arrive while others are on their way, and go together.
    """
    (least, writes), *_ = points = costs.writes
    if updates_per_s <= least:
        return updates_per_s * writes / least
    for (low, low_writes), (high, high_writes) in pairwise(points):
        if updates_per_s <= high:
            share = (updates_per_s - low) / (high - low)
            return low_writes + share * (high_writes - low_writes)
    return points[-1][1]


def use(load: Load, counts: Counts, costs: Costs) -> Cores:
    """Return the cores that a load uses with these processes, without headroom."""
    lanes = counts.apis * counts.primaries
    writes = lanes * writes_per_s(costs, load.updates_per_s / lanes)
    calls = min(load.updates_per_s, writes * max(1.0, counts.partitions / counts.primaries))
    cycles = min(writes, costs.cycles_per_s * counts.primaries)
    batches = min(BATCHES_PER_S * counts.partitions, load.updates_per_s)
    boards = load.frames_per_s * counts.streamers if load.viewers else 0.0
    others = counts.partitions - 1
    redis_us = (
        load.updates_per_s * (costs.redis_update + costs.redis_event)
        + calls * costs.redis_call
        + cycles * costs.redis_cycle
        + boards * counts.primaries * costs.redis_read
        + boards * (counts.partitions - counts.primaries) * costs.redis_read_partition
        + load.changes_per_s * (counts.streamers + counts.apis) * costs.redis_notice
        + load.ranks_per_s * (costs.redis_rank + others * costs.redis_rank_partition)
    )
    api_us = (
        load.updates_per_s * costs.api_update
        + writes * costs.api_write
        + load.ranks_per_s * (costs.api_rank + others * costs.api_rank_partition)
    )
    frames = load.viewers * load.frames_per_s
    return Cores(
        redis=redis_us / 1e6,
        api=api_us / 1e6,
        streamer=(boards * costs.streamer_board + frames * costs.streamer_frame) / 1e6,
        flusher=(load.updates_per_s * costs.flusher_event + batches * costs.flusher_batch) / 1e6,
        postgres=(load.updates_per_s * costs.postgres_event + batches * costs.postgres_batch) / 1e6,
    )


def predict(load: Load, costs: Costs) -> Plan:
    """Return what a load needs: each process and primary at half a core, and one process more.

    The counts depend on each other (more primaries make smaller batches, and more streamers read
    the board more often), so they grow until all of them suffice.

    Raises ValueError if no counts suffice.
    """
    counts = Counts(streamers=max(1, math.ceil(load.viewers / VIEWERS_MAX)))
    while True:
        cores = use(load, counts, costs)
        primaries = max(counts.primaries, _count(cores.redis))
        grown = Counts(
            primaries=primaries,
            partitions=1 if primaries == 1 else PARTITIONS_PER_PRIMARY * primaries,
            apis=max(counts.apis, _count(cores.api)),
            streamers=max(counts.streamers, _count(cores.streamer)),
            flushers=max(counts.flushers, _count(cores.flusher)),
        )
        if grown == counts:
            break
        if max(grown.primaries, grown.apis, grown.streamers, grown.flushers) > CORES_MAX:
            raise ValueError("no number of processes carries this load")
        counts = grown
    spare = Counts(
        primaries=counts.primaries,
        partitions=counts.partitions,
        apis=counts.apis + 1,
        streamers=counts.streamers + 1 if load.viewers else 0,
        flushers=counts.flushers + 1,
    )
    return Plan(counts=spare, cores=cores)


def _count(cores: float) -> int:
    return max(1, math.ceil(cores / HALF))


def split(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Return the prices of two things, from two bills: (count, count, sum of both) each.

    Neither price is negative: what measurements cannot tell apart is all put on the first.

    Raises ValueError if both bills have the same proportions.
    """
    a, b, total = one
    c, d, total_of_other = other
    determinant = a * d - b * c
    if not determinant:
        raise ValueError("both measurements have the same proportions")
    first = (total * d - b * total_of_other) / determinant
    second = (a * total_of_other - total * c) / determinant
    if second < 0:
        return (total + total_of_other) / (a + c), 0.0
    if first < 0:
        return 0.0, (total + total_of_other) / (b + d)
    return first, second
