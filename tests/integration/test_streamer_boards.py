"""Boards that a streamer watches on demand: found, read, dropped, bounded.

I8 holds for them as for default boards: two seconds after the last change every viewer has Redis's
top 10; no viewer gets an older one.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis.asyncio as aioredis

from scoreboard.broadcast.pace import BURST
from scoreboard.model import Board, Layout, Partition, Rules
from scoreboard.runtime.telemetry import REGISTRY
from scoreboard.store.client import make_client
from scoreboard.store.keys import BOARDS, PartitionKeys
from scoreboard.store.store import Store
from tests.support.clients.viewer import (
    PATH,
    Connect,
    HttpResponse,
    RawViewer,
    RunningStreamer,
    StartStreamer,
    playing,
    request_bytes,
)
from tests.support.data.boards import open_board
from tests.support.eventually import eventually_async
from tests.support.fakes.proxy import MakeProxy
from tests.support.fakes.tokens import MakeToken
from tests.support.servers.stores import OwnValkey

GOLF = Board("golf")
GOLF_PATH = f"{PATH}?board=golf"
Handshake = Callable[..., Any]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoreboard.broadcast.watcher.RECONCILE_S", 0.3)
    monkeypatch.setattr("scoreboard.broadcast.watcher.STALE_AFTER_S", 0.2)
    monkeypatch.setattr("scoreboard.broadcast.watcher.DELETED_AFTER_S", 0.3)
    monkeypatch.setattr("scoreboard.store.board_directory.UNKNOWN_S", 0.1)


@pytest.fixture
def quickly_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoreboard.broadcast.watcher.IDLE_S", 0.1)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[aioredis.Redis]:
    async with aioredis.Redis.from_url(redis_url, decode_responses=True, protocol=2) as client:
        yield client


async def make(store: Store, *boards: Board, scores: Any = (("ada", 10),)) -> None:
    """Create boards as the command does: open them, then list them."""
    for board in boards:
        await open_board(store, board, scores=scores if board.layout.partitions == 1 else ())
    await store.write_boards(boards)


def watched(running: RunningStreamer) -> set[str]:
    return set(running.streamer.watcher._watched)


async def wait_for_score(viewer: RawViewer, user: str, score: int) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            board = await viewer.next("leaderboard")
            places = [
                (one["epoch"], one["seq"])
                for one in viewer.messages
                if one["type"] == "leaderboard"
            ]
            assert places == sorted(set(places)), "a viewer got an older board, or one twice"
            if {row["userId"]: row["score"] for row in board["leaderboard"]}.get(user) == score:
                return board


async def subscribers(client: aioredis.Redis, board: str = "golf", number: int = 0) -> int:
    channel = PartitionKeys(Partition(board, number)).changes
    return (await client.pubsub_numsub(channel))[0][1]


FLUSHERS = tuple(
    f"scoreboard_{name}"
    for name in ("flush", "drift", "verify", "stream_", "dead_", "partition_", "commit", "repair")
)
"""Beginnings of series of a flusher, which another test may have run in this process."""


def series(board: str) -> list[str]:
    """Return the metrics that are exported for a board."""
    samples = [one for family in REGISTRY.collect() for one in family.samples]
    return [
        one.name
        for one in samples
        if one.labels.get("board") == board and not one.name.startswith(FLUSHERS)
    ]


async def test_a_board_made_after_the_start_is_shown_with_its_changes(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    first, second = await start_streamer(), await start_streamer(opened=False)
    await make(first.store, GOLF)
    viewers = [await connect(one.port, GOLF_PATH) for one in (first, second)]
    for viewer in viewers:
        assert (await viewer.next())["board"] == "golf"

    async with playing(first.settings) as submit:
        await submit("ada", 5, board="golf")

    for viewer in viewers:
        board = await wait_for_score(viewer, "ada", 15)
        assert board["board"] == "golf"


async def test_a_new_subscription_does_not_wait_for_a_ping(
    start_streamer: StartStreamer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.store.subscription.PING_S", 14.0)
    monkeypatch.setattr("scoreboard.broadcast.watcher.RECONCILE_S", 60.0)
    running = await start_streamer()
    await make(running.store, GOLF)
    viewer = await connect(running.port, GOLF_PATH)
    watcher = running.streamer.watcher
    await eventually_async(lambda: watcher.hears("golf", 1), within_s=5)

    async with playing(running.settings) as submit:
        await submit("ada", 5, board="golf")

    async with asyncio.timeout(5):
        await wait_for_score(viewer, "ada", 15)


async def test_a_new_board_does_not_make_the_others_be_read(
    start_streamer: StartStreamer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.broadcast.watcher.RECONCILE_S", 60.0)
    running = await start_streamer()
    await running.wait_until_quiet()
    watcher = running.streamer.watcher
    before = watcher.generation("main")
    await make(running.store, GOLF)
    await connect(running.port, GOLF_PATH)
    await eventually_async(lambda: watcher.hears("golf", 1))

    assert watcher.generation("golf") > 0
    assert watcher.generation("main") == before
    assert watcher.hears("main", 1)


async def test_a_board_of_several_partitions_is_heard_from_the_first_viewer_on(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis
) -> None:
    running = await start_streamer()
    await make(running.store, Board("golf", Layout(3)))
    viewer = await connect(running.port, GOLF_PATH)
    await viewer.next("leaderboard")
    for number in range(3):
        await eventually_async(lambda number=number: subscribers(client, number=number))

    async with playing(running.settings) as submit:
        for number in range(12):
            await submit(f"user{number}", 1 + number, board="golf")
    await wait_for_score(viewer, "user11", 12)


@pytest.mark.usefixtures("quickly_idle")
async def test_everything_of_a_board_is_dropped_after_its_last_viewer(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis
) -> None:
    running = await start_streamer()
    await make(running.store, GOLF)
    hub, watcher = running.streamer.manager.hub, running.streamer.watcher
    tasks = len(asyncio.all_tasks())
    for _ in range(2):  # it can return
        viewers = [await connect(running.port, GOLF_PATH) for _ in range(2)]
        await eventually_async(lambda: subscribers(client))
        assert "golf" in watched(running)
        assert series("golf")
        viewers[0].close()
        await eventually_async(lambda: len(hub.channels["golf"].viewers) == 1)
        async with playing(running.settings) as submit:
            seq = await submit("ada", 5, board="golf")
        while (await viewers[1].next("leaderboard"))["seq"] < seq:
            pass

        viewers[1].close()

        await eventually_async(lambda: "golf" not in watched(running))
        await eventually_async(lambda: not hub.channels.get("golf"))

        async def is_gone() -> bool:
            return not await subscribers(client)

        await eventually_async(is_gone)
        assert not series("golf")
        assert not watcher.hears("golf", 1)
        assert watcher.generation("golf") == 0
        assert {one.name for one in watcher._by_channel.values()} == {"main"}
    await eventually_async(lambda: len(asyncio.all_tasks()) <= tasks)
    await running.wait_until_empty()
    assert await subscribers(client, "main"), "default boards stay watched"


async def test_a_board_stays_watched_for_a_while(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis
) -> None:
    """Viewers that reconnect must not make the process subscribe again."""
    running = await start_streamer()
    await make(running.store, GOLF)
    (await connect(running.port, GOLF_PATH)).close()
    board = running.streamer.watcher._watched["golf"]
    await running.wait_until_empty()
    read_at_s = board.read_at_s
    await eventually_async(lambda: board.read_at_s > read_at_s)

    viewer = await connect(running.port, GOLF_PATH)

    await viewer.next("leaderboard")
    assert running.streamer.watcher._watched["golf"] is board


async def test_a_viewer_of_a_board_without_redis_keys_gets_503(
    start_streamer: StartStreamer, handshake: Handshake
) -> None:
    running = await start_streamer()
    await running.store.write_boards([GOLF])
    answer: HttpResponse = await handshake(running.port, GOLF_PATH)
    assert (answer.status, answer.problem["type"].rpartition("/")[2]) == (503, "uninitialised")


async def test_unknown_names_cost_one_read_a_second_and_no_memory(
    start_streamer: StartStreamer,
    handshake: Handshake,
    client: aioredis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scoreboard.store.board_directory.UNKNOWN_S", 60.0)
    running = await start_streamer()
    await running.store.write_boards([Board()])
    await client.config_resetstat()

    answers = await asyncio.gather(
        *(handshake(running.port, f"{PATH}?board=chess") for _ in range(40))
    )

    assert {one.status for one in answers} == {404}
    assert (await client.info("commandstats"))["cmdstat_hlen"]["calls"] == 1
    for name in ("Main", "a:b", "x" * 33, "%00", "..%2f", ""):
        assert (await handshake(running.port, f"{PATH}?board={name}")).status in {400, 404}
    assert (await client.info("commandstats"))["cmdstat_hlen"]["calls"] == 1
    assert watched(running) == {"main"}
    assert set(running.streamer.manager.hub.channels) == {"main"}
    assert not running.streamer.manager._opening
    await running.wait_until_empty()


async def test_an_emptied_redis_has_not_lost_its_boards(
    start_streamer: StartStreamer, connect: Connect, handshake: Handshake, client: aioredis.Redis
) -> None:
    running = await start_streamer()
    await make(running.store, GOLF)
    viewer = await connect(running.port, GOLF_PATH)
    await viewer.next("leaderboard")
    await client.flushdb()

    assert (await viewer.next("status"))["reason"] == "uninitialised"
    assert (await handshake(running.port, f"{PATH}?board=chess")).status == 503
    await open_board(running.store, GOLF, scores=[("bob", 7)], epoch=2)  # as a reseed does
    await running.store.write_boards([GOLF])

    assert (await wait_for_score(viewer, "bob", 7))["board"] == "golf"
    assert not [one for one in viewer.messages if one["type"] == "bye"]


async def test_a_deleted_board_closes_its_viewers(
    start_streamer: StartStreamer,
    connect: Connect,
    handshake: Handshake,
    client: aioredis.Redis,
    make_token: MakeToken,
) -> None:
    running = await start_streamer()
    await make(running.store, GOLF, Board("chess"))
    viewers = [
        await connect(running.port, GOLF_PATH),
        await connect(running.port, GOLF_PATH, token=make_token()),
    ]
    other = await connect(running.port, f"{PATH}?board=chess")
    await client.hdel(BOARDS, "golf")
    await client.delete(*[key async for key in client.scan_iter("sb:{golf:0}:*")])

    for viewer in viewers:
        assert await viewer.closed() == 4404
        bye = viewer.messages[-1]
        assert (bye["type"], bye["code"], bye["reconnect"]) == ("bye", 4404, False)
    assert (await handshake(running.port, GOLF_PATH)).status == 404
    assert watched(running) == {"main", "chess"}
    await other.send_json({"type": "sync"})
    assert (await other.next("leaderboard"))["board"] == "chess"


async def test_a_board_that_is_only_removed_from_the_list_is_deleted_too(
    start_streamer: StartStreamer,
    connect: Connect,
    client: aioredis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scoreboard.store.board_directory.REFRESH_S", 0.2)
    running = await start_streamer()
    await make(running.store, GOLF, Board("chess"))
    viewer = await connect(running.port, GOLF_PATH)
    await client.hdel(BOARDS, "golf")

    assert await viewer.closed() == 4404


async def test_an_archived_board_stays_readable(
    start_streamer: StartStreamer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.store.board_directory.REFRESH_S", 0.1)
    running = await start_streamer()
    await make(running.store, GOLF)
    viewer = await connect(running.port, GOLF_PATH)
    await running.store.write_boards([Board("golf", state="archived")])
    board = running.streamer.watcher._watched["golf"]
    read_at_s = board.read_at_s
    await eventually_async(lambda: board.read_at_s > read_at_s + 1)

    late = await connect(running.port, GOLF_PATH)

    assert (await late.next("leaderboard"))["board"] == "golf"
    await viewer.send_json({"type": "sync"})
    await viewer.next("leaderboard")


async def test_a_private_board_needs_a_token_with_the_scope(
    start_streamer: StartStreamer, connect: Connect, handshake: Handshake, make_token: MakeToken
) -> None:
    running = await start_streamer()
    await make(running.store, Board("golf", is_public=False))

    for _ in range(2):  # not watched yet, then watched
        assert (await handshake(running.port, GOLF_PATH)).status == 401
        assert (
            await handshake(running.port, GOLF_PATH, token=make_token(scope="update:score"))
        ).status == 403
    viewer = await connect(running.port, GOLF_PATH, token=make_token())
    assert (await viewer.next())["board"] == "golf"


async def test_a_change_of_visibility_is_noticed_with_its_notification(
    start_streamer: StartStreamer,
    connect: Connect,
    client: aioredis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scoreboard.broadcast.watcher.RECONCILE_S", 60.0)
    running = await start_streamer()
    await make(running.store, GOLF)
    viewer = await connect(running.port, GOLF_PATH)
    await eventually_async(lambda: running.streamer.watcher.hears("golf", 1))
    keys = PartitionKeys(Partition("golf"))
    await client.hset(keys.meta, "public", "0")
    await client.publish(keys.changes, "1:0:board")

    assert await viewer.closed(within_s=10) == 4403


async def test_the_number_of_watched_boards_is_limited(
    start_streamer: StartStreamer, connect: Connect, handshake: Handshake
) -> None:
    running = await start_streamer(watched_boards=2)
    await make(running.store, *(Board(f"board-{number}") for number in range(4)))
    paths = [f"{PATH}?board=board-{number}" for number in range(4)]
    viewers = [await connect(running.port, path) for path in paths[:2]]

    answer: HttpResponse = await handshake(running.port, paths[2])
    assert answer.status == 503
    assert "limit of boards" in answer.problem["detail"]
    assert int(answer.headers["retry-after"]) >= 1
    await connect(running.port, paths[0])  # the boards that are watched accept viewers
    await connect(running.port)

    # A board without viewers makes room before its time is over.
    viewers[1].close()
    channels = running.streamer.manager.hub.channels
    await eventually_async(lambda: not channels["board-1"].viewers)
    await connect(running.port, paths[2])
    assert watched(running) == {"main", "board-0", "board-2"}
    assert (await handshake(running.port, paths[3])).status == 503


async def test_the_rate_of_new_boards_is_limited(
    start_streamer: StartStreamer,
    connect: Connect,
    handshake: Handshake,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scoreboard.broadcast.watcher.NEW_BOARDS_PER_S", 0.001)
    monkeypatch.setattr("scoreboard.broadcast.watcher.NEW_BOARDS_BURST", 2)
    running = await start_streamer()
    await make(running.store, *(Board(f"board-{number}") for number in range(3)))
    for number in range(2):
        await connect(running.port, f"{PATH}?board=board-{number}")

    answer: HttpResponse = await handshake(running.port, f"{PATH}?board=board-2")

    assert answer.status == 503
    assert "at once" in answer.problem["detail"]
    assert "board-2" not in watched(running)
    await connect(running.port, f"{PATH}?board=board-1")


async def test_changes_before_during_and_after_the_first_read_are_shown(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    names = [f"board-{number}" for number in range(10)]
    await make(running.store, *map(Board, names))
    async with playing(running.settings) as submit:

        async def write(name: str) -> None:
            for _ in range(30):
                await submit("bob", 1, board=name)

        async with asyncio.TaskGroup() as tasks:
            for name in names:
                tasks.create_task(write(name))
            viewers = await asyncio.gather(
                *(connect(running.port, f"{PATH}?board={name}") for name in names for _ in "12")
            )
    for viewer in viewers:
        board = await wait_for_score(viewer, "bob", 30)
        assert {row["userId"] for row in board["leaderboard"]} == {"ada", "bob"}


async def test_ten_thousand_changes_a_second_keep_the_pace(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis
) -> None:
    running = await start_streamer(heartbeat_s=60)
    await make(running.store, GOLF)
    viewer = await connect(running.port, GOLF_PATH)
    await viewer.next("leaderboard")
    keys = PartitionKeys(Partition("golf"))
    loop = asyncio.get_running_loop()
    started_at_s = loop.time()
    for number in range(50):
        async with client.pipeline(transaction=False) as pipe:
            for _ in range(200):
                pipe.publish(keys.changes, "1:1")
            pipe.zadd(keys.board, {"ada": (1000 + number) * 2**21})
            pipe.hincrby(keys.meta, "seq", 1)
            pipe.publish(keys.changes, "1:1")
            await pipe.execute()
    board = await wait_for_score(viewer, "ada", 1049)

    took_s = loop.time() - started_at_s
    boards = [one for one in viewer.messages if one["type"] == "leaderboard"]
    assert len(boards) <= 1 + BURST + took_s / 0.1 + 1
    assert board["leaderboard"][0]["score"] == 1049


async def test_viewers_that_leave_while_a_board_is_opened_leave_nothing(
    start_streamer: StartStreamer, redis_url: str, make_proxy: MakeProxy, make_token: MakeToken
) -> None:
    proxy = await make_proxy(int(redis_url.rpartition(":")[2].partition("/")[0]))
    running = await start_streamer(url=proxy.through(redis_url), handshake_timeout_s=30)
    await make(running.store, *(Board(f"board-{number}") for number in range(6)))
    manager = running.streamer.manager
    proxy.freeze()
    viewers = []
    for number in range(6):
        for leave in (RawViewer.close, RawViewer.reset):
            viewer = await RawViewer.open(running.port)
            token = make_token() if number % 2 else None
            await viewer.send(request_bytes(f"{PATH}?board=board-{number}", token=token))
            viewers.append((viewer, leave))
    await eventually_async(lambda: len(manager._opening) == 6)
    for viewer, leave in viewers:
        leave(viewer)

    await running.wait_until_empty()
    await proxy.restore()
    await eventually_async(lambda: not manager._opening)
    assert manager.admission.is_empty


async def test_a_lost_connection_makes_boards_stale_then_live(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis
) -> None:
    running = await start_streamer()
    names = [f"board-{number}" for number in range(20)]
    await make(running.store, *map(Board, names))
    viewers = [await connect(running.port, f"{PATH}?board={name}") for name in names]
    for viewer, name in zip(viewers, names, strict=True):
        await viewer.next("leaderboard")
        await eventually_async(lambda name=name: running.streamer.watcher.hears(name, 1))

    await client.client_kill_filter(_type="pubsub")
    async with playing(running.settings) as submit:
        for name in names:
            await submit("ada", 5, board=name)

    for viewer in viewers:
        await wait_for_score(viewer, "ada", 15)


async def test_an_older_state_is_not_shown(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis
) -> None:
    running = await start_streamer()
    await make(running.store, GOLF)
    viewer = await connect(running.port, GOLF_PATH)
    async with playing(running.settings) as submit:
        await submit("ada", 5, board="golf")
        await wait_for_score(viewer, "ada", 15)
    keys = PartitionKeys(Partition("golf"))
    await client.hincrby(keys.meta, "seq", -1)
    await client.zadd(keys.board, {"ada": 10 * 2**21})
    await client.publish(keys.changes, "1:0")

    status = await viewer.next("status")
    assert (status["state"], status["reason"]) == ("stale", "rewound")
    boards = [one for one in viewer.messages if one["type"] == "leaderboard"]
    assert [one["leaderboard"][0]["score"] for one in boards][-1] == 15


@pytest.mark.slow
async def test_fifty_boards_return_after_a_restart_of_redis(
    start_streamer: StartStreamer, connect: Connect, own_valkey: OwnValkey
) -> None:
    server = own_valkey()
    running = await start_streamer(opened=False, url=server.url)
    redis_client = make_client(running.settings, name="test")
    store = Store(redis_client)
    await open_board(store, scores=[("ada", 10)])
    names = [f"board-{number}" for number in range(50)]
    await make(store, *map(Board, names))
    await redis_client.aclose()
    await eventually_async(lambda: running.streamer.watcher.is_ready)
    viewers = [await connect(running.port, f"{PATH}?board={name}") for name in names]
    for viewer in viewers:
        await viewer.next("leaderboard")

    await asyncio.to_thread(server.stop)
    for viewer in viewers:
        assert (await viewer.next("status"))["state"] == "stale"
    await asyncio.to_thread(server.start)

    for viewer in viewers:
        assert (await viewer.next("status"))["state"] == "live"
    async with playing(running.settings) as submit:
        for name in names:
            await submit("ada", 5, board=name)
    for viewer in viewers:
        await wait_for_score(viewer, "ada", 15)


async def test_a_drain_closes_the_viewers_of_all_boards(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    names = [f"board-{number}" for number in range(30)]
    await make(running.store, *map(Board, names))
    viewers = [await connect(running.port, f"{PATH}?board={name}") for name in names]
    viewers.append(await connect(running.port))

    draining = asyncio.create_task(running.streamer.drain())
    codes = await asyncio.gather(*(viewer.closed() for viewer in viewers))
    await draining

    assert set(codes) == {1012}
    await running.wait_until_empty()


async def test_readiness_describes_only_default_boards(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    await make(running.store, GOLF)
    await connect(running.port, GOLF_PATH)
    is_ready, facts = running.streamer.readiness()
    assert is_ready
    assert "golf" not in json.dumps(facts, default=str)


async def test_a_board_with_the_lowest_score_first_is_shown_in_its_order(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    rules = Rules(operator="best", order="lowest", score_min=1, score_max=200, points="stated")
    await make(running.store, Board("golf", Layout(rules=rules)), scores=())
    viewer = await connect(running.port, GOLF_PATH)
    await viewer.next("leaderboard")
    async with playing(running.settings) as submit:
        for user, score in (("ada", 80), ("bob", 72), ("eve", 200), ("bob", 90), ("ada", 71)):
            await submit(user, score, board="golf", rules=rules)

    board = await wait_for_score(viewer, "ada", 71)
    assert [(row["userId"], row["score"]) for row in board["leaderboard"]] == [
        ("ada", 71),
        ("bob", 72),
        ("eve", 200),
    ]
