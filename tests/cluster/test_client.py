"""The client of a cluster: its errors are those of a plain client, and its logins are renewed."""

import asyncio

import pytest
from redis.exceptions import RedisError

from scoreboard.errors import RedisUnavailable, ScoreboardError
from scoreboard.model import Action, Board, Layout, Partition, Span
from scoreboard.runtime.connection_urls import driver_error, error_text
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.client import make_client
from scoreboard.store.cluster import send_many
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.durability import check_durability
from scoreboard.store.keys import load_test_key, viewers_key
from scoreboard.store.store import Store
from scoreboard.store.viewer_counts import count_viewers
from tests.support.data.boards import open_board
from tests.support.eventually import eventually_async
from tests.support.servers.clusters import PASSWORD, Cluster, OwnCluster, slot_of

NAMES = ["main", "one", "two", "three", "four"]


async def failure(url: str) -> ScoreboardError:
    """Return the error of a call with a URL."""
    async with make_client(Settings(redis_url=Secret(url)), name="test") as client:
        with pytest.raises(ScoreboardError) as raised:
            await Store(client).state(Partition("main"))
        with pytest.raises(ScoreboardError):
            await check_durability(client)
        with pytest.raises(ScoreboardError):
            await Store(client).survey([Partition("main")])
        return raised.value


async def test_a_refused_login_is_told(cluster: Cluster) -> None:
    error = await failure(cluster.url.replace(PASSWORD, "wrong"))

    assert isinstance(error, RedisUnavailable)
    assert error.detail == "Redis refuses the login"
    assert "wrong" not in repr(error.__cause__)


