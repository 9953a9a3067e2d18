"""Detaching a ledger beside others, interrupted, and with a Redis of before: no point is lost."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
import redis

from scoreboard.errors import OperatorMistake
from scoreboard.ledger import retention
from scoreboard.ledger.pool import Connection, connect
from scoreboard.model import Action, Board, Receipt
from scoreboard.recovery.board_changes import create_board
from scoreboard.runtime.settings import Settings
from tests.integration.test_ledger_retention import (
    CUP,
    LEDGER,
    SCORES,
    SUMS,
    play,
    play_a_cup,
    require_sound,
    server,
)
from tests.support.clients.commands import Command
from tests.support.eventually import eventually_async
from tests.support.servers.flushers import act, flushing, is_drained, query

pytestmark = pytest.mark.slow

__all__ = ["server"]

CHECKS = (
    "SELECT conname FROM pg_constraint WHERE conrelid = 'score_events_others'::regclass"
    " AND conname LIKE 'not\\_%%' AND contype = 'c'"
)
DEAD = "SELECT convert_from(raw, 'UTF8')::JSON ->> 'a' FROM dead_events ORDER BY id"


@asynccontextmanager
async def owner(settings: Settings) -> AsyncIterator[Connection]:
    async with await connect(settings, name="test", autocommit=True) as connection:
        yield connection


def keys_of(server: "redis.Redis[bytes]") -> dict[bytes, tuple[bytes, int]]:
    """Return all keys of a server, to restore them."""
    return {key: (server.dump(key), max(server.pttl(key), 0)) for key in server.keys("*")}


@pytest.fixture
def raw(redis_url: str) -> Iterator["redis.Redis[bytes]"]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.mark.parametrize("is_behind", [False, True])
async def test_actions_that_a_redis_of_before_delivers_again_are_no_dead_letters(
    run: Command, settings: Settings, raw: "redis.Redis[bytes]", *, is_behind: bool
) -> None:
    """A reseed adds dead letters to the scores of Redis, so they would count twice there."""
    async with flushing(settings):
        await play_a_cup(run, settings)
        assert (await run("board", "unarchive", CUP)).code == 0
    await act(settings, *(Action("alice", f"win:{n}", 100) for n in range(20, 60)), board=CUP)
    before = keys_of(raw)
    async with flushing(settings):
        await eventually_async(lambda: is_drained(settings, CUP))
        if is_behind:  # the flusher reseeds the board by itself
            await play(settings, *(("bob", f"win:{n}", 7) for n in range(20, 30)))
        assert (await run("board", "archive", CUP)).code == 0
        assert (await run("ledger", "detach", CUP, "--yes")).code == 0
    final = query(settings, SCORES, CUP)

    raw.flushall()
    for key, (value, ttl_ms) in before.items():
        raw.restore(key, ttl_ms, value)
    await act(settings, Action("alice", "win:late", 1000), board=CUP)
    async with flushing(settings):
        await eventually_async(lambda: is_drained(settings, CUP))
        await eventually_async(lambda: query(settings, DEAD) == [("win:late",)])
        assert query(settings, SCORES, CUP) == final
        # Whoever sees the board sees the late action until it is resolved, and nothing twice.
        assert (await run("reseed", "--board", CUP, "--force", "--yes")).code == 0
        await require_sound(run, CUP)
        [(number,)] = query(settings, "SELECT id FROM dead_events")
        resolve = ("dead", "discard", str(number), "--board", CUP, "--reason", "x", "--yes")
        assert (await run(*resolve)).code == 0
        await eventually_async(lambda: _is_sound(run))
    assert query(settings, SCORES, CUP) == final


async def _is_sound(run: Command) -> bool:
    return (await run("verify", "--full", "--board", CUP)).code == 0


async def test_a_board_that_exists_is_refused_before_the_ledger_is_changed(
    run: Command, settings: Settings
) -> None:
    """The check of a separation makes dead letters of the board's actions, also if it is killed."""
    assert (await run("board", "create", CUP)).code == 0
    with psycopg.connect(settings.database_url.reveal()) as reader:
        reader.execute("SELECT FROM score_events_others")  # a change would wait for its end
        refused = await run("ledger", "separate", CUP)
    assert (refused.code, "exists already" in refused.err) == (5, True), refused
    assert query(settings, CHECKS) == []


