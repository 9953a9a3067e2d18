"""Partitions that come and go: found when they get work, given back when they have none."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import redis
from prometheus_client import generate_latest

from flusher.search import Search
from flusher.service import Flusher
from flusher.session import LEASE_LOCK
from flusher.writer import Writer
from scoreboard.ledger.pool import Connection
from scoreboard.model import Action, Board, Layout, Partition, Receipt
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.runtime.telemetry import REGISTRY
from scoreboard.store.commit_waiter import CommitWaiter
from scoreboard.store.keys import ACTIVE, BOARDS, GROUP, PartitionKeys
from scoreboard.store.partitions import GAP_FENCE, Partitions, Survey
from tests.support.data.boards import open_board
from tests.support.eventually import eventually_async
from tests.support.servers.flushers import (
    FlusherProcess,
    act,
    check_invariants,
    dispatching,
    flushing,
    is_drained,
    make_board,
    query,
    store_of,
)

pytestmark = pytest.mark.slow

GOLF = Partition("golf")
KEYS = PartitionKeys(GOLF)


@pytest.fixture
def settings(redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("flusher.partition.LEADS_LONGER_S", 0.2)
    return Settings(
        redis_url=Secret(redis_url),
        database_url=Secret(database_url),
        flusher_metrics_port=0,
        flush_linger_ms=0,
        flush_linger_unawaited_ms=0,
        flush_idle_s=1.0,
    )


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis[str]"]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def make_actions(count: int, *, start: int = 0) -> list[Action]:
    return [
        Action(f"user{number % 5}", f"win:{number}", 1) for number in range(start, start + count)
    ]


def counted(actions: list[Action]) -> list[tuple[str, str, int]]:
    return [(one.user_id, one.action_id, one.delta) for one in actions]


async def drained(settings: Settings, board: str = "golf", within_s: float = 10) -> None:
    await eventually_async(lambda: is_drained(settings, board), within_s)


def served(flusher: Flusher) -> set[str]:
    return {str(one.partition) for one in flusher.partitions}


@asynccontextmanager
async def flushing_main(settings: Settings) -> AsyncIterator[Flusher]:
    """Run a flusher that leads the configured board and has made its first scan."""
    await make_board(settings)
    async with flushing(settings) as flusher:
        await eventually_async(lambda: bool(leased(settings)))
        await eventually_async(lambda: listens(settings))
        yield flusher


def listens(settings: Settings) -> bool:
    with redis.Redis.from_url(settings.redis_url.reveal(), decode_responses=True) as client:
        return bool(client.pubsub_numsub(ACTIVE)[0][1]) and bool(client.exists(BOARDS))


def leased(settings: Settings) -> list[int]:
    """Return the keys of the leases that are held."""
    rows = query(
        settings,
        "SELECT objid::BIGINT FROM pg_locks WHERE locktype = 'advisory' AND granted"
        " AND classid = %s::BIGINT::OID"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        LEASE_LOCK,
    )
    return [objid for (objid,) in rows]


def series(board: str) -> list[str]:
    text = generate_latest(REGISTRY).decode()
    return [line for line in text.splitlines() if f'board="{board}"' in line]


async def test_a_board_made_meanwhile_is_served_at_once(settings: Settings) -> None:
    async with flushing_main(settings) as flusher:
        await make_board(settings, Board("golf", Layout(partitions=2)))
        assert served(flusher) == {"main:0"}
        actions = make_actions(20)
        await act(settings, *actions, board="golf")
        await eventually_async(lambda: is_drained(settings, "golf", 2), within_s=2)

        assert served(flusher) == {"main:0", "golf:0", "golf:1"}
    check_invariants(settings, counted(actions), board="golf", partitions=2)


async def test_an_update_of_an_idle_board_is_confirmed_soon(settings: Settings) -> None:
    """With SCOREBOARD_ACKNOWLEDGE=committed its caller waits for the COMMIT."""
    async with (
        flushing_main(settings),
        store_of(settings) as store,
        dispatching(settings) as dispatcher,
    ):
        await make_board(settings, Board("golf"))
        commits = CommitWaiter(settings, store, dispatcher)
        task = asyncio.create_task(commits.run())
        try:
            (action,) = make_actions(1)
            receipt = await dispatcher.submit("golf", action)
            assert not receipt.committed
            async with asyncio.timeout(2):
                assert (await commits.confirm("golf", action, receipt)).committed
        finally:
            task.cancel()
            await asyncio.wait({task})


async def test_an_idle_partition_is_given_back_and_served_again(
    settings: Settings, client: "redis.Redis[str]"
) -> None:
    actions = make_actions(30)
    async with flushing_main(settings) as flusher:
        await make_board(settings, Board("chess"))
        for start in (0, 10, 20):
            await act(settings, *actions[start : start + 10], board="chess")
            await drained(settings, "chess")
            assert served(flusher) == {"main:0", "chess:0"}
            assert series("chess")
            await eventually_async(lambda: served(flusher) == {"main:0"}, within_s=10)
            await eventually_async(lambda: len(leased(settings)) == 1)
            assert readers(client) == 1
            await eventually_async(lambda: series("chess") == [], within_s=5)
    check_invariants(settings, counted(actions), board="chess")


def readers(client: "redis.Redis[str]") -> int:
    """Return how many connections read a stream."""
    names = [one["name"] for one in client.client_list()]
    return names.count("scoreboard-flusher-reader")


async def test_work_whose_message_was_lost_is_found_by_a_scan(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flusher.search.SCAN_EVERY_S", 0.5)
    monkeypatch.setattr(Search, "_take_message", lambda *_: None)
    async with flushing_main(settings) as flusher:
        await make_board(settings, Board("golf"))
        for count in range(2):
            await act(settings, *make_actions(10, start=10 * count), board="golf")
            await drained(settings)
            await eventually_async(lambda: served(flusher) == {"main:0"}, within_s=10)
    check_invariants(settings, counted(make_actions(20)), board="golf")


async def test_a_reconnection_is_followed_by_a_scan(
    settings: Settings, client: "redis.Redis[str]"
) -> None:
    async with flushing_main(settings):
        await make_board(settings, Board("golf"))
        for round_ in range(3):
            for one in client.client_list(_type="pubsub"):
                if one["name"] == "scoreboard-flusher-active":
                    client.client_kill_filter(_id=one["id"])
            await act(settings, *make_actions(5, start=5 * round_), board="golf")
            await drained(settings, within_s=5)
    check_invariants(settings, counted(make_actions(15)), board="golf")


async def test_an_action_at_the_moment_of_the_decision_is_not_left_behind(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream was found empty, and gets an entry before the answer is used."""
    actions = make_actions(2)
    late: list[Action] = []
    survey = Partitions.survey

    async def delayed(self: Partitions, partitions: list[Partition]) -> Any:
        found = await survey(self, partitions)
        if late and partitions == [GOLF] and isinstance(found[0], Survey) and not found[0].entries:
            await act(settings, late.pop(), board="golf")
        return found

    monkeypatch.setattr("flusher.search.SCAN_EVERY_S", 3600.0)
    async with flushing_main(settings) as flusher:
        await make_board(settings, Board("golf"))
        await act(settings, actions[0], board="golf")
        await drained(settings)
        late.append(actions[1])
        monkeypatch.setattr(Partitions, "survey", delayed)

        await eventually_async(lambda: not late, within_s=10)
        await drained(settings)
        await eventually_async(lambda: served(flusher) == {"main:0"}, within_s=10)
    check_invariants(settings, counted(actions), board="golf")


