"""Users are identified by their token's subject, whatever the UUID of their row."""

import asyncio
import itertools
import json
import time
import uuid
from pathlib import Path

import psycopg
import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flusher.batch import Entry, build
from flusher.writer import Flushed, Writer
from scoreboard.ledger import checks
from scoreboard.model import Action, Board, Layout, Partition, pack, user_uuid
from scoreboard.runtime import resources
from scoreboard.runtime.settings import Secret, Settings
from tests.support.clients.commands import Run, with_database
from tests.support.data.ledger import Counted, write_history
from tests.support.eventually import eventually_async
from tests.support.servers.flushers import (
    KEYS,
    act,
    check_invariants,
    flushing,
    is_drained,
    make_board,
    query,
)

pytestmark = pytest.mark.slow

_boards = itertools.count(1)
IDS = st.text("ABYZabyz0189._|:@-", min_size=1, max_size=128) | st.uuids().map(str)


@pytest.fixture
def configured(database_url: str) -> Settings:
    return Settings(redis_url=Secret("redis://none"), database_url=Secret(database_url))


def fresh_board(configured: Settings) -> Partition:
    board = f"ids{next(_boards)}"
    query(configured, "INSERT INTO boards VALUES (%s, 1, 60, 1, true)", board)
    query(configured, "INSERT INTO flush_state VALUES (%s, 0, 1, 0, '0-0')", board)
    return Partition(board)


def entries_of(actions: list[tuple[str, int]]) -> list[Entry]:
    """Return a stream of (user, delta), one action each."""
    held: dict[str, int] = {}
    entries: list[Entry] = []
    for place, (user, delta) in enumerate(actions, 1):
        held[user] = held.get(user, 0) + delta
        fields = {"q": place, "u": user, "a": f"win:{place}", "d": delta, "s": held[user], "e": 1}
        entries.append(
            (
                f"{1000 + place}-0".encode(),
                {name.encode(): str(value).encode() for name, value in fields.items()},
            )
        )
    return entries


def read_scores(configured: Settings, board: str) -> dict[str, int]:
    return dict(
        query(
            configured,
            "SELECT u.external_id, s.score FROM scores s JOIN users u ON u.id = s.user_id"
            " WHERE s.board = %s",
            board,
        )
    )


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, str]:
    """Generate two ids; often the second one is the preferred UUID of the first one."""
    first = draw(IDS)
    second = draw(st.just(str(user_uuid(first))) | IDS)
    return (first, second) if draw(st.booleans()) else (second, first)


def test_different_ids_have_different_rows(configured: Settings) -> None:
    with asyncio.Runner() as runner:
        opened = runner.run(Writer.open(configured, fresh_board(configured)))

        async def write(entries: list[Entry], cuts: list[int]) -> Partition:
            partition = fresh_board(configured)
            writer = Writer(opened.connection, partition)
            edges = [0, *sorted(cuts), len(entries)]
            for start, stop in itertools.pairwise(edges):
                if start == stop:
                    continue
                result = await writer.flush(build(entries[start:stop]), epoch=1)
                assert isinstance(result, Flushed)
                assert result.counted == stop - start
                assert (result.drifted, result.late, result.redelivered) == (0, 0, 0)
            return partition

        @given(
            pair=pairs(),
            turns=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 9)), max_size=8),
            cuts=st.lists(st.integers(0, 8), max_size=3),
        )
        @example(pair=("alice", str(user_uuid("alice"))), turns=[], cuts=[])
        @example(pair=(str(user_uuid("bob")), "bob"), turns=[], cuts=[1])
        @settings(max_examples=150, deadline=None, database=None)
        def check(pair: tuple[str, str], turns: list[tuple[int, int]], cuts: list[int]) -> None:
            actions = [(pair[0], 1), (pair[1], 2), *((pair[who], delta) for who, delta in turns)]
            wanted: dict[str, int] = {}
            for user, delta in actions:
                wanted[user] = wanted.get(user, 0) + delta

            entries = entries_of(actions)
            partition = runner.run(write(entries, [min(cut, len(entries)) for cut in cuts]))

            assert read_scores(configured, partition.board) == wanted

        try:
            check()
        finally:
            runner.run(opened.aclose())


async def test_concurrent_boards_use_the_same_row_for_a_new_user(configured: Settings) -> None:
    taken = str(user_uuid("alice"))
    writers = [await Writer.open(configured, fresh_board(configured)) for _ in range(3)]
    try:
        async with asyncio.TaskGroup() as group:
            for place, writer in enumerate(writers):
                users = ["alice", taken] if place % 2 else [taken, "alice"]
                batch = build(entries_of([(user, 5) for user in users]))
                group.create_task(writer.flush(batch, epoch=1))
    finally:
        for writer in writers:
            await writer.aclose()

    rows = query(configured, "SELECT id, external_id FROM users")
    assert sorted(user for _, user in rows) == sorted(["alice", taken])
    assert len({row[0] for row in rows}) == 2
    for writer in writers:
        assert read_scores(configured, writer.partition.board) == {"alice": 5, taken: 5}


def test_a_user_gets_the_preferred_id_or_a_random_one(database_url: str) -> None:
    taken = str(user_uuid("alice"))
    with psycopg.connect(database_url, autocommit=True) as connection:

        def id_of(user: str) -> uuid.UUID:
            row = connection.execute(
                "SELECT user_id_of(%s, %s)", (user, user_uuid(user))
            ).fetchone()
            assert row is not None
            return row[0]

        assert id_of("alice") == user_uuid("alice")
        other = id_of(taken)
        assert other != user_uuid(taken)
        assert other.version == 4
        assert (id_of("alice"), id_of(taken)) == (user_uuid("alice"), other)


