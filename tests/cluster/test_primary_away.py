"""A primary without a replica is away: its partitions are, and nothing else is."""

import asyncio
import itertools
import json
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from scoreboard.model import Action, Board, Partition, Receipt, partition_of
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.keys import PartitionKeys
from tests.faults.checks import drain
from tests.faults.cluster_stack import ClusterStack
from tests.faults.http import HttpConnection
from tests.faults.stack import started
from tests.support.eventually import eventually_async
from tests.support.servers.clusters import OwnCluster
from tests.support.servers.flushers import FlusherProcess, act, flushing, make_board, positions

pytestmark = pytest.mark.slow

AWAY_S = 4.0
AWAY = "The primary of partition {0.number} of board {0.board} is unreachable"
ANSWER_S = 2.5
"""The longest wait for an answer meanwhile, also for the refusal; a machine in CI is slow."""


class Caller:
    """Updates a user of each partition."""

    def __init__(self, stack: ClusterStack) -> None:
        self._stack = stack
        self._connections = {
            one.board: HttpConnection(stack.api_port, stack.token, one.board)
            for one in stack.partitions
        }
        self._numbers = itertools.count()
        self.slowest_s = 0.0

    async def update(self, partition: Partition) -> int:
        """Send a new action; return the status of the answer."""
        board = next(one for one in self._stack.boards if one.name == partition.board)
        user = next(
            name
            for name in (f"user-{number}" for number in itertools.count())
            if partition_of(name, board.layout.partitions) == partition.number
        )
        began_s = time.monotonic()
        answer = await self._connections[board.name].update(user, f"win:{next(self._numbers)}", 1)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
        return answer.status

    async def statuses(self) -> dict[Partition, int]:
        """Update a user of each partition, one after another."""
        return {one: await self.update(one) for one in self._stack.partitions}

    async def close(self) -> None:
        """Close the connections."""
        for connection in self._connections.values():
            await connection.close()

    async def read(self, board: str) -> tuple[int, str]:
        """Read a board; return the status, and the detail of a problem."""

        def read() -> tuple[int, str]:
            request = urllib.request.Request(
                f"http://127.0.0.1:{self._stack.api_port}/api/scores/leaderboard?board={board}",
                headers={"Authorization": f"Bearer {self._stack.token}"},
            )
            try:
                with urllib.request.urlopen(request, timeout=10) as response:
                    return int(response.status), ""
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, json.load(error)["detail"]

        return await asyncio.to_thread(read)


async def test_boards_of_other_primaries_are_found_by_the_scan(
    own_cluster: OwnCluster, database_url: str
) -> None:
    cluster = own_cluster(replicas=0)
    settings = Settings(
        redis_url=Secret(cluster.url), database_url=Secret(database_url), flusher_metrics_port=0
    )
    names = ["main", *(f"board-{number}" for number in range(8))]
    primaries = {name: cluster.primary_of(PartitionKeys(Partition(name)).meta) for name in names}
    # The scan reads the boards in the order of their names.
    lost = next(name for name in names[1:] if primaries[name] is not primaries["main"])
    others = [name for name in names[1:] if primaries[name] is not primaries[lost]]
    assert others[-1] > lost
    for name in names:
        await make_board(settings, Board(name))
    for name in others:  # without a flusher that hears of it
        (receipt,) = await act(settings, Action("alice", "win:1", 5), board=name)
        assert isinstance(receipt, Receipt)
    primaries[lost].kill()
    async with flushing(settings):
        await eventually_async(
            lambda: all(positions(settings, name) == {0: 1} for name in others), within_s=20
        )


async def test_a_leader_that_cannot_reach_its_primary_yields_the_lease(
    own_cluster: OwnCluster, database_url: str, tmp_path: Path
) -> None:
    cluster = own_cluster(replicas=0)
    settings = Settings(
        redis_url=Secret(cluster.url), database_url=Secret(database_url), flusher_metrics_port=0
    )
    await make_board(settings)
    with FlusherProcess(settings, tmp_path / "first") as first:
        await asyncio.to_thread(first.wait_for, "lease_taken", 1)
        with FlusherProcess(settings, tmp_path / "second") as second:
            await asyncio.to_thread(second.wait_for, "partition_condition_changed", 1)
            primary = cluster.primary_of(PartitionKeys(Partition("main")).meta)
            await asyncio.to_thread(primary.kill)
            await asyncio.to_thread(second.wait_for, "lease_taken", 1)
            assert first.lines("lease_yielded")
            await asyncio.to_thread(primary.start)

            async def is_accepted() -> bool:
                (found,) = await act(settings, Action("alice", "win:1", 5))
                return isinstance(found, Receipt)

            await eventually_async(is_accepted, within_s=20)  # the cluster has to see it first
            await eventually_async(lambda: positions(settings) == {0: 1}, within_s=20)


@pytest.mark.timeout(120)
async def test_only_users_of_a_lost_primary_are_refused(tmp_path: Path) -> None:
    stack = ClusterStack(
        tmp_path, acknowledge="fsync", replicas=0, min_replicas_to_write=0, can_be_severed=False
    )
    async with started(stack):
        caller = Caller(stack)
        assert set((await caller.statuses()).values()) == {200}
        lost = stack.owner(Partition("league"))
        away = {one for one in stack.partitions if stack.owner(one) is lost}
        assert 0 < len(away) < len(stack.partitions)

        lost.kill()
        ends_at = time.monotonic() + AWAY_S
        caller.slowest_s = 0.0
        while time.monotonic() < ends_at:
            statuses = await caller.statuses()
            assert {one for one, status in statuses.items() if status == 503} == away
            assert {status for one, status in statuses.items() if one not in away} == {200}
            assert await caller.read("duel") == (200, "")
            for board in {one.board for one in away}:
                # Also a board of which other partitions are served: its ranking needs them all.
                status, detail = await caller.read(board)
                assert status == 503
                assert detail in {AWAY.format(one) for one in away if one.board == board}
        assert caller.slowest_s < ANSWER_S

        lost.start()
        await eventually_async(lambda: _are_served(caller), within_s=20)
        assert await caller.read("league") == (200, "")
        await drain(stack, 30, stack.partitions)
        assert await stack.verify() == []
        await caller.close()


async def _are_served(caller: Caller) -> bool:
    return set((await caller.statuses()).values()) == {200}
