"""ReadBatcher on a real server: shared calls, lost connections, cancelled callers, new layouts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis

from scoreboard.errors import (
    InternalError,
    Overloaded,
    RedisUnavailable,
    Uninitialised,
    UnknownUser,
)
from scoreboard.model import Action, Board, Layout, Partition
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.boards import BOARD_SCRIPTS, Boards
from scoreboard.store.client import make_client
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.read_batcher import ReadBatcher
from scoreboard.store.store import Store
from tests.support.data.boards import open_board
from tests.support.eventually import eventually_async
from tests.support.fakes.proxy import TO_SERVER, MakeProxy
from tests.support.servers.stores import EmbeddedValkey, OwnValkey


def settings_for(url: str, **changes: object) -> Settings:
    return Settings(redis_url=Secret(url), **changes)  # pyright: ignore[reportArgumentType]


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[Boards, ReadBatcher]]:
    client = make_client(settings, name="test")
    reads = ReadBatcher(settings, BOARD_SCRIPTS, name="test-reads")
    task = asyncio.create_task(reads.run())
    try:
        yield Boards(client, reads), reads
    finally:
        reads.close()
        await asyncio.wait_for(task, 30)
        await client.aclose()


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    client = make_client(settings_for(redis_url), name="test")
    yield Store(client)
    await client.aclose()


async def add_users(url: str, count: int) -> None:
    """Give user0 to user<count> the scores 1 to <count>, in order."""
    dispatcher = Dispatcher(settings_for(url))
    task = asyncio.create_task(dispatcher.run())
    actions = (Action(f"user{n}", "1", n + 1) for n in range(count))
    await asyncio.gather(*(dispatcher.submit("main", action) for action in actions))
    dispatcher.close()
    await task


def calls(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("commandstats").get("cmdstat_evalsha_ro", {}).get("calls", 0))


def connections(url: str) -> set[str]:
    with redis.Redis.from_url(url) as client:
        return {one["id"] for one in client.client_list() if one["name"] == "scoreboard-test-reads"}


@pytest.mark.parametrize("partitions", [1, 3])
async def test_reads_of_one_turn_share_calls_and_agree_with_single_ones(
    store: Store, redis_url: str, partitions: int
) -> None:
    await open_board(store, Board(layout=Layout(partitions=partitions)))
    await add_users(redis_url, 100)
    async with running(settings_for(redis_url)) as (boards, _):
        await boards.leaderboard("main")
        before = calls(redis_url)
        found = await asyncio.gather(
            *(boards.standing("main", f"user{n}", around=n % 4) for n in range(100)),
            boards.leaderboard("main", limit=7),
        )
        used = calls(redis_url) - before
        single = [await store.standing("main", f"user{n}", around=n % 4) for n in range(100)]
        window = await store.leaderboard("main", limit=7)
        assert found[:-1] == single
        assert found[-1].rows == window.rows  # pyright: ignore[reportAttributeAccessIssue]
    # Users of several partitions are read in two steps, and replies of the first may arrive apart.
    assert used <= {1: 3, 3: 24}[partitions]


async def test_each_read_gets_its_own_error(store: Store, redis_url: str) -> None:
    async with running(settings_for(redis_url)) as (boards, _):
        with pytest.raises(Uninitialised):
            await boards.leaderboard("main")
        await open_board(store)
        await add_users(redis_url, 2)
        found = await asyncio.gather(
            boards.standing("main", "user1"),
            boards.standing("main", "nobody"),
            boards.standing("other", "user1"),
            boards.standing("main", "user0"),
            return_exceptions=True,
        )
    assert [one.rank for one in (found[0], found[3])] == [1, 2]  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(found[1], UnknownUser)
    assert isinstance(found[2], Uninitialised)


async def test_a_cancelled_read_does_not_affect_other_answers(store: Store, redis_url: str) -> None:
    await open_board(store)
    await add_users(redis_url, 50)
    async with running(settings_for(redis_url, dispatch_connections=1)) as (boards, _):
        await boards.leaderboard("main")
        for turns in range(4):  # before it is queued, queued, sent, answered
            tasks = [
                asyncio.create_task(boards.standing("main", f"user{n}", around=1))
                for n in range(50)
            ]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert [one.score for one in done[1::2]] == list(range(2, 51, 2))  # pyright: ignore[reportAttributeAccessIssue]


async def test_reads_whose_callers_are_gone_do_not_hold_a_connection(
    store: Store, redis_url: str
) -> None:
    await open_board(store)
    await add_users(redis_url, 2)
    settings = settings_for(redis_url, dispatch_connections=1, redis_timeout_s=20.0)
    async with running(settings) as (boards, _):
        await boards.leaderboard("main")
        before = connections(redis_url)
        gone = [asyncio.create_task(boards.standing("main", "user0")) for _ in range(3)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        await asyncio.wait(gone)
        async with asyncio.timeout(10):
            assert (await boards.standing("main", "user1")).rank == 1
        assert connections(redis_url) == before


@pytest.mark.parametrize("partitions", [1, 3])
async def test_an_invalid_score_affects_only_the_reads_that_return_it(
    store: Store, redis_url: str, partitions: int
) -> None:
    await open_board(store, Board(layout=Layout(partitions=partitions)))
    await add_users(redis_url, 60)
    with redis.Redis.from_url(redis_url) as client:
        for number in range(partitions):
            keys = PartitionKeys(Partition("main", number))
            client.zadd(keys.board, {f"broken{number}": -5})
    async with running(settings_for(redis_url)) as (boards, _):
        await boards.leaderboard("main", limit=1)
        found = await asyncio.gather(
            *(boards.standing("main", f"user{n}", around=1) for n in range(54, 60)),
            *(boards.standing("main", f"broken{n}", around=1) for n in range(3)),
            return_exceptions=True,
        )
    assert [getattr(one, "rank", one) for one in found[:6]] == [6, 5, 4, 3, 2, 1]
    # A user whose partition by hash is another one is unknown.
    assert all(isinstance(one, InternalError | UnknownUser) for one in found[6:])


async def test_a_lost_reply_is_read_again(
    store: Store, redis_url: str, make_proxy: MakeProxy, valkey_server: EmbeddedValkey
) -> None:
    await open_board(store)
    await add_users(redis_url, 3)
    proxy = await make_proxy(valkey_server.port)
    settings = settings_for(proxy.through(redis_url), dispatch_connections=1)
    async with running(settings) as (boards, _):
        await boards.leaderboard("main")
        seen = proxy.cut_when(TO_SERVER, b"user1")
        assert (await boards.standing("main", "user1")).rank == 2
        assert seen.is_set()
        proxy.refuse()
        with pytest.raises(RedisUnavailable):
            await boards.standing("main", "user1")
        await proxy.restore()
        assert (await boards.standing("main", "user1")).rank == 2


async def test_an_unreachable_server_is_reported_and_used_again(own_valkey: OwnValkey) -> None:
    server = own_valkey()
    client = make_client(settings_for(server.url), name="test")
    await open_board(Store(client))
    await client.aclose()
    async with running(settings_for(server.url)) as (boards, _):
        await boards.leaderboard("main")
        await asyncio.to_thread(server.kill)
        with pytest.raises(RedisUnavailable):
            async with asyncio.timeout(30):
                await boards.leaderboard("main")
        await asyncio.to_thread(server.start)
        assert (await boards.leaderboard("main")).total == 0


async def test_flushed_scripts_are_loaded_again(store: Store, redis_url: str) -> None:
    await open_board(store)
    await add_users(redis_url, 3)
    async with running(settings_for(redis_url)) as (boards, _):
        await boards.leaderboard("main")
        with redis.Redis.from_url(redis_url) as client:
            client.script_flush()
        window, standing = await asyncio.gather(
            boards.leaderboard("main"), boards.standing("main", "user0")
        )
    assert (window.total, standing.rank) == (3, 3)


async def test_a_new_layout_is_read(store: Store, redis_url: str) -> None:
    await open_board(store, scores=[("alice", 5), ("bob", 4)])
    async with running(settings_for(redis_url)) as (boards, _):
        assert (await boards.leaderboard("main")).total == 2
        await open_board(store, Board(layout=Layout(partitions=3)), epoch=7)
        await add_users(redis_url, 30)
        found = await asyncio.gather(
            boards.leaderboard("main", limit=30), boards.standing("main", "user0")
        )
    assert (found[0].total, found[1].rank, found[1].total) == (30, 30, 30)


async def test_the_queue_is_bounded(store: Store, redis_url: str) -> None:
    await open_board(store)
    await add_users(redis_url, 1)
    async with running(settings_for(redis_url, dispatch_waiting=10)) as (boards, _):
        await boards.leaderboard("main")
        done = await asyncio.gather(
            *(boards.standing("main", "user0") for _ in range(20)), return_exceptions=True
        )
    assert sum(isinstance(one, Overloaded) for one in done) == 10


async def test_connections_are_replaced_on_request(store: Store, redis_url: str) -> None:
    await open_board(store)
    await add_users(redis_url, 1)
    async with running(settings_for(redis_url)) as (boards, reads):
        await boards.leaderboard("main")
        before = connections(redis_url)
        assert before
        reads.reconnect()
        await eventually_async(lambda: before.isdisjoint(connections(redis_url)))
        assert (await boards.standing("main", "user0")).rank == 1
