"""The ledger of a closed board is detached: its sums are kept, and nothing of it counts again."""

import json
import time
from collections.abc import Iterator

import msgspec
import psycopg
import pytest
import redis

from scoreboard.ledger import migrations, retention
from scoreboard.ledger.acts import ActFilter, select_acts
from scoreboard.ledger.pool import connect
from scoreboard.model import DEFAULT_RULES, Action, Partition, Receipt, Rules
from scoreboard.runtime.settings import Settings
from scoreboard.store.keys import PartitionKeys
from tests.support.clients.commands import Command
from tests.support.eventually import eventually_async
from tests.support.servers.api import StartApi
from tests.support.servers.flushers import act, flushing, is_drained, query

pytestmark = pytest.mark.slow

CUP = "cup-2026"
PLAYED = [("alice", "win:1", 30), ("alice", "win:2", 5), ("bob", "win:1", 20)]
LEDGER = "SELECT count(*), coalesce(sum(delta), 0) FROM score_events WHERE board = %s"
SCORES = (
    "SELECT u.external_id, s.score, s.actions FROM scores s JOIN users u ON u.id = s.user_id"
    " WHERE s.board = %s ORDER BY 1"
)
SUMS = (
    "SELECT u.external_id, s.delta, s.actions FROM score_sums s JOIN users u ON u.id = s.user_id"
    " WHERE s.board = %s AND s.season = '' ORDER BY 1"
)
HIDE_ACTS = (
    "ALTER TABLE score_events DISABLE TRIGGER ALL;"
    "CREATE TABLE kept AS SELECT * FROM score_events WHERE action_id LIKE 'act:%%';"
    "DELETE FROM score_events WHERE action_id LIKE 'act:%%'"
)


@pytest.fixture
def server(redis_url: str) -> Iterator["redis.Redis[str]"]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


async def play(
    settings: Settings,
    *actions: tuple[str, str, int],
    board: str = CUP,
    rules: Rules = DEFAULT_RULES,
) -> None:
    for receipt in await act(
        settings, *(Action(*one, rules=rules) for one in actions), board=board
    ):
        assert isinstance(receipt, Receipt), receipt
    await eventually_async(lambda: is_drained(settings, board))


async def play_a_cup(run: Command, settings: Settings) -> None:
    """Play on a board with a partition of its own, and on one without, and archive the first."""
    assert (await run("ledger", "separate", CUP)).code == 0
    for board in (CUP, "main"):
        assert (await run("board", "create", board)).code == 0
        await play(settings, *PLAYED, board=board)
    assert (await run("score", "correct", "bob", "+2", "--board", CUP, "--reason", "x",
                      "--yes")).code == 0  # fmt: skip
    await eventually_async(lambda: is_drained(settings, CUP))
    assert (await run("board", "archive", CUP)).code == 0


async def require_sound(run: Command, *boards: str) -> None:
    for board in boards:
        done = await run("verify", "--full", "--board", board)
        assert done.code == 0, done


async def test_a_closed_board_is_detached_and_keeps_its_scores(
    run: Command, settings: Settings, start_api: StartApi
) -> None:
    async with flushing(settings):
        await play_a_cup(run, settings)
        before = query(settings, SCORES, CUP)
        done = await run("ledger", "detach", CUP, "--yes")
        assert done.code == 0, done.err
        assert "4 actions of 2 users" in done.err

        assert query(settings, LEDGER, CUP) == [(0, 0)]
        assert query(settings, LEDGER, "main") == [(3, 55)]
        assert query(settings, SUMS, CUP) == query(settings, SCORES, CUP) == before
        rows = query(settings, f'SELECT count(*) FROM detached."score_events_b_{CUP}:rows"')
        assert rows == [(4,)]
        await require_sound(run, CUP, "main")

        # An emptied Redis gets the scores again.
        with redis.Redis.from_url(settings.redis_url.reveal()) as server:
            server.flushall()
        assert (await run("reseed", "--board", CUP, "--force", "--yes")).code == 0
        await require_sound(run, CUP)
    client = await start_api(database_url=settings.database_url.reveal(), open=())
    path = "/api/scores/users/alice"
    answer = await client.get(f"{path}?board={CUP}", headers=client.bearer())
    assert answer.json()["score"] == 35
    gone = await client.get(f"{path}/history?board={CUP}", headers=client.bearer())
    assert (gone.status_code, gone.json()["type"].rpartition("/")[2]) == (404, "not-found")
    assert "detached and cannot be read" in gone.json()["detail"]


