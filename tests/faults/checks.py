"""Checks of the invariants in both stores, without uncommitted actions.

Each function returns one sentence per violation.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
import redis.asyncio as aioredis

from scoreboard.model import Partition, partition_of
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.partitions import REWIND_FENCE
from tests.faults.clients import History
from tests.faults.operators import acts_count_once
from tests.faults.stack import Stack
from tests.faults.viewer import Viewer
from tests.support.eventually import eventually_async

MAIN = Partition("main")


async def drain(
    stack: Stack, within_s: float = 60, partitions: Sequence[Partition] = (MAIN,)
) -> None:
    """Wait until PostgreSQL has everything Redis accepted, and no partition is being repaired."""
    async with stack.redis() as client:

        async def is_drained() -> bool:
            with stack.sql() as connection:
                rows = connection.execute("SELECT board, part, seq FROM flush_state").fetchall()
            committed = {Partition(board, part): seq for board, part, seq in rows}
            for partition in partitions:
                keys = PartitionKeys(partition)
                seq = int(await client.hget(keys.meta, "seq") or 0)
                if committed.get(partition) != seq or await client.xlen(keys.events):
                    return False
                if await client.hget(keys.meta, "state") != b"open":
                    return False
            return True

        await eventually_async(is_drained, within_s=within_s, every_s=0.1)


async def check(stack: Stack, history: History, viewer: Viewer | None = None) -> list[str]:
    """Compare the answers about a board with both stores, and the stores with each other.

    If a season ended meanwhile, its scores were compared with those of the next one: check again.
    """
    while True:
        before = await _season(stack, history)
        found = await _check(stack, history, viewer)
        if not found or before == await _season(stack, history):
            return found
        await drain(stack, partitions=_partitions(history))


def _partitions(history: History) -> list[Partition]:
    return [Partition(history.board, number) for number in range(history.partitions)]


async def _season(stack: Stack, history: History) -> str:
    """Return the season of both stores; they are the same on a drained board."""
    async with stack.redis() as client:
        keys = PartitionKeys(Partition(history.board))
        return str(await client.hget(keys.meta, "season"))


async def _check(stack: Stack, history: History, viewer: Viewer | None) -> list[str]:
    found = list(history.violations)
    with stack.sql() as connection:
        if history.rules.takes_values:
            found += every_acknowledged_value_counts(connection, history)
        else:
            found += ledger_has_every_acknowledged_action(connection, history)
        found += scores_are_sums(connection)
        found += acts_count_once(connection)
        found += held_actions_count_once(connection)
        found += final_standings_are_the_ledger(connection)
        ended = rewinds(connection) if history.may_rewind else set[tuple[Partition, int]]()
        found += seqs_are_dense(connection, stack.rewound_epochs, ended)
        ranking = ranked(connection, history)
    async with stack.redis() as client:
        shown, differences = await redis_agrees(client, ranking, history)
        found += differences
    async with stack.servers() as servers:
        for server in servers:
            found += await memory_is_bounded(server)
    if viewer is not None:
        found += viewer.violations
        if not found:  # after a violation the expected board may never be sent
            found += await viewer_shows(viewer, shown)
    return found


def ledger_has_every_acknowledged_action(
    connection: psycopg.Connection, history: History
) -> Iterable[str]:
    """I1: exactly the sent actions are in the ledger, every acknowledged one with its points."""
    rows = connection.execute(
        "SELECT u.external_id, e.action_id, e.delta FROM score_events e "
        "JOIN users u ON u.id = e.user_id WHERE e.board = %s",
        [history.board],
    ).fetchall()
    ledger = {
        (user, action): delta for user, action, delta in rows if not action.startswith("act:")
    }
    held = set(
        connection.execute(
            "SELECT u.external_id, h.action_id FROM held_actions h JOIN users u ON u.id = h.user_id"
            " WHERE h.board = %s",
            [history.board],
        ).fetchall()
    )
    if held & ledger.keys():
        yield f"I1: {len(held & ledger.keys())} held actions are in the ledger"
    counted = {key for key, answers in history.actions.items() if answers.is_held} & ledger.keys()
    if counted and not history.is_rewound:
        yield f"I1: {len(counted)} actions that were held have counted, such as {min(counted)}"
    refused = {key for key, answers in history.actions.items() if answers.is_refused}
    if refused & ledger.keys():
        yield f"I1: {len(refused & ledger.keys())} actions of banned users are in the ledger"
    lost = (
        {key for key, answers in history.actions.items() if answers.new_score is not None}
        - ledger.keys()
        - held
    )
    if lost:
        yield f"I1: {len(lost)} acknowledged actions are lost, such as {min(lost)}"
    unknown = ledger.keys() - history.actions.keys()
    if unknown:
        yield f"I1: {len(unknown)} ledger rows of unknown actions, such as {min(unknown)}"
    wrong = [
        key
        for key in ledger.keys() & history.actions.keys()
        if ledger[key] != history.actions[key].points
    ]
    if wrong:
        yield f"I1: {len(wrong)} ledger rows with other points, such as {min(wrong)}"


def held_actions_count_once(connection: psycopg.Connection) -> Iterable[str]:
    """I1 for held actions: each has at most one release that was neither refused nor undone."""
    rows = connection.execute(
        "SELECT a.detail->>'held', count(*) FROM acts a"
        " WHERE a.kind = 'release' AND a.refused_at IS NULL AND NOT EXISTS ("
        " SELECT FROM acts x WHERE x.undoes = a.id AND x.refused_at IS NULL)"
        " GROUP BY 1 HAVING count(*) > 1"
    ).fetchall()
    if rows:
        yield f"I1: {len(rows)} held actions were released twice, such as {rows[0]}"
    rows = connection.execute(
        "SELECT h.id FROM held_actions h JOIN acts a ON a.id = h.act_id"
        " WHERE h.voided_at IS NOT NULL AND a.refused_at IS NULL AND NOT EXISTS ("
        " SELECT FROM acts x WHERE x.undoes = a.id AND x.refused_at IS NULL)"
    ).fetchall()
    if rows:
        yield f"I1: {len(rows)} held actions are voided and released, such as {rows[0]}"


def final_standings_are_the_ledger(connection: psycopg.Connection) -> Iterable[str]:
    """Final standings are the sums of their season; only users who were banned can be missing."""
    rows = connection.execute(
        "SELECT f.board, f.season, e.user_id, p.score, e.total FROM seasons f JOIN "
        "(SELECT board, season, user_id, sum(delta) AS total FROM score_events GROUP BY 1, 2, 3) e "
        "USING (board, season) FULL JOIN season_standings p USING (board, season, user_id) "
        "WHERE (f.frozen_at IS NOT NULL OR f.season IS NULL) AND p.score IS DISTINCT FROM e.total "
        "AND (p.score IS NOT NULL OR NOT EXISTS "
        "(SELECT FROM acts a WHERE a.kind = 'ban' AND a.user_id = e.user_id))"
    ).fetchall()
    if rows:
        yield f"I2: {len(rows)} final standings are not the sum of their ledger, such as {rows[0]}"


def every_acknowledged_value_counts(
    connection: psycopg.Connection, history: History
) -> Iterable[str]:
    """I1 on a board with values: each that changed a score is in the ledger, and set that score.

    One that Redis applied and the ledger did not need, because Redis had lost data, is among the
    rejected events.
    """
    rules = history.rules
    rows = connection.execute(
        "SELECT coalesce(e.season, ''), u.external_id, e.action_id, e.delta FROM score_events e "
        "JOIN users u ON u.id = e.user_id WHERE e.board = %s "
        "ORDER BY e.occurred_at, e.epoch, e.seq",
        [history.board],
    ).fetchall()
    scores: dict[tuple[str, str], int] = {}
    for season, user, action, delta in rows:
        before = scores.get((season, user))
        score = scores[season, user] = (before or 0) + delta
        if action.startswith("act:"):
            continue
        answers = history.actions.get((user, action))
        if answers is None:
            yield f"I1: a ledger row of an unknown action, {user} {action}"
            return
        is_better = score < (before or 0) if rules.order == "lowest" else score > (before or 0)
        is_worse = rules.operator == "best" and before is not None and not is_better
        if score != answers.points or is_worse or answers.is_refused:
            yield f"I1: {user} {action} states {answers.points}, and moved {before} to {score}"
            return
    known = {(user, action) for _, user, action, _ in rows}
    known |= set(
        connection.execute(
            "SELECT u.external_id, t.action_id FROM (SELECT board, user_id, action_id"
            " FROM rejected_events UNION SELECT board, user_id, action_id FROM held_actions) t"
            " JOIN users u ON u.id = t.user_id WHERE t.board = %s",
            [history.board],
        ).fetchall()
    )
    counted = {key for key, one in history.actions.items() if one.new_score is not None}
    if counted - known:
        missing = counted - known
        yield f"I1: {len(missing)} acknowledged values are lost, such as {min(missing)}"


def scores_are_sums(connection: psycopg.Connection) -> Iterable[str]:
    """I2: scores.score and scores.actions are sum and count of the ledger."""
    rows = connection.execute(
        "SELECT s.user_id, s.score, s.actions, e.total, e.n FROM scores s FULL JOIN "
        "(SELECT board || coalesce('@' || season, '') AS board, user_id, sum(delta) AS total, "
        "count(*) AS n FROM score_events GROUP BY 1, user_id) e USING (board, user_id) "
        "WHERE (s.score, s.actions) IS DISTINCT FROM (e.total, e.n)"
    ).fetchall()
    if rows:
        yield f"I2: {len(rows)} scores are not the sum of their ledger, such as {rows[0]}"


def seqs_are_dense(
    connection: psycopg.Connection, rewound: set[int], ended: set[tuple[Partition, int]]
) -> Iterable[str]:
    """I6: ledger and rejected events together have every seq once, per partition and epoch.

    An epoch that ends with a rewind (one of ``rewound`` or ``ended``) can have repeated seqs, but
    no missing ones.
    """
    rows = connection.execute(
        "WITH known AS (SELECT board, part, epoch, seq FROM score_events UNION ALL "
        "SELECT board, part, epoch, seq FROM rejected_events UNION ALL "
        "SELECT board, part, epoch, seq FROM held_actions "
        "UNION ALL SELECT board, part, epoch, seq FROM season_turns) "
        "SELECT board, part, epoch, min(seq), max(seq), count(*), count(DISTINCT seq) "
        "FROM known GROUP BY 1, 2, 3"
    ).fetchall()
    for board, part, epoch, first, last, count, distinct in rows:
        partition = Partition(board, part)
        if count != distinct and epoch not in rewound and (partition, epoch) not in ended:
            yield f"I6: epoch {epoch} of {partition} uses {count - distinct} seqs twice"
        if last - first + 1 != distinct:
            yield f"I6: epoch {epoch} of {partition} lacks {last - first + 1 - distinct} seqs"


def rewinds(connection: psycopg.Connection) -> set[tuple[Partition, int]]:
    """Return the partitions and epochs that a flusher has ended because Redis had lost data."""
    rows = connection.execute(
        "SELECT board, detail->'partitions', detail->'before' FROM audit_log "
        "WHERE action = 'reseed' AND actor = %s",
        [REWIND_FENCE],
    ).fetchall()
    return {
        (Partition(board, part), before[0])
        for board, parts, befores in rows
        for part, before in zip(parts, befores, strict=True)
    }


def ranked(connection: psycopg.Connection, history: History) -> list[tuple[str, int]]:
    """Return the board as PostgreSQL ranks it."""
    return connection.execute(
        "SELECT u.external_id, s.score FROM scores s JOIN users u ON u.id = s.user_id "
        "WHERE NOT EXISTS (SELECT FROM bans b WHERE b.board = %s AND b.user_id = s.user_id) "
        "AND s.board = (SELECT board || coalesce(substring('@' || season FROM '^@[^:]+'), '') "
        "FROM flush_state WHERE board = %s AND part = 0) "
        "ORDER BY s.score * %s, s.reached_at, s.last_seq",
        [history.board, history.board, 1 if history.rules.order == "lowest" else -1],
    ).fetchall()


async def redis_agrees(
    client: "aioredis.Redis", ranking: list[tuple[str, int]], history: History
) -> tuple[list[tuple[str, int]], list[str]]:
    """I3: with nothing unflushed both stores hold the same scores in the same order.

    Return the board as Redis ranks it, too: users of several partitions with the same score have an
    order of their own (docs/decisions/0044).
    """
    rules, found = history.rules, []
    places: list[tuple[int, int, str]] = []
    for partition in _partitions(history):
        rows: list[tuple[bytes, float]] = await client.zrange(
            PartitionKeys(partition).board, 0, -1, desc=True, withscores=True
        )
        held = [(user.decode(), rules.unpack_score(int(packed))) for user, packed in rows]
        number = partition.number
        places += [(-int(packed), number, user.decode()) for user, packed in rows]
        expected = [one for one in ranking if partition_of(one[0], history.partitions) == number]
        found += _differences(partition, held, expected)
    shown = [(user, rules.unpack_score(-packed)) for packed, _, user in sorted(places)]
    return shown, found


def _differences(
    partition: Partition, held: list[tuple[str, int]], ranking: list[tuple[str, int]]
) -> list[str]:
    if held == ranking:
        return []
    if dict(held) == dict(ranking):
        return [f"I3: equal scores of {partition} are in another order"]
    kept, expected = dict(held), dict(ranking)
    differing = sorted(
        user for user in kept.keys() | expected.keys() if kept.get(user) != expected.get(user)
    )
    examples = ", ".join(
        f"{user}: {kept.get(user)} in Redis, {expected.get(user)} in PostgreSQL"
        for user in differing[:3]
    )
    return [f"I3: {len(differing)} users of {partition} differ, such as {examples}"]


async def memory_is_bounded(client: "aioredis.Redis") -> list[str]:
    """I7: every seen key and the counters of a window expire."""
    return [
        f"I7: {key!r} never expires"
        for pattern in ("*:seen:*", "*:gained")
        async for key in client.scan_iter(pattern)
        if await client.ttl(key) == -1
    ]


async def viewer_shows(viewer: Viewer, ranking: list[tuple[str, int]]) -> list[str]:
    """I8: a viewer shows the top 10 soon after the last change."""
    expected = [
        {"rank": rank, "userId": user, "score": score}
        for rank, (user, score) in enumerate(ranking[:10], 1)
    ]

    def shows() -> Any:
        return viewer.rows == expected

    try:
        await eventually_async(shows)
    except AssertionError:
        return [f"I8: the viewer shows {viewer.rows[:2]} …, not {expected[:2]} …"]
    return []
