"""Verify finds every kind of difference but no pending changes; repair corrects the differences."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import psycopg
import pytest
import redis

from scoreboard.ledger.pool import connect
from scoreboard.model import SLOT_COUNT, Action, Board, Layout, Partition, pack
from scoreboard.recovery import verify as verify_module
from scoreboard.recovery.repair import repair
from scoreboard.recovery.reseed import SESSION, choose_partitions, report_nothing, reseed
from scoreboard.recovery.verify import Drift, Verdict, verify
from scoreboard.runtime.settings import Settings
from scoreboard.store.client import make_client
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from tests.support.clients.commands import Run
from tests.support.data.ledger import Counted, write_history
from tests.support.eventually import eventually_async
from tests.support.servers.flushers import flushing, is_drained

pytestmark = pytest.mark.slow

NOW_S = time.time()
KEYS = PartitionKeys(Partition("main"))
HISTORY = [Counted(f"user-{n:02}", f"a{n}", 10 + n % 3, NOW_S + n / 1000) for n in range(60)]


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    client = make_client(settings, name="test")
    yield Store(client)
    await client.aclose()


async def opened(
    settings: Settings,
    store: Store,
    history: list[Counted] | None = None,
    board: Board | None = None,
) -> Board:
    board = board or Board()
    write_history(settings.database_url.reveal(), HISTORY if history is None else history, board)
    async with await connect(settings, name="test", **SESSION) as connection:
        numbers = await choose_partitions(store, board)
        await reseed(store, connection, board, numbers, actor="test")
    return board


async def verified(
    settings: Settings, board: Board | None = None, *, sample: int | None = None
) -> Verdict:
    client = make_client(settings, name="test")
    try:
        async with await connect(settings, name="test", **SESSION) as connection:
            return await verify(
                client, connection, board or Board(), sample=sample, report=report_nothing
            )
    finally:
        await client.aclose()


@asynccontextmanager
async def dispatching(settings: Settings) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(settings)
    task = asyncio.create_task(dispatcher.run())
    try:
        yield dispatcher
    finally:
        dispatcher.close()
        await asyncio.wait_for(task, 30)


def direct(settings: Settings) -> "redis.Redis[str]":
    return redis.Redis.from_url(settings.redis_url.reveal(), decode_responses=True)


def execute(settings: Settings, statement: str) -> None:
    with psycopg.connect(settings.database_url.reveal()) as connection:
        # Bypasses the triggers that make the ledger append-only.
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute(statement)


@pytest.mark.parametrize("sample", [None, 40])
async def test_equal_stores_pass_verification(
    sample: int | None, settings: Settings, store: Store
) -> None:
    await opened(settings, store)

    verdict = await verified(settings, sample=sample)

    assert verdict.is_sound, verdict
    assert verdict.suspects == 0
    assert verdict.users == 60 if sample is None else 20 <= verdict.users <= 60


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("sample", [None, 1000])
async def test_users_are_counted_once_each(
    sample: int | None, partitions: int, settings: Settings, store: Store
) -> None:
    board = Board(layout=Layout(partitions=partitions))
    await opened(settings, store, HISTORY[:45], board)
    with direct(settings) as client:
        for number in range(partitions):  # no user of PostgreSQL
            keys = PartitionKeys(Partition("main", number))
            client.zadd(keys.board, {f"ghost-{number}": pack(5, 0)})

    verdict = await verified(settings, board, sample=sample)

    assert verdict.users == 45 + partitions
    assert verdict.suspects == len(verdict.drifted) == partitions


async def test_findings_beyond_the_listed_ones_are_reported(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.recovery.verify.SHOWN_MAX", 10)
    await opened(settings, store)
    execute(settings, "UPDATE scores SET score = score + 1 WHERE last_seq <= 10")
    exact = await verified(settings)
    execute(settings, "UPDATE scores SET score = score + 1 WHERE last_seq = 11")
    more = await verified(settings)

    assert (len(exact.findings), exact.truncated) == (10, ())
    assert (len(more.findings), more.truncated) == (10, ("ledger sum",))


async def test_uncommitted_actions_are_not_drift_but_a_backlog_if_they_stay(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.recovery.verify.BACKLOG_S", 0.5)
    await opened(settings, store)
    async with dispatching(settings) as dispatcher:
        for n in range(5):
            await dispatcher.submit("main", Action(f"user-{n:02}", "late", 7))
        await dispatcher.submit("main", Action("new-user", "first", 7))

    verdict = await verified(settings)

    assert not verdict.drifted
    assert verdict.suspects == 6
    [finding] = verdict.findings
    assert (finding.check, finding.partition) == ("backlog", 0)
    assert finding.detail.startswith("6 actions wait for PostgreSQL, and none was committed")


async def test_a_backlog_with_commits_during_the_check_is_not_reported(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opened(settings, store)
    async with dispatching(settings) as dispatcher:
        await dispatcher.submit("main", Action("user-00", "late", 7))

    async def flush_later() -> None:
        await asyncio.sleep(0)  # the verification starts
        async with flushing(settings):
            await eventually_async(lambda: is_drained(settings))

    async with asyncio.TaskGroup() as group:
        verifying = group.create_task(verified(settings))
        group.create_task(flush_later())

    assert verifying.result().is_sound, verifying.result()


@pytest.mark.parametrize("sample", [None, 2000])
async def test_a_drifted_score_is_found_in_both_directions(
    sample: int | None, settings: Settings, store: Store
) -> None:
    await opened(settings, store)
    with direct(settings) as client:
        client.zadd(KEYS.board, {"user-07": pack(99, 0)})
        client.zadd(KEYS.board, {"ghost": pack(5, 0)})
        client.zrem(KEYS.board, "user-09")

    verdict = await verified(settings, sample=sample)

    assert set(verdict.drifted) == {
        Drift("user-07", 0, 99, 11),
        Drift("ghost", 0, 5, 0),
        Drift("user-09", 0, 0, 10),
    }
    assert not verdict.is_sound


async def test_a_late_duplicate_with_a_pending_correction_is_not_drift(
    settings: Settings, store: Store
) -> None:
    await opened(settings, store)
    with direct(settings) as client:
        client.zadd(KEYS.board, {"user-07": pack(11 + 4, 0)})
    execute(
        settings,
        "INSERT INTO rejected_events (board, part, user_id, action_id, epoch, seq, delta,"
        " score_after, reason, occurred_at) SELECT 'main', 0, id, 'old', 1, 61, 4, 15,"
        " 'late_duplicate', now() FROM users WHERE external_id = 'user-07'",
    )

    verdict = await verified(settings)

    assert verdict.known == (Drift("user-07", 0, 15, 11),)
    assert verdict.drifted == ()


async def test_dead_letters_are_not_drift(settings: Settings, store: Store) -> None:
    from flusher.dead_letters import dead_event

    await opened(settings, store)
    fields = {"q": 61, "u": "user-07", "a": "dead", "d": 4, "s": 15, "e": 2}
    dead = dead_event("9-1", {k.encode(): str(v).encode() for k, v in fields.items()}, "poison")
    with direct(settings) as client:
        client.zadd(KEYS.board, {"user-07": pack(15, 0)})
    with psycopg.connect(settings.database_url.reveal()) as connection:
        connection.execute(
            "INSERT INTO dead_events (board, part, stream_id, raw_hash, raw, reason, seq)"
            " VALUES ('main', 0, %s, %s, %s, %s, NULL)",
            (dead.stream_id, dead.raw_hash, dead.raw, dead.reason),
        )

    verdict = await verified(settings)

    assert verdict.is_sound, verdict
    assert verdict.suspects == 1


BROKEN = {
    "ledger sum": "UPDATE scores SET score = score + 1 WHERE last_seq = 5",
    "density": "UPDATE score_events SET seq = 1000 WHERE seq = 5",
    "chain": (
        "UPDATE score_events SET score_after = 99 WHERE seq = 1;"
        "UPDATE score_events SET user_id = (SELECT user_id FROM score_events WHERE seq = 1),"
        " action_id = 'moved' WHERE seq = 2"
    ),
    "rewind": "UPDATE flush_state SET seq = 1000",
    "epoch": "UPDATE flush_state SET epoch = 1000",
}


@pytest.mark.parametrize("check", BROKEN)
async def test_each_ledger_check_can_fail(check: str, settings: Settings, store: Store) -> None:
    await opened(settings, store)
    # The history was written with epoch 1; the checks use the newest epoch.
    execute(settings, "UPDATE score_events SET epoch = 2")
    assert (await verified(settings)).is_sound

    execute(settings, BROKEN[check])

    assert check in {one.check for one in (await verified(settings)).findings}


async def test_equal_scores_in_the_wrong_order_are_found(settings: Settings, store: Store) -> None:
    await opened(settings, store)
    with direct(settings) as client:
        first = client.zscore(KEYS.board, "user-00")
        third = client.zscore(KEYS.board, "user-06")
        client.zadd(KEYS.board, {"user-00": third, "user-06": first})

    findings = (await verified(settings)).findings

    assert {one.check for one in findings} == {"order"}


async def test_a_user_who_left_a_score_and_returned_to_it_is_in_order(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL has the same score, with the first arrival, until both actions are committed."""
    board = await opened(settings, store)
    for number, delta in enumerate((-1, 1)):
        acted = await store.act(
            Partition("main"),
            board.layout,
            user_id="user-00",
            action_id=f"act:{number:016x}",
            delta=delta,
            stream_cap=1000,
        )
        assert acted.outcome == "applied"
    monkeypatch.setattr(verify_module, "BACKLOG_S", 0.0)

    verdict = await verified(settings)

    assert [one.check for one in verdict.findings] == ["backlog"]
    assert verdict.drifted == ()


