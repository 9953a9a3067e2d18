"""The dispatcher on a real server: batches, lost connections, refusals, cancelled callers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis

from scoreboard.errors import (
    ActionConflict,
    Busy,
    Fenced,
    OutcomeUnknown,
    Overloaded,
    RedisUnavailable,
    ScoreOutOfRange,
    Uninitialised,
)
from scoreboard.model import Action, Board, Layout, Partition
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.client import make_client
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.store import Store
from tests.support.data.boards import fence, open_board
from tests.support.servers.stores import OwnValkey


def settings_for(url: str, **changes: object) -> Settings:
    return Settings(redis_url=Secret(url), **changes)  # pyright: ignore[reportArgumentType]


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(settings)
    task = asyncio.create_task(dispatcher.run())
    try:
        yield dispatcher
    finally:
        dispatcher.close()
        await asyncio.wait_for(task, 30)


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    client = make_client(settings_for(redis_url), name="test")
    yield Store(client)
    await client.aclose()


def calls(url: str) -> int:
    """Return the number of scripts that the server has run."""
    with redis.Redis.from_url(url) as client:
        return int(client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))


async def test_concurrent_updates_share_round_trips(store: Store, redis_url: str) -> None:
    await open_board(store)
    before = calls(redis_url)

    async with running(settings_for(redis_url)) as dispatcher:
        receipts = await asyncio.gather(
            *(dispatcher.submit("main", Action(f"user{n}", "win:1", 10)) for n in range(128))
        )

    assert sorted(receipt.seq for receipt in receipts) == list(range(1, 129))
    assert calls(redis_url) - before <= 4


async def test_each_caller_gets_its_own_answer(store: Store, redis_url: str) -> None:
    await open_board(store)

    async with running(settings_for(redis_url)) as dispatcher:
        receipts = await asyncio.gather(
            *(dispatcher.submit("main", Action(f"user{n}", "win:1", n + 1)) for n in range(300))
        )

    assert [receipt.score for receipt in receipts] == list(range(1, 301))


async def test_each_outcome_raises_its_error(store: Store, redis_url: str) -> None:
    await open_board(store)
    async with running(settings_for(redis_url, stream_cap=1)) as dispatcher:
        first = await dispatcher.submit("main", Action("a", "1", 5, stated=True))
        with pytest.raises(ActionConflict):
            await dispatcher.submit("main", Action("a", "1", 6, stated=True))
        with pytest.raises(Busy):
            await dispatcher.submit("main", Action("a", "2", 5))
        again = await dispatcher.submit("main", Action("a", "1", 5, stated=True))

    assert (first.score, first.replayed) == (5, False)
    assert (again.score, again.seq, again.replayed) == (5, first.seq, True)


async def test_a_score_out_of_range_is_a_client_error(store: Store, redis_url: str) -> None:
    await open_board(store)
    async with running(settings_for(redis_url)) as dispatcher:
        with pytest.raises(ScoreOutOfRange):
            await dispatcher.submit("main", Action("a", "1", -1))


async def test_an_emptied_or_fenced_board_accepts_nothing(store: Store, redis_url: str) -> None:
    async with running(settings_for(redis_url)) as dispatcher:
        with pytest.raises(Uninitialised):
            await dispatcher.submit("main", Action("a", "1", 1))
        await open_board(store)
        await fence(store, Partition("main"), "operator")
        with pytest.raises(Fenced):
            await dispatcher.submit("main", Action("a", "1", 1))


async def test_the_layout_is_read_from_the_refusal(store: Store, redis_url: str) -> None:
    layout = Layout(partitions=3, seen_seconds=60, seen_shards=2)
    await open_board(store, Board("main", layout))

    async with running(settings_for(redis_url)) as dispatcher:
        await asyncio.gather(
            *(dispatcher.submit("main", Action(f"user{n}", "1", n + 1)) for n in range(30))
        )

    window = await store.leaderboard("main", limit=30)
    assert [row.score for row in window.rows] == list(range(30, 0, -1))
    standing = await store.standing("main", "user14", around=2)
    assert standing.rank == 16
    assert [row.score for row in standing.neighbours] == [17, 16, 15, 14, 13]
    assert [row.rank for row in standing.neighbours] == [14, 15, 16, 17, 18]


async def test_a_flushed_script_is_loaded_again(store: Store, redis_url: str) -> None:
    await open_board(store)
    async with running(settings_for(redis_url)) as dispatcher:
        await dispatcher.submit("main", Action("a", "1", 1))
        with redis.Redis.from_url(redis_url) as client:
            client.script_flush()

        receipt = await dispatcher.submit("main", Action("a", "2", 1))

    assert receipt.score == 2


async def test_an_update_counts_once_after_a_lost_connection(store: Store, redis_url: str) -> None:
    await open_board(store)
    async with running(settings_for(redis_url, dispatch_connections=1)) as dispatcher:
        await dispatcher.submit("main", Action("a", "1", 1))
        with redis.Redis.from_url(redis_url) as client:
            for entry in client.client_list():
                if entry["name"] == "scoreboard-dispatcher":
                    client.client_kill_filter(_id=entry["id"])

        receipt = await dispatcher.submit("main", Action("a", "2", 1))

    assert (receipt.score, receipt.replayed) == (2, False)


async def test_an_unreachable_server_is_reported_quickly_and_used_again(
    own_valkey: OwnValkey,
) -> None:
    server = own_valkey()
    settings = settings_for(server.url)
    client = make_client(settings, name="test")
    await open_board(Store(client))
    await client.aclose()
    async with running(settings) as dispatcher:
        await dispatcher.submit("main", Action("a", "1", 1))
        await asyncio.to_thread(server.kill)

        with pytest.raises((RedisUnavailable, OutcomeUnknown)):
            async with asyncio.timeout(30):
                await dispatcher.submit("main", Action("a", "2", 1))
        await asyncio.to_thread(server.start)
        receipt = await dispatcher.submit("main", Action("a", "2", 1))

    assert receipt.score == 2


async def test_a_cancelled_caller_does_not_affect_other_answers(
    store: Store, redis_url: str
) -> None:
    await open_board(store)
    async with running(settings_for(redis_url, dispatch_connections=1)) as dispatcher:
        tasks = [
            asyncio.create_task(dispatcher.submit("main", Action(f"user{n}", "1", n + 1)))
            for n in range(50)
        ]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)

    assert [one.score for one in done[1::2]] == list(range(2, 51, 2))  # pyright: ignore[reportAttributeAccessIssue]
    assert all(isinstance(one, asyncio.CancelledError) for one in done[::2])


async def test_the_queue_is_bounded(store: Store, redis_url: str) -> None:
    await open_board(store)
    async with running(settings_for(redis_url, dispatch_waiting=10)) as dispatcher:
        done = await asyncio.gather(
            *(dispatcher.submit("main", Action(f"user{n}", "1", 1)) for n in range(20)),
            return_exceptions=True,
        )

    assert sum(isinstance(one, Overloaded) for one in done) == 10


async def test_closing_sends_queued_updates(store: Store, redis_url: str) -> None:
    await open_board(store)
    async with running(settings_for(redis_url)) as dispatcher:
        waiting = [
            asyncio.create_task(dispatcher.submit("main", Action(f"user{n}", "1", 1)))
            for n in range(300)
        ]
        await asyncio.sleep(0)
        dispatcher.close()
        with pytest.raises(Overloaded):
            await dispatcher.submit("main", Action("late", "1", 1))
        done = await asyncio.gather(*waiting)

    assert len(done) == 300
