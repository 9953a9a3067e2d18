"""Several boards on one socket, the number of viewers over all processes, and deltas."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio as aioredis
from msgspec import UNSET

from scoreboard.broadcast.messages import COMPACT, Leaderboard
from scoreboard.errors import ScoreboardError, Unauthenticated
from scoreboard.model import Board, Layout, Partition, Row, Rules, Span
from scoreboard.store.keys import BOARDS, PartitionKeys, viewers_key
from streamer.connection.subscriptions import NEW_WINDOWS_BURST, SUBSCRIPTIONS_MAX
from streamer.connection.viewer import Viewer
from tests.support.clients.viewer import (
    PATH,
    TEXT,
    Connect,
    RawViewer,
    RunningStreamer,
    StartStreamer,
    masked_frame,
    playing,
)
from tests.support.data.boards import open_board
from tests.support.eventually import eventually_async
from tests.support.fakes.tokens import MakeToken

SCORES = [(f"user-{rank:03d}", 10_000 - 10 * rank) for rank in range(1, 61)]
WEEKLY = Board("weekly")
SECRET = Board("secret", is_public=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoreboard.broadcast.watcher.RECONCILE_S", 0.3)
    monkeypatch.setattr("scoreboard.broadcast.watcher.DELETED_AFTER_S", 0.3)
    monkeypatch.setattr("scoreboard.store.board_directory.UNKNOWN_S", 0.1)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[aioredis.Redis]:
    async with aioredis.Redis.from_url(redis_url, decode_responses=True, protocol=2) as client:
        yield client


async def make(running: RunningStreamer, *boards: Board) -> None:
    for board in boards:
        await open_board(running.store, board, scores=SCORES)
    await running.store.write_boards([Board(), *boards])


async def subscribe(viewer: RawViewer, board: str, **more: object) -> None:
    await viewer.send_json({"type": "subscribe", "board": board, **more})


async def board_of(viewer: RawViewer, board: str) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while True:
            message = await viewer.next("leaderboard")
            if message["board"] == board:
                return message


async def wait_for(viewer: RawViewer, board: str, user: str, score: int) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while True:
            message = await board_of(viewer, board)
            if {row["userId"]: row["score"] for row in message["leaderboard"]}.get(user) == score:
                return message


async def error_of(viewer: RawViewer) -> tuple[str, str]:
    error = await viewer.next("error")
    return error["code"], error["board"]


def channel_sizes(running: RunningStreamer) -> dict[tuple[str, Span], int]:
    channels = running.streamer.manager.hub.every_channel
    return {(one.board, one.span): len(one.viewers) for one in channels if one.viewers}


async def test_a_viewer_gets_each_board_that_it_subscribes_to(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    await make(running, WEEKLY)
    viewer = await connect(running.port)
    await viewer.next()

    await subscribe(viewer, "weekly", rows=25, offset=5)
    board = await viewer.next()
    assert (board["board"], board["offset"], board["rows"]) == ("weekly", 5, 25)
    assert [row["rank"] for row in board["leaderboard"]] == list(range(6, 31))
    async with playing(running.settings) as submit:
        await submit("first", 7)
        await submit("user-020", 5, board="weekly")
        await wait_for(viewer, "main", "first", 107)
        await wait_for(viewer, "weekly", "user-020", 9805)
        await viewer.send_json({"type": "unsubscribe", "board": "weekly"})
        await eventually_async(lambda: ("weekly", Span(5, 25)) not in channel_sizes(running))
        await submit("user-020", 5, board="weekly")
        await submit("first", 7)
        await wait_for(viewer, "main", "first", 114)
    assert running.viewers == 1
    viewer.close()
    await running.wait_until_empty()


async def test_a_second_subscription_replaces_the_window(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(scores=SCORES)
    await make(running, WEEKLY)
    viewer = await connect(running.port)
    await viewer.next()

    await subscribe(viewer, "weekly")
    assert "rows" not in await viewer.next()
    await subscribe(viewer, "weekly", offset=20)
    assert (await viewer.next())["offset"] == 20
    await subscribe(viewer, "main", rows=50)
    assert len((await viewer.next())["leaderboard"]) == 50
    assert channel_sizes(running) == {("weekly", Span(20, 10)): 1, ("main", Span(0, 50)): 1}
    await subscribe(viewer, "main")
    assert len((await viewer.next())["leaderboard"]) == 10
    await subscribe(viewer, "main")
    await subscribe(viewer, "weekly", offset=20)
    await subscribe(viewer, "weekly", offset=30)
    assert (await viewer.next())["offset"] == 30, "the same window is not sent again"
    assert channel_sizes(running)[("main", Span())] == 1
    # A later message takes the place of one that waits, also if nothing changes.
    await subscribe(viewer, "weekly", offset=40)
    await subscribe(viewer, "weekly", offset=30)
    await subscribe(viewer, "main", season="2020-W01")
    assert await error_of(viewer) == ("season-ended", "main")
    assert channel_sizes(running)[("weekly", Span(30, 10))] == 1


async def test_new_windows_of_a_connection_are_limited(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(scores=SCORES, viewer_frames_burst=1000)
    viewer = await connect(running.port)
    await viewer.next()
    for number in range(NEW_WINDOWS_BURST):
        await subscribe(viewer, "main", offset=10 + number)
    await subscribe(viewer, "main", offset=40)

    assert await error_of(viewer) == ("overloaded", "main")
    await eventually_async(
        lambda: channel_sizes(running) == {("main", Span(9 + NEW_WINDOWS_BURST, 10)): 1}
    )


async def test_sync_sends_one_board_or_all(start_streamer: StartStreamer, connect: Connect) -> None:
    running = await start_streamer(sync_interval_s="0.01")
    await make(running, WEEKLY)
    viewer = await connect(running.port)

    async def sync(message: dict[str, str]) -> None:
        await asyncio.sleep(0.05)  # pace: the interval of sync
        await viewer.send_json(message)

    await sync({"type": "sync", "board": "main"})
    assert [(await viewer.next())["board"] for _ in range(2)] == ["main", "main"]
    await sync({"type": "sync", "board": "weekly"})
    assert await error_of(viewer) == ("not-subscribed", "weekly")
    await subscribe(viewer, "weekly")
    assert (await viewer.next())["board"] == "weekly"

    await sync({"type": "sync", "board": "weekly"})
    assert (await viewer.next())["board"] == "weekly"
    await sync({"type": "sync"})
    assert {(await viewer.next())["board"] for _ in range(2)} == {"main", "weekly"}


async def test_refused_subscriptions_leave_the_connection_open(
    start_streamer: StartStreamer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    audited: list[tuple[ScoreboardError, dict[str, Any]]] = []
    monkeypatch.setattr(
        "streamer.connection.subscriptions.audit_refusal",
        lambda error, **fields: audited.append((error, fields)),
    )
    running = await start_streamer(windows_per_board=1)
    parts = Board("parts", Layout(partitions=2))
    await make(running, WEEKLY, SECRET, *(Board(f"board-{n}") for n in range(9)))
    await open_board(running.store, parts)
    await running.store.write_boards([Board(), WEEKLY, SECRET, parts])
    viewer = await connect(running.port)
    await viewer.next()

    await subscribe(viewer, "chess")
    assert await error_of(viewer) == ("unknown-board", "chess")
    await subscribe(viewer, "secret")
    assert await error_of(viewer) == ("unauthenticated", "secret")
    assert [error.code for error, _ in audited if isinstance(error, Unauthenticated)] == [
        "unauthenticated"
    ]
    assert audited[-1][1] == {"client": "127.0.0.1"}
    await subscribe(viewer, "parts", offset=5000)
    assert await error_of(viewer) == ("malformed", "parts")
    await subscribe(viewer, "main", offset=10)
    await viewer.next("leaderboard")
    await connect(running.port, f"{PATH}?offset=10")
    await subscribe(viewer, "weekly", offset=10)
    await viewer.next("leaderboard")
    other = await connect(running.port)
    await subscribe(other, "main", offset=20)
    assert await error_of(other) == ("overloaded", "main")
    await viewer.send_json({"type": "unsubscribe", "board": "main"})
    assert await error_of(viewer) == ("main-board", "main")
    await viewer.send_json({"type": "unsubscribe", "board": "board-1"})
    await viewer.send_json({"type": "sync"})
    await board_of(viewer, "weekly")


async def test_a_viewer_has_at_most_eight_further_boards(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    await make(running, *(Board(f"board-{number}") for number in range(SUBSCRIPTIONS_MAX + 1)))
    viewer = await connect(running.port)
    for number in range(SUBSCRIPTIONS_MAX):
        await subscribe(viewer, f"board-{number}")

    await subscribe(viewer, f"board-{SUBSCRIPTIONS_MAX}")
    assert await error_of(viewer) == ("too-many-boards", f"board-{SUBSCRIPTIONS_MAX}")
    await viewer.send_json({"type": "unsubscribe", "board": "board-3"})
    await subscribe(viewer, f"board-{SUBSCRIPTIONS_MAX}")
    await board_of(viewer, f"board-{SUBSCRIPTIONS_MAX}")
    await subscribe(viewer, "main", offset=0, rows=20)
    assert len(channel_sizes(running)) == SUBSCRIPTIONS_MAX + 1
    await viewer.send_json({"type": "unsubscribe", "board": "board-4"})
    await subscribe(viewer, "main", offset=0, rows=30)  # it waits for its first read
    await subscribe(viewer, "board-3")
    await board_of(viewer, "board-3")


async def test_hostile_messages(start_streamer: StartStreamer, connect: Connect) -> None:
    running = await start_streamer(scores=SCORES)
    healthy = await connect(running.port)
    await healthy.next()
    flood = await connect(running.port)
    frames = b"".join(
        masked_frame(TEXT, json.dumps({"type": "subscribe", "board": f"b{n}"}).encode())
        for n in range(1000)
    )
    await flood.send(frames)
    assert await flood.closed() == 4429
    roaming = await connect(running.port, f"{PATH}?board=main")
    for number in range(1000):
        try:
            await subscribe(roaming, "main", offset=number * 1000)
        except ConnectionError:
            break
    assert await roaming.closed() in {4429, 1006}
    assert len(running.streamer.watcher._watched["main"].windows) <= 21
    odd = await connect(running.port)
    await subscribe(odd, "main", colour="red", more=[{"deep": [1]}])
    await odd.next("leaderboard")
    for offset in (10**9, -1, 10**40):
        await subscribe(odd, "main", offset=offset)
        assert (await odd.next("error"))["code"] == "malformed"
    await subscribe(odd, "main", offset=10**9)
    assert await odd.closed() == 4400

    async with playing(running.settings) as submit:
        await submit("user-001", 1)
    await wait_for(healthy, "main", "user-001", 9991)
    healthy.close()
    await running.wait_until_empty()


async def test_a_private_board_needs_the_scope_and_ends_when_it_is_lost(
    start_streamer: StartStreamer,
    connect: Connect,
    client: aioredis.Redis,
    make_token: MakeToken,
) -> None:
    running = await start_streamer()
    await make(running, WEEKLY, SECRET)
    reader = await connect(running.port, token=make_token())
    other = await connect(running.port, token=make_token("bob", "update:score"))
    await subscribe(reader, "secret", rows=20)
    assert (await board_of(reader, "secret"))["rows"] == 20
    await subscribe(other, "secret")
    assert await error_of(other) == ("forbidden", "secret")
    for viewer in (reader, other):
        await subscribe(viewer, "weekly", rows=20)
        await board_of(viewer, "weekly")

    keys = PartitionKeys(Partition("weekly"))
    await client.hset(keys.meta, "public", "0")
    await client.publish(keys.changes, "1:0:board")
    assert await error_of(other) == ("forbidden", "weekly")
    async with playing(running.settings) as submit:
        await submit("user-001", 5, board="weekly")
        await submit("first", 5)
    await wait_for(reader, "weekly", "user-001", 9995)
    await wait_for(other, "main", "first", 105)
    assert not any(one["type"] == "bye" for one in other.messages)


async def test_a_deleted_board_ends_its_subscription(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis
) -> None:
    running = await start_streamer()
    await make(running, WEEKLY)
    viewer = await connect(running.port)
    await subscribe(viewer, "weekly", offset=10)
    await board_of(viewer, "weekly")

    await client.hdel(BOARDS, "weekly")
    keys = PartitionKeys(Partition("weekly"))
    await client.delete(keys.meta, keys.board)
    assert await error_of(viewer) == ("unknown-board", "weekly")
    async with playing(running.settings) as submit:
        await submit("first", 5)
    await wait_for(viewer, "main", "first", 105)
    assert set(channel_sizes(running)) == {("main", Span())}


async def test_only_the_current_season_can_be_subscribed_to(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    league = Board("league", Layout(rules=Rules(season="weekly", time_zone="UTC")))
    await make(running, league, WEEKLY)
    viewer = await connect(running.port)
    await subscribe(viewer, "league")
    season = (await board_of(viewer, "league"))["season"]
    await viewer.send_json({"type": "unsubscribe", "board": "league"})

    await subscribe(viewer, "league", season=season)
    assert (await board_of(viewer, "league"))["season"] == season
    await subscribe(viewer, "league", season="2020-W01")
    error = await viewer.next("error")
    assert (error["code"], error["board"]) == ("season-ended", "league")
    assert "/api/scores/leaderboard?board=BOARD&season=SEASON" in error["detail"]
    await subscribe(viewer, "weekly", season="2020-W01")
    assert await error_of(viewer) == ("season-ended", "weekly")


async def test_status_and_heartbeat_name_their_board(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(heartbeat_s=0.2)
    await make(running, WEEKLY)
    viewer = await connect(running.port)
    await subscribe(viewer, "weekly", offset=10)
    async with asyncio.timeout(10):
        beaten: set[str] = set()
        while beaten != {"main", "weekly"}:
            beaten.add((await viewer.next("heartbeat"))["board"])
    watched = running.streamer.watcher._watched["weekly"]
    running.streamer.watcher._mark_stale(watched, "rewound")

    status = await viewer.next("status")
    assert (status["state"], status["board"]) == ("stale", "weekly")


async def test_each_board_of_a_slow_viewer_gets_its_turn(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    """A viewer that waits for pongs gets one frame per pong."""
    running = await start_streamer()
    boards = [f"board-{number}" for number in range(4)]
    await make(running, *(Board(one) for one in boards))
    viewer = await connect(running.port)
    for board in boards:
        await subscribe(viewer, board)
        await board_of(viewer, board)
    hub, clock = running.streamer.manager.hub, running.streamer.manager.clock
    (connection,) = (one for one in running.streamer.manager.connections if isinstance(one, Viewer))
    connection._flow._start_ack_pacing(clock())
    seen = len(viewer.messages)

    def publish(seq: int) -> None:
        for board in ("main", *boards):
            rows = (Row(1, "ada", seq),)
            hub.channel(board).publish(Leaderboard(board, 9, seq, 0, rows), clock(), clock())

    for seq in range(1, 41):
        publish(seq)
        await viewer.next("leaderboard")
    got = [one["board"] for one in viewer.messages[seen:] if one["epoch"] == 9]
    counts = [got.count(board) for board in ("main", *boards)]
    assert sum(counts) == 40
    assert max(counts) - min(counts) <= 3, counts


# Viewers over all processes


async def count(*all_running: RunningStreamer) -> None:
    for running in (*all_running, *all_running):
        await running.streamer.viewer_counts.count()


async def test_viewers_are_counted_over_all_processes(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis
) -> None:
    one = await start_streamer(scores=SCORES)
    two = await start_streamer(opened=False)
    await eventually_async(lambda: two.streamer.watcher.is_ready)
    await make(one, WEEKLY)
    await connect(one.port)
    await connect(one.port, f"{PATH}?offset=10")
    both = await connect(two.port)
    await subscribe(both, "weekly")
    await board_of(both, "weekly")
    await count(one, two)

    for port in (one.port, two.port):
        assert (await (await connect(port)).next())["viewers"] == 3
    assert (await (await connect(two.port, f"{PATH}?offset=10")).next())["viewers"] == 3
    assert (await (await connect(one.port, f"{PATH}?board=weekly")).next()).get("viewers") is None
    await count(one, two)
    async with playing(one.settings) as submit:
        await submit("user-001", 1)
        board = await wait_for(both, "main", "user-001", 9991)
        assert board["viewers"] == 6
        await submit("user-001", 1, board="weekly")
        board = await wait_for(both, "weekly", "user-001", 9991)
        assert board["viewers"] == 2
    assert 0 < await client.ttl(viewers_key("main")) <= 16
    assert await client.hlen(viewers_key("main")) == 2


async def test_a_process_that_died_is_not_counted(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port)
    now_s = (await client.time())[0]
    key = viewers_key("main")
    await client.hset(key, mapping={"dead": f"{now_s - 17}:900", "alive": f"{now_s}:4"})
    await client.hset(key, "unreadable", "many")
    await count(running)

    assert running.streamer.manager.hub.channel("main").all_viewers == 5
    assert len(await client.hkeys(key)) == 2
    viewer.close()
    await running.wait_until_empty()
    await count(running)
    assert await client.hkeys(key) == ["alive"], "a board without viewers costs nothing"


async def test_without_redis_viewers_are_forgotten_and_nothing_else_happens(
    start_streamer: StartStreamer,
    connect: Connect,
    client: aioredis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port)
    await count(running)
    channel = running.streamer.manager.hub.channel("main")
    assert channel.all_viewers == 1
    await client.delete(viewers_key("main"))
    await client.set(viewers_key("main"), "of another type")

    await count(running)
    assert channel.all_viewers == 1
    monkeypatch.setattr("scoreboard.broadcast.viewer_counts.FORGET_S", -1.0)
    await count(running)
    assert b"viewers" not in channel.first_frame
    await client.delete(viewers_key("main"))
    await count(running)
    assert channel.all_viewers == 1
    await viewer.next()


async def test_a_board_that_cannot_be_counted_stops_no_other(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis
) -> None:
    running = await start_streamer()
    await make(running, WEEKLY)
    await client.set(viewers_key("weekly"), "of another type")
    await connect(running.port, f"{PATH}?board=weekly")
    await connect(running.port)

    await count(running)

    hub = running.streamer.manager.hub
    assert hub.channel("main").all_viewers == 1
    assert hub.channel("weekly").all_viewers is UNSET


# Deltas


async def test_a_client_of_the_compact_form_has_the_board(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(scores=SCORES, frame_interval_ms=10)
    await make(running, WEEKLY)
    viewer = await connect(running.port, f"{PATH}?rows=50", subprotocols=COMPACT)
    await subscribe(viewer, "weekly")
    plain = await connect(running.port, f"{PATH}?rows=50")
    chance = random.Random(6)
    async with playing(running.settings) as submit:
        for _ in range(60):
            await submit(f"user-{chance.randint(1, 50):03d}", chance.randint(1, 500))
            await submit("user-009", 1, board="weekly")
        last = await submit("user-001", 100_000)
        await submit("user-002", 100_000, board="weekly")
    async with asyncio.timeout(20):
        while (whole := await board_of(plain, "main"))["seq"] < last:
            pass

    boards: dict[str, dict[int, Any]] = {}
    seqs: dict[str, int] = {}
    async with asyncio.timeout(20):
        while seqs.get("main") != whole["seq"] or not any(
            row["userId"] == "user-002" and row["score"] > 100_000
            for row in boards.get("weekly", {}).values()
        ):
            message = await viewer.next()
            board = message["board"]
            if message["type"] == "leaderboard":
                boards[board] = {row["rank"]: row for row in message["leaderboard"]}
            elif message["type"] == "delta":
                assert message["base"] == seqs[board]
                assert ("rows" in message) == (board == "main")
                boards[board].update({row["rank"]: row for row in message["changes"]})
                assert len(boards[board]) == message["count"]
            seqs[board] = message["seq"]
    assert [boards["main"][rank] for rank in sorted(boards["main"])] == whole["leaderboard"]
    kinds = {one["type"] for one in viewer.messages}
    assert "delta" in kinds
    assert {one["type"] for one in plain.messages} == {"leaderboard"}


async def test_a_sync_of_the_compact_form_is_answered_with_a_whole_board(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(scores=SCORES)
    viewer = await connect(running.port, subprotocols=f"{COMPACT}, scoreboard.v1")
    await viewer.next()
    async with playing(running.settings) as submit:
        await submit("user-001", 1)
        assert (await viewer.next())["type"] == "delta"
    await viewer.send_json({"type": "sync"})

    assert (await viewer.next())["type"] == "leaderboard"
