"""Corrects scores in Redis that differ from PostgreSQL, while the board stays open.

Invariants: a page of users is corrected under a lock that blocks commits; every change is in the
audit log; a second run changes nothing.
"""

from collections import defaultdict
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from scoreboard.ledger.audit import audited
from scoreboard.ledger.pool import Connection
from scoreboard.ledger.positions import lock_position_shared, no_position
from scoreboard.model import Board, Partition
from scoreboard.recovery.corrections import correct_users
from scoreboard.recovery.drift import Drift
from scoreboard.recovery.reseed import ReportProgress
from scoreboard.store.corrections import REPAIR_MAX
from scoreboard.store.store import Store


class Change(Struct, frozen=True):
    """What was done for a user; ``seq`` is 0 if the user was only removed from the board."""

    user_id: str
    partition: int
    change: int
    score: int
    seq: int


async def repair(
    store: Store,
    connection: Connection,
    board: Board,
    drifted: Sequence[Drift],
    *,
    actor: str,
    report: ReportProgress,
) -> list[Change]:
    """Correct drifted users; return the changes, which may be fewer than were found.

    ``connection`` is in autocommit.

    Raises Busy (too many uncommitted actions), Outdated (a reseed or a failover happened),
    OperatorMistake (PostgreSQL has no position of the partition, or too many dead letters),
    Fenced, RedisUnavailable, DatabaseUnavailable: finished pages stay corrected, run it again.
    """
    users: dict[Partition, list[str]] = defaultdict(list)
    for drift in drifted:
        users[Partition(board.name, drift.partition)].append(drift.user_id)
    changes: list[Change] = []
    done = 0
    for partition, names in users.items():
        for start in range(0, len(names), REPAIR_MAX):
            page = names[start : start + REPAIR_MAX]
            changes += await _repair_page(store, connection, partition, page, actor)
            done += len(page)
            report("repair", done, len(drifted))
    return changes


async def _repair_page(
    store: Store, connection: Connection, partition: Partition, users: Sequence[str], actor: str
) -> list[Change]:
    async with audited(connection) as trail:
        position = await lock_position_shared(connection, partition)
        if position is None:
            raise no_position(partition)
        await trail.reserve()  # the change of Redis cannot be rolled back
        results = await correct_users(store, connection, partition, users, position)
        changes = [
            Change(user, partition.number, result.change, result.score, result.seq)
            for user, result in zip(users, results, strict=True)
            if result.outcome == "corrected"
        ]
        if changes:
            await trail.insert(
                actor=actor,
                action="repair",
                board=partition.board,
                detail={"part": partition.number, "changes": msgspec.to_builtins(changes)},
            )
    return changes
