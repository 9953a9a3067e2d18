"""Notifications of partitions on a cluster, while slots and primaries move."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from scoreboard.broadcast.state import BoardState
from scoreboard.broadcast.watcher import BoardWatcher
from scoreboard.model import Action, Board, Layout, Partition
from scoreboard.runtime.settings import Settings
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.partition_subscription import PartitionSubscription
from tests.support.clients.viewer import streamer_settings
from tests.support.eventually import eventually_async
from tests.support.servers.api import open_boards
from tests.support.servers.clusters import Cluster, Node, OwnCluster, slot_of
from tests.support.servers.flushers import dispatching

pytestmark = pytest.mark.slow


def channel_of(board: str, number: int = 0) -> str:
    return PartitionKeys(Partition(board, number)).changes


def board_at(cluster: Cluster, node: Node, *, other_than: Collection[str] = ()) -> str:
    """Return the name of a board whose partition 0 is at a primary."""
    owners = cluster.owners()
    names = (f"board-{number}" for number in range(1000))
    return next(
        name
        for name in names
        if name not in other_than and owners[slot_of(channel_of(name))] is node
    )


def boards_of(cluster: Cluster) -> dict[Node, str]:
    """Return a board at each primary."""
    return {node: board_at(cluster, node) for node in cluster.primaries()}


def channels_at(node: Node) -> list[str]:
    """Return the channels of partitions with subscribers at a node."""
    return sorted(node.call("PUBSUB", "SHARDCHANNELS", "sb:{*}:*"))


def links_to(node: Node, name: str) -> int:
    """Return the number of subscribed connections of a name."""
    clients = node.client.client_list(_type="pubsub")
    return sum(client["name"] == f"scoreboard-{name}" for client in clients)


class Heard:
    """Records what a subscription reports."""

    def __init__(self) -> None:
        self.changed: list[str] = []
        self.heard: list[str] = []
        self.lost: list[str] = []


@asynccontextmanager
async def subscribed(
    settings: Settings, channels: Sequence[str]
) -> AsyncIterator[tuple[PartitionSubscription, Heard]]:
    calls = Heard()
    subscription = PartitionSubscription(
        settings,
        channels,
        name="test",
        on_change=calls.changed.append,
        on_heard=calls.heard.extend,
        on_lost=calls.lost.extend,
    )
    task = asyncio.create_task(subscription.run())
    try:
        await eventually_async(lambda: subscription.hears(channels))
        yield subscription, calls
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.fixture
def settings(cluster: Cluster, jwks_file: Path) -> Settings:
    return streamer_settings(cluster.url, jwks_file=jwks_file)


async def test_two_hundred_channels_need_a_link_per_primary(
    cluster: Cluster, settings: Settings
) -> None:
    names = [channel_of(f"board-{number}") for number in range(200)]
    nodes, owners = cluster.primaries(), cluster.owners()
    async with subscribed(settings, names) as (subscription, calls):
        assert [links_to(node, "test") for node in nodes] == [1, 1, 1]
        assert sorted(calls.heard) == sorted(names)
        for name in names:
            assert owners[slot_of(name)].call("SPUBLISH", name, "1:1") == 1
        await eventually_async(lambda: sorted(calls.changed) == sorted(names))

        kept = [name for name in names if owners[slot_of(name)] is nodes[0]]
        subscription.drop(set(names) - set(kept))
        await eventually_async(lambda: [links_to(node, "test") for node in nodes] == [1, 0, 0])
        assert channels_at(nodes[0]) == sorted(kept)
        subscription.want(names)
        await eventually_async(lambda: subscription.hears(names))
        assert [links_to(node, "test") for node in nodes] == [1, 1, 1]
        assert calls.lost == []


async def test_a_channel_that_returns_at_once_is_heard(
    cluster: Cluster, settings: Settings
) -> None:
    first, *_ = boards_of(cluster).values()
    node = cluster.primary_of(channel_of(first))
    names = [channel_of(first), channel_of(board_at(cluster, node, other_than=[first]))]
    async with subscribed(settings, names) as (subscription, calls):
        for pauses in range(12):
            before = len(calls.heard)
            subscription.drop(names[1:])
            for _ in range(pauses):
                await asyncio.sleep(0)
            subscription.want(names[1:])
            await eventually_async(lambda: subscription.hears(names), within_s=5)
            assert len(calls.heard) > before, "what was missed must be read"
            assert node.call("SPUBLISH", names[1], "1:1") == 1
            await eventually_async(lambda: names[1] in calls.changed, within_s=5)
            calls.changed.clear()
        assert calls.lost == []


@pytest.mark.parametrize("way", ["atomic", "classic"])
async def test_a_channel_whose_slot_moves_is_heard_at_the_new_owner(
    cluster: Cluster, settings: Settings, way: str
) -> None:
    source, target, _ = cluster.primaries()
    moved, stays = board_at(cluster, source), board_at(cluster, target)
    names = [channel_of(moved), channel_of(stays)]
    slot = slot_of(names[0])
    async with subscribed(settings, names) as (subscription, calls):
        calls.heard.clear()
        move = cluster.migrate if way == "atomic" else cluster.migrate_classic
        await asyncio.to_thread(move, [slot], target)
        # Sooner than the next regular read of the slots' owners.
        await eventually_async(
            lambda: target.call("PUBSUB", "SHARDNUMSUB", names[0])[1] == 1, within_s=4
        )
        await eventually_async(lambda: subscription.hears(names), within_s=4)
        assert set(calls.heard) == set(calls.lost) == {names[0]}
        assert target.call("SPUBLISH", names[0], "1:1") == 1
        await eventually_async(lambda: calls.changed == names[:1])
        await eventually_async(lambda: links_to(source, "test") == 0)


async def test_channels_of_a_promoted_replica_are_heard_again(
    cluster: Cluster, settings: Settings
) -> None:
    boards = boards_of(cluster)
    names = [channel_of(board) for board in boards.values()]
    lost = cluster.primaries()[1]
    (replica,) = cluster.replicas_of(lost)
    async with subscribed(settings, names) as (subscription, calls):
        calls.heard.clear()
        await asyncio.to_thread(cluster.failover, replica)
        await eventually_async(lambda: subscription.hears(names) and links_to(replica, "test"))
        assert set(calls.heard) == set(calls.lost) == {channel_of(boards[lost])}
        await eventually_async(lambda: links_to(lost, "test") == 0)


# Boards


class Viewers:
    """The listener of a watcher: what viewers of each board would see."""

    def __init__(self) -> None:
        self.states: dict[str, BoardState] = {}
        self.statuses: list[tuple[str, Any]] = []

    def board_changed(self, state: BoardState, noticed_at_s: float) -> None:
        del noticed_at_s
        self.states[state.board] = state

    def status_changed(self, state: BoardState) -> None:
        self.statuses.append((state.board, state.status))

    def access_changed(self, state: BoardState) -> None:
        pass

    def least_gap_s(self, board: str) -> float:
        del board
        return 0.0

    def is_viewed(self, board: str) -> bool:
        del board
        return True

    def board_dropped(self, board: str, *, is_deleted: bool) -> None:
        pass

    def score(self, board: str, user: str = "alice") -> int:
        state = self.states.get(board)
        rows = state.message.leaderboard if state is not None and state.message else ()
        return next((row.score for row in rows if row.user_id == user), 0)

    def statuses_of(self, board: str) -> list[Any]:
        return [status for name, status in self.statuses if name == board]


@asynccontextmanager
async def watching(
    cluster: Cluster, jwks_file: Path, *boards: Board
) -> AsyncIterator[tuple[BoardWatcher, Viewers, Dispatcher]]:
    await open_boards(cluster.url, *boards)
    names = ",".join(board.name for board in boards)
    settings = streamer_settings(cluster.url, jwks_file=jwks_file, boards=names)
    viewers = Viewers()
    watcher = BoardWatcher(settings, viewers, name="test")
    task = asyncio.create_task(watcher.run())
    try:
        async with dispatching(settings) as dispatcher:
            for board in boards:
                heard = partial(watcher.hears, board.name, board.layout.partitions)
                await eventually_async(heard)
            yield watcher, viewers, dispatcher
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.fixture
def rare_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change must be announced to be seen."""
    monkeypatch.setattr("scoreboard.broadcast.watcher.RECONCILE_S", 60.0)


