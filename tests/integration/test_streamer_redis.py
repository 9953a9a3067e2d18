"""BoardWatcher and Redis: lost messages, outages, rewinds, reseeds, several partitions.

I8: two seconds after the last change every viewer has Redis's top 10; no viewer gets an older one.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio as aioredis

from scoreboard.broadcast.pace import BURST
from scoreboard.model import Board, Layout, Partition
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.runtime.telemetry import REGISTRY
from scoreboard.store.client import make_client
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from tests.support.clients.viewer import Connect, RawViewer, RunningStreamer, StartStreamer, playing
from tests.support.data.boards import fence, open_board
from tests.support.eventually import eventually_async
from tests.support.fakes.proxy import MakeProxy
from tests.support.servers.rights import as_user
from tests.support.servers.stores import OwnValkey

pytestmark = pytest.mark.slow

KEYS = PartitionKeys(Partition("main"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the intervals of the watcher tenfold."""
    monkeypatch.setattr("scoreboard.broadcast.watcher.RECONCILE_S", 0.5)
    monkeypatch.setattr("scoreboard.broadcast.watcher.STALE_AFTER_S", 0.2)
    monkeypatch.setattr("scoreboard.broadcast.watcher.LOST_AFTER_S", 0.1)
    monkeypatch.setattr("scoreboard.store.subscription.PING_S", 0.2)
    monkeypatch.setattr("scoreboard.store.subscription.SILENCE_S", 0.6)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[aioredis.Redis]:
    async with aioredis.Redis.from_url(redis_url, decode_responses=True, protocol=2) as client:
        yield client


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"scoreboard_{name}", labels) or 0.0


async def wait_for_score(
    viewer: RawViewer, user: str, score: int, within_s: float = 30.0
) -> dict[str, Any]:
    """Read until a board has the user's score; check that ``seq`` rises strictly."""
    async with asyncio.timeout(within_s):
        while True:
            board = await viewer.next("leaderboard")
            scores = {row["userId"]: row["score"] for row in board["leaderboard"]}
            if scores.get(user) == score:
                check_order(viewer)
                return board


def check_order(viewer: RawViewer) -> None:
    places = [(one["epoch"], one["seq"]) for one in viewer.messages if one["type"] == "leaderboard"]
    assert places == sorted(set(places)), "a viewer got an older board, or one twice"


def statuses(viewer: RawViewer) -> list[str]:
    return [one["state"] for one in viewer.messages if one["type"] == "status"]


async def started(start: StartStreamer, connect: Connect, **more: Any) -> tuple[Any, RawViewer]:
    running: RunningStreamer = await start(**more)
    viewer = await connect(running.port)
    await viewer.next("leaderboard")
    return running, viewer