async def test_a_separation_waits_for_boards_that_are_being_created(
    run: Command, settings: Settings
) -> None:
    async with owner(settings) as connection, connection.transaction():
        assert await create_board(connection, Board(CUP), actor="test")
        refused = await run("ledger", "separate", CUP)
        assert refused.code == 69, refused
        assert query(settings, CHECKS) == []
    refused = await run("ledger", "separate", CUP)
    assert (refused.code, "exists already" in refused.err) == (5, True), refused
    assert query(settings, CHECKS) == []


async def test_a_check_that_an_interrupted_separation_left_is_removed_if_the_board_exists(
    run: Command, settings: Settings
) -> None:
    """An earlier version creates boards without looking for it; their actions are dead letters."""
    assert (await run("board", "create", CUP)).code == 0
    query(
        settings,
        f"ALTER TABLE score_events_others ADD CONSTRAINT \"not_{CUP}\" CHECK (board <> '{CUP}')",
    )
    assert (await run("ledger", "separate", CUP)).code == 5
    assert query(settings, CHECKS) == []


async def test_a_deleted_board_without_actions_is_not_separated(
    run: Command, settings: Settings
) -> None:
    """No board of its name can be created."""
    for words in (("create", CUP), ("archive", CUP), ("delete", CUP, "--yes")):
        assert (await run("board", *words)).code == 0
    assert (await run("ledger", "separate", CUP)).code == 5
    assert query(settings, "SELECT count(*) FROM ledger_partitions") == [(0,)]


async def test_any_names_of_boards_can_be_separated_and_detached(
    run: Command, settings: Settings
) -> None:
    """The tables and indexes of one board must not have the names of another's."""
    names = ["cup", "cup_0", "cup_none", "cup_pkey", "cup_occurred_at_idx"]
    names += ["...", "-", "_", "x" * 32, "x" * 30 + "_0"]
    for name in names:
        assert (await run("ledger", "separate", "--", name)).code == 0, name
    for name in names:
        assert (await run("board", "create", "--", name)).code == 0, name
    async with flushing(settings):
        for name in names[:3]:
            await play(settings, ("alice", "win:1", 30), board=name)
    for command in ("detach", "attach"):
        for name in names:
            if command == "detach":
                assert (await run("board", "archive", "--", name)).code == 0, name
            options = ["--yes"] if command == "detach" else []
            done = await run("ledger", command, *options, "--", name)
            assert done.code == 0, (name, done)
            count = query(settings, LEDGER, name)
            is_played = name in names[:3] and command == "attach"
            assert count == ([(1, 30)] if is_played else [(0, 0)]), name


async def test_operators_at_once_separate_detach_and_attach_a_board_once(
    run: Command, settings: Settings
) -> None:
    async with owner(settings) as one, owner(settings) as other:
        done = await asyncio.gather(
            *(retention.separate(each, CUP, actor="test") for each in (one, other)),
            return_exceptions=True,
        )
    _require_one(done)
    async with flushing(settings):
        assert (await run("board", "create", CUP)).code == 0
        await play(settings, ("alice", "win:1", 30))
    for change in (retention.detach, retention.attach, retention.detach):
        async with owner(settings) as one, owner(settings) as other:
            done = await asyncio.gather(
                *(change(each, CUP, actor="test") for each in (one, other)), return_exceptions=True
            )
        _require_one(done)
    assert query(settings, SUMS, CUP) == query(settings, SCORES, CUP)