async def test_an_action_while_a_partition_is_given_back_is_not_left_behind(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is leaving when the message comes, and its lease is released slowly."""
    from flusher.writer import Writer

    actions = make_actions(2)
    late = [actions[1]]
    close = Writer.aclose

    async def slow(self: Writer) -> None:
        if late and self.partition == GOLF:
            await act(settings, late.pop(), board="golf")
        await close(self)

    monkeypatch.setattr("flusher.search.SCAN_EVERY_S", 3600.0)
    async with flushing_main(settings) as flusher:
        await make_board(settings, Board("golf"))
        await act(settings, actions[0], board="golf")
        await drained(settings)
        monkeypatch.setattr(Writer, "aclose", slow)
        await eventually_async(lambda: not late, within_s=10)
        await drained(settings)
        await eventually_async(lambda: served(flusher) == {"main:0"}, within_s=10)
    check_invariants(settings, counted(actions), board="golf")


async def test_more_partitions_than_turns_are_all_served(settings: Settings) -> None:
    few = msgspec.structs.replace(settings, flush_partitions=2)
    names = [f"board-{number}" for number in range(8)]
    actions = {name: make_actions(60) for name in names}
    most = 0
    async with flushing_main(few) as flusher:
        for name in names:
            await make_board(settings, Board(name))
        for start in range(0, 60, 20):
            for name in names:
                await act(settings, *actions[name][start : start + 20], board=name)
                most = max(most, len(flusher.partitions))
        for name in names:
            await drained(settings, name, within_s=30)
            most = max(most, len(flusher.partitions))
        await eventually_async(lambda: served(flusher) == {"main:0"}, within_s=15)
    assert most == 3, "two turns, and the configured board"
    for name in names:
        check_invariants(settings, counted(actions[name]), board=name)


async def test_partitions_that_take_turns_share_sessions(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flusher.spare_sessions.KEPT_S", 0.5)
    two_turns = msgspec.structs.replace(settings, flush_partitions=2)
    names = [f"board-{number}" for number in range(12)]
    opened: list[str] = []
    connect = Writer.open

    async def count(settings: Settings, partition: Partition) -> Writer:
        opened.append(partition.board)
        return await connect(settings, partition)

    monkeypatch.setattr(Writer, "open", count)
    for name in names:
        await make_board(settings, Board(name))
        await act(settings, *make_actions(20), board=name)
    async with flushing_main(two_turns) as flusher:
        for name in names:
            await drained(settings, name, within_s=30)
        await eventually_async(lambda: served(flusher) == {"main:0"}, within_s=15)
        assert len(leased(settings)) == 1, "a session that is kept has no lease"

        def sessions() -> int:
            [(count,)] = query(
                settings,
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE application_name = 'scoreboard-flusher' AND datname = current_database()",
            )
            return count

        await eventually_async(lambda: sessions() == 1, within_s=15)
    assert len(set(opened)) < len(names) / 2, opened
    for name in names:
        check_invariants(settings, counted(make_actions(20)), board=name)


async def test_a_busy_partition_does_not_keep_its_turn(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flusher.partition.TURN_S", 0.1)
    one_turn = msgspec.structs.replace(settings, flush_partitions=1, flush_batch=5)
    async with flushing_main(one_turn):
        for name in ("busy", "other"):
            await make_board(settings, Board(name))
        await act(settings, *make_actions(3000), board="busy")
        await act(settings, *make_actions(5), board="other")
        await drained(settings, "other", within_s=20)
        assert not is_drained(settings, "busy"), "the other board did not wait for all of it"
        await drained(settings, "busy", within_s=60)
    check_invariants(settings, counted(make_actions(3000)), board="busy")
    check_invariants(settings, counted(make_actions(5)), board="other")


async def test_a_partition_that_cannot_be_flushed_does_not_keep_its_turn(
    settings: Settings, client: "redis.Redis[str]"
) -> None:
    one_turn = msgspec.structs.replace(settings, flush_partitions=1)
    async with flushing_main(one_turn):
        await make_board(settings, Board("golf"))
        await make_board(settings, Board("other"))
        client.delete(KEYS.events)
        client.set(KEYS.events, "x")
        client.publish(ACTIVE, KEYS.events)
        await act(settings, *make_actions(5), board="other")
        await drained(settings, "other", within_s=20)


async def test_a_lost_past_of_an_idle_board_is_noticed(
    settings: Settings, client: "redis.Redis[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis lost the last actions of a board that nobody uses."""
    monkeypatch.setattr("flusher.search.SCAN_EVERY_S", 0.5)
    async with flushing_main(settings) as flusher, store_of(settings) as store:
        await make_board(settings, Board("golf"))
        await act(settings, *make_actions(10), board="golf")
        await drained(settings)
        await eventually_async(lambda: served(flusher) == {"main:0"}, within_s=10)
        epoch = (await store.state(GOLF)).epoch

        client.hset(KEYS.meta, "seq", 4)

        async def is_reseeded() -> bool:
            state = await store.state(GOLF)
            return state.is_open and state.epoch > epoch

        await eventually_async(is_reseeded, within_s=15)
        await act(settings, *make_actions(5, start=10), board="golf")
        await drained(settings)


async def test_corrections_of_an_idle_board_are_made(
    settings: Settings, client: "redis.Redis[str]"
) -> None:
    """An operator requests them, such as by resolving a dead letter."""
    async with flushing_main(settings) as flusher:
        await make_board(settings, Board("golf"))
        await act(settings, *make_actions(10), board="golf")
        await drained(settings)
        await eventually_async(lambda: served(flusher) == {"main:0"}, within_s=10)
        before = client.zscore(KEYS.board, "user0")
        client.zincrby(KEYS.board, 2**21, "user0")
        query(
            settings,
            "INSERT INTO rejected_events (board, part, user_id, action_id, epoch, seq, delta,"
            " score_after, reason, occurred_at) SELECT 'golf', 0, id, 'dead letter 1', 1, 11, 1, 3,"
            " 'resolved', now() FROM users WHERE external_id = 'user0'",
        )
        await eventually_async(
            lambda: query(
                settings,
                "SELECT 1 FROM rejected_events"
                " WHERE corrected_at IS NOT NULL AND reason = 'resolved'",
            ),
            within_s=10,
        )
        await drained(settings)
        assert int(client.zscore(KEYS.board, "user0") or 0) // 2**21 == int(before or 0) // 2**21
        await eventually_async(lambda: served(flusher) == {"main:0"}, within_s=10)


@pytest.mark.parametrize("state", ["missing", "fenced"])
async def test_a_partition_that_cannot_have_work_is_given_back(
    settings: Settings, client: "redis.Redis[str]", state: str
) -> None:
    async with flushing_main(settings) as flusher:
        await make_board(settings, Board("golf"))
        if state == "missing":
            client.delete(KEYS.meta)
        else:
            client.hset(KEYS.meta, mapping={"state": "fenced", "fence": "operator:1"})
        client.publish(ACTIVE, KEYS.events)
        await eventually_async(lambda: served(flusher) == {"main:0", "golf:0"}, within_s=10)
        await eventually_async(lambda: served(flusher) == {"main:0"}, within_s=15)


async def test_a_partition_that_a_flusher_fenced_is_served_until_an_operator_acts(
    settings: Settings, client: "redis.Redis[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its series, and with them the alert, would disappear."""
    monkeypatch.setattr("flusher.search.SCAN_EVERY_S", 0.5)
    await make_board(settings, Board("golf"))
    client.hset(KEYS.meta, mapping={"state": "fenced", "fence": GAP_FENCE})
    async with flushing_main(settings) as flusher:
        await eventually_async(lambda: served(flusher) == {"main:0", "golf:0"}, within_s=10)
        (golf,) = (one for one in flusher.partitions if one.partition == GOLF)
        await eventually_async(lambda: golf._wakes >= 6)  # longer than an idle one is kept
        assert served(flusher) == {"main:0", "golf:0"}
        client.hset(KEYS.meta, mapping={"state": "open", "fence": ""})
        await eventually_async(lambda: served(flusher) == {"main:0"}, within_s=15)


async def test_streams_of_unknown_boards_are_left_alone(
    settings: Settings, client: "redis.Redis[str]"
) -> None:
    """Load tests of the scripts make boards that PostgreSQL does not have."""
    async with flushing_main(settings) as flusher:
        async with store_of(settings) as store:
            await open_board(store, Board("bench-1"))
        await act(settings, *make_actions(5), board="bench-1")
        for junk in ("x", "sb:{main:0}:meta", "sb:{golf:300}:events", "sb:{a b:0}:events"):
            client.publish(ACTIVE, junk)
        await make_board(settings, Board("golf"))
        await act(settings, *make_actions(5), board="golf")
        await drained(settings)
        assert served(flusher) == {"main:0", "golf:0"}
        assert client.xinfo_groups(PartitionKeys(Partition("bench-1")).events)[0]["name"] == GROUP
    assert client.xlen(PartitionKeys(Partition("bench-1")).events) == 5


async def test_the_queries_do_not_grow_with_the_boards(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    executed = 0
    execute = Connection.execute
    search = Search._find_configured

    async def counting(self: Connection, *arguments: Any, **options: Any) -> Any:
        nonlocal executed
        if str(self.info.get_parameters().get("application_name")) == "scoreboard-flusher-search":
            executed += 1
        return await execute(self, *arguments, **options)

    async def noting(self: Search, connection: Connection) -> None:
        nonlocal executed
        counts.append(executed)
        executed = 0
        await search(self, connection)

    monkeypatch.setattr(Connection, "execute", counting)
    monkeypatch.setattr(Search, "_find_configured", noting)
    monkeypatch.setattr("flusher.search.SEARCH_EVERY_S", 0.05)
    monkeypatch.setattr("flusher.search.SCAN_EVERY_S", 3600.0)
    async with flushing_main(settings):
        await eventually_async(lambda: len(counts) > 20)
        few = counts[-5:]
        add_boards(settings, 300)
        seen = len(counts)
        await eventually_async(lambda: len(counts) > seen + 10)
    assert few == counts[-5:]
    assert max(few) <= 3


def add_boards(settings: Settings, count: int) -> None:
    with psycopg.connect(settings.database_url.reveal(), autocommit=True) as connection:
        connection.execute(
            b"INSERT INTO boards (board, partitions, seen_seconds, seen_shards, is_public)"
            b" SELECT 'idle-' || n, 1, 43200, 64, true FROM generate_series(1, %s) n",
            (count,),
        )


async def test_the_list_of_boards_in_redis_follows_postgresql(
    settings: Settings, client: "redis.Redis[str]", tmp_path: Path
) -> None:
    await make_board(settings)
    with FlusherProcess(settings, tmp_path / "log") as process:
        await asyncio.to_thread(process.wait_for, "board_list_copied")
        assert set(client.hkeys(BOARDS)) == {"main"}


async def test_the_list_is_copied_from_time_to_time(
    settings: Settings, client: "redis.Redis[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flusher.search.SCAN_EVERY_S", 0.3)
    async with flushing_main(settings):
        add_boards(settings, 3)
        await eventually_async(lambda: client.hlen(BOARDS) == 4)
        client.delete(BOARDS)
        await eventually_async(lambda: client.hlen(BOARDS) == 4)
        client.delete(BOARDS)
        client.set(BOARDS, "x")
        await make_board(settings, Board("golf"))
        await act(settings, *make_actions(5), board="golf")
        await drained(settings)  # a list that cannot be written affects nothing else
        client.delete(BOARDS)
        await eventually_async(lambda: client.hlen(BOARDS) == 5)


async def test_two_processes_neither_lose_nor_repeat_what_comes_while_one_gives_back(
    settings: Settings, tmp_path: Path, client: "redis.Redis[str]"
) -> None:
    """A partition is given back in one process and woken in another, again and again."""
    await make_board(settings)
    await make_board(settings, Board("golf"))
    environment = {"SCOREBOARD_FLUSH_IDLE_S": "1", "SCOREBOARD_FLUSH_LINGER_UNAWAITED_MS": "0"}
    acknowledged: list[Action] = []
    with (
        FlusherProcess(settings, tmp_path / "one", **environment) as one,
        FlusherProcess(settings, tmp_path / "two", **environment) as two,
    ):
        for process in (one, two):
            await asyncio.to_thread(process.wait_for, "partition_condition_changed")
        for round_ in range(10):
            actions = make_actions(3, start=3 * round_)
            found = await act(settings, *actions, board="golf")
            assert all(isinstance(receipt, Receipt) for receipt in found)
            acknowledged += actions
            await drained(settings)
            victim = (one, two)[round_ % 2]
            if round_ % 5 == 4:
                victim.kill()
                await act(settings, Action("late", f"win:{round_}", 1), board="golf")
                acknowledged.append(Action("late", f"win:{round_}", 1))
                victim.start()
                await drained(settings, within_s=45)
            # The next actions come when the lease has just been released.
            await eventually_async(lambda: len(leased(settings)) == 1, within_s=20, every_s=0.01)
        await drained(settings, within_s=45)
        assert one.stop() == 0
        assert two.stop() == 0
    check_invariants(settings, counted(acknowledged), board="golf")


async def test_a_standby_of_an_idle_partition_leaves_as_well(
    settings: Settings, tmp_path: Path
) -> None:
    await make_board(settings)
    await make_board(settings, Board("golf"))
    environment = {"SCOREBOARD_FLUSH_IDLE_S": "1"}
    with (
        FlusherProcess(settings, tmp_path / "one", **environment) as one,
        FlusherProcess(settings, tmp_path / "two", **environment) as two,
    ):
        for process in (one, two):
            await asyncio.to_thread(process.wait_for, "partition_condition_changed")
        await eventually_async(lambda: listens(settings))
        await act(settings, *make_actions(3), board="golf")
        await drained(settings, within_s=10)
        await eventually_async(lambda: waiting_or_held(settings) == 2, within_s=20)
    check_invariants(settings, counted(make_actions(3)), board="golf")


def waiting_or_held(settings: Settings) -> int:
    """Return how many sessions hold or want the lease of a partition."""
    ((count,),) = query(
        settings,
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        " AND classid = %s::BIGINT::OID"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        LEASE_LOCK,
    )
    return count
