"""Reseed: order, dedup window, epoch, and interruptions at every step."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
import redis

from scoreboard.errors import DatabaseUnavailable, Fenced, OperatorMistake, WaitTimeout
from scoreboard.ledger.pool import Connection, connect
from scoreboard.ledger.positions import lock_operator
from scoreboard.model import Action, ActionKind, Board, Layout, Partition, Receipt
from scoreboard.recovery import loading
from scoreboard.recovery import reseed as reseed_module
from scoreboard.recovery.reseed import SESSION, Reseeded, choose_partitions, reseed
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.client import make_client
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import GROUP, PartitionKeys
from scoreboard.store.store import Store
from tests.support.data.boards import fence
from tests.support.data.ledger import Counted, write_history

NOW_S = time.time()
MAIN = Partition("main")
KEYS = PartitionKeys(MAIN)


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(redis_url=Secret(redis_url), database_url=Secret(database_url))


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    client = make_client(settings, name="test")
    yield Store(client)
    await client.aclose()


@asynccontextmanager
async def operator(settings: Settings) -> AsyncIterator[Connection]:
    connection = await connect(settings, name="reseed", **SESSION)
    async with connection:
        yield connection


@asynccontextmanager
async def dispatching(settings: Settings) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(settings)
    task = asyncio.create_task(dispatcher.run())
    try:
        yield dispatcher
    finally:
        dispatcher.close()
        await asyncio.wait_for(task, 30)


async def run(
    settings: Settings, store: Store, board: Board | None = None, *, force: bool = False, **how: Any
) -> Reseeded:
    board = board or Board()
    async with operator(settings) as connection:
        numbers = await choose_partitions(store, board, force=force)
        return await reseed(store, connection, board, numbers, actor="test", **how)


async def test_scores_are_restored_in_order_of_arrival(
    settings: Settings, store: Store, database_url: str
) -> None:
    history = [
        Counted("carol", "a", 20, NOW_S - 9),
        Counted("zoe", "a", 30, NOW_S - 8),
        Counted("bob", "a", 10, NOW_S - 7),
        Counted("bob", "b", 20, NOW_S - 6),
        Counted("alice", "a", 30, NOW_S - 5),
    ]
    write_history(database_url, history)

    done = await run(settings, store)

    window = await store.leaderboard("main")
    assert [(row.user_id, row.score) for row in window.rows] == [
        ("zoe", 30),
        ("bob", 30),
        ("alice", 30),
        ("carol", 20),
    ]
    assert (window.epoch, window.seq) == (2, 5)
    assert (done.users, done.actions, done.epochs) == (4, 5, (2,))


async def test_after_a_reseed_known_actions_are_replays_and_new_ones_count(
    settings: Settings, store: Store, database_url: str
) -> None:
    write_history(
        database_url,
        [Counted("alice", "win:1", 30, NOW_S - 9), Counted("alice", "win:2", 5, NOW_S - 8)],
    )
    await run(settings, store)

    async with dispatching(settings) as dispatcher:
        replay = await dispatcher.submit("main", Action("alice", "win:1", 30))
        fresh = await dispatcher.submit("main", Action("alice", "win:3", 7))

    assert replay == Receipt(30, 1, replayed=True, committed=True)
    assert fresh == Receipt(42, 3, replayed=False)


async def test_an_action_of_the_previous_generation_replays_and_an_older_one_does_not(
    settings: Settings, store: Store, database_url: str
) -> None:
    board = Board(layout=Layout(seen_seconds=1000, seen_shards=4))
    current = int(time.time() // 1000)
    write_history(
        database_url,
        [
            Counted("alice", "older", 1, (current - 2) * 1000 + 999.5),
            Counted("alice", "before", 2, (current - 1) * 1000),
        ],
        board,
    )

    done = await run(settings, store, board)

    assert done.actions == 1
    with redis.Redis.from_url(settings.redis_url.reveal()) as client:
        seen = list(client.scan_iter(f"{KEYS.tag}:seen:*"))
        assert len(seen) == 1
        assert client.expiretime(seen[0]) == (current + 1) * 1000 + 60


async def test_a_reseed_empties_the_dedup_window(
    settings: Settings, store: Store, database_url: str
) -> None:
    write_history(database_url, [])
    await run(settings, store)
    async with dispatching(settings) as dispatcher:
        await dispatcher.submit("main", Action("alice", "lost", 30))
    with redis.Redis.from_url(settings.redis_url.reveal()) as client:
        client.xtrim(KEYS.events, maxlen=0)  # its event never reached PostgreSQL

    await run(settings, store, force=True)

    async with dispatching(settings) as dispatcher:
        again = await dispatcher.submit("main", Action("alice", "lost", 30))
    assert again == Receipt(30, 2, replayed=False)


async def test_the_audit_log_and_the_catalogue_are_written(
    settings: Settings, store: Store, database_url: str
) -> None:
    write_history(database_url, [Counted("alice", "a", 1, NOW_S)])
    with psycopg.connect(database_url) as connection:
        connection.execute("INSERT INTO actions VALUES ('win', 50, TRUE), ('old', 5, FALSE)")

    await run(settings, store)

    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT actor, action, board, detail FROM audit_log").fetchone()
    assert row is not None
    assert row[:3] == ("test", "reseed", "main")
    assert row[3]["after"] == [[2, 1]]
    assert await store.kinds() == {"win": ActionKind(50), "old": ActionKind(0)}


async def test_an_open_board_with_scores_is_reseeded_only_if_forced(
    settings: Settings, store: Store, database_url: str
) -> None:
    write_history(database_url, [Counted("alice", "a", 1, NOW_S)])
    await run(settings, store)

    with pytest.raises(OperatorMistake, match="open and has scores") as refused:
        await choose_partitions(store, Board())
    assert "--force" in refused.value.hint

    assert (await store.state(MAIN)).is_open
    assert (await run(settings, store, force=True)).epochs == (3,)


async def test_every_partition_of_a_board_is_reseeded(
    settings: Settings, store: Store, database_url: str
) -> None:
    board = Board(layout=Layout(partitions=3))
    history = [Counted(f"user-{number}", "a", 1 + number % 7, NOW_S) for number in range(200)]
    write_history(database_url, history, board)

    await run(settings, store, board)

    window = await store.leaderboard("main", limit=100)
    assert window.total == 200
    assert [row.score for row in window.rows] == sorted(row.score for row in window.rows)[::-1]
    assert window.epoch == 6


async def test_only_closed_partitions_are_reseeded(
    settings: Settings, store: Store, database_url: str
) -> None:
    board = Board(layout=Layout(partitions=3))
    write_history(database_url, [Counted("alice", "a", 1, NOW_S)], board)
    await run(settings, store, board)
    await fence(store, Partition("main", 1), "test")

    done = await run(settings, store, board)

    assert done.partitions == (1,)
    assert done.epochs == (3,)


async def test_a_second_operator_is_refused(
    settings: Settings, store: Store, database_url: str
) -> None:
    write_history(database_url, [])
    async with operator(settings) as first, operator(settings) as second:
        assert await lock_operator(first, MAIN)

        with pytest.raises(OperatorMistake, match="Another operator"):
            await reseed(store, second, Board(), [0], actor="test")

    assert not (await store.state(MAIN)).epoch


async def test_a_reseed_reads_after_the_stream_is_committed(
    settings: Settings, store: Store, database_url: str
) -> None:
    write_history(database_url, [])
    await run(settings, store)
    async with dispatching(settings) as dispatcher:
        await dispatcher.submit("main", Action("alice", "a", 5))
        waiting = asyncio.Event()

        def report(step: str, _done: int, _total: int) -> None:
            if step == "drain":
                waiting.set()

        task = asyncio.create_task(
            run(
                settings,
                store,
                force=True,
                report=report,
            )
        )
        await waiting.wait()
        with pytest.raises(Fenced):
            await dispatcher.submit("main", Action("alice", "b", 5))

    # In place of the flusher: commit, acknowledge.
    write_history(database_url, [Counted("alice", "a", 5, NOW_S)], Board(name="other"))
    with psycopg.connect(database_url) as connection:
        connection.execute("SET LOCAL session_replication_role = replica")  # bypasses the triggers
        for table in ("scores", "score_events"):
            connection.execute(f"UPDATE {table} SET board = 'main' WHERE board = 'other'")
    with redis.Redis.from_url(settings.redis_url.reveal()) as client:
        client.xreadgroup(GROUP, "one", {KEYS.events: ">"})
        assert not task.done()
        client.xack(KEYS.events, GROUP, client.xrange(KEYS.events)[0][0])
    await asyncio.wait_for(task, 30)

    assert (await store.leaderboard("main")).rows[0].score == 5


async def test_waiting_for_a_stuck_flusher_has_a_limit(
    settings: Settings, store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.recovery.reseed.STALL_S", 0.1)
    write_history(database_url, [])
    await run(settings, store)
    async with dispatching(settings) as dispatcher:
        await dispatcher.submit("main", Action("alice", "a", 5))

    with pytest.raises(WaitTimeout, match="start the flusher"):
        await run(settings, store, force=True)

    assert not (await store.state(MAIN)).is_open


STEPS: dict[str, tuple[object, str]] = {
    "before the scores": (loading, "select_totals"),
    "during the scores": (Store, "restore"),
    "during the dedup window": (Store, "remember"),
    "before the position": (reseed_module, "begin_epoch"),
    "before the opening": (Store, "open"),
}


@pytest.mark.parametrize("step", STEPS)
async def test_an_interrupted_reseed_leaves_a_fenced_board_that_the_next_one_opens(
    step: str,
    settings: Settings,
    store: Store,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    history = [Counted(f"user-{number}", "a", 1 + number, NOW_S) for number in range(50)]
    write_history(database_url, history)
    owner, name = STEPS[step]
    calls = 0
    real: Callable[..., Any] = getattr(owner, name)

    async def fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 or name not in {"restore", "remember"}:
            raise DatabaseUnavailable("interrupted")
        return await real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fail)
        with pytest.raises(DatabaseUnavailable):
            await run(settings, store)
    assert not (await store.state(MAIN)).is_open

    done = await run(settings, store)

    window = await store.leaderboard("main", limit=100)
    assert [row.user_id for row in window.rows] == [f"user-{49 - number}" for number in range(50)]
    assert done.actions == 50


async def test_an_operator_without_the_fence_does_not_open_the_board(
    settings: Settings, store: Store, database_url: str
) -> None:
    write_history(database_url, [Counted("alice", "a", 1, NOW_S)])

    async def replace_fence(store: Store, *_: object) -> None:
        await fence(store, MAIN, "another")

    with pytest.raises(OperatorMistake, match="another operator holds the fence"):
        await run(settings, store, drain=replace_fence)

    state = await store.state(MAIN)
    assert (state.is_open, state.fence) == (False, "another")
