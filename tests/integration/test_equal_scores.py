"""Equal scores of several partitions have the same order in every read.

Within a partition that is the order of arrival; across partitions it is fixed, but not by time.
"""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
import redis

from scoreboard.broadcast.messages import Leaderboard
from scoreboard.broadcast.state import BoardState
from scoreboard.broadcast.watcher import BoardWatcher
from scoreboard.model import Action, Board, Layout, Partition, partition_of
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from tests.support.clients.viewer import Connect, StartStreamer
from tests.support.data.boards import open_board
from tests.support.eventually import eventually_async
from tests.support.servers.flushers import dispatching, store_of

PARTITIONS = 3
LAYOUT = Layout(PARTITIONS, 600, 4)


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return Settings(redis_url=Secret(redis_url), frame_interval_ms=10)


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    async with store_of(settings) as store:
        await open_board(store, Board("main", LAYOUT))
        yield store


async def play(settings: Settings, *, seed: int) -> list[str]:
    """Submit one action per user in turn, with few scores; return the users in that order."""
    chance = random.Random(seed)
    users = [f"user{chance.getrandbits(32):08x}" for _ in range(40)]
    async with dispatching(settings) as dispatcher:
        for user in users:
            await dispatcher.submit("main", Action(user, "1", chance.choice([5, 5, 5, 7])))
    return users


class Listener:
    """A listener that stores the latest frame."""

    frame: Leaderboard | None = None

    def board_changed(self, state: BoardState, noticed_at_s: float) -> None:
        self.frame = state.message

    def status_changed(self, state: BoardState) -> None:
        pass

    def access_changed(self, state: BoardState) -> None:
        pass

    def least_gap_s(self, board: str) -> float:
        return 0.0


async def frame_of(settings: Settings) -> Leaderboard:
    """Return the board that a BoardWatcher sends to its viewers."""
    listener = Listener()
    task = asyncio.create_task(BoardWatcher(settings, listener, name="test").run())
    try:
        await eventually_async(lambda: listener.frame is not None)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert listener.frame is not None
    return listener.frame


async def check_one_order(store: Store, settings: Settings) -> list[tuple[str, int]]:
    whole = (await store.leaderboard("main", limit=100)).rows
    for first in range(0, len(whole), 7):
        page = await store.leaderboard("main", offset=first, limit=7)
        assert page.rows == whole[first : first + 7]
    for place, row in enumerate(whole):
        standing = await store.standing("main", row.user_id, around=3)
        start = max(0, min(place - 3, len(whole) - 7))
        assert standing.rank == row.rank == place + 1
        assert standing.neighbours == whole[start : start + 7]
    assert (await frame_of(settings)).leaderboard == whole[:10]
    return [(row.user_id, row.score) for row in whole]


@pytest.mark.parametrize("seed", range(3))
async def test_list_rank_neighbours_and_frames_have_one_order(
    seed: int, store: Store, settings: Settings
) -> None:
    arrived = await play(settings, seed=seed)

    order = await check_one_order(store, settings)

    for number in range(PARTITIONS):
        for score in (5, 7):
            equal = [
                user
                for user, held in order
                if held == score and partition_of(user, PARTITIONS) == number
            ]
            assert equal == [user for user in arrived if user in equal], "in order of arrival"


async def test_equal_packed_scores_rank_by_the_number_of_the_partition(
    store: Store, settings: Settings
) -> None:
    await play(settings, seed=1)
    packed = 5 * 2**21 + 1000
    with redis.Redis.from_url(settings.redis_url.reveal()) as client:
        for number in range(PARTITIONS):
            keys = PartitionKeys(Partition("main", number))
            users = {f"p{number}-{n}": packed - n for n in range(20)}
            client.zadd(keys.board, users)
    # Written to wrong partitions: only lists and frames contain them.
    whole = (await store.leaderboard("main", limit=100)).rows
    at = [row.user_id for row in whole].index("p0-0")
    assert [row.user_id for row in whole[at : at + 6]] == [
        *(f"p{number}-0" for number in range(PARTITIONS)),
        *(f"p{number}-1" for number in range(PARTITIONS)),
    ]


async def test_equal_scores_of_different_partitions_are_not_ordered_by_time(
    store: Store, settings: Settings
) -> None:
    """The documented behaviour of several partitions."""
    home = {n: [u for u in map(str, range(50)) if partition_of(u, PARTITIONS) == n] for n in (0, 1)}
    early, filler, late = home[0][0], home[0][1], home[1][0]
    async with dispatching(settings) as dispatcher:
        for user in (filler, early, late):
            await dispatcher.submit("main", Action(user, "1", 5))

    assert [row.user_id for row in (await store.leaderboard("main")).rows] == [filler, late, early]
    assert [user for user, _ in await check_one_order(store, settings)] == [filler, late, early]


async def test_viewers_see_the_order_of_a_read(
    start_streamer: StartStreamer, connect: Connect, redis_url: str
) -> None:
    async with store_of(Settings(redis_url=Secret(redis_url))) as store:
        await open_board(store, Board("main", LAYOUT))
    running = await start_streamer(opened=False)
    await play(running.settings, seed=4)
    rows = (await running.store.leaderboard("main")).rows

    viewer = await connect(running.port)
    expected = [{"rank": r.rank, "userId": r.user_id, "score": r.score} for r in rows]
    while (await viewer.next("leaderboard"))["leaderboard"] != expected:
        pass
