"""Corrects scores in Redis while the board stays open. Used by the flusher, verify and repair.

Invariant: a score is set to what PostgreSQL and the stream say, never moved by a difference, so a
second run changes nothing.
"""

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from scoreboard.events import season_id_of
from scoreboard.ledger import acts, checks, dead_letters
from scoreboard.ledger.pool import Connection
from scoreboard.ledger.positions import Position
from scoreboard.model import Layout, Partition, scores_name
from scoreboard.store.corrections import EQUALS_MAX, ExpectedScore, Repaired
from scoreboard.store.store import Store
from scoreboard.store.uncommitted import UncommittedDeltas


async def read_expected_scores(
    connection: Connection, partition: Partition, users: Sequence[str], *, season: str
) -> list[ExpectedScore]:
    """Read the scores of users in PostgreSQL, with dead letters that Redis has counted, and bans.

    ``season`` is the one that Redis is in, as id:start:end, empty for a board without seasons. The
    caller holds a lock on the partition's position.

    Raises OperatorMistake (too many dead letters), DatabaseUnavailable.
    """
    id_ = season_id_of(season)
    scores = await checks.read_scores(connection, scores_name(partition.board, id_), users)
    unresolved = await dead_letters.sum_unresolved(connection, partition.board, season=id_)
    banned = await acts.select_bans_of(connection, partition.board, users)
    expected_scores: list[ExpectedScore] = []
    for user in users:
        held = scores.get(user)
        expected = dead_letters.expected_score(held and held.score, unresolved.get(user))
        expected_scores.append(ExpectedScore(user, expected, user in banned))
    return expected_scores


async def correct_users(
    store: Store,
    connection: Connection,
    partition: Partition,
    users: Sequence[str],
    position: Position,
) -> list[Repaired]:
    """Correct up to ``REPAIR_MAX`` users; return what was done for each, in order.

    ``position`` is the committed one; the caller holds a lock on it.

    Raises what Store.repair raises, OperatorMistake (too many dead letters), DatabaseUnavailable.
    """
    uncommitted = await store.read_uncommitted(partition, **msgspec.structs.asdict(position))
    season = uncommitted.season
    expected_scores = await read_expected_scores(connection, partition, users, season=season)
    name = scores_name(partition.board, season_id_of(season))
    results = await store.repair(partition, expected_scores, uncommitted, is_dry=True)
    by_score: dict[int, list[int]] = defaultdict(list)
    for index, result in enumerate(results):
        if result.outcome != "unchanged":
            by_score[result.score].append(index)
    differing: dict[int, ExpectedScore] = {}
    layout = (await store.state(partition)).layout if by_score else None
    rules = (layout or Layout()).rules
    for score, indices in by_score.items():
        arriving = [users[index] for index in indices]
        members = await store.users_at_score(partition, rules, score, limit=EQUALS_MAX)
        equals: tuple[str, ...] = ()
        if len(members) + len(arriving) <= EQUALS_MAX:  # else the order stays unknown
            equals = await _order_by_arrival(
                connection, name, [*members, *arriving], score, uncommitted
            )
        for index in indices:
            differing[index] = msgspec.structs.replace(expected_scores[index], equals=equals)
    if differing:
        done = await store.repair(partition, list(differing.values()), uncommitted)
        for index, result in zip(differing, done, strict=True):
            results[index] = result
    return results


async def _order_by_arrival(
    connection: Connection,
    board: str,
    users: Sequence[str],
    score: int,
    uncommitted: UncommittedDeltas,
) -> tuple[str, ...]:
    committed = await checks.select_arrival_order(connection, board, users, score)
    return tuple(uncommitted.order(users, committed))
