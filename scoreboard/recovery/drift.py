"""Finds users whose score in Redis is not the expected one. Used by verify and the flusher."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from scoreboard.ledger import checks
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.ledger.positions import lock_position_shared
from scoreboard.model import Partition
from scoreboard.recovery.corrections import read_expected_scores
from scoreboard.store.store import Store


class Drift(Struct, frozen=True):
    """A user whose score in Redis differs from the expected one (``wanted``).

    If both are equal, a banned user is on the board, or another one is kept off it.
    """

    user_id: str
    partition: int
    redis: int
    wanted: int


async def find_drift(
    store: Store, connection: Connection, partition: Partition, users: Sequence[str]
) -> tuple[list[Drift], list[Drift]]:
    """Compare up to ``REPAIR_MAX`` users of a partition while commits are blocked.

    Return the users that differ, and those whose correction is pending.

    Raises Busy, Outdated, Fenced, Uninitialised, OperatorMistake (too many dead letters),
    RedisUnavailable, DatabaseUnavailable.
    """
    async with translate_errors(), connection.transaction():
        position = await lock_position_shared(connection, partition)
        if position is None:
            return [], []
        late = await checks.sum_late_duplicates(connection, partition, users)
        uncommitted = await store.read_uncommitted(partition, **msgspec.structs.asdict(position))
        expected_scores = await read_expected_scores(
            connection, partition, users, season=uncommitted.season
        )
        states = await store.repair(partition, expected_scores, uncommitted, is_dry=True)
    drifted: list[Drift] = []
    known: list[Drift] = []
    for user, state in zip(users, states, strict=True):
        if state.outcome == "unchanged":
            continue
        drift = Drift(user, partition.number, state.score - state.change, state.score)
        is_known = bool(state.change) and state.change == -late.get(user, 0)
        (known if is_known else drifted).append(drift)
    return drifted, known