@pytest.mark.usefixtures("rare_reads")
async def test_changes_at_every_primary_are_seen_within_a_second(
    cluster: Cluster, jwks_file: Path
) -> None:
    boards = list(boards_of(cluster).values())
    spread = Board("spread", layout=Layout(partitions=8))
    async with watching(cluster, jwks_file, *map(Board, boards), spread) as (_, viewers, store):
        for points in range(1, 6):
            for board in boards:
                await store.submit(board, Action("alice", f"win:{points}", 1))
            for user in range(8):
                await store.submit("spread", Action(f"user-{user}", f"win:{points}", 1))

            def is_seen(points: int = points) -> bool:
                alone = all(viewers.score(board) == points for board in boards)
                users = [viewers.score("spread", f"user-{user}") for user in range(8)]
                return alone and users == [points] * 8

            await eventually_async(is_seen, within_s=1)
        assert viewers.statuses == []


@pytest.mark.usefixtures("rare_reads")
async def test_messages_of_a_board_reach_only_its_own_servers(
    cluster: Cluster, jwks_file: Path
) -> None:
    boards = boards_of(cluster)
    owner, other, _ = boards
    (replica,), (stranger,) = cluster.replicas_of(owner), cluster.replicas_of(other)
    nodes = (replica, other, stranger)

    def received(kind: str) -> list[int]:
        """Return the messages that each of the nodes got from other nodes."""
        name = f"cluster_stats_messages_{kind}_received"
        return [int(node.call("CLUSTER INFO").get(name, 0)) for node in nodes]

    async with watching(cluster, jwks_file, *map(Board, boards.values())) as (_, viewers, store):
        assert channels_at(owner) == [channel_of(boards[owner])]
        sharded, plain = received("publishshard"), received("publish")
        for number in range(20):
            await store.submit(boards[owner], Action("alice", f"win:{number}", 1))
        await eventually_async(lambda: viewers.score(boards[owner]) == 20)
        await eventually_async(lambda: received("publishshard")[0] == sharded[0] + 20)
        assert received("publishshard")[1:] == sharded[1:]
        # The stream was empty once, which all flushers are told.
        assert received("publish") == [count + 1 for count in plain]


