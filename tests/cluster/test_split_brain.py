"""A primary that is cut off from the others goes on for a moment: what is lost, and what is not."""

import random
from pathlib import Path

import pytest

from scoreboard.model import Partition, partition_of
from tests.faults.cluster_faults import CLUSTER_FAULTS
from tests.faults.loss import measuring

pytestmark = pytest.mark.slow

SPLIT = CLUSTER_FAULTS["primary_isolated_without_commits"]
CONFIRMED_S = 0.5
"""The longest time from an answer to the arrival of its action at the replica."""


@pytest.mark.timeout(120)
async def test_fsync_loses_only_what_the_isolated_primary_acknowledged(tmp_path: Path) -> None:
    async with measuring(tmp_path, acknowledge="fsync") as meter:
        stack = meter.stack
        owners = {one: stack.owner(one) for one in stack.partitions}
        loss = await meter.inflict(SPLIT, random.Random(1))

    counts = {board.name: board.layout.partitions for board in stack.boards}
    losers = {
        owners[Partition(board, partition_of(user, counts[board]))] for board, user, _ in loss.lost
    }
    assert len(losers) == 1
    assert min(loss.lost.values()) > loss.began_s - CONFIRMED_S
    assert loss.acknowledged > len(loss.lost)


@pytest.mark.timeout(120)
async def test_replicated_loses_nothing(tmp_path: Path) -> None:
    async with measuring(tmp_path, acknowledge="replicated") as meter:
        loss = await meter.inflict(SPLIT, random.Random(1))

    assert loss.lost == {}
    assert loss.acknowledged > 0