def _require_one(done: list[object]) -> None:
    """Check that one operator succeeded, and that the other was refused or found it done."""
    failed = [one for one in done if isinstance(one, BaseException) or one is False]
    assert len(failed) == 1, done
    assert failed[0] is False or isinstance(failed[0], OperatorMistake), done


async def test_a_score_without_any_action_prevents_the_detaching(
    run: Command, settings: Settings
) -> None:
    """Nothing is kept of its user, so its sum would not be compared."""
    async with flushing(settings):
        await play_a_cup(run, settings)
    query(settings, "DELETE FROM scores WHERE board = %s", CUP)
    spoil = (
        "ALTER TABLE score_events DISABLE TRIGGER ALL;"
        "DELETE FROM score_events WHERE board = 'cup-2026';"
        "DELETE FROM acts;"
        "ALTER TABLE score_events ENABLE TRIGGER ALL;"
        "INSERT INTO scores (board, user_id, score, actions, reached_at, last_seq)"
        " SELECT 'cup-2026', user_id, score, actions, reached_at, last_seq FROM scores"
        " WHERE board = 'main'"
    )
    query(settings, spoil)
    refused = await run("ledger", "detach", CUP, "--yes")
    assert (refused.code, "is not the sum" in refused.err) == (5, True), refused


async def test_an_export_beside_a_detaching_is_complete_or_refused(
    run: Command, settings: Settings, tmp_path: Path
) -> None:
    """Its snapshot is older than the detaching, whose rows it would not find."""
    async with flushing(settings):
        await play_a_cup(run, settings)
    words = ("export", "ledger", "--board", CUP, "--output", str(tmp_path / "cup.csv"))
    async with owner(settings) as connection:
        async with connection.transaction():
            await connection.execute(
                f'LOCK TABLE "score_events_b_{CUP}:board" IN ACCESS EXCLUSIVE MODE'.encode()
            )
            export = asyncio.create_task(run(*words))
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            await eventually_async(lambda: query(settings, waiting) == [(1,)])
            await retention.detach(connection, CUP, actor="test")
        done = await export
    assert (done.code, "detached" in done.err) == (5, True), done


async def test_a_board_remembers_its_recent_actions_after_its_ledger_was_attached(
    run: Command, settings: Settings
) -> None:
    """A reseed of the detached board finds no action that could be remembered."""
    async with flushing(settings):
        await play_a_cup(run, settings)
        assert (await run("ledger", "detach", CUP, "--yes")).code == 0
        assert (await run("reseed", "--board", CUP, "--force", "--yes")).code == 0
        assert (await run("ledger", "attach", CUP)).code == 0
        assert (await run("board", "unarchive", CUP)).code == 0
        [again] = await act(settings, Action("alice", "win:1", 30), board=CUP)
        assert isinstance(again, Receipt), again
        assert (again.replayed, again.score) == (True, 30)
        await require_sound(run, CUP)


async def test_a_ledger_is_attached_also_if_redis_cannot_be_reached(
    run: Command, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with flushing(settings):
        await play_a_cup(run, settings)
        assert (await run("ledger", "detach", CUP, "--yes")).code == 0
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    done = await run("ledger", "attach", CUP)
    assert (done.code, f"reseed --board {CUP} --force" in done.err) == (69, True), done
    assert query(settings, LEDGER, CUP) == [(4, 57)]


async def test_postgresql_refuses_to_open_a_detached_board(
    run: Command, settings: Settings
) -> None:
    """Commands of an earlier version do not look; every action would become a dead letter."""
    statement = "UPDATE boards SET state = 'open' WHERE board = %s"
    async with flushing(settings):
        await play_a_cup(run, settings)
        assert (await run("ledger", "detach", CUP, "--yes")).code == 0
        with pytest.raises(psycopg.errors.RaiseException, match="detached"):
            query(settings, statement, CUP)
        assert (await run("board", "set", CUP, "--private")).code == 0
        assert (await run("ledger", "attach", CUP)).code == 0
        query(settings, statement, CUP)
