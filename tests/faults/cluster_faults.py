"""The faults of a cluster, besides those of ``tests.faults.faults`` that apply to it.

Each returns when the cluster is complete again: every slot has a primary, and every primary its
replica.
"""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from scoreboard.model import Partition
from tests.faults.cluster_stack import ClusterStack
from tests.faults.faults import FAULTS, SHARED, Fault, Inflict
from tests.support.servers.clusters import NODE_TIMEOUT_MS, Node

InflictOnCluster = Callable[[ClusterStack, random.Random], Awaitable[None]]

CLUSTER_FAULTS: dict[str, Fault] = {name: FAULTS[name] for name in SHARED}


def fault(inflict: InflictOnCluster) -> InflictOnCluster:
    """Register a function in ``CLUSTER_FAULTS`` under its name."""
    name = inflict.__name__
    CLUSTER_FAULTS[name] = Fault(name, cast("Inflict", inflict))
    return inflict


async def _complete(stack: ClusterStack) -> None:
    await asyncio.to_thread(stack.cluster.wait_until_complete)


async def _primary(stack: ClusterStack, chance: random.Random) -> Node:
    return chance.choice(await asyncio.to_thread(stack.cluster.primaries))


async def _kill_and_replace(stack: ClusterStack, lost: Sequence[Node]) -> None:
    for node in lost:
        await asyncio.to_thread(node.kill)
    for node in lost:
        await asyncio.to_thread(stack.cluster.wait_until_promoted, instead_of=node)
        stack.failovers += 1
    for node in lost:
        await asyncio.to_thread(node.start)
    await _complete(stack)


@fault
async def primary_killed(stack: ClusterStack, chance: random.Random) -> None:
    """SIGKILL a primary; its replica is promoted, and it returns as a replica."""
    await _kill_and_replace(stack, [await _primary(stack, chance)])


@fault
async def primary_restarted(stack: ClusterStack, chance: random.Random) -> None:
    """SIGKILL a primary and start it at once, before its replica is promoted."""
    node = await _primary(stack, chance)
    await asyncio.to_thread(node.kill)
    await asyncio.to_thread(node.start)
    await _complete(stack)


@fault
async def failover_requested(stack: ClusterStack, chance: random.Random) -> None:
    """Let the replica of a running primary take over (CLUSTER FAILOVER)."""
    node = await _primary(stack, chance)
    (replica,) = await asyncio.to_thread(stack.cluster.replicas_of, node)
    await asyncio.to_thread(stack.cluster.failover, replica)
    stack.failovers += 1
    await _complete(stack)


@fault
async def failovers_of_all_primaries(stack: ClusterStack, _: random.Random) -> None:
    """Let every replica take over, one after another, as a rolling upgrade does."""
    for node in await asyncio.to_thread(stack.cluster.primaries):
        (replica,) = await asyncio.to_thread(stack.cluster.replicas_of, node)
        await asyncio.to_thread(stack.cluster.failover, replica)
        stack.failovers += 1
        await _complete(stack)


@fault
async def primary_paused(stack: ClusterStack, chance: random.Random) -> None:
    """SIGSTOP a primary for less than the cluster's time limit."""
    node = await _primary(stack, chance)
    node.pause()
    try:
        await asyncio.sleep(chance.uniform(0.2, 0.6) * NODE_TIMEOUT_MS / 1000)
    finally:
        node.resume()
    await _complete(stack)


@fault
async def primary_paused_until_replaced(stack: ClusterStack, chance: random.Random) -> None:
    """SIGSTOP a primary until its replica is promoted; it resumes without knowing that."""
    node = await _primary(stack, chance)
    node.pause()
    try:
        await asyncio.to_thread(stack.cluster.wait_until_promoted, instead_of=node)
        stack.failovers += 1
    finally:
        node.resume()
    await _complete(stack)


