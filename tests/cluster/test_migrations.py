"""Slots move under load, and a node joins: no service is restarted, and no setting changes."""

import asyncio
import random
from pathlib import Path
from typing import cast

import pytest

from tests.faults.campaign import run_on
from tests.faults.cluster_faults import CLUSTER_FAULTS
from tests.faults.cluster_stack import ClusterStack
from tests.faults.faults import Fault, Inflict

pytestmark = pytest.mark.slow


async def node_joins(stack: ClusterStack, _: random.Random) -> None:
    """Let a primary with a replica join, and give it a partition of each board."""
    cluster = stack.cluster
    joined = await asyncio.to_thread(cluster.add_node)
    await asyncio.to_thread(cluster.add_replica, joined)
    slots = {stack.slot(one) for one in stack.partitions if one.number in {0, 3}}
    await asyncio.to_thread(cluster.migrate, slots, joined)
    await asyncio.to_thread(cluster.wait_until_complete)
    assert joined in cluster.primaries()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["board_migrated", "slot_migrated_by_keys"])
async def test_slots_that_move_under_load_lose_nothing(tmp_path: Path, kind: str) -> None:
    schedule = [CLUSTER_FAULTS[kind]] * 5

    report = await run_on(ClusterStack(tmp_path), tmp_path, schedule, clients=12)

    assert report.violations == []
    assert report.rewinds == 0
    assert report.acknowledged > 500


@pytest.mark.timeout(240)
async def test_a_node_that_joins_takes_over_partitions(tmp_path: Path) -> None:
    joining = Fault("node_joins", cast("Inflict", node_joins))
    schedule = [joining, CLUSTER_FAULTS["primary_killed"]]

    report = await run_on(ClusterStack(tmp_path), tmp_path, schedule, clients=12)

    assert report.violations == []
    assert report.acknowledged > 200