async def test_a_dedup_shard_without_expiry_is_found(settings: Settings, store: Store) -> None:
    await opened(settings, store)
    with direct(settings) as client:
        key = next(client.scan_iter(f"{KEYS.tag}:seen:*"))
        client.persist(key)

    (finding,) = (await verified(settings)).findings

    assert finding.check == "seen window"
    assert key in finding.detail


async def test_unsafe_settings_of_redis_are_found(settings: Settings, store: Store) -> None:
    await opened(settings, store)
    with direct(settings) as client:
        client.config_set("appendfsync", "everysec")
        try:
            findings = (await verified(settings, sample=10)).findings
        finally:
            client.config_set("appendfsync", "always")

    assert [one.check for one in findings] == ["redis settings"]


async def test_all_partitions_of_a_board_are_compared(settings: Settings, store: Store) -> None:
    board = await opened(settings, store, board=Board(layout=Layout(partitions=3)))
    assert (await verified(settings, board)).is_sound
    keys = PartitionKeys(Partition("main", 1))
    with direct(settings) as client:
        user = client.zrange(keys.board, 0, 0)[0]
        client.zincrby(keys.board, SLOT_COUNT, user)

    (drift,) = (await verified(settings, board)).drifted

    assert (drift.user_id, drift.partition) == (user, 1)
    assert drift.redis == drift.wanted + 1


