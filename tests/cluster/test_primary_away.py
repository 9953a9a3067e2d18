"""A primary without a replica is away: its partitions are, and nothing else is."""

import asyncio
import itertools
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from scoreboard.model import Partition, partition_of
from tests.faults.checks import drain
from tests.faults.cluster_stack import ClusterStack
from tests.faults.http import HttpConnection
from tests.faults.stack import started
from tests.support.eventually import eventually_async

pytestmark = pytest.mark.slow

AWAY_S = 4.0
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

    async def read(self, board: str) -> int:
        """Read a board; return the status."""

        def read() -> int:
            request = urllib.request.Request(
                f"http://127.0.0.1:{self._stack.api_port}/api/scores/leaderboard?board={board}",
                headers={"Authorization": f"Bearer {self._stack.token}"},
            )
            try:
                with urllib.request.urlopen(request, timeout=10) as response:
                    return int(response.status)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code

        return await asyncio.to_thread(read)


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
            assert await caller.read("duel") == 200
            assert await caller.read("league") == 503
        assert caller.slowest_s < ANSWER_S

        lost.start()
        await eventually_async(lambda: _are_served(caller), within_s=20)
        assert await caller.read("league") == 200
        await drain(stack, 30, stack.partitions)
        assert await stack.verify() == []
        await caller.close()


async def _are_served(caller: Caller) -> bool:
    return set((await caller.statuses()).values()) == {200}