@fault
async def primary_isolated(stack: ClusterStack, chance: random.Random) -> None:
    """Cut a primary off from the other nodes until it is replaced; the services still reach it."""
    node = await _primary(stack, chance)
    await asyncio.to_thread(stack.cluster.isolate, node)
    try:
        await asyncio.to_thread(stack.cluster.wait_until_promoted, instead_of=node)
        stack.failovers += 1
    finally:
        await asyncio.to_thread(stack.cluster.rejoin)
    await _complete(stack)


@fault
async def primary_isolated_without_commits(stack: ClusterStack, chance: random.Random) -> None:
    """Do the same while the flusher is stopped: what the primary accepts is nowhere else."""
    stack.signal("flusher", signal.SIGSTOP)
    try:
        await primary_isolated(stack, chance)
    finally:
        stack.signal("flusher", signal.SIGCONT)


@fault
async def primary_lost_with_its_host(stack: ClusterStack, chance: random.Random) -> None:
    """Kill a primary after a moment in which nothing that it sent has reached its replica."""
    node = await _primary(stack, chance)
    await asyncio.to_thread(stack.cluster.isolate, node)
    try:
        await asyncio.sleep(chance.uniform(0.02, 0.3))
        await asyncio.to_thread(node.kill)
        await asyncio.to_thread(stack.cluster.wait_until_promoted, instead_of=node)
        stack.failovers += 1
    finally:
        await asyncio.to_thread(stack.cluster.rejoin)
    await asyncio.to_thread(node.start)
    await _complete(stack)


@fault
async def replica_killed(stack: ClusterStack, chance: random.Random) -> None:
    """SIGKILL a replica: its primary refuses updates until it is back."""
    primary = await _primary(stack, chance)
    (replica,) = await asyncio.to_thread(stack.cluster.replicas_of, primary)
    await asyncio.to_thread(replica.kill)
    await asyncio.sleep(chance.uniform(0.5, 2))
    await asyncio.to_thread(replica.start)
    await _complete(stack)


@fault
async def board_migrated(stack: ClusterStack, chance: random.Random) -> None:
    """Move the slots of a board to another primary, each at once (CLUSTER MIGRATESLOTS)."""
    board = chance.choice(stack.boards)
    partitions = [one for one in stack.partitions if one.board == board.name]
    target = await _other_primary(stack, partitions[0], chance)
    slots = [stack.slot(partition) for partition in partitions]
    await asyncio.to_thread(stack.cluster.migrate, slots, target)
    await _complete(stack)


@fault
async def slot_migrated_by_keys(stack: ClusterStack, chance: random.Random) -> None:
    """Move the slot of a partition key by key (MIGRATE), half of it being elsewhere for a while."""
    partition = chance.choice(stack.partitions)
    target = await _other_primary(stack, partition, chance)
    pause_s = chance.uniform(0.1, 0.5)
    await asyncio.to_thread(
        stack.cluster.migrate_classic, [stack.slot(partition)], target, pause_s=pause_s
    )
    await _complete(stack)


@fault
async def primary_killed_after_a_migration(stack: ClusterStack, chance: random.Random) -> None:
    """SIGKILL the primary to which a partition has just moved."""
    partition = chance.choice(stack.partitions)
    target = await _other_primary(stack, partition, chance)
    await asyncio.to_thread(stack.cluster.migrate, [stack.slot(partition)], target)
    await _kill_and_replace(stack, [target])


@fault
async def everything_but_postgres_killed(stack: ClusterStack, _: random.Random) -> None:
    """Kill all services and all nodes, and start them with their files."""
    for name in stack.services:
        await asyncio.to_thread(stack.services[name].kill)
    for node in stack.cluster.nodes:
        await asyncio.to_thread(node.kill)
    await asyncio.to_thread(stack.cluster.repair)
    await stack.start()


async def _other_primary(stack: ClusterStack, partition: Partition, chance: random.Random) -> Node:
    """Return a primary that does not have a partition."""
    owner = await asyncio.to_thread(stack.owner, partition)
    nodes = await asyncio.to_thread(stack.cluster.primaries)
    return chance.choice([node for node in nodes if node is not owner])
