"""Windows of a board: any rows of it, current within a second, bounded in number and depth."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis.asyncio as aioredis

from scoreboard.broadcast.windows import MERGED_DEPTH_MAX
from scoreboard.model import Board, Layout, Span
from tests.support.clients.viewer import (
    PATH,
    Connect,
    HttpResponse,
    RawViewer,
    RunningStreamer,
    StartStreamer,
    playing,
)
from tests.support.data.boards import open_board
from tests.support.eventually import eventually_async

SCORES = [(f"user-{rank:03d}", 10_000 - 10 * rank) for rank in range(1, 201)]
Handshake = Callable[..., Any]


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[aioredis.Redis]:
    async with aioredis.Redis.from_url(redis_url, decode_responses=True, protocol=2) as client:
        yield client


def users(message: dict[str, Any]) -> list[str]:
    ranks = [row["rank"] for row in message["leaderboard"]]
    first = message.get("offset", 0) + 1
    assert ranks == list(range(first, first + len(ranks)))
    return [row["userId"] for row in message["leaderboard"]]


def window_count(running: RunningStreamer, board: str = "main") -> int:
    return len(running.streamer.watcher._watched[board].windows)


async def wait_for(viewer: RawViewer, user: str, score: int) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while True:
            board = await viewer.next("leaderboard")
            if {row["userId"]: row["score"] for row in board["leaderboard"]}.get(user) == score:
                return board


async def test_a_window_has_the_rows_that_were_asked_for(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(scores=SCORES)

    wide = await (await connect(running.port, f"{PATH}?rows=25")).next()
    deep = await (await connect(running.port, f"{PATH}?board=main&offset=95&rows=10")).next()
    last = await (await connect(running.port, f"{PATH}?offset=150&rows=100")).next()
    none = await (await connect(running.port, f"{PATH}?offset=1000000")).next()
    plain = await (await connect(running.port, f"{PATH}?rows=10&offset=0")).next()

    assert (wide["offset"], wide["rows"]) == (0, 25)
    assert users(wide) == [user for user, _ in SCORES[:25]]
    assert (deep["offset"], deep["rows"]) == (95, 10)
    assert users(deep) == [user for user, _ in SCORES[95:105]]
    assert users(last) == [user for user, _ in SCORES[150:]]
    assert (none["rows"], none["leaderboard"]) == (10, [])
    assert users(plain) == [user for user, _ in SCORES[:10]]
    assert "offset" not in plain
    assert "rows" not in plain
    assert window_count(running) == 4


async def test_rows_below_the_top_are_current_within_a_second_or_two(
    start_streamer: StartStreamer, connect: Connect, client: aioredis.Redis
) -> None:
    running = await start_streamer(scores=SCORES)
    deep = await connect(running.port, f"{PATH}?offset=90&rows=20")
    await deep.next()
    wide = await connect(running.port, f"{PATH}?rows=100")
    await wide.next()
    plain = await connect(running.port)
    await plain.next()

    async with playing(running.settings) as submit:
        await submit("user-100", 5)
        for viewer in (deep, wide):
            async with asyncio.timeout(2.5):
                assert users(await wait_for(viewer, "user-100", 9005))
        await submit("user-001", 5)
        async with asyncio.timeout(0.9):  # it is published: no window waits for its second
            board = await wait_for(wide, "user-001", 9995)
        assert (await wait_for(plain, "user-001", 9995))["seq"] == board["seq"]
    assert [one["type"] for one in deep.messages] == ["leaderboard"] * 2
    assert [one["type"] for one in plain.messages] == ["leaderboard"] * 2


async def test_a_quiet_board_costs_one_small_read_a_second(
    start_streamer: StartStreamer,
    connect: Connect,
    client: aioredis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scoreboard.broadcast.watcher.RECONCILE_S", 60.0)
    running = await start_streamer(scores=SCORES)
    await running.wait_until_quiet()
    viewer = await connect(running.port, f"{PATH}?offset=50&rows=100")
    await viewer.next()
    await asyncio.sleep(0.5)  # pace: the reads that a new window causes
    await client.config_resetstat()

    await asyncio.sleep(3.2)  # pace: three samples

    stats = await client.info("commandstats")
    assert "cmdstat_zrange" not in stats, "the rows are not read: nothing has changed"
    assert 2 <= stats["cmdstat_evalsha_ro"]["calls"] <= 5


async def test_a_busy_board_reads_its_deep_windows_once_a_second(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(scores=SCORES)
    deep = await connect(running.port, f"{PATH}?offset=100&rows=100")
    await deep.next()

    async with playing(running.settings) as submit:
        for number in range(30):
            await submit("user-001", 5)
            await submit(f"user-{150 + number}", 1)
            await asyncio.sleep(0.1)  # pace: a change of the top in each frame interval
    await wait_for(deep, "user-179", 8211)

    assert 2 <= len(deep.messages) <= 7, "about three seconds of changes, and the first board"


async def test_viewers_of_a_window_share_its_frame(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(scores=SCORES)
    viewers = [await connect(running.port, f"{PATH}?offset=20&rows=30") for _ in range(5)]
    for viewer in viewers:
        await viewer.next()
    channel = running.streamer.manager.hub.find("main", Span(20, 30))

    assert channel is not None
    assert len(channel.viewers) == 5
    assert window_count(running) == 1


async def test_a_window_without_viewers_is_dropped(
    start_streamer: StartStreamer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.broadcast.watcher.WINDOW_IDLE_S", 0.1)
    running = await start_streamer(scores=SCORES)
    viewer = await connect(running.port, f"{PATH}?offset=20&rows=30")
    await viewer.next()
    viewer.close()

    await eventually_async(lambda: not window_count(running), within_s=10)
    hub = running.streamer.manager.hub
    assert hub.find("main", Span(20, 30)) is None
    assert len(list(hub.every_channel)) == 1
    await running.wait_until_empty()


async def test_the_number_of_windows_is_limited(
    start_streamer: StartStreamer,
    connect: Connect,
    handshake: Handshake,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = await start_streamer(scores=SCORES, windows=3, windows_per_board=2)
    await open_board(running.store, Board("golf"), scores=SCORES)
    await running.store.write_boards([Board(), Board("golf")])
    first = await connect(running.port, f"{PATH}?offset=10")
    await connect(running.port, f"{PATH}?offset=20")

    refused: HttpResponse = await handshake(running.port, f"{PATH}?offset=30")
    assert refused.status == 503
    assert "limit of windows" in refused.problem["detail"]
    await connect(running.port, f"{PATH}?offset=20")  # a window that exists
    await connect(running.port)
    await connect(running.port, f"{PATH}?board=golf&offset=10")
    assert (await handshake(running.port, f"{PATH}?board=golf&offset=20")).status == 503

    first.close()  # a window without viewers makes room before its time is over
    hub = running.streamer.manager.hub
    await eventually_async(lambda: not getattr(hub.find("main", Span(10, 10)), "viewers", ()))
    # Its viewer may still wait for the first read or the check of its token.
    assert (await handshake(running.port, f"{PATH}?offset=30")).status == 503
    monkeypatch.setattr("scoreboard.broadcast.watcher.MAKE_ROOM_IDLE_S", 0.0)
    await connect(running.port, f"{PATH}?offset=30")
    assert hub.find("main", Span(10, 10)) is None


async def test_the_window_that_was_unused_longest_of_all_boards_makes_room(
    start_streamer: StartStreamer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.broadcast.watcher.MAKE_ROOM_IDLE_S", 0.0)
    running = await start_streamer(scores=SCORES, windows=2)
    await open_board(running.store, Board("golf"), scores=SCORES)
    await running.store.write_boards([Board(), Board("golf")])
    later = await connect(running.port, f"{PATH}?offset=10")
    first = await connect(running.port, f"{PATH}?board=golf&offset=10")
    first.close()
    await asyncio.sleep(1.5)  # pace: longer than the second in which viewers are looked for
    later.close()
    await eventually_async(lambda: running.viewers == 0)

    await connect(running.port, f"{PATH}?offset=30")

    assert (window_count(running), window_count(running, "golf")) == (2, 0)


async def test_the_rate_of_new_windows_is_limited(
    start_streamer: StartStreamer,
    connect: Connect,
    handshake: Handshake,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scoreboard.broadcast.watcher.NEW_WINDOWS_PER_S", 0.001)
    monkeypatch.setattr("scoreboard.broadcast.watcher.NEW_WINDOWS_BURST", 1)
    running = await start_streamer(scores=SCORES)
    await connect(running.port, f"{PATH}?offset=10")

    assert (await handshake(running.port, f"{PATH}?offset=20")).status == 503


async def test_a_board_of_several_partitions_has_windows_down_to_a_depth(
    start_streamer: StartStreamer, connect: Connect, handshake: Handshake
) -> None:
    board = Board(layout=Layout(partitions=2))
    running = await start_streamer(board=board)
    async with playing(running.settings) as submit:
        for rank in range(1, 41):
            await submit(f"user-{rank}", 1000 - rank)

    viewer = await connect(running.port, f"{PATH}?offset=10&rows=20")
    board_message = await viewer.next()
    assert users(board_message) == [f"user-{rank}" for rank in range(11, 31)]
    async with playing(running.settings) as submit:
        await submit("user-20", 2)
    await wait_for(viewer, "user-20", 982)
    deepest = MERGED_DEPTH_MAX - 10
    await connect(running.port, f"{PATH}?offset={deepest}&rows=10")
    refused: HttpResponse = await handshake(running.port, f"{PATH}?offset={deepest + 1}")
    assert refused.status == 400
    assert str(MERGED_DEPTH_MAX) in refused.problem["detail"]


async def test_a_window_survives_a_reseed(start_streamer: StartStreamer, connect: Connect) -> None:
    running = await start_streamer(scores=SCORES)
    viewer = await connect(running.port, f"{PATH}?offset=10&rows=10")
    first = await viewer.next()

    await open_board(running.store, scores=SCORES[50:])

    async with asyncio.timeout(20):
        while True:
            board = await viewer.next("leaderboard")
            if board["epoch"] > first["epoch"]:
                break
    assert users(board) == [user for user, _ in SCORES[60:70]]


@pytest.mark.parametrize(
    "query",
    ["rows=9", "rows=101", "rows=1e2", "offset=-1", "offset=1000001", f"offset={'9' * 400}"],
)
async def test_bounds_of_a_window(
    start_streamer: StartStreamer, handshake: Handshake, query: str
) -> None:
    running = await start_streamer()

    assert (await handshake(running.port, f"{PATH}?{query}")).status == 400
    assert window_count(running) == 0