async def test_what_would_change_a_detached_board_is_refused(
    run: Command, settings: Settings
) -> None:
    async with flushing(settings):
        await play_a_cup(run, settings)
        [(act_id,)] = query(settings, "SELECT id FROM acts WHERE board = %s", CUP)
        assert (await run("ledger", "detach", CUP, "--yes")).code == 0
    reason = ("--board", CUP, "--reason", "x", "--yes")
    for words in (
        ("board", "unarchive", CUP),
        ("ledger", "detach", CUP, "--yes"),
        ("action", "void", "win:1", "--user", "alice", *reason),
        ("score", "correct", "alice", "+1", *reason),
        ("act", "undo", str(act_id), "--reason", "x", "--yes"),
        ("export", "ledger", "--board", CUP),
    ):
        refused = await run(*words)
        assert refused.code == 5, (words, refused)
        assert "detached" in refused.err, words
    connection = await connect(settings, name="test", autocommit=True)
    async with connection:
        [found] = await select_acts(connection, ActFilter(board=CUP), limit=10)
    assert found.state == "applied"
    listed = json.loads((await run("ledger", "list", "--json")).out)
    assert [(one["board"], one["kept_users"], one["kept_actions"]) for one in listed] == [
        (CUP, 2, 4)
    ]


async def test_a_late_batch_for_a_detached_board_becomes_dead_letters(
    run: Command, settings: Settings, server: "redis.Redis[str]"
) -> None:
    """Redis of before the archiving may come back. More rows than the limit for other faults."""
    late = [(user, f"win:{number}", 1) for number in range(1, 9) for user in ("alice", "bob")]
    async with flushing(settings):
        await play_a_cup(run, settings)
        assert (await run("ledger", "detach", CUP, "--yes")).code == 0
        before = query(settings, SCORES, CUP)
        server.hset(PartitionKeys(Partition(CUP)).meta, "state", "open")
        await act(settings, *(Action(*one) for one in late), board=CUP)
        await play(settings, ("carol", "win:1", 1), board="main")
        # Redis knows three of them: they are replays.
        dead = "SELECT count(*) FROM dead_events WHERE board = %s AND reason LIKE %s"
        await eventually_async(
            lambda: query(settings, dead, CUP, f"%{retention.DETACHED}%") == [(len(late) - 3,)]
        )
    assert query(settings, LEDGER, CUP) == [(0, 0)]
    assert query(settings, SCORES, CUP) == before
    assert query(settings, LEDGER, "main") == [(4, 56)]
    [(number,)] = query(settings, "SELECT min(id) FROM dead_events WHERE board = %s", CUP)
    refused = await run("dead", "apply", str(number), "--board", CUP, "--yes")
    assert retention.DETACHED in refused.out + refused.err


async def test_detached_rows_are_attached_again(run: Command, settings: Settings) -> None:
    async with flushing(settings):
        await play_a_cup(run, settings)
        assert (await run("ledger", "detach", CUP, "--yes")).code == 0
        done = await run("ledger", "attach", CUP)
        assert done.code == 0, done.err
        assert query(settings, LEDGER, CUP) == [(4, 57)]
        assert query(settings, SUMS, CUP) == []
        await require_sound(run, CUP)
        assert (await run("board", "unarchive", CUP)).code == 0
        await play(settings, *PLAYED, ("carol", "win:1", 1))
        assert query(settings, LEDGER, CUP) == [(5, 58)]
        await require_sound(run, CUP)
    assert (await run("ledger", "attach", CUP)).code == 5


