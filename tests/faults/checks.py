"""Checks of the invariants in both stores, without uncommitted actions.

Each function returns one sentence per violation.
"""

from collections.abc import Iterable
from typing import Any

import psycopg
import redis.asyncio as aioredis

from scoreboard.model import Partition, Rules
from scoreboard.store.keys import PartitionKeys
from tests.faults.clients import History
from tests.faults.operators import acts_count_once
from tests.faults.stack import Stack
from tests.faults.viewer import Viewer
from tests.support.eventually import eventually_async

KEYS = PartitionKeys(Partition("main"))


async def drain(stack: Stack, within_s: float = 60) -> None:
    """Wait until PostgreSQL has everything Redis accepted."""
    async with stack.redis() as client:

        async def is_drained() -> bool:
            seq = int(await client.hget(KEYS.meta, "seq") or 0)
            with stack.sql() as connection:
                row = connection.execute("SELECT seq FROM flush_state").fetchone()
            return row is not None and row[0] == seq and await client.xlen(KEYS.events) == 0

        await eventually_async(is_drained, within_s=within_s, every_s=0.1)


async def check(stack: Stack, history: History, viewer: Viewer | None = None) -> list[str]:
    """Compare the clients' answers with both stores, and the stores with each other.

    If a season ended meanwhile, its scores were compared with those of the next one: check again.
    """
    while True:
        before = await _season(stack)
        found = await _check(stack, history, viewer)
        if not found or before == await _season(stack):
            return found
        await drain(stack)


async def _season(stack: Stack) -> str:
    """Return the season of both stores; they are the same on a drained board."""
    async with stack.redis() as client:
        return str(await client.hget(KEYS.meta, "season"))


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
        found += seqs_are_dense(connection, stack.rewound_epochs)
        ranking = ranked(connection, history.rules)
    async with stack.redis() as client:
        found += await redis_agrees(client, ranking, history.rules)
        found += await memory_is_bounded(client)
    if viewer is not None:
        found += viewer.violations
        if not found:  # after a violation the expected board may never be sent
            found += await viewer_shows(viewer, ranking)
    return found


def ledger_has_every_acknowledged_action(
    connection: psycopg.Connection, history: History
) -> Iterable[str]:
    """I1: exactly the sent actions are in the ledger, every acknowledged one with its points."""
    rows = connection.execute(
        "SELECT u.external_id, e.action_id, e.delta FROM score_events e "
        "JOIN users u ON u.id = e.user_id"
    ).fetchall()
    ledger = {
        (user, action): delta for user, action, delta in rows if not action.startswith("act:")
    }
    held = set(
        connection.execute(
            "SELECT u.external_id, h.action_id FROM held_actions h JOIN users u ON u.id = h.user_id"
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
        "JOIN users u ON u.id = e.user_id ORDER BY e.occurred_at, e.epoch, e.seq"
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
            "SELECT u.external_id, t.action_id FROM (SELECT user_id, action_id FROM rejected_events"
            " UNION SELECT user_id, action_id FROM held_actions) t JOIN users u ON u.id = t.user_id"
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


def seqs_are_dense(connection: psycopg.Connection, rewound: set[int]) -> Iterable[str]:
    """I6: ledger and rejected events together have every seq once, per epoch.

    An epoch that ends with a rewind can have repeated seqs, but no missing ones.
    """
    rows = connection.execute(
        "WITH known AS (SELECT epoch, seq FROM score_events UNION ALL "
        "SELECT epoch, seq FROM rejected_events UNION ALL SELECT epoch, seq FROM held_actions "
        "UNION ALL SELECT epoch, seq FROM season_turns) "
        "SELECT epoch, min(seq), max(seq), count(*), count(DISTINCT seq) FROM known GROUP BY epoch"
    ).fetchall()
    for epoch, first, last, count, distinct in rows:
        if count != distinct and epoch not in rewound:
            yield f"I6: epoch {epoch} uses {count - distinct} seqs twice"
        if last - first + 1 != distinct:
            yield f"I6: epoch {epoch} lacks {last - first + 1 - distinct} seqs"


def ranked(connection: psycopg.Connection, rules: Rules) -> list[tuple[str, int]]:
    """Return the board as PostgreSQL ranks it."""
    return connection.execute(
        "SELECT u.external_id, s.score FROM scores s JOIN users u ON u.id = s.user_id "
        "WHERE s.user_id NOT IN (SELECT user_id FROM bans) AND s.board = (SELECT "
        "board || coalesce(substring('@' || season FROM '^@[^:]+'), '') FROM flush_state) "
        "ORDER BY s.score * %s, s.reached_at, s.last_seq",
        [1 if rules.order == "lowest" else -1],
    ).fetchall()


async def redis_agrees(
    client: "aioredis.Redis", ranking: list[tuple[str, int]], rules: Rules
) -> list[str]:
    """I3: with nothing unflushed both stores hold the same scores in the same order."""
    rows: list[tuple[bytes, float]] = await client.zrange(
        KEYS.board, 0, -1, desc=True, withscores=True
    )
    held = [(user.decode(), rules.unpack_score(int(packed))) for user, packed in rows]
    if held == ranking:
        return []
    if dict(held) == dict(ranking):
        return ["I3: equal scores are in another order"]
    kept, expected = dict(held), dict(ranking)
    differing = sorted(
        user for user in kept.keys() | expected.keys() if kept.get(user) != expected.get(user)
    )
    examples = ", ".join(
        f"{user}: {kept.get(user)} in Redis, {expected.get(user)} in PostgreSQL"
        for user in differing[:3]
    )
    return [f"I3: {len(differing)} users differ, such as {examples}"]


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