@pytest.mark.parametrize("way", ["atomic", "classic"])
@pytest.mark.usefixtures("rare_reads")
async def test_the_last_change_is_seen_while_its_slot_moves(
    cluster: Cluster, jwks_file: Path, way: str
) -> None:
    source, target, _ = cluster.primaries()
    name = board_at(cluster, source)
    slot = slot_of(channel_of(name))
    async with watching(cluster, jwks_file, Board(name)) as (_, viewers, store):
        is_over = asyncio.Event()
        counted = 0

        async def play() -> None:
            nonlocal counted
            while not is_over.is_set():
                counted = (await store.submit(name, Action("alice", f"win:{counted}", 1))).score

        playing = asyncio.create_task(play())
        for node in (target, source, target):
            before = counted
            await eventually_async(lambda before=before: counted > before)
            move = cluster.migrate if way == "atomic" else cluster.migrate_classic
            await asyncio.to_thread(move, [slot], node)
            assert cluster.primary_of(channel_of(name)) is node
        is_over.set()
        await playing
        await eventually_async(lambda: viewers.score(name) == counted, within_s=2)
        assert viewers.statuses == []


async def test_a_lost_primary_makes_only_its_own_boards_stale(
    own_cluster: OwnCluster, jwks_file: Path
) -> None:
    cluster = await asyncio.to_thread(own_cluster)
    boards = boards_of(cluster)
    lost = cluster.primaries()[1]
    spread = Board("spread", layout=Layout(partitions=8))
    owners = cluster.owners()
    away = [n for n in range(8) if owners[slot_of(channel_of("spread", n))] is lost]
    others = [board for node, board in boards.items() if node is not lost]
    async with watching(cluster, jwks_file, *map(Board, boards.values()), spread) as running:
        watcher, viewers, store = running
        await store.submit(boards[lost], Action("alice", "win:0", 1))
        await eventually_async(lambda: viewers.score(boards[lost]) == 1)
        for replica in cluster.replicas_of(lost):
            replica.pause()
        lost.kill()
        seen = [partial(viewers.score, board) for board in others]
        async with asyncio.timeout(30):
            for points in itertools.count(1):  # until both boards are known to be away
                for board in others:
                    await store.submit(board, Action("alice", f"win:{points}", 1))
                await eventually_async(lambda p=points: [f() for f in seen] == [p, p], within_s=1)
                if all(viewers.statuses_of(name) for name in (boards[lost], "spread")):
                    break
        assert not watcher.hears(boards[lost], 1)
        assert watcher.hears(others[0], 1)
        assert watcher.is_ready, "it serves the other boards"
        assert [status.reason for status in viewers.statuses_of(boards[lost])] == ["unreachable"]
        status = viewers.statuses_of("spread")[-1]
        assert (status.reason, list(status.partitions)) == ("unreachable", away)
        for replica in cluster.replicas_of(lost) or cluster.nodes[3:]:
            replica.resume()
        await asyncio.to_thread(cluster.wait_until_promoted, instead_of=lost)

        def are_live() -> bool:
            names = (boards[lost], "spread")
            return all(viewers.statuses_of(name)[-1].state == "live" for name in names)

        await eventually_async(are_live, within_s=10)
        await store.submit(boards[lost], Action("alice", "win:1", 1))
        await eventually_async(lambda: viewers.score(boards[lost]) == 2, within_s=1)
        assert all(viewers.statuses_of(board) == [] for board in others)


async def test_a_primary_that_hangs_delays_no_other_boards(
    own_cluster: OwnCluster, jwks_file: Path
) -> None:
    cluster = await asyncio.to_thread(partial(own_cluster, replicas=0))
    hangs, other, _ = cluster.primaries()
    names: list[str] = []
    for _ in range(30):
        names.append(board_at(cluster, hangs, other_than=names))
    served = board_at(cluster, other)
    async with watching(cluster, jwks_file, Board(served), *map(Board, names)) as running:
        watcher, viewers, store = running
        hangs.pause()
        async with asyncio.timeout(60):
            for points in itertools.count(1):  # until each of the others was read in vain, twice
                await store.submit(served, Action("alice", f"win:{points}", 1))
                await eventually_async(lambda p=points: viewers.score(served) == p, within_s=1)
                if all(watcher._watched[name].failures > 1 for name in names):
                    break
        await eventually_async(lambda: all(viewers.statuses_of(name) for name in names))
        assert watcher.is_ready
        assert viewers.statuses_of(served) == []
        hangs.resume()
        await eventually_async(lambda: all(watcher.hears(name, 1) for name in names))
