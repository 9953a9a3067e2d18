"""Faults around the flusher: no action is lost, counted twice or wrongly made a dead letter."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis

from cli.embedded.servers import EmbeddedPostgres, EmbeddedValkey
from flusher.service import Flusher
from flusher.session import Session
from flusher.status import Condition
from scoreboard.errors import Busy, Fenced
from scoreboard.ledger.dead_letters import fields_of
from scoreboard.ledger.migrations import migrate
from scoreboard.model import SCORE_MAX, Action, Partition, Receipt
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.keys import GROUP
from scoreboard.store.partitions import GAP_FENCE, REWIND_FENCE
from tests.support.data.boards import fence
from tests.support.eventually import eventually, eventually_async
from tests.support.fakes.proxy import TO_SERVER, MakeProxy
from tests.support.servers.flushers import (
    KEYS,
    MAIN,
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
from tests.support.servers.stores import OwnPostgres, OwnValkey

pytestmark = pytest.mark.slow

Client = redis.Redis


def settings_for(redis_url: str, database_url: str, **more: object) -> Settings:
    return Settings(
        redis_url=Secret(redis_url),
        database_url=Secret(database_url),
        flusher_metrics_port=0,
        flush_linger_ms=0,
        flush_linger_unawaited_ms=0,
        **more,
    )


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return settings_for(redis_url, database_url)


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def make_actions(count: int, *, start: int = 0) -> list[Action]:
    return [
        Action(f"user{number % 20}", f"win:{number}", 1 + number % 7)
        for number in range(start, start + count)
    ]


def acknowledged(actions: list[Action]) -> list[tuple[str, str, int]]:
    return [(one.user_id, one.action_id, one.delta) for one in actions]


async def drained(settings: Settings, within_s: float = 15) -> None:
    await eventually_async(lambda: is_drained(settings), within_s)


async def wait_for_condition(flusher: Flusher, condition: Condition, within_s: float = 10) -> None:
    await eventually_async(
        lambda: bool(flusher.partitions) and flusher.partitions[0].status.condition is condition,
        within_s,
    )


def add_poison(client: Client, count: int, *, first: int = 1) -> None:
    """Add decodable events to the stream whose sum exceeds an INT."""
    for number in range(first, first + count):
        seq = client.hincrby(KEYS.meta, "seq", 1)
        for action in ("huge", "more"):
            fields = {"u": f"rich{number}", "a": f"{action}:{number}", "d": SCORE_MAX, "e": 1}
            client.xadd(KEYS.events, {"q": seq, "s": SCORE_MAX, **fields})
            seq = client.hincrby(KEYS.meta, "seq", 1) if action == "huge" else seq


# Entries that cannot be read or stored


async def test_an_unstorable_row_is_a_dead_letter_and_the_others_are_stored(
    settings: Settings, client: Client
) -> None:
    await make_board(settings)
    before, after = make_actions(40), make_actions(40, start=40)
    await act(settings, *before)
    add_poison(client, 3)
    await act(settings, *after)

    async with flushing(settings):
        await drained(settings)

    ledger = query(settings, "SELECT count(*) FROM score_events WHERE kind = 'win'")
    assert ledger == [(80,)]
    dead = query(settings, "SELECT raw, reason, seq FROM dead_events ORDER BY seq")
    assert [fields_of(raw)[b"a"] for raw, _, _ in dead] == [b"more:1", b"more:2", b"more:3"]
    assert all("22003" in reason for _, reason, _ in dead)
    assert [seq for _, _, seq in dead] == [42, 44, 46]
    assert positions(settings) == {0: 86}


async def test_an_invalid_record_is_stored_as_a_dead_letter_in_the_same_transaction(
    settings: Settings, client: Client
) -> None:
    await make_board(settings)
    actions = make_actions(30)
    await act(settings, *actions[:15])
    client.xadd(KEYS.events, {"q": "x", "u": "\xff\x00"})
    client.xadd(KEYS.events, {"hello": "world"})
    await act(settings, *actions[15:])

    async with flushing(settings):
        await drained(settings)

    check_invariants(settings, acknowledged(actions))
    assert len(query(settings, "SELECT 1 FROM dead_events")) == 2


@pytest.mark.parametrize("is_readable", [True, False], ids=["seq", "no seq"])
@pytest.mark.parametrize("restarts", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("before", [0, 2])
async def test_dead_letters_at_the_end_of_a_batch_are_no_gap(
    settings: Settings, client: Client, before: int, *, restarts: bool, is_readable: bool
) -> None:
    """The next actions come in another batch, which finds the seqs of the dead letters missing."""
    await make_board(settings)
    actions = make_actions(before + 6)
    await act(settings, *actions[:before])

    def add_unknown() -> None:
        seq = client.hincrby(KEYS.meta, "seq", 1)
        client.xadd(KEYS.events, {"q": seq if is_readable else "x", "k": "z"})

    def stored(count: int) -> bool:
        return query(settings, "SELECT count(*) FROM dead_events") == [(count,)]

    if restarts:
        for number in range(1, 4):
            add_unknown()
            async with flushing(settings):
                await eventually_async(lambda count=number: stored(count))
        await act(settings, *actions[before:])
        async with flushing(settings):
            await drained(settings)
    else:
        async with flushing(settings):
            for number in range(1, 4):
                add_unknown()
                await eventually_async(lambda count=number: stored(count))
            for action in actions[before:]:
                await act(settings, action)
                await drained(settings)
    assert client.hget(KEYS.meta, "state") == "open"
    assert client.hget(KEYS.meta, "committed") == f"1:{before + 9}"
    assert query(settings, "SELECT count(*) FROM score_events") == [(len(actions),)]
    if is_readable:  # otherwise nothing explains the seqs that the ledger lacks
        check_invariants(settings, acknowledged(actions))
    assert client.xlen(KEYS.events) == 0


async def test_lost_entries_are_found_beside_a_dead_letter(
    settings: Settings, client: Client
) -> None:
    """A dead letter with a seq takes the place of no other entry."""
    await make_board(settings)
    seq = client.hincrby(KEYS.meta, "seq", 1)
    client.xadd(KEYS.events, {"q": seq, "k": "z"})
    async with flushing(settings):
        await eventually_async(lambda: bool(query(settings, "SELECT 1 FROM dead_events")))
    await act(settings, *make_actions(2))
    (victim, _), _ = client.xrange(KEYS.events)
    client.xdel(KEYS.events, victim)

    async with flushing(settings):
        await drained(settings)

    assert client.hget(KEYS.meta, "fence") == GAP_FENCE


async def test_too_many_unstorable_rows_stop_the_flusher_without_dead_letters(
    settings: Settings, client: Client
) -> None:
    await make_board(settings)
    add_poison(client, 20)

    async with flushing(settings) as flusher:
        await wait_for_condition(flusher, Condition.BROKEN)
        assert "poison-flood" in flusher.partitions[0].status.reason

    assert query(settings, "SELECT 1 FROM dead_events") == []
    assert client.xlen(KEYS.events) == 40


async def test_a_missing_ledger_partition_stops_the_flusher_without_dead_letters(
    settings: Settings,
) -> None:
    """PostgreSQL reports a check violation, as it does for an invalid row."""
    await make_board(settings)
    actions = make_actions(12)  # fewer than the limit of unstorable rows
    query(settings, "ALTER TABLE score_events_others DETACH PARTITION score_events_2")

    async with flushing(settings) as flusher:
        await act(settings, *actions)
        await wait_for_condition(flusher, Condition.BROKEN)
        assert query(settings, "SELECT 1 FROM dead_events") == []
        query(
            settings,
            "ALTER TABLE score_events_others ATTACH PARTITION score_events_2"
            " FOR VALUES WITH (MODULUS 4, REMAINDER 2)",
        )
        await drained(settings)

    check_invariants(settings, acknowledged(actions))


# PostgreSQL stops, restarts and has lock contention


async def test_terminated_sessions_and_lock_time_outs_are_retried(settings: Settings) -> None:
    await make_board(settings)
    actions = make_actions(120)

    async with flushing(settings):
        for start in range(0, 120, 40):
            await act(settings, *actions[start : start + 40])
            query(
                settings,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'scoreboard-flusher' AND datname = current_database()",
            )
        await drained(settings)

    check_invariants(settings, acknowledged(actions))


async def test_a_commit_whose_answer_is_lost_counts_once(
    settings: Settings, make_proxy: MakeProxy, postgres_server: EmbeddedPostgres
) -> None:
    proxy = await make_proxy(postgres_server.port)
    through = settings_for(
        settings.redis_url.reveal(), proxy.through(settings.database_url.reveal())
    )
    await make_board(settings)
    actions = make_actions(50)

    async with flushing(through) as flusher:
        await wait_for_condition(flusher, Condition.FLUSHING)
        cut = proxy.cut_when(TO_SERVER, b"COMMIT")
        await act(settings, *actions)
        await asyncio.wait_for(cut.wait(), 30)
        await drained(settings)

    check_invariants(settings, acknowledged(actions))


@pytest.mark.one_server
@pytest.mark.parametrize("how", ["refuse", "freeze"])
async def test_a_flusher_that_redis_does_not_answer_leaves_the_lease_to_another(
    settings: Settings, make_proxy: MakeProxy, how: str
) -> None:
    url = settings.redis_url.reveal()
    proxy = await make_proxy(urlsplit(url).port or 0)
    through = settings_for(proxy.through(url), settings.database_url.reveal(), redis_timeout_s=1.0)
    await make_board(settings)
    actions = make_actions(60)

    async with flushing(through) as leader:
        await wait_for_condition(leader, Condition.FLUSHING)
        async with flushing(settings) as other:
            await wait_for_condition(other, Condition.STANDBY)
            getattr(proxy, how)()
            await act(settings, *actions[:30])
            await wait_for_condition(other, Condition.FLUSHING, 30)
            await wait_for_condition(leader, Condition.REDIS_AWAY)
            await act(settings, *actions[30:])
            await drained(settings)
            await proxy.restore()
            await wait_for_condition(leader, Condition.STANDBY, 30)

    check_invariants(settings, acknowledged(actions))


async def test_a_flusher_whose_server_is_no_longer_the_primary_leaves_the_lease_to_another(
    database_url: str, own_valkey: OwnValkey
) -> None:
    """A replica answers TIME, so it seems to be up, and refuses the commands of a flusher."""
    old = own_valkey()
    new = own_valkey(
        settings={"replicaof": f"127.0.0.1 {old.port}", "masterauth": old.password or '""'}
    )
    with redis.Redis.from_url(new.url) as admin:
        eventually(lambda: admin.info("replication")["master_link_status"] == "up")
    before = settings_for(old.url, database_url)
    after = settings_for(new.url, database_url, unsafe_redis=True)  # it starts as a replica
    await make_board(before)
    actions = make_actions(40)

    async with flushing(before) as leader:
        await wait_for_condition(leader, Condition.FLUSHING)
        await act(before, *actions[:20])
        await drained(before)
        async with flushing(after) as other:
            with redis.Redis.from_url(new.url) as admin, redis.Redis.from_url(old.url) as former:
                eventually(lambda: is_drained(after))
                admin.replicaof("NO", "ONE")
                former.config_set("masterauth", new.password)
                former.replicaof("127.0.0.1", new.port)
            await act(after, *actions[20:])
            await wait_for_condition(other, Condition.FLUSHING, 30)
            await drained(after)

    check_invariants(after, acknowledged(actions))


async def test_a_standby_that_must_leave_leaves_even_if_redis_answers_again(
    settings: Settings,
) -> None:
    """Otherwise it would cancel and repeat its request until it got the lease."""
    await make_board(settings)
    answers = iter([True, False])  # the request, then the first check of whether to leave it
    leader = await Session.open(settings, MAIN)
    standby = await Session.open(settings, MAIN)
    try:
        assert await leader.acquire_lease(StopEvent(1), lambda: True)
        waiting = standby.acquire_lease(StopEvent(1), lambda: next(answers, True))
        assert not await asyncio.wait_for(waiting, 10)
    finally:
        await standby.aclose()
        await leader.aclose()


async def test_without_postgres_updates_succeed_up_to_the_cap_and_are_then_busy(
    redis_url: str, own_postgres: OwnPostgres
) -> None:
    postgres = own_postgres()
    migrate(postgres.url)
    settings = settings_for(redis_url, postgres.url, stream_cap=100)
    await make_board(settings)
    actions = make_actions(150)

    async with flushing(settings) as flusher:
        await wait_for_condition(flusher, Condition.FLUSHING)
        postgres.kill()
        early = await act(settings, *actions[:100])
        await wait_for_condition(flusher, Condition.DATABASE_AWAY)
        late = await act(settings, *actions[100:])
        replays = await act(settings, *actions[:10])
        await asyncio.to_thread(postgres.start)
        await drained(settings)
        again = await act(settings, *actions[100:])
        await drained(settings)

    assert all(isinstance(receipt, Receipt) for receipt in early)
    assert [type(receipt) for receipt in late] == [Busy] * 50
    assert [receipt.replayed for receipt in replays if isinstance(receipt, Receipt)] == [True] * 10
    assert all(isinstance(receipt, Receipt) for receipt in again)
    check_invariants(settings, acknowledged(actions))


async def test_flushing_continues_after_a_redis_restart(
    database_url: str, own_valkey: OwnValkey
) -> None:
    valkey = own_valkey()
    settings = settings_for(valkey.url, database_url)
    await make_board(settings)
    actions = make_actions(60)

    async with flushing(settings):
        for start in range(0, 60, 20):
            await act(settings, *actions[start : start + 20])
            valkey.kill()
            await asyncio.to_thread(valkey.start)
        await drained(settings)

    check_invariants(settings, acknowledged(actions))


@pytest.mark.one_server
async def test_unresponsive_servers_time_out_and_are_used_again(
    settings: Settings,
    make_proxy: MakeProxy,
    postgres_server: EmbeddedPostgres,
    valkey_server: EmbeddedValkey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flusher.session.QUICK_LIMIT_S", 0.5)
    monkeypatch.setattr("flusher.writer.TRANSACTION_LIMIT_S", 0.5)
    # A correction may be in progress when the database freezes.
    monkeypatch.setattr("flusher.session.TRANSACTION_LIMIT_S", 2.0)
    monkeypatch.setattr("psycopg.AsyncConnection.cancel_safe", raise_cancellation_timeout)
    database = await make_proxy(postgres_server.port)
    valkey = await make_proxy(valkey_server.port)
    through = settings_for(
        valkey.through(settings.redis_url.reveal()),
        database.through(settings.database_url.reveal()),
        redis_timeout_s=0.5,
    )
    await make_board(settings)
    actions = make_actions(60)

    async with flushing(through) as flusher:
        await wait_for_condition(flusher, Condition.FLUSHING)
        valkey.freeze()
        await act(settings, *actions[:30])
        await wait_for_condition(flusher, Condition.REDIS_AWAY)
        await valkey.restore()
        await drained(settings)
        database.freeze()
        await act(settings, *actions[30:])
        await wait_for_condition(flusher, Condition.DATABASE_AWAY)
        await database.restore()
        await drained(settings)

    check_invariants(settings, acknowledged(actions))


async def raise_cancellation_timeout(*_: object, **__: object) -> None:
    """Raise at once; the driver waits ten seconds for the cancellation on a frozen server."""
    raise psycopg.errors.CancellationTimeout


async def test_a_resumed_former_leader_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    await make_board(settings)
    actions = make_actions(60)
    with FlusherProcess(settings, tmp_path / "one") as former:
        former.wait_for("lease_taken")
        await act(settings, *actions[:20])
        await drained(settings)
        former.pause()
        with FlusherProcess(settings, tmp_path / "two") as successor:
            await eventually_async(lambda: bool(successor.lines("partition_condition_changed")))
            await act(settings, *actions[20:40])
            # As idle_session_timeout does.
            query(
                settings,
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
                " AND granted AND classid = %s"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
                0x5B0F,
            )
            successor.wait_for("lease_taken")
            await drained(settings)
            former.resume()
            former.wait_for("partition_degraded")
            await act(settings, *actions[40:])
            await drained(settings)

    check_invariants(settings, acknowledged(actions))


# Late duplicates


def forget(client: Client) -> None:
    """Delete the dedup window, as if it had expired."""
    for key in client.keys("sb:*:seen:*"):
        client.delete(key)


async def corrected(settings: Settings, count: int) -> None:
    def all_closed() -> bool:
        rows = query(
            settings,
            "SELECT corrected_at IS NOT NULL FROM rejected_events WHERE reason = 'late_duplicate'",
        )
        return len(rows) == count and all(closed for (closed,) in rows)

    await eventually_async(all_closed)


async def test_a_late_duplicate_is_refused_by_the_ledger_and_redis_is_corrected_once(
    settings: Settings, client: Client
) -> None:
    await make_board(settings)
    actions = [
        Action("alice", "win:1", 30),
        Action("bob", "win:1", 20),
        Action("carol", "win:1", 20),
    ]
    listener = client.pubsub()
    listener.subscribe(KEYS.changes)
    async with flushing(settings):
        await act(settings, actions[0])
        await act(settings, actions[1])
        await act(settings, actions[2])
        await drained(settings)
        forget(client)
        await act(settings, actions[1], Action("alice", "win:2", 5))
        await corrected(settings, 1)
        await drained(settings)

    check_invariants(settings, [*acknowledged(actions), ("alice", "win:2", 5)])
    rejected = query(settings, "SELECT reason, delta FROM rejected_events ORDER BY seq")
    assert rejected == [("late_duplicate", 20), ("correction", -20)]
    seqs = [message["data"] for message in iter(lambda: listener.get_message(timeout=0.2), None)]
    assert seqs[-1] == "1:6", "viewers are acknowledged"
    listener.close()


async def test_many_late_duplicates_at_once_with_traffic_are_all_corrected(
    settings: Settings, client: Client
) -> None:
    await make_board(settings)
    actions = make_actions(200)
    async with flushing(settings):
        await act(settings, *actions)
        await drained(settings)
        forget(client)
        fresh = make_actions(100, start=200)
        await act(settings, *actions[:90], *fresh)
        await corrected(settings, 90)
        await drained(settings)

    check_invariants(settings, acknowledged(actions + fresh))


async def test_corrections_interrupted_by_a_crash_are_made_at_the_next_start(
    settings: Settings, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_board(settings)
    actions = make_actions(20)
    with monkeypatch.context() as patch:

        async def correct_nothing(*_: object) -> bool:
            return True

        patch.setattr("flusher.partition.correct_late_duplicates", correct_nothing)
        async with flushing(settings):
            await act(settings, *actions)
            await drained(settings)
            forget(client)
            await act(settings, *actions[:5])
            await drained(settings)
    assert len(query(settings, "SELECT 1 FROM rejected_events WHERE corrected_at IS NULL")) == 5

    async with flushing(settings):
        await corrected(settings, 5)
        await drained(settings)

    check_invariants(settings, acknowledged(actions))


# Redis has lost or does not deliver entries


async def test_undelivered_entries_are_read_before_anything_is_trimmed(
    settings: Settings, client: Client
) -> None:
    await make_board(settings)
    actions = make_actions(90)
    await act(settings, *actions[:30])
    client.xgroup_setid(KEYS.events, GROUP, "$")
    await act(settings, *actions[30:60])

    async with flushing(settings):
        await drained(settings)
        await act(settings, *actions[60:])
        await drained(settings)

    check_invariants(settings, acknowledged(actions))
    assert client.hget(KEYS.meta, "state") == "open"


async def test_an_entry_hidden_by_an_invalid_record_is_not_trimmed(
    settings: Settings, client: Client
) -> None:
    """A record without a seq may fill a missing one; here the missing one was not delivered."""
    await make_board(settings)
    actions = make_actions(3)
    await act(settings, actions[0])
    client.xreadgroup(GROUP, "leader", {KEYS.events: ">"})
    client.xgroup_delconsumer(KEYS.events, GROUP, "leader")
    client.xadd(KEYS.events, {"invalid": "1"})
    await act(settings, actions[1])

    async with flushing(settings), store_of(settings) as store:
        await eventually_async(lambda: epoch_is(store, 2))
        await act(settings, actions[2])
        await drained(settings)

    ledger = "SELECT action_id FROM score_events ORDER BY action_id"
    assert query(settings, ledger) == [("win:0",), ("win:1",), ("win:2",)]
    check_scores(settings)


async def test_missing_entries_fence_the_partition_and_the_others_are_stored(
    settings: Settings, client: Client
) -> None:
    await make_board(settings)
    actions = make_actions(30)
    await act(settings, *actions)
    (victim, _), *_ = client.xrange(KEYS.events)[10:]
    client.xdel(KEYS.events, victim)

    async with flushing(settings):
        await drained(settings)
        (refusal,) = await act(settings, Action("alice", "late", 1))

    assert isinstance(refusal, Fenced)
    assert client.hget(KEYS.meta, "fence") == GAP_FENCE
    assert query(settings, "SELECT count(*) FROM score_events") == [(29,)]
    assert positions(settings) == {0: 30}


async def rewound(valkey: object, settings: Settings, actions: list[Action], copy: Path) -> None:
    """Flush 60 of 90 actions, and restore Redis to its state after 30 of them."""
    await make_board(settings)
    async with flushing(settings):
        await act(settings, *actions[:30])
        await drained(settings)
        valkey.stop()
        shutil.copytree(valkey.folder.path / "appendonlydir", copy)
        await asyncio.to_thread(valkey.start)
        await act(settings, *actions[30:60])
        await drained(settings)
    valkey.kill()
    shutil.rmtree(valkey.folder.path / "appendonlydir")
    shutil.copytree(copy, valkey.folder.path / "appendonlydir")
    await asyncio.to_thread(valkey.start)


@pytest.mark.parametrize("fresh", [0, 5, 30])
async def test_an_older_redis_is_fenced_drained_and_reseeded(
    database_url: str, own_valkey: OwnValkey, tmp_path: Path, fresh: int
) -> None:
    """After 30 new actions its seq equals the committed one; only the ledger shows the loss."""
    valkey = own_valkey()
    settings = settings_for(valkey.url, database_url)
    actions = make_actions(90)
    await rewound(valkey, settings, actions, tmp_path / "older")
    receipts = await act(settings, *actions[60 : 60 + fresh])

    async with flushing(settings), store_of(settings) as store:
        await eventually_async(lambda: epoch_is(store, 2))
        replays = await act(settings, *actions[:60])
        await act(settings, *actions[60:])
        await drained(settings)

    assert all(isinstance(receipt, Receipt) for receipt in receipts)
    assert all(isinstance(one, Receipt) and one.replayed for one in replays)
    ledger = query(
        settings,
        "SELECT u.external_id, action_id, delta FROM score_events JOIN users u ON u.id = user_id",
    )
    assert sorted(ledger) == sorted(acknowledged(actions))
    check_scores(settings)
    (audit,) = query(settings, "SELECT actor, action FROM audit_log")
    assert audit == (REWIND_FENCE, "reseed")


async def test_an_older_redis_is_noticed_by_repeats_alone(
    database_url: str, own_valkey: OwnValkey, tmp_path: Path
) -> None:
    """Clients repeat what they sent before; no action is new to the ledger."""
    valkey = own_valkey()
    settings = settings_for(valkey.url, database_url)
    actions = make_actions(60)
    await rewound(valkey, settings, actions, tmp_path / "older")
    await act(settings, *reversed(actions[30:60]))

    async with flushing(settings), store_of(settings) as store:
        await eventually_async(lambda: epoch_is(store, 2))
        await drained(settings)

    check_scores(settings)


async def epoch_is(store: object, epoch: int) -> bool:
    state = await store.state(MAIN)
    return state.epoch == epoch and state.is_open


def check_scores(settings: Settings) -> None:
    """Assert I2 and I3 on a board whose seqs are not unique."""
    from scoreboard.model import unpack_score

    scores = dict(
        query(settings, "SELECT u.external_id, score FROM scores JOIN users u ON u.id = user_id")
    )
    sums = dict(
        query(
            settings,
            "SELECT u.external_id, sum(delta) FROM score_events JOIN users u ON u.id = user_id"
            " GROUP BY 1",
        )
    )
    with redis.Redis.from_url(settings.redis_url.reveal(), decode_responses=True) as client:
        rows = client.zrange(KEYS.board, 0, -1, withscores=True)
    assert scores == sums
    assert {user: unpack_score(int(packed)) for user, packed in rows} == scores


async def test_an_interrupted_recovery_is_resumed(settings: Settings, client: Client) -> None:
    await make_board(settings)
    actions = make_actions(30)
    async with flushing(settings):
        await act(settings, *actions[:20])
        await drained(settings)
    await act(settings, *actions[20:])
    client.hset(KEYS.meta, mapping={"state": "fenced", "fence": f"{REWIND_FENCE}:0123456789abcdef"})

    async with flushing(settings), store_of(settings) as store:
        await eventually_async(lambda: epoch_is(store, 2))
        await drained(settings)

    check_scores(settings)
    assert query(settings, "SELECT count(*) FROM score_events") == [(30,)]


async def test_a_redis_with_an_old_epoch_is_reseeded(settings: Settings, client: Client) -> None:
    await make_board(settings)
    query(settings, "INSERT INTO flush_state VALUES ('main', 0, 7, 0, '0-0')")
    actions = make_actions(20)
    await act(settings, *actions)

    async with flushing(settings), store_of(settings) as store:
        await eventually_async(lambda: epoch_is(store, 8))

    check_scores(settings)
    assert query(settings, "SELECT count(*) FROM score_events") == [(20,)]


async def test_another_operators_fence_is_respected_and_the_stream_is_drained(
    settings: Settings, client: Client
) -> None:
    await make_board(settings)
    actions = make_actions(20)
    await act(settings, *actions)
    async with store_of(settings) as store:
        await fence(store, Partition("main"), "an-operator")

    async with flushing(settings):
        await drained(settings)

    check_invariants(settings, acknowledged(actions))
    assert client.hget(KEYS.meta, "fence") == "an-operator"


@pytest.mark.parametrize("signal", ["stop", "kill"])
def test_a_stopped_flusher_process_releases_its_lease(
    settings: Settings, tmp_path: Path, signal: str
) -> None:
    asyncio.run(make_board(settings))
    with FlusherProcess(settings, tmp_path / "log") as process:
        process.wait_for("lease_taken")

        if signal == "stop":
            assert process.stop(within_s=30) == 0
        else:
            process.kill()

    leases = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND classid = %s"
    eventually(lambda: query(settings, leases, 0x5B0F) == [])