async def test_a_login_without_the_right_to_the_slots_is_told(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.call("ACL", "SETUSER", "weak", "on", ">x", "~*", "&*", "+@all", "-cluster")

    error = await failure(cluster.url.replace(f":{PASSWORD}@", "weak:x@"))

    cause = driver_error(error)
    assert cause is not None
    assert "no permissions to run the 'cluster|slots' command" in error_text(cause)


async def test_a_plain_server_in_place_of_a_cluster_is_told(redis_url: str) -> None:
    plain = redis_url.removeprefix("redis://").partition("/")[0]

    error = await failure(f"redis+cluster://{plain}")

    cause = driver_error(error)
    assert cause is not None
    assert error_text(cause) == "NOCLUSTER the servers that REDIS_URL names are not a cluster"


async def test_a_cluster_that_is_away_is_unreachable() -> None:
    error = await failure("redis+cluster://:x@127.0.0.1:1,127.0.0.1:2")

    assert isinstance(error, RedisUnavailable)


async def test_all_primaries_are_checked(own_cluster: OwnCluster) -> None:
    cluster = own_cluster(replicas=0)
    weak, lost = cluster.nodes[1], cluster.nodes[2]
    async with make_client(Settings(redis_url=Secret(cluster.url)), name="test") as client:
        assert (await check_durability(client)).problems == ()
        weak.call("CONFIG", "SET", "appendfsync", "everysec")
        found = await check_durability(client)
        assert [problem.partition(": ")[0] for problem in found.problems] == [
            f"127.0.0.1:{weak.port}"
        ]
        assert (found.primaries, found.away) == (3, ())
        lost.kill()
        found = await check_durability(client)
        assert (found.primaries, found.away) == (3, (f"127.0.0.1:{lost.port}",))


async def test_a_survey_has_the_partitions_of_the_servers_that_answer(
    own_cluster: OwnCluster,
) -> None:
    cluster = own_cluster(replicas=0)
    async with make_client(Settings(redis_url=Secret(cluster.url)), name="test") as client:
        store = Store(client)
        for name in NAMES:
            await open_board(store, Board(name))
        lost = cluster.primary_of("sb:{two:0}:meta")
        away = {name for name in NAMES if cluster.primary_of(f"sb:{{{name}:0}}:meta") is lost}
        lost.kill()
        for _ in range(2):
            found = await store.survey([Partition(name) for name in NAMES])
            failed = {
                name
                for name, one in zip(NAMES, found, strict=True)
                if isinstance(one, RedisUnavailable)
            }
            assert failed == away
        assert await store.now_s() > 0


async def test_every_primary_gets_its_own_updates(cluster: Cluster) -> None:
    settings = Settings(redis_url=Secret(cluster.url), dispatch_connections=2)
    async with make_client(settings, name="test") as client:
        for name in NAMES:
            await open_board(Store(client), Board(name))
        dispatcher = Dispatcher(settings)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(dispatcher.run())
            receipts = await asyncio.gather(
                *(
                    dispatcher.submit(name, Action(f"user{n}", "win:1", 5))
                    for n in range(50)
                    for name in NAMES
                )
            )
            dispatcher.close()
        assert {receipt.score for receipt in receipts} == {5}
        assert await Store(client).count_users([Board(name) for name in NAMES]) == [50] * len(NAMES)


async def test_viewers_of_boards_on_all_primaries_are_counted(cluster: Cluster) -> None:
    async with make_client(Settings(redis_url=Secret(cluster.url)), name="test") as client:
        first, _ = await count_viewers(client, "a", dict.fromkeys(NAMES, 2))
        second, _ = await count_viewers(client, "b", dict.fromkeys(NAMES, 3))

        assert first == dict.fromkeys(NAMES, 2)
        assert second == dict.fromkeys(NAMES, 5)
        for name in NAMES:
            assert await client.hlen(viewers_key(name)) == 2


async def test_windows_of_a_board_over_primaries_are_read(cluster: Cluster) -> None:
    settings = Settings(redis_url=Secret(cluster.url))
    async with make_client(settings, name="test") as client:
        store = Store(client)
        await open_board(store, Board(layout=Layout(partitions=3)))
        dispatcher = Dispatcher(settings)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(dispatcher.run())
            for n in range(40):
                await dispatcher.submit("main", Action(f"user{n}", "win:1", 100 - n))
            dispatcher.close()
        top, deep, beyond = await store.windows("main", [Span(0, 10), Span(15, 10), Span(500, 10)])

        assert [row.user_id for row in top.rows] == [f"user{n}" for n in range(10)]
        assert [row.user_id for row in deep.rows] == [f"user{n}" for n in range(15, 25)]
        assert [row.rank for row in deep.rows] == list(range(16, 26))
        assert beyond.rows == ()
        assert top.positions == deep.positions == beyond.positions


async def test_every_partition_of_a_board_is_removed(cluster: Cluster) -> None:
    board = Board(layout=Layout(partitions=2))
    partitions = [Partition(board.name, number) for number in range(2)]
    async with make_client(Settings(redis_url=Secret(cluster.url)), name="test") as client:
        store = Store(client)
        await open_board(store, board)
        await client.set(load_test_key(board.name), "1")
        await count_viewers(client, "a", {board.name: 1})
        for partition in partitions:
            await store.remove(partition, board.layout)
        assert await store.states(board.name) == {}
        assert not await client.exists(load_test_key(board.name))
        assert not await client.exists(viewers_key(board.name))


@pytest.mark.parametrize("command", ["exists", "unlink", "get"])
async def test_more_calls_than_connections_wait_for_each_other(
    cluster: Cluster, command: str
) -> None:
    settings = Settings(redis_url=Secret(cluster.url))
    async with make_client(settings, name="test", connections=2) as client:
        await asyncio.gather(*(getattr(client, command)("{main:0}:key") for _ in range(40)))


async def test_more_reads_than_connections_are_redirected(cluster: Cluster) -> None:
    settings = Settings(redis_url=Secret(cluster.url))
    slot = slot_of("{main:0}:key")
    async with make_client(settings, name="test", connections=2) as client:
        assert await send_many(client, [("SET", "{main:0}:key", "x")]) == [True]
        old = cluster.primary_of("{main:0}:key")
        other = next(node for node in cluster.primaries() if node is not old)
        await asyncio.to_thread(cluster.migrate, [slot], other)

        found = await asyncio.gather(
            *(send_many(client, [("GET", "{main:0}:key")]) for _ in range(40))
        )

        assert found == [["x"]] * 40


async def test_reads_that_wait_too_long_are_errors_in_place_of_replies(cluster: Cluster) -> None:
    settings = Settings(redis_url=Secret(cluster.url), redis_timeout_s=0.2)
    async with make_client(settings, name="test", connections=2) as client:
        await send_many(client, [("SET", "{main:0}:key", "x")])
        node = cluster.primary_of("{main:0}:key")
        node.pause()
        try:
            found = await asyncio.gather(
                *(send_many(client, [("GET", "{main:0}:key")]) for _ in range(8))
            )
        finally:
            node.resume()

    assert all(isinstance(reply, RedisError) for (reply,) in found)


async def test_a_slot_that_moves_to_a_new_primary_is_read_there(own_cluster: OwnCluster) -> None:
    cluster = own_cluster(replicas=0)
    settings = Settings(redis_url=Secret(cluster.url))
    async with make_client(settings, name="test") as client:
        keys = [f"{{main:0}}:{number}" for number in range(20)]
        await send_many(client, [("SET", key, "x") for key in keys])
        await asyncio.gather(*(client.get(keys[0]) for _ in range(4)))  # several connections
        added = await asyncio.to_thread(cluster.add_node)
        with cluster.half_moved(slot_of(keys[0]), added):
            for _ in range(2):
                assert await send_many(client, [("GET", key) for key in keys]) == ["x"] * 20
                assert [await client.get(key) for key in keys] == ["x"] * 20


async def test_a_slot_without_a_primary_fails_only_its_own_partitions(
    own_cluster: OwnCluster,
) -> None:
    cluster = own_cluster(replicas=0)
    async with make_client(Settings(redis_url=Secret(cluster.url)), name="test") as client:
        store = Store(client)
        for name in NAMES:
            await open_board(store, Board(name))
        lost = slot_of("sb:{two:0}:meta")
        for node in cluster.nodes:
            node.call("CLUSTER", "DELSLOTS", lost)

        async def is_noticed() -> bool:
            found = await store.survey([Partition(name) for name in NAMES])
            failed = [
                name
                for name, one in zip(NAMES, found, strict=True)
                if isinstance(one, RedisUnavailable)
            ]
            assert set(failed) <= {"two"}
            return bool(failed)

        await eventually_async(is_noticed)
        with pytest.raises(RedisUnavailable):
            await store.state(Partition("two"))


async def test_updates_of_other_slots_are_acknowledged_while_one_moves(
    own_cluster: OwnCluster,
) -> None:
    """A counter that precedes WAIT was in one slot of each primary."""
    cluster = own_cluster(replicas=1)
    settings = Settings(
        redis_url=Secret(cluster.url), acknowledge="replicated", replica_timeout_ms=2000
    )
    async with make_client(settings, name="test") as client:
        for name in NAMES:
            await open_board(Store(client), Board(name))
        dispatcher = Dispatcher(settings)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(dispatcher.run())

            async def update(number: int) -> set[int]:
                done = await asyncio.gather(
                    *(
                        dispatcher.submit(name, Action("alice", f"win:{number}", 5))
                        for name in NAMES
                    )
                )
                return {receipt.score for receipt in done}

            assert await update(1) == {5}
            for node in cluster.primaries():
                other = next(one for one in cluster.primaries() if one is not node)
                free = next(
                    slot
                    for slot, owner in cluster.owners().items()
                    if owner is node
                    and all(slot != slot_of(f"sb:{{{name}:0}}:meta") for name in NAMES)
                )
                with cluster.half_moved(free, other):
                    await update(2)
            dispatcher.close()
        assert {key.rpartition(":")[2] for key in await client.keys("*pulse")} == {"pulse"}