async def test_changed_rows_are_not_attached(run: Command, settings: Settings) -> None:
    async with flushing(settings):
        await play_a_cup(run, settings)
        assert (await run("ledger", "detach", CUP, "--yes")).code == 0
    table = f'detached."score_events_b_{CUP}:rows"'
    for statement in ("UPDATE {} SET delta = 1", "DELETE FROM {}", "TRUNCATE {}"):
        with pytest.raises(psycopg.errors.RaiseException, match="append only"):
            query(settings, statement.format(table))
    query(
        settings,
        f"ALTER TABLE {table} DISABLE TRIGGER ALL;"
        f"UPDATE {table} SET delta = delta + 1 WHERE action_id = 'win:2';"
        f"ALTER TABLE {table} ENABLE TRIGGER ALL",
    )
    refused = await run("ledger", "attach", CUP)
    assert refused.code == 5
    assert "1 sums of users differ" in refused.err
    assert query(settings, LEDGER, CUP) == [(0, 0)]
    query(settings, f"DROP TABLE {table}")
    assert "were dropped" in (await run("ledger", "attach", CUP)).err
    assert "dropped" in (await run("ledger", "list")).out
    await require_sound(run, CUP)


async def test_a_board_with_open_work_is_not_detached(run: Command, settings: Settings) -> None:
    async with flushing(settings):
        await play_a_cup(run, settings)
    insert = (
        "INSERT INTO dead_events (board, part, stream_id, raw_hash, raw, reason)"
        f" VALUES ('{CUP}', 0, '1-0', 'x', 'x', 'test')"
    )
    cases = {
        "1 dead letters": (insert, "UPDATE dead_events SET resolved_at = now()"),
        "1 acts": (
            HIDE_ACTS,
            "INSERT INTO score_events TABLE kept; ALTER TABLE score_events ENABLE TRIGGER ALL",
        ),
        "is not the sum": (
            "UPDATE scores SET score = score + 1",
            "UPDATE scores SET score = score - 1",
        ),
    }
    for text, (spoil, mend) in cases.items():
        query(settings, spoil)
        refused = await run("ledger", "detach", CUP, "--yes")
        assert (refused.code, text in refused.err) == (5, True), (text, refused)
        assert query(settings, SUMS, CUP) == []
        query(settings, mend)
    assert (await run("ledger", "detach", CUP, "--yes")).code == 0


async def test_a_board_that_can_change_is_not_detached(run: Command, settings: Settings) -> None:
    async with flushing(settings):
        await play_a_cup(run, settings)
        assert (await run("board", "unarchive", CUP)).code == 0
        refused = await run("ledger", "detach", CUP, "--yes")
        assert (refused.code, "board archive" in refused.err) == (5, True)
    assert (await run("board", "archive", "main")).code == 0
    refused = await run("ledger", "detach", "main", "--yes")
    assert (refused.code, "no partition of its own" in refused.err) == (5, True)
    assert (await run("ledger", "detach", "chess", "--yes")).code == 3


async def test_a_deleted_board_is_detached(run: Command, settings: Settings) -> None:
    async with flushing(settings):
        await play_a_cup(run, settings)
        assert (await run("board", "delete", CUP, "--yes")).code == 0
    assert (await run("ledger", "detach", CUP, "--yes")).code == 0
    assert query(settings, SUMS, CUP) == query(settings, SCORES, CUP)


async def test_older_versions_do_not_start_after_a_detaching(
    run: Command, settings: Settings
) -> None:
    """They would find that each score of the board differs from the ledger."""
    needed = "SELECT compatible_from FROM schema_compatibility WHERE migration = %s"
    name = "0022_partition_ledger_by_board"
    assert name in migrations.known()
    assert query(settings, needed, name) == [("0016_create_schema_compatibility",)]
    async with flushing(settings):
        await play_a_cup(run, settings)
        assert query(settings, needed, name) == [("0016_create_schema_compatibility",)]
        assert (await run("ledger", "detach", CUP, "--yes")).code == 0
    assert query(settings, needed, name) == [(name,)]


