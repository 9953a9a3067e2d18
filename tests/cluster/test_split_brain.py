"""A primary that is cut off from the others goes on for a moment: what is lost, and what is not."""

import asyncio
import random
import signal
from pathlib import Path
from typing import cast

import pytest

from scoreboard.model import Partition, partition_of
from tests.faults.cluster_stack import ClusterStack
from tests.faults.faults import Fault, Inflict
from tests.faults.loss import measuring

pytestmark = pytest.mark.slow

CONFIRMED_S = 0.5
"""The longest time from an answer to the arrival of its action at the replica."""


class SplitBrain:
    """Isolates the primary of a board until it is replaced, while nothing is committed."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self.cut_off: set[Partition] = set()

    async def inflict(self, stack: ClusterStack, _: random.Random) -> None:
        """Return when the isolated primary has come back as a replica."""
        old = stack.owner(self._partition)
        self.cut_off = {one for one in stack.partitions if stack.owner(one) is old}
        stack.signal("flusher", signal.SIGSTOP)  # what is committed is not lost
        try:
            await asyncio.to_thread(stack.cluster.isolate, old)
            await asyncio.to_thread(stack.cluster.wait_until_promoted, instead_of=old)
            await asyncio.to_thread(stack.cluster.rejoin)
            await asyncio.to_thread(stack.cluster.wait_until_complete)
        finally:
            stack.signal("flusher", signal.SIGCONT)
        assert old.role == "slave"

    @property
    def fault(self) -> Fault:
        return Fault("split_brain", cast("Inflict", self.inflict))


@pytest.mark.timeout(120)
async def test_fsync_loses_what_the_isolated_primary_acknowledged(tmp_path: Path) -> None:
    split = SplitBrain(Partition("league"))
    async with measuring(tmp_path, acknowledge="fsync") as meter:
        loss = await meter.inflict(split.fault, random.Random(1))

        partitions = {board.name: board.layout.partitions for board in meter.stack.boards}
        assert loss.lost
        assert min(loss.lost.values()) > loss.began_s - CONFIRMED_S
        assert {
            Partition(board, partition_of(user, partitions[board])) for board, user, _ in loss.lost
        } <= split.cut_off
        assert loss.acknowledged > len(loss.lost)


@pytest.mark.timeout(120)
async def test_replicated_loses_nothing(tmp_path: Path) -> None:
    split = SplitBrain(Partition("league"))
    async with measuring(tmp_path, acknowledge="replicated") as meter:
        loss = await meter.inflict(split.fault, random.Random(1))

        assert loss.lost == {}
        assert loss.acknowledged > 0
