"""What the scripts announce on a cluster, and who waits for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import pytest

from scoreboard.model import Action, Board, Layout, Partition, Rules, partition_of
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.commit_waiter import CommitWaiter
from scoreboard.store.corrections import ExpectedScore
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.partition_subscription import PartitionSubscription
from tests.support.data.boards import open_board
from tests.support.eventually import eventually_async
from tests.support.servers.clusters import Cluster, OwnCluster, slot_of
from tests.support.servers.flushers import (
    dispatching,
    flushing,
    make_board,
    query,
    store_of,
)
from tests.support.servers.rights import as_user, make_users

pytestmark = pytest.mark.slow

MAIN = Partition("main")
KEYS = PartitionKeys(MAIN)
SHORT = Rules(season="cron:* * * * * *", time_zone="UTC")
PARTITIONS = 8


@pytest.fixture
def settings(cluster: Cluster, database_url: str) -> Settings:
    return settings_of(cluster, database_url)


def settings_of(cluster: Cluster, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(cluster.url), database_url=Secret(database_url), flusher_metrics_port=0
    )


@asynccontextmanager
async def hearing(settings: Settings, *channels: str) -> AsyncIterator[list[str]]:
    """Return the messages of channels, as they arrive."""
    messages: list[str] = []
    subscription = PartitionSubscription(
        settings,
        channels,
        name="test",
        on_message=lambda data: messages.append(data.decode()),
        on_heard=lambda _: None,
        on_lost=lambda _: None,
    )
    task = asyncio.create_task(subscription.run())
    try:
        await eventually_async(lambda: subscription.hears(channels))
        yield messages
    finally:
        task.cancel()
        await asyncio.wait({task})


@asynccontextmanager
async def announcing(messages: list[str], *expected: str) -> AsyncIterator[None]:
    """Check that a block announces messages."""
    messages.clear()
    yield
    await eventually_async(lambda: set(expected) <= set(messages), within_s=2)


async def test_every_change_is_announced_in_the_slot_of_its_partition(settings: Settings) -> None:
    async with (
        store_of(settings) as store,
        dispatching(settings) as dispatcher,
        hearing(settings, KEYS.changes) as messages,
    ):
        board = Board()
        async with announcing(messages, "1:0"):
            await open_board(store, board)
        async with announcing(messages, "1:1"):
            await dispatcher.submit("main", Action("alice", "win:1", 5))
        async with announcing(messages, "1:2"):
            await store.act(
                MAIN, Layout(), user_id="alice", action_id="act:1", delta=2, stream_cap=100
            )
        async with announcing(messages, "1:3"):
            uncommitted = await store.read_uncommitted(MAIN, epoch=1, seq=2, stream_id="0-0")
            await store.repair(MAIN, [ExpectedScore("alice", 100)], uncommitted)
        async with announcing(messages, "1:3:board"):
            await store.configure(MAIN, msgspec.structs.replace(board, is_public=False))
        async with announcing(messages, "0:0:board"):
            await store.remove(MAIN, board.layout)


@pytest.mark.parametrize("turned_by", ["a read", "an update"])
async def test_the_next_season_is_announced(settings: Settings, turned_by: str) -> None:
    async with (
        store_of(settings) as store,
        dispatching(settings) as dispatcher,
        hearing(settings, KEYS.changes) as messages,
    ):
        await open_board(store, Board(layout=Layout(rules=SHORT)))
        first = (await store.state(MAIN)).season

        async def has_turned() -> bool:
            if turned_by == "a read":
                await store.turn(MAIN, SHORT)
            else:
                await dispatcher.submit("main", Action("alice", "win:1", 5, rules=SHORT))
            return (await store.state(MAIN)).season != first

        async with announcing(messages, "1:1" if turned_by == "a read" else "1:2"):
            await eventually_async(has_turned, within_s=5)


async def test_a_position_is_announced_to_those_who_wait_for_its_partition(
    settings: Settings, cluster: Cluster
) -> None:
    await make_board(settings, Board("golf"))
    commits = PartitionKeys(Partition("golf")).commits
    async with (
        flushing(settings),
        dispatching(settings) as dispatcher,
        hearing(settings, commits) as messages,
    ):
        await dispatcher.submit("golf", Action("alice", "win:1", 5))
        await eventually_async(lambda: messages == ["1:1"])
    assert cluster.primary_of(commits).call("PUBSUB", "SHARDCHANNELS") == []


class Adding:
    """Adds points for a user, and waits until they are committed."""

    def __init__(self, dispatcher: Dispatcher, commits: CommitWaiter) -> None:
        self._dispatcher = dispatcher
        self._commits = commits
        self._sent = 0
        self.accepted = 0

    async def __call__(self, user: str) -> bool:
        self._sent += 1
        action = Action(user, f"win:{self._sent}", 1)
        receipt = await self._dispatcher.submit("main", action)
        self.accepted += 1
        return (await self._commits.confirm("main", action, receipt)).committed


@asynccontextmanager
async def committing(settings: Settings) -> AsyncIterator[Adding]:
    async with store_of(settings) as store, dispatching(settings) as dispatcher:
        commits = CommitWaiter(settings, store, dispatcher)
        task = asyncio.create_task(commits.run())
        try:
            yield Adding(dispatcher, commits)
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.wait({task})


def users_by_partition() -> list[str]:
    """Return a user of each partition."""
    users = {partition_of(f"user-{n}", PARTITIONS): f"user-{n}" for n in range(1000)}
    return [users[number] for number in range(PARTITIONS)]


async def test_announcements_end_the_waits_of_all_partitions(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.store.commit_waiter.READ_EVERY_S", 60.0)
    settings = msgspec.structs.replace(settings, flush_linger_unawaited_ms=4000)
    await make_board(settings, Board(layout=Layout(partitions=PARTITIONS)))
    async with flushing(settings), committing(settings) as add:
        # The first of a partition is committed before its caller subscribes, so that the flusher
        # lingers once.
        for within_s in (8, 8, 2, 2, 2):
            async with asyncio.timeout(within_s):
                answers = await asyncio.gather(*map(add, users_by_partition()))
            assert answers == [True] * PARTITIONS
    assert query(settings, "SELECT count(*) FROM score_events") == [(5 * PARTITIONS,)]


async def test_a_primary_that_hangs_holds_up_no_other_waits(
    own_cluster: OwnCluster, database_url: str
) -> None:
    cluster = await asyncio.to_thread(partial(own_cluster, replicas=0))
    settings = settings_of(cluster, database_url)
    settings = msgspec.structs.replace(settings, commit_timeout_s=30.0)
    await make_board(settings, Board(layout=Layout(partitions=PARTITIONS)))
    owners, hangs = cluster.owners(), cluster.primaries()[1]
    at = [owners[slot_of(PartitionKeys(Partition("main", n)).meta)] for n in range(PARTITIONS)]
    async with committing(settings) as add:
        waiting = [asyncio.create_task(add(user)) for user in users_by_partition()]
        await eventually_async(lambda: add.accepted == PARTITIONS)
        hangs.pause()
        for number, node in enumerate(at):
            if node is not hangs:  # as the flusher does
                node.client.hset(PartitionKeys(Partition("main", number)).meta, "committed", "1:1")
        others = [task for task, node in zip(waiting, at, strict=True) if node is not hangs]
        async with asyncio.timeout(2):
            assert all(await asyncio.gather(*others))
        assert sum(task.done() for task in waiting) == len(others)
        hangs.resume()
        for number, node in enumerate(at):
            node.client.hset(PartitionKeys(Partition("main", number)).meta, "committed", "1:1")
        assert all(await asyncio.gather(*waiting))


async def test_the_deployed_logins_may_announce_and_listen(
    own_cluster: OwnCluster, database_url: str
) -> None:
    cluster = await asyncio.to_thread(partial(own_cluster, replicas=0))
    for node in cluster.nodes:
        make_users(node.client, "secret")
    settings = settings_of(cluster, database_url)
    operator, api, streamer, flusher = (
        msgspec.structs.replace(settings, redis_url=Secret(as_user(cluster.url, name, "secret")))
        for name in ("operator", "api", "streamer", "flusher")
    )
    await make_board(operator)
    async with (
        hearing(streamer, KEYS.changes) as changes,
        hearing(api, KEYS.commits) as commits,
        dispatching(api) as dispatcher,
        flushing(flusher),
    ):
        await dispatcher.submit("main", Action("alice", "win:1", 5))
        await eventually_async(lambda: (changes, commits) == (["1:1"], ["1:1"]))