async def test_an_interrupted_separation_is_completed(run: Command, settings: Settings) -> None:
    """Until then the ledger of the other boards refuses the board, so it cannot be created."""
    query(
        settings,
        f"ALTER TABLE score_events_others ADD CONSTRAINT \"not_{CUP}\" CHECK (board <> '{CUP}')"
        " NOT VALID",
    )
    refused = await run("board", "create", CUP)
    assert (refused.code, f"ledger separate {CUP} again" in refused.err) == (5, True)
    assert (await run("ledger", "separate", CUP)).code == 0
    again = await run("ledger", "separate", CUP)
    assert (again.code, "had a partition" in again.err) == (0, True)
    assert (await run("board", "create", CUP)).code == 0


@pytest.mark.parametrize("state", ["open", "archived", "deleted"])
async def test_a_board_that_exists_is_not_separated(
    run: Command, settings: Settings, state: str
) -> None:
    async with flushing(settings):
        assert (await run("board", "create", CUP)).code == 0
        await play(settings, *PLAYED)
        if state != "open":
            assert (await run("board", "archive", CUP)).code == 0
        if state == "deleted":
            assert (await run("board", "delete", CUP, "--yes")).code == 0
        refused = await run("ledger", "separate", CUP)
        assert (refused.code, "exists already" in refused.err) == (5, True)
        if state == "open":
            await play(settings, ("carol", "win:1", 1))
    expected = (4, 56) if state == "open" else (3, 55)
    assert query(settings, LEDGER, CUP) == [expected]


async def test_a_lock_that_is_not_granted_changes_nothing(run: Command, settings: Settings) -> None:
    async with flushing(settings):
        await play_a_cup(run, settings)
    with psycopg.connect(settings.database_url.reveal()) as reader:
        reader.execute("SELECT FROM score_events")
        refused = await run("ledger", "detach", CUP, "--yes")
        assert refused.code == 69, refused
    assert query(settings, SUMS, CUP) == []
    assert (await run("ledger", "detach", CUP, "--yes")).code == 0


async def test_each_season_keeps_its_sums(
    run: Command, settings: Settings, server: "redis.Redis[str]"
) -> None:
    assert (await run("ledger", "separate", CUP)).code == 0
    assert (await run("board", "create", CUP, "--season", "daily")).code == 0
    meta, rules = PartitionKeys(Partition(CUP)).meta, Rules(season="daily", time_zone="UTC")
    async with flushing(msgspec.structs.replace(settings, boards=(CUP,))):
        await play(settings, *PLAYED, rules=rules)
        name, start, _ = str(server.hget(meta, "season")).split(":")
        server.hset(meta, "season", f"{name}:{start}:{int(time.time())}")  # it ends now
        await play(settings, ("alice", "win:9", 1), rules=rules)
        assert (await run("board", "archive", CUP)).code == 0
        await eventually_async(lambda: is_drained(settings, CUP))
        expected = query(
            settings,
            "SELECT season, sum(delta), count(*) FROM score_events GROUP BY season, user_id"
            " ORDER BY 1, 2",
        )
        done = await run("ledger", "detach", CUP, "--yes")
        assert done.code == 0, done.err
        await require_sound(run, CUP)
    kept = "SELECT season, delta, actions FROM score_sums ORDER BY 1, 2"
    assert query(settings, kept) == expected
    # A wrong sum of a season is found.
    scores = "UPDATE scores SET score = score + 1 WHERE board LIKE '%%@%%'"
    assert (await run("ledger", "attach", CUP)).code == 0
    query(settings, scores)
    refused = await run("ledger", "detach", CUP, "--yes")
    assert (refused.code, "in season" in refused.err) == (5, True)


async def test_a_wrong_kept_sum_is_found(run: Command, settings: Settings) -> None:
    async with flushing(settings):
        await play_a_cup(run, settings)
        assert (await run("ledger", "detach", CUP, "--yes")).code == 0
        query(settings, "UPDATE score_sums SET delta = delta + 1 WHERE actions = 2")
        found = await run("verify", "--full", "--board", CUP)
        assert (found.code, "ledger sum" in found.out) == (1, True), found
