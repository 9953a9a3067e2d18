"""The store on a real server: ranking over all partitions, durability checks."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Literal
from urllib.parse import urlsplit

import pytest
import redis
from msgspec import structs

from cli.failures import explain
from scoreboard.errors import (
    OperatorMistake,
    Outdated,
    RedisUnavailable,
    Uninitialised,
    UnknownUser,
    UnsafeRedis,
)
from scoreboard.health.checks import describe_durability
from scoreboard.model import Action, Board, Layout, Partition
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.client import make_client
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.durability import check_durability, require_durability
from scoreboard.store.partitions import PartitionState
from scoreboard.store.store import Store
from tests.support.data.boards import fence, open_board
from tests.support.fakes.proxy import MakeProxy
from tests.support.servers.stores import OwnValkey


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return Settings(redis_url=Secret(redis_url))


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    client = make_client(settings, name="test")
    yield Store(client)
    await client.aclose()


async def submit_all(settings: Settings, actions: list[Action]) -> None:
    dispatcher = Dispatcher(settings)
    task = asyncio.create_task(dispatcher.run())
    for action in actions:
        await dispatcher.submit("main", action)
    dispatcher.close()
    await task


async def test_reads_of_many_partitions_take_few_round_trips(
    store: Store, settings: Settings, make_proxy: MakeProxy, redis_url: str
) -> None:
    proxy = await make_proxy(urlsplit(redis_url).port or 6379)
    board = Board("main", Layout(partitions=64, seen_seconds=600, seen_shards=4))
    await open_board(store, board)
    await submit_all(settings, [Action(f"user{n}", "1", 1 + n) for n in range(100)])
    client = make_client(Settings(redis_url=Secret(proxy.through(redis_url))), name="test")
    try:
        delayed = Store(client)
        await delayed.board("main")
        proxy.delay(0.05)
        began_s = time.monotonic()
        window = await delayed.leaderboard("main", limit=10)
        standing = await delayed.standing("main", "user97", around=1)
        took_s = time.monotonic() - began_s
    finally:
        await client.aclose()

    assert [row.score for row in window.rows] == list(range(100, 90, -1))
    assert [row.score for row in standing.neighbours] == [99, 98, 97]
    assert took_s < 6, "65 round trips of 0.1 s take longer"


async def test_reads_of_several_partitions_load_a_flushed_script(
    store: Store, settings: Settings, redis_url: str
) -> None:
    await open_board(store, Board("main", Layout(partitions=3, seen_seconds=600, seen_shards=4)))
    await submit_all(settings, [Action("alice", "1", 5)])
    with redis.Redis.from_url(redis_url) as direct:
        direct.script_flush()

    assert (await store.leaderboard("main")).total == 1
    assert (await store.standing("main", "alice")).rank == 1


@pytest.mark.parametrize("partitions", [1, 3])
async def test_list_rank_and_neighbours_have_one_order(
    store: Store, settings: Settings, partitions: int
) -> None:
    layout = Layout(partitions=partitions, seen_seconds=600, seen_shards=4)
    await open_board(store, Board("main", layout))
    chance = random.Random(7)
    users = [f"user{n}" for n in range(23)]
    await submit_all(settings, [Action(u, "1", chance.randint(1, 6)) for u in users])

    whole = await store.leaderboard("main", limit=100)
    pages = [await store.leaderboard("main", offset=at, limit=5) for at in range(0, 25, 5)]

    assert [row.rank for row in whole.rows] == list(range(1, 24))
    assert [row.score for row in whole.rows] == sorted(
        (row.score for row in whole.rows), reverse=True
    )
    assert tuple(row for page in pages for row in page.rows) == whole.rows
    assert {page.total for page in pages} == {23}
    for place, row in enumerate(whole.rows):
        for around in (0, 1, 2, 5, 12):
            standing = await store.standing("main", row.user_id, around=around)
            assert (standing.rank, standing.score, standing.total) == (row.rank, row.score, 23)
            first = max(0, min(place - around, 23 - 1 - 2 * around))
            expected = whole.rows[first : first + 2 * around + 1] if around else ()
            assert standing.neighbours == expected


async def test_a_user_without_a_score_has_no_standing(store: Store) -> None:
    await open_board(store)

    with pytest.raises(UnknownUser):
        await store.standing("main", "unknown")


async def test_an_empty_redis_is_reported(store: Store) -> None:
    assert await store.state(Partition("main")) == PartitionState()
    with pytest.raises(Uninitialised):
        await store.board("main")
    with pytest.raises(Uninitialised):
        await store.leaderboard("main")


async def test_the_properties_of_a_board_are_read_back(store: Store) -> None:
    board = Board("main", Layout(2, 60, 8), is_public=False)
    await open_board(store, board)

    assert await store.board("main") == board
    state = await store.state(Partition("main", 1))
    assert (state.epoch, state.is_open, state.fence) == (1, True, "")


async def test_only_the_holder_of_the_fence_restores(store: Store) -> None:
    await open_board(store)
    await fence(store, Partition("main"), "mine")

    with pytest.raises(OperatorMistake, match="another operator"):
        await store.restore(Partition("main"), "yours", [(1, "eve")], first=True)


async def test_a_refusal_has_no_driver_error_as_its_cause(store: Store) -> None:
    await open_board(store)
    seen = await store.state(Partition("main"))
    await fence(store, Partition("main"), "mine")

    with pytest.raises(Outdated, match="another epoch") as caught:
        await store.fence(Partition("main"), "yours", seen)

    title, detail = Outdated.title, "another epoch, fence or committed position"
    assert explain(caught.value) == (f"{title}: {detail}", 69)


async def test_an_unreachable_server_raises_redis_unavailable() -> None:
    client = make_client(Settings(redis_url=Secret("redis://127.0.0.1:1")), name="test")

    with pytest.raises(RedisUnavailable):
        await Store(client).leaderboard("main")
    with pytest.raises(RedisUnavailable):
        await check_durability(client)
    await client.aclose()


async def test_a_server_that_may_lose_data_is_refused_with_every_reason(
    own_valkey: OwnValkey,
) -> None:
    server = own_valkey(settings={"appendfsync": "everysec", "maxmemory-policy": "allkeys-lru"})
    settings = Settings(redis_url=Secret(server.url))
    client = make_client(settings, name="test")

    with pytest.raises(UnsafeRedis, match=r"appendfsync is everysec.*maxmemory-policy is allkeys"):
        await require_durability(client, settings)
    accepted = Settings(redis_url=Secret(server.url), unsafe_redis=True)
    assert len((await require_durability(client, accepted)).problems) == 2
    await client.aclose()


async def test_a_server_that_hides_its_settings_needs_an_explicit_setting(
    own_valkey: OwnValkey,
) -> None:
    server = own_valkey()
    with redis.Redis.from_url(server.url) as admin:
        admin.acl_setuser(
            "plain", enabled=True, passwords=["+pw"], categories=["+@all"], commands=["-config"]
        )
    address = server.url.partition("@")[2]
    settings = Settings(redis_url=Secret(f"redis://plain:pw@{address}"))
    client = make_client(settings, name="test")

    with pytest.raises(UnsafeRedis, match=r"CONFIG GET is refused.*appendfsync always.*VOUCHED"):
        await require_durability(client, settings)
    vouched = structs.replace(settings, vouched_redis=True)
    found = await require_durability(client, vouched)
    assert found.is_safe
    assert "appendfsync always" in found.vouched
    check = describe_durability(found, is_unsafe_allowed=False)
    assert (check.state, check.advice) == ("vouched", "")
    assert "maxmemory-policy noeviction" in check.detail
    with redis.Redis.from_url(server.url) as admin:
        admin.replicaof("127.0.0.1", 1)
    with pytest.raises(UnsafeRedis, match="role is slave"):
        await require_durability(client, vouched)
    await client.aclose()


async def test_vouching_does_not_cover_settings_that_can_be_read(own_valkey: OwnValkey) -> None:
    server = own_valkey(settings={"appendfsync": "everysec"})
    client = make_client(Settings(redis_url=Secret(server.url)), name="test")

    with pytest.raises(UnsafeRedis, match="appendfsync is everysec"):
        await require_durability(client, Settings(redis_url=Secret(server.url), vouched_redis=True))
    await client.aclose()


@pytest.mark.parametrize("acknowledge", ["fsync", "committed"])
async def test_vouching_does_not_cover_an_eviction_policy_that_info_shows(
    own_valkey: OwnValkey, acknowledge: Literal["fsync", "committed"]
) -> None:
    """A managed server hides CONFIG, not INFO, and may evict by default."""
    hidden = {"rename-command": 'config ""', "maxmemory-policy": "volatile-lru"}
    server = own_valkey(settings=hidden)
    settings = Settings(redis_url=Secret(server.url), acknowledge=acknowledge, vouched_redis=True)
    client = make_client(settings, name="test")

    with pytest.raises(UnsafeRedis, match="maxmemory-policy is volatile-lru, must be noeviction"):
        await require_durability(client, settings)
    await client.aclose()


async def test_updates_that_wait_for_postgresql_need_no_append_only_file(
    own_valkey: OwnValkey,
) -> None:
    server = own_valkey(settings={"appendonly": "no"})
    settings = Settings(redis_url=Secret(server.url), acknowledge="committed")
    client = make_client(settings, name="test")

    assert (await require_durability(client, settings)).is_safe
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(UnsafeRedis, match="maxmemory-policy is allkeys-lru, must be noeviction"):
        await require_durability(client, settings)
    await client.aclose()
