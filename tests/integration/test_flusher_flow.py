"""From the stream to PostgreSQL: sums, redelivery, SIGKILL, several flushers, restarts."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psycopg
import pytest
import redis

from flusher.session import LEASE_LOCK
from scoreboard.model import Action, Board, Layout, Partition, Receipt, partition_of
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.keys import COMMITS_PREFIX, GROUP
from tests.support.eventually import eventually, eventually_async
from tests.support.servers.flushers import (
    KEYS,
    FlusherProcess,
    act,
    check_invariants,
    flushing,
    is_drained,
    make_board,
    positions,
    query,
    store_of,
)

pytestmark = pytest.mark.slow

USERS = 20


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url),
        database_url=Secret(database_url),
        flusher_metrics_port=0,
        flush_linger_ms=0,
        flush_linger_unawaited_ms=0,
    )


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis[str]"]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def make_actions(count: int, *, start: int = 0) -> list[Action]:
    return [
        Action(f"user{number % USERS}", f"win:{number}", 1 + number % 7)
        for number in range(start, start + count)
    ]


def acknowledged(actions: list[Action]) -> list[tuple[str, str, int]]:
    return [(one.user_id, one.action_id, one.delta) for one in actions]


async def drained(settings: Settings, **how: int) -> None:
    await eventually_async(lambda: is_drained(settings, **how))


async def test_accepted_actions_are_in_postgres_once_with_correct_sums(
    settings: Settings,
) -> None:
    await make_board(settings)
    actions = make_actions(300)

    async with flushing(settings):
        receipts = await act(settings, *actions, *actions[:50])
        await drained(settings)

    assert all(isinstance(receipt, Receipt) for receipt in receipts)
    check_invariants(settings, acknowledged(actions))


async def test_batches_collect_entries_while_no_api_waits_for_commits(settings: Settings) -> None:
    settings = msgspec.structs.replace(settings, flush_linger_unawaited_ms=2000)
    await make_board(settings)

    async with flushing(settings):
        for action in make_actions(10):
            await act(settings, action)
        await drained(settings)

    assert len(transactions(settings)) < 10


@pytest.mark.one_server
async def test_a_commit_that_an_api_waits_for_is_not_delayed(
    settings: Settings, client: "redis.Redis[str]"
) -> None:
    settings = msgspec.structs.replace(settings, flush_linger_unawaited_ms=120_000)
    await make_board(settings)

    with client.pubsub() as waiting:
        waiting.subscribe(COMMITS_PREFIX + "main")
        waiting.get_message(timeout=1)
        async with flushing(settings):
            for action in make_actions(10):
                await act(settings, action)
                await drained(settings)

    assert len(transactions(settings)) == 10


def transactions(settings: Settings) -> list[object]:
    """Return the transactions that have written the ledger."""
    return query(settings, "SELECT DISTINCT xmin::text FROM score_events")


async def test_the_ledger_row_has_all_fields(settings: Settings) -> None:
    await make_board(settings)
    user = "018f6d0e-5f2c-7c3a-9f57-3a1f6f0f9f11"

    async with flushing(settings):
        await act(settings, Action(user, "win:1", 5, request_id="req-1"))
        await act(settings, Action(user, "plain", 7))
        await drained(settings)

    rows = query(
        settings,
        "SELECT user_id::TEXT, action_id, part, epoch, seq, delta, score_after, kind, request_id,"
        " now() - occurred_at < interval '1 minute' FROM score_events ORDER BY seq",
    )
    assert rows == [
        (user, "win:1", 0, 1, 1, 5, 5, "win", "req-1", True),
        (user, "plain", 0, 1, 2, 7, 12, "", None, True),
    ]
    (score,) = query(settings, "SELECT score, actions, last_seq FROM scores")
    assert score == (12, 2, 2)


async def test_every_partition_has_its_own_flusher(settings: Settings) -> None:
    await make_board(settings, Board(layout=Layout(partitions=3)))
    actions = make_actions(120)

    async with flushing(settings):
        await act(settings, *actions)
        await drained(settings, partitions=3)

    check_invariants(settings, acknowledged(actions), partitions=3)
    assert len({partition_of(one.user_id, 3) for one in actions}) == 3


async def test_a_redelivered_batch_inserts_nothing(
    settings: Settings, client: "redis.Redis[str]"
) -> None:
    await make_board(settings)
    actions = make_actions(100)
    await act(settings, *actions)
    entries = client.xrange(KEYS.events)
    async with flushing(settings):
        await drained(settings)

    # The group is reset to the start and the entries are present again, as after a failover.
    client.xgroup_setid(KEYS.events, GROUP, "0")
    client.delete(KEYS.events)
    for stream_id, fields in entries:
        client.xadd(KEYS.events, fields, id=stream_id)
    async with flushing(settings):
        await drained(settings)

    check_invariants(settings, acknowledged(actions))
    assert positions(settings) == {0: 100}


async def test_a_flusher_waits_for_its_board_and_for_redis_to_be_loaded(
    settings: Settings, client: "redis.Redis[str]"
) -> None:
    actions = make_actions(10)

    async with flushing(settings) as flusher:
        await asyncio.sleep(0)
        await make_board(settings)
        await act(settings, *actions)
        await drained(settings)
        client.flushall()
        await eventually_async(
            lambda: flusher.partitions[0].status.condition.value == "uninitialised"
        )
        assert client.keys() == []

    check = query(settings, "SELECT count(*) FROM score_events")
    assert check == [(10,)]


async def test_a_stop_commits_and_acknowledges_the_batch(settings: Settings) -> None:
    await make_board(settings)
    actions = make_actions(500)
    await act(settings, *actions)

    async with flushing(settings):
        await eventually_async(lambda: positions(settings).get(0, 0) > 0)

    async with store_of(settings) as store:
        backlog = await store.backlog(Partition("main"))
    assert backlog.pending == 0
    assert positions(settings) == {0: 500 - (backlog.entries)}


def waits_for_a_lock(settings: Settings) -> bool:
    """Return whether a flusher's transaction waits for a table lock."""
    return bool(
        query(
            settings,
            "SELECT 1 FROM pg_locks WHERE locktype = 'relation' AND NOT granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        )
    )


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_sigkill_around_a_commit_neither_loses_nor_repeats_actions(
    settings: Settings, tmp_path: Path, moment: str, client: "redis.Redis[str]"
) -> None:
    await make_board(settings)
    actions = make_actions(200)
    await act(settings, *actions)
    with FlusherProcess(settings, tmp_path / "log") as process:
        if moment == "before":
            # Its transaction waits for this lock: it has read the entries and cannot commit.
            blocker = "LOCK TABLE score_events IN ACCESS EXCLUSIVE MODE"
            with psycopg.connect(settings.database_url.reveal()) as connection:
                connection.execute(blocker.encode())
                eventually(lambda: waits_for_a_lock(settings))
                assert client.xpending(KEYS.events, GROUP)["pending"] == 200
                process.kill()
        else:
            process.wait_for("batch_flushed")
            process.kill()
        process.start()
        await drained(settings)

    check_invariants(settings, acknowledged(actions))


async def test_concurrent_flushers_count_each_action_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease only avoids work; without it the ledger and the row lock decide."""
    from flusher.writer import Writer

    async def acquire_immediately(self: Writer, stop: object, may_wait: object) -> bool:
        return True

    monkeypatch.setattr(Writer, "acquire_lease", acquire_immediately)
    monkeypatch.setattr("flusher.partition.CHECK_EVERY_S", 0.05)
    monkeypatch.setattr("flusher.partition.backoff_s", lambda *_: 0.02)
    await make_board(settings)
    few = Settings(
        redis_url=settings.redis_url,
        database_url=settings.database_url,
        flusher_metrics_port=0,
        flush_linger_ms=0,
        flush_linger_unawaited_ms=0,
        flush_batch=20,
    )
    actions = make_actions(600)

    async with flushing(few), flushing(few), flushing(few):
        for start in range(0, 600, 100):
            await act(settings, *actions[start : start + 100])
        # The flushers disturb each other, so the total time has no limit, but each step has.
        while not is_drained(settings):
            committed = positions(settings)
            await eventually_async(
                lambda committed=committed: (
                    is_drained(settings) or positions(settings) != committed
                ),
            )

    check_invariants(settings, acknowledged(actions))
    async with store_of(settings) as store:
        assert (await store.state(Partition("main"))).is_open


async def test_a_standby_takes_over_when_the_leader_is_killed(
    settings: Settings, tmp_path: Path
) -> None:
    await make_board(settings)
    with FlusherProcess(settings, tmp_path / "one") as leader:
        leader.wait_for("lease_taken")
        with FlusherProcess(settings, tmp_path / "two") as standby:
            standby.wait_for("partition_condition_changed")
            leader.kill()
            standby.wait_for("lease_taken", within_s=10)
            await act(settings, *make_actions(10))
            await drained(settings)
            assert standby.stop() == 0

    check_invariants(settings, acknowledged(make_actions(10)))


async def test_flushers_share_the_partitions_under_load(settings: Settings, tmp_path: Path) -> None:
    """Another flusher gets its share; nothing is lost, and its death gives the share back."""
    await make_board(settings, Board(layout=Layout(partitions=4)))
    actions = make_actions(2000)

    with FlusherProcess(settings, tmp_path / "one", SCOREBOARD_FLUSH_BATCH="5") as one:
        one.wait_for("lease_taken", count=4)
        with FlusherProcess(settings, tmp_path / "two", SCOREBOARD_FLUSH_BATCH="5") as two:
            for start in range(0, 2000, 100):
                await act(settings, *actions[start : start + 100])
            await asyncio.to_thread(one.wait_for, "lease_yielded", 2)
            await asyncio.to_thread(two.wait_for, "lease_taken", 2)
            await drained(settings, partitions=4)
            assert leased(settings) == 4
            two.kill()
        # Its two leases return, and without another flusher none is yielded again.
        await asyncio.to_thread(one.wait_for, "lease_taken", 6)
        more = make_actions(100, start=2000)
        await act(settings, *more)
        await drained(settings, partitions=4)
        assert one.stop() == 0

    check_invariants(settings, acknowledged(actions + more), partitions=4)
    assert len(one.lines("lease_yielded")) == 2
    assert not two.lines("lease_yielded")


def leased(settings: Settings) -> int:
    """Return how many partitions have a leader."""
    ((count,),) = query(
        settings,
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s::bigint::oid"
        " AND granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        LEASE_LOCK,
    )
    return count


async def test_a_missing_group_is_created_at_the_start_of_the_stream(
    settings: Settings, client: "redis.Redis[str]"
) -> None:
    await make_board(settings)
    actions = make_actions(90)

    async with flushing(settings):
        for start in range(0, 90, 30):
            await act(settings, *actions[start : start + 30])
            client.xgroup_destroy(KEYS.events, GROUP)
            client.script_flush()
        await drained(settings)

    check_invariants(settings, acknowledged(actions))
