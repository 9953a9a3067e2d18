"""Sets scores in Redis right where they drifted, while everybody goes on playing.

Called by `scoreboard repair` with what a verification found. What stays true: a score is set to
what PostgreSQL, the stream and the parked events say, never moved by a difference, so a second run
changes nothing; nobody commits while a page is set; every change is in the audit log.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from scoreboard import archive, ledger
from scoreboard.errors import OperatorMistake
from scoreboard.live import Live, Truth
from scoreboard.model import Board, Partition
from scoreboard.postgres import Connection
from scoreboard.reseed import Report
from scoreboard.verify import JUDGED_AT_ONCE, Drift, truths_of

EQUALS_MAX: Final = 512
"""Most users of one score whose places are dealt anew; lua/repair.lua says the same."""


class Change(Struct, frozen=True):
    """What was done about a user; ``seq`` 0 where it only left the board."""

    user_id: str
    partition: int
    change: int
    score: int
    seq: int


async def repair(
    live: Live,
    connection: Connection,
    board: Board,
    drifted: Sequence[Drift],
    *,
    actor: str,
    report: Report,
) -> list[Change]:
    """Set drifted users right; give what was changed, which may be less than was found.

    ``connection`` is in autocommit.

    Raises Busy (too much is not committed: try again), OperatorMistake (a reseed came between),
    Fenced, RedisUnavailable, DatabaseUnavailable: what is done is done, run it again.
    """
    users: dict[Partition, list[str]] = defaultdict(list)
    for drift in drifted:
        users[Partition(board.name, drift.partition)].append(drift.user_id)
    changes: list[Change] = []
    done = 0
    for partition, names in users.items():
        for start in range(0, len(names), JUDGED_AT_ONCE):
            page = names[start : start + JUDGED_AT_ONCE]
            changes += await _repair_page(live, connection, partition, page, actor)
            done += len(page)
            report("repair", done, len(drifted))
    return changes


async def _repair_page(
    live: Live, connection: Connection, partition: Partition, users: Sequence[str], actor: str
) -> list[Change]:
    async with archive.reaching(), connection.transaction():
        position = await ledger.hold_position(connection, partition)
        if position is None:
            raise OperatorMistake(f"PostgreSQL has no position of {partition}: reseed it")
        where = {
            "epoch": position.epoch,
            "seq": position.seq,
            "stream_id": position.stream_id,
        }
        truths = await truths_of(connection, partition, users)
        found = await live.repair(partition, truths, **where, is_dry=True)
        coming: dict[int, list[Truth]] = defaultdict(list)
        for truth, state in zip(truths, found, strict=True):
            if state.outcome != "unchanged":
                coming[state.score].append(truth)
        due: list[Truth] = []
        for score, group in coming.items():
            equals = await _equals(live, connection, partition, score, group)
            due += [msgspec.structs.replace(truth, equals=equals) for truth in group]
        if not due:
            return []
        states = await live.repair(partition, due, **where)
        changes = [
            Change(truth.user_id, partition.number, state.change, state.score, state.seq)
            for truth, state in zip(due, states, strict=True)
            if state.outcome == "corrected"
        ]
        await archive.insert_audit(
            connection,
            actor=actor,
            action="repair",
            board=partition.board,
            detail={"part": partition.number, "changes": msgspec.to_builtins(changes)},
        )
    return changes


async def _equals(
    live: Live, connection: Connection, partition: Partition, score: int, coming: Sequence[Truth]
) -> tuple[str, ...]:
    """Give who reached a score, in order: of those who stand there and those who will.

    Empty where they are too many: then whoever comes takes the last place.
    """
    standing = await live.standing_at(partition, score, most=EQUALS_MAX)
    users = [*standing, *(truth.user_id for truth in coming)]
    if len(users) > EQUALS_MAX:
        return ()
    return tuple(await ledger.arrivals(connection, partition.board, users, score))