def test_names_are_set_for_the_right_user(command: Run, database_url: str, tmp_path: Path) -> None:
    taken = str(user_uuid("alice"))
    assert command("user", "set", "alice", "--name", "Alice").code == 0
    assert command("user", "set", taken, "--name", "Other").code == 0
    file = tmp_path / "users.csv"
    prefers = {user: str(user_uuid(user)) for user in ("bob", "carol")}
    file.write_text("\n".join(["userId,email", "alice,a@b.org", f"{taken},t@b.org"]) + "\n")
    assert command("user", "import", str(file)).code == 0
    file.write_text(
        "\n".join(
            ["userId,name", *(f"{one},{one[:5]}" for pair in prefers.items() for one in pair)]
        )
    )
    assert command("user", "import", str(file)).code == 0

    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT external_id, name, email FROM users").fetchall()
    assert sorted(rows) == sorted(
        [
            ("alice", "Alice", "a@b.org"),
            (taken, "Other", "t@b.org"),
            *((one, one[:5], None) for pair in prefers.items() for one in pair),
        ]
    )


async def test_a_late_duplicate_is_corrected_for_the_user_who_sent_it(
    redis_url: str, database_url: str
) -> None:
    taken = str(user_uuid("alice"))
    configured = Settings(
        redis_url=Secret(redis_url), database_url=Secret(database_url), flusher_metrics_port=0
    )
    board = await make_board(configured, Board(layout=Layout(1, 1, 1)))
    async with flushing(configured):
        await act(configured, Action("alice", "a", 3), Action(taken, "a", 5))
        await eventually_async(lambda: is_drained(configured))

        async def repeat() -> bool:
            [receipt] = await act(configured, Action(taken, "a", 5))
            return not getattr(receipt, "replayed", True)

        await eventually_async(repeat, every_s=0.2)
        await eventually_async(
            lambda: bool(
                query(configured, "SELECT 1 FROM rejected_events WHERE reason = 'correction'")
            ),
        )
        await eventually_async(lambda: is_drained(configured))

    assert board.name == "main"
    check_invariants(configured, [("alice", "a", 3), (taken, "a", 5)])
    assert query(
        configured,
        "SELECT DISTINCT u.external_id FROM rejected_events r JOIN users u ON u.id = r.user_id",
    ) == [(taken,)]


def test_every_read_distinguishes_similar_users(
    command: Run, redis_url: str, database_url: str
) -> None:
    taken = str(user_uuid("alice"))
    configured = Settings(
        redis_url=Secret(redis_url), database_url=Secret(database_url), flusher_metrics_port=0
    )

    async def play() -> None:
        await make_board(configured)
        async with flushing(configured):
            await act(configured, Action("alice", "a", 3))
            await act(configured, Action(taken, "a", 3), Action("alice", "b", 4))
            await act(configured, Action(taken, "b", 4))
            await eventually_async(lambda: is_drained(configured))

    asyncio.run(play())

    assert command("verify", "--full").code == 0
    assert command("verify", "--sample", "10").code == 0
    for user in ("alice", taken):
        shown = json.loads(command("user", "show", user, "--json").out)
        assert (shown["score"], shown["committedScore"], shown["actions"]) == (7, 7, 2)
    assert command("reseed", "--force", "--yes").code == 0
    assert command("verify", "--full").code == 0
    standings = with_database(
        configured, lambda connection: checks.read_scores(connection, "main", ["alice", taken])
    )
    assert {user: standing.score for user, standing in standings.items()} == {"alice": 7, taken: 7}
    order = with_database(
        configured,
        lambda connection: checks.select_arrival_order(connection, "main", [taken, "alice"], 7),
    )
    assert order == ["alice", taken]


async def test_plans_made_for_small_tables_use_indexes(
    configured: Settings,
) -> None:
    """Prepared statements keep their plans while tables grow."""
    query(configured, "INSERT INTO users VALUES (gen_random_uuid(), 'alice')")
    query(configured, "ANALYZE users")
    writer = await Writer.open(configured, fresh_board(configured))
    try:
        statement = b"EXPLAIN " + resources.query("count_flush_batch")
        parameters = {"seq": 0, "season": None, "scores": writer.where["board"]}
        cursor = await writer.connection.execute(statement, {**writer.where, **parameters})
        plan = "\n".join(row[0] for row in await cursor.fetchall())
    finally:
        await writer.aclose()

    assert "Index Scan using users_pk" in plan
    assert "Seq Scan on users" not in plan


def test_users_merged_by_an_older_version_are_reported(
    command: Run, redis_url: str, database_url: str
) -> None:
    taken = str(user_uuid("alice"))
    configured = Settings(redis_url=Secret(redis_url), database_url=Secret(database_url))
    write_history(
        database_url, [Counted("alice", "a", 3, time.time()), Counted("alice", "b", 5, time.time())]
    )
    assert command("reseed").code == 0
    with redis.Redis.from_url(redis_url) as client:
        client.zadd(KEYS.board, {"alice": pack(3, 5), taken: pack(5, 5)})

    done = command("verify", "--full", "--json")

    assert done.code == 1
    verdict = json.loads(done.out)
    assert {one["user_id"] for one in verdict["drifted"]} == {"alice", taken}
    [finding] = [one for one in verdict["findings"] if one["check"] == "shared row"]
    assert finding["detail"].startswith(f"{taken} was counted as alice")
    assert query(configured, "SELECT count(*) FROM users") == [(1,)]
