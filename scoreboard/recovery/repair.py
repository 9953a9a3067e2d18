"""Sets scores in Redis right where they drifted, while everybody goes on playing.

Called by `scoreboard repair` with what a verification found. What stays true: a score is set to
what PostgreSQL, the stream and the parked events say, never moved by a difference, so a second run
changes nothing; nobody commits while a page is set; every change is in the audit log.
"""

from collections import defaultdict
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from scoreboard.errors import OperatorMistake
from scoreboard.ledger import checks
from scoreboard.ledger.audit import insert_audit
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.model import Board, Partition
from scoreboard.recovery.reseed import ReportProgress
from scoreboard.recovery.verify import Drift, read_expected_scores
from scoreboard.store.corrections import REPAIR_MAX, correct_scores
from scoreboard.store.store import Store


class Change(Struct, frozen=True):
    """What was done about a user; ``seq`` 0 where it only left the board."""

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
    """Set drifted users right; give what was changed, which may be less than was found.

    ``connection`` is in autocommit.

    Raises Busy (too much is not committed), Outdated (a reseed or a failover came between),
    OperatorMistake (PostgreSQL has no position), Fenced, RedisUnavailable, DatabaseUnavailable:
    what is done is done, run it again.
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
    async def arrivals(candidates: Sequence[str], score: int) -> list[str]:
        return await checks.select_arrival_order(connection, partition.board, candidates, score)

    async with translate_errors(), connection.transaction():
        position = await checks.lock_position_shared(connection, partition)
        if position is None:
            raise OperatorMistake(f"PostgreSQL has no position of {partition}: reseed it")
        expected_scores = await read_expected_scores(connection, partition, users)
        uncommitted = await store.read_uncommitted(partition, **msgspec.structs.asdict(position))
        states = await correct_scores(store, partition, expected_scores, uncommitted, arrivals)
        changes = [
            Change(expected.user_id, partition.number, state.change, state.score, state.seq)
            for expected, state in zip(expected_scores, states, strict=True)
            if state.outcome == "corrected"
        ]
        if changes:
            await insert_audit(
                connection,
                actor=actor,
                action="repair",
                board=partition.board,
                detail={"part": partition.number, "changes": msgspec.to_builtins(changes)},
            )
    return changes