async def test_a_verification_during_writes_finds_no_drift(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.recovery.verify.BACKLOG_S", 0.0)
    await opened(settings, store)
    is_done = asyncio.Event()

    async def play(dispatcher: Dispatcher, player: int) -> None:
        number = 0
        while not is_done.is_set():
            number += 1
            await dispatcher.submit("main", Action(f"user-{player:02}", f"x{number}", 1))
            if number == 150:  # no flusher runs: stay below the limit
                return

    async with dispatching(settings) as dispatcher, asyncio.TaskGroup() as group:
        for player in range(4):
            group.create_task(play(dispatcher, player))
        verdicts = [await verified(settings) for _ in range(3)]
        is_done.set()

    assert not any(verdict.drifted or verdict.known for verdict in verdicts), verdicts
    assert {one.check for verdict in verdicts for one in verdict.findings} == {"backlog"}


async def test_repair_corrects_drift_and_a_second_run_changes_nothing(
    settings: Settings, store: Store
) -> None:
    await opened(settings, store)
    before = await store.leaderboard("main", limit=100)
    with direct(settings) as client:
        client.zadd(KEYS.board, {"user-07": pack(99, 0), "ghost": pack(5, 0)})
        client.zrem(KEYS.board, "user-09")
    drifted = (await verified(settings)).drifted

    async with await connect(settings, name="test") as connection:
        first = await repair(store, connection, Board(), drifted, actor="me", report=report_nothing)
        second = await repair(
            store, connection, Board(), drifted, actor="me", report=report_nothing
        )

    assert {(one.user_id, one.change) for one in first} == {
        ("user-07", -88),
        ("ghost", -5),
        ("user-09", 10),
    }
    assert second == []
    async with flushing(settings):
        assert (await verified(settings)).is_sound
    after = await store.leaderboard("main", limit=100)
    assert after.rows == before.rows
    with psycopg.connect(settings.database_url.reveal()) as connection:
        rows = connection.execute("SELECT actor, detail FROM audit_log WHERE action = 'repair'")
        ((actor, detail),) = rows.fetchall()
    assert actor == "me"
    assert detail["changes"] == msgspec.to_builtins(first)


def make_drift(settings: Settings) -> None:
    with direct(settings) as client:
        client.zadd(KEYS.board, {"user-07": pack(99, 0)})


def board_of(settings: Settings) -> list[Any]:
    with direct(settings) as client:
        return client.zrange(KEYS.board, 0, -1, withscores=True)


async def flush(settings: Settings) -> None:
    async with flushing(settings):
        await eventually_async(lambda: is_drained(settings))


def test_the_commands_show_confirm_and_repair(
    command: Run, settings: Settings, database_url: str
) -> None:
    write_history(database_url, HISTORY)
    assert command("reseed").code == 0
    assert command("verify", "--full").code == 0
    sound = board_of(settings)
    make_drift(settings)

    found = command("verify", "--full")
    assert (found.code, found.out) == (1, "differs\tuser-07\t99\t11\n")
    dry = command("repair", "--dry-run", "--json")
    assert dry.code == 0
    assert json.loads(dry.out)["changes"][0]["user_id"] == "user-07"
    assert board_of(settings) != sound

    done = command("repair", "--yes", "--json")

    assert done.code == 0
    assert json.loads(done.out)["changes"] == [
        {"user_id": "user-07", "partition": 0, "change": -88, "score": 11, "seq": 61}
    ]
    asyncio.run(flush(settings))
    assert command("verify", "--full", "--json").code == 0
    assert board_of(settings) == sound
    assert "nothing to repair" in command("repair", "--yes").err


def test_an_older_redis_is_reseeded(command: Run, settings: Settings, database_url: str) -> None:
    write_history(database_url, HISTORY)
    assert command("reseed").code == 0
    with direct(settings) as client:
        client.hset(KEYS.meta, "seq", 7)
        client.zadd(KEYS.board, {"user-07": pack(1, 0)})

    assert command("verify").code == 1
    done = command("repair", "--yes", "--json")

    assert done.code == 0
    assert json.loads(done.out)["reseeded"] == [0]
    assert command("verify", "--full").code == 0


def test_ledger_inconsistencies_are_reported_and_not_repaired(
    command: Run, settings: Settings, database_url: str
) -> None:
    write_history(database_url, HISTORY)
    assert command("reseed").code == 0
    execute(settings, "UPDATE scores SET actions = 5 WHERE last_seq = 5")

    done = command("repair", "--yes", "--json")

    assert done.code == 1
    assert [one["check"] for one in json.loads(done.out)["left"]] == ["ledger sum"]