async def test_writes_during_startup_are_in_the_final_state(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    first = await start_streamer()
    async with playing(first.settings) as submit:

        async def write() -> None:
            for _ in range(300):
                await submit("ada", 1)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            second = await start_streamer(opened=False)
            await eventually_async(lambda: second.streamer.watcher.is_ready)
            viewer = await connect(second.port)
    await wait_for_score(viewer, "ada", 300)


async def test_repeated_and_reordered_messages_are_ignored(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis
) -> None:
    running, viewer = await started(start_streamer, connect, heartbeat_s=0.5)
    async with playing(running.settings) as submit:
        await submit("ada", 500)
    await wait_for_score(viewer, "ada", 500)

    for message in ("1:1", "1:1", "9:999", "0:0", "1:1"):
        await client.publish(KEYS.changes, message)
    await viewer.next("heartbeat")

    assert [one["type"] for one in viewer.messages].count("leaderboard") == 2


async def test_lost_message_is_corrected_by_reconciliation_and_counted(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis
) -> None:
    running, viewer = await started(start_streamer, connect)
    await running.wait_until_quiet()
    before = value("reconcile_mismatches_total", board="main")

    async with client.pipeline(transaction=True) as pipe:
        pipe.zadd(KEYS.board, {"ghost": 900 * 2**21})
        pipe.hincrby(KEYS.meta, "seq", 1)
        await pipe.execute()

    await wait_for_score(viewer, "ghost", 900)
    await eventually_async(lambda: value("reconcile_mismatches_total", board="main") == before + 1)


async def test_higher_seq_with_the_same_rows_sends_nothing(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis
) -> None:
    _, viewer = await started(start_streamer, connect, heartbeat_s=1.2)

    await client.hincrby(KEYS.meta, "seq", 5)
    await client.publish(KEYS.changes, "1:5")
    heartbeat = await viewer.next("heartbeat")

    assert [one["type"] for one in viewer.messages].count("leaderboard") == 1
    assert heartbeat["seq"] == viewer.messages[0]["seq"], (
        "a heartbeat has the position of the held board"
    )


async def test_emptied_redis_makes_the_board_stale_until_it_is_reseeded(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis
) -> None:
    running, viewer = await started(start_streamer, connect)

    await client.flushall()
    stale = await viewer.next("status")
    late = await connect(running.port)

    assert stale == {"type": "status", "state": "stale", "reason": "uninitialised", "board": "main"}
    assert (await late.next())["leaderboard"][0]["userId"] == "first"
    assert (await late.next())["state"] == "stale"

    # A reseed raises the epoch, which PostgreSQL remembers.
    await open_board(running.store, scores=[("new", 7)], epoch=2)
    board = await wait_for_score(viewer, "new", 7)

    assert board["epoch"] == 2
    assert (await viewer.next("status"))["state"] == "live"
    assert (await late.next("status"))["state"] == "live"
    check_order(viewer)


@pytest.mark.one_server
async def test_a_missing_right_is_named_in_readiness(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis, redis_url: str
) -> None:
    rights = ("on", ">limited", "~*", "&*", "+@all")
    await client.execute_command("ACL", "SETUSER", "limited", *rights)
    try:
        running = await start_streamer(url=as_user(redis_url, "limited", "limited"))
        await connect(running.port)
        await client.execute_command("ACL", "SETUSER", "limited", "-hmget")

        def is_named() -> bool:
            check = running.streamer.readiness()[1]["checks"]["live main"]
            return check.state == "stale" and "permission denied (NOPERM)" in check.detail

        await eventually_async(is_named)
    finally:
        await client.execute_command("ACL", "DELUSER", "limited")


@pytest.mark.parametrize("field", ["seq", "epoch"])
async def test_rewound_redis_makes_the_board_stale_until_its_epoch_rises(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis, field: str
) -> None:
    running = await start_streamer()
    await open_board(running.store, scores=[("ada", 10)])
    async with playing(running.settings) as submit:
        await submit("ada", 5)
    viewer = await connect(running.port)
    await wait_for_score(viewer, "ada", 15)
    regressions = value("board_regressions_total", board="main")

    async with client.pipeline(transaction=True) as pipe:
        pipe.hincrby(KEYS.meta, field, -1)
        pipe.zadd(KEYS.board, {"ada": 10 * 2**21})
        await pipe.execute()
    await client.publish(KEYS.changes, "2:0")

    assert (await viewer.next("status"))["reason"] == "rewound"
    assert value("board_regressions_total", board="main") == regressions + 1
    late = await connect(running.port)
    assert (await late.next())["leaderboard"][0]["score"] == 15, "the newest board is kept"

    await client.hset(KEYS.meta, "epoch", 3)
    await client.publish(KEYS.changes, "3:0")

    board = await viewer.next("leaderboard")
    assert (board["epoch"], board["leaderboard"][0]["score"]) == (3, 10)
    assert (await viewer.next("status"))["state"] == "live"


async def test_new_epoch_is_sent_even_with_the_same_rows(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running, viewer = await started(start_streamer, connect, scores=[("ada", 10)])

    await open_board(running.store, scores=[("ada", 10)])

    board = await viewer.next("leaderboard")
    assert board["epoch"] == 2
    assert board["leaderboard"] == viewer.messages[0]["leaderboard"]


async def test_fenced_board_is_still_followed(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running, viewer = await started(start_streamer, connect, heartbeat_s=0.8)

    await fence(running.store, Partition("main"), "operator")
    await viewer.next("heartbeat")

    assert statuses(viewer) == []
    late = await connect(running.port)
    assert (await late.next())["type"] == "leaderboard"


@pytest.mark.one_server
async def test_redis_outage_sends_one_stale_and_one_live(
    start_streamer: StartStreamer, connect: Connect, make_proxy: MakeProxy, redis_url: str
) -> None:
    proxy = await make_proxy(int(redis_url.rpartition(":")[2].partition("/")[0]))
    running, viewer = await started(start_streamer, connect, url=proxy.through(redis_url))

    proxy.refuse()
    assert (await viewer.next("status"))["reason"] == "unreachable"
    async with playing(Settings(redis_url=Secret(redis_url))) as submit:
        await submit("ada", 700)
    late = await connect(running.port)
    assert [(await late.next())["type"], (await late.next())["type"]] == ["leaderboard", "status"]
    assert not running.streamer.watcher.is_ready
    await proxy.restore()

    await wait_for_score(viewer, "ada", 700)
    assert (await viewer.next("status"))["state"] == "live"
    assert statuses(viewer) == ["stale", "live"]
    await eventually_async(lambda: running.streamer.watcher.is_ready)


@pytest.mark.one_server
async def test_recovery_is_noticed_in_time_after_any_outage(
    start_streamer: StartStreamer,
    connect: Connect,
    make_proxy: MakeProxy,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Incident: the delay between attempts grew to 5 s; the documented limit is 2 s."""
    monkeypatch.setattr("scoreboard.runtime.lifecycle.random.uniform", lambda _least, most: most)
    proxy = await make_proxy(int(redis_url.rpartition(":")[2].partition("/")[0]))
    _, viewer = await started(start_streamer, connect, url=proxy.through(redis_url))
    proxy.refuse()
    assert (await viewer.next("status"))["state"] == "stale"
    await asyncio.sleep(3.5)  # pace: lets the delay between attempts grow
    async with playing(Settings(redis_url=Secret(redis_url))) as submit:
        await submit("ada", 300)
    began_s = time.monotonic()

    await proxy.restore()

    await wait_for_score(viewer, "ada", 300)
    assert (await viewer.next("status"))["state"] == "live"
    assert time.monotonic() - began_s < 4.5


async def test_short_reconnection_sends_no_status_and_misses_no_change(
    start_streamer: StartStreamer,
    connect: Connect,
    client: aioredis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scoreboard.broadcast.watcher.STALE_AFTER_S", 20.0)
    monkeypatch.setattr("scoreboard.broadcast.watcher.RECONCILE_S", 60.0)
    monkeypatch.setattr("scoreboard.store.subscription.backoff_s", lambda attempt, most_s: 0.5)
    running, viewer = await started(start_streamer, connect)
    await running.wait_until_quiet()
    lost = value("pubsub_reconnects_total")

    await client.client_kill_filter(_type="pubsub")
    await eventually_async(lambda: value("pubsub_reconnects_total") == lost + 1)
    async with playing(running.settings) as submit:
        await submit("ada", 900)  # no subscriber at this moment

    await wait_for_score(viewer, "ada", 900, within_s=15)
    assert statuses(viewer) == []


@pytest.mark.one_server
async def test_silent_redis_connection_is_detected_and_replaced(
    start_streamer: StartStreamer, connect: Connect, make_proxy: MakeProxy, redis_url: str
) -> None:
    proxy = await make_proxy(int(redis_url.rpartition(":")[2].partition("/")[0]))
    running, viewer = await started(
        start_streamer, connect, url=proxy.through(redis_url), redis_timeout_s=0.5
    )

    lost = value("pubsub_reconnects_total")

    proxy.freeze()
    assert (await viewer.next("status"))["state"] == "stale"
    await eventually_async(lambda: value("pubsub_reconnects_total") == lost + 1)
    await proxy.restore()

    async with playing(running.settings) as submit:
        await submit("ada", 800)
    await wait_for_score(viewer, "ada", 800)
    await eventually_async(lambda: running.streamer.watcher.is_ready)


@pytest.mark.parametrize(
    "message", ["", "nonsense", "1", "1:", "-1:5", "1:5 ", "x" * 100_000, b"\xff\xfe"], ids=repr
)
async def test_invalid_message_is_counted_and_ignored(
    start_streamer: StartStreamer,
    connect: Connect,
    client: aioredis.Redis,
    message: str | bytes,
) -> None:
    running, viewer = await started(start_streamer, connect)
    before = value("pubsub_malformed_total")

    await client.publish(KEYS.changes, message)
    await eventually_async(lambda: value("pubsub_malformed_total") == before + 1)

    async with playing(running.settings) as submit:
        await submit("ada", 600)
    await wait_for_score(viewer, "ada", 600)
    assert statuses(viewer) == []


TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_traces_of_changes_are_no_malformed_messages(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis
) -> None:
    """The streamer does not trace; the api that sent them does."""
    running, viewer = await started(start_streamer, connect)
    before = value("pubsub_malformed_total")

    await client.publish(KEYS.changes, " ".join(["traces", *[TRACEPARENT] * 8]))
    await client.publish(KEYS.changes, "traces")
    await client.publish(KEYS.changes, " ".join(["traces", *[TRACEPARENT] * 9]))
    async with playing(running.settings) as submit:
        await submit("ada", 600)
    await wait_for_score(viewer, "ada", 600)

    assert value("pubsub_malformed_total") == before + 2


async def test_ten_thousand_messages_per_second_keep_the_pace_and_end_with_the_last_state(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis
) -> None:
    running, viewer = await started(start_streamer, connect)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    async with playing(running.settings) as submit:
        for _ in range(10):
            pipe = client.pipeline(transaction=False)
            for _ in range(1000):
                pipe.publish(KEYS.changes, "1:1")
            await asyncio.gather(pipe.execute(), *(submit("ada", 1) for _ in range(100)))

    board = await wait_for_score(viewer, "ada", 1000)

    elapsed_s = loop.time() - began_s
    boards = [one for one in viewer.messages if one["type"] == "leaderboard"]
    assert len(boards) <= 1 + BURST + elapsed_s * 10
    assert board["leaderboard"][0]["userId"] == "ada"


async def test_ties_few_users_long_ids_and_the_highest_score_are_sent_unchanged(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    long = "L" * 128
    scores = [(long, 2**31 - 1), ("early", 5), ("late", 5)]
    _, viewer = await started(start_streamer, connect, scores=scores)

    assert viewer.messages[0]["leaderboard"] == [
        {"rank": 1, "userId": long, "score": 2**31 - 1},
        {"rank": 2, "userId": "early", "score": 5},
        {"rank": 3, "userId": "late", "score": 5},
    ]


async def test_empty_board_is_sent(start_streamer: StartStreamer, connect: Connect) -> None:
    running = await start_streamer(opened=False)
    await open_board(running.store)
    await eventually_async(lambda: running.streamer.watcher.is_ready)
    viewer = await connect(running.port)

    assert (await viewer.next())["leaderboard"] == []
    async with playing(running.settings) as submit:
        await submit("ada", 1)
    await wait_for_score(viewer, "ada", 1)


async def test_only_ten_rows_are_sent(start_streamer: StartStreamer, connect: Connect) -> None:
    _, viewer = await started(
        start_streamer, connect, scores=[(f"user{n}", 100 - n) for n in range(15)]
    )

    rows = viewer.messages[0]["leaderboard"]
    assert [row["rank"] for row in rows] == list(range(1, 11))


async def test_changes_of_every_partition_are_followed(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    board = Board(layout=Layout(partitions=3))
    running, viewer = await started(start_streamer, connect, board=board, scores=[("low", 1)])
    users = [f"user{n}" for n in range(9)]
    async with playing(running.settings) as submit:
        for number, user in enumerate(users):
            await submit(user, 100 + number)
            await wait_for_score(viewer, user, 100 + number)

    last = viewer.messages[-1]
    assert last["epoch"] == 3
    assert last["seq"] == 9
    assert [row["userId"] for row in last["leaderboard"]] == [*users[::-1], "low"]


async def test_two_boards_do_not_mix(start_streamer: StartStreamer, connect: Connect) -> None:
    running = await start_streamer(boards="main,weekly")
    await open_board(running.store, Board("weekly"), scores=[("wanda", 3)])
    main = await connect(running.port)
    await eventually_async(lambda: running.streamer.manager.hub.channel("weekly").frame != b"")
    weekly = await connect(running.port, "/ws/scoreboard?board=weekly")

    assert (await weekly.next())["leaderboard"][0]["userId"] == "wanda"
    async with playing(running.settings) as submit:
        await submit("willy", 50, board="weekly")
    await wait_for_score(weekly, "willy", 50)
    await main.send_json({"type": "sync"})
    assert {one["board"] for one in [await main.next(), await main.next()]} == {"main"}


async def test_restarted_redis_is_followed_again(
    start_streamer: StartStreamer, connect: Connect, own_valkey: OwnValkey
) -> None:
    server = own_valkey()
    running = await start_streamer(opened=False, url=server.url)
    client = make_client(running.settings, name="test")
    await open_board(Store(client), scores=[("ada", 10)])
    await client.aclose()
    await eventually_async(lambda: running.streamer.watcher.is_ready)
    viewer = await connect(running.port)
    await viewer.next()

    await asyncio.to_thread(server.stop)
    assert (await viewer.next("status"))["state"] == "stale"
    await asyncio.to_thread(server.start)

    assert (await viewer.next("status", within_s=15))["state"] == "live"
    async with playing(running.settings) as submit:
        await submit("ada", 5)
    await wait_for_score(viewer, "ada", 15)
