"""The faults of servers with sentinels, besides those of ``tests.faults.faults`` that apply.

Each returns when the primary has both replicas again, and the sentinels know all of them.
"""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import cast

from cli.embedded.servers import EmbeddedValkey
from tests.faults.faults import FAULTS, SHARED, Fault, Inflict
from tests.faults.sentinel_stack import SentinelStack
from tests.support.servers.sentinels import DOWN_AFTER_MS

InflictOnSentinels = Callable[[SentinelStack, random.Random], Awaitable[None]]

OF_A_SERVER = ("group_destroyed", "consumers_deleted", "clients_killed")
"""Faults of a single server that break neither its replicas nor its connection."""

SENTINEL_FAULTS: dict[str, Fault] = {name: FAULTS[name] for name in (*SHARED, *OF_A_SERVER)}


def fault(inflict: InflictOnSentinels) -> InflictOnSentinels:
    """Register a function in ``SENTINEL_FAULTS`` under its name."""
    name = inflict.__name__
    SENTINEL_FAULTS[name] = Fault(name, cast("Inflict", inflict))
    return inflict


async def _primary(stack: SentinelStack) -> EmbeddedValkey:
    return await asyncio.to_thread(stack.sentinels.primary)


async def _repaired(stack: SentinelStack) -> None:
    await asyncio.to_thread(stack.sentinels.repaired)


@contextmanager
def _paused(node: EmbeddedValkey) -> Iterator[None]:
    os.kill(node.pid or 0, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.pid or 0, signal.SIGCONT)


@fault
async def primary_killed(stack: SentinelStack, _: random.Random) -> None:
    """SIGKILL the primary; a replica is promoted, and it returns as a replica."""
    await asyncio.to_thread(stack.sentinels.fail_over)
    stack.failovers += 1
    await _repaired(stack)


@fault
async def primary_restarted(stack: SentinelStack, _: random.Random) -> None:
    """SIGKILL the primary and start it at once, while the sentinels may begin a failover."""
    node = await _primary(stack)
    await asyncio.to_thread(node.kill)
    await _repaired(stack)


@fault
async def failover_requested(stack: SentinelStack, _: random.Random) -> None:
    """Let a replica take over from the running primary (SENTINEL FAILOVER, COORDINATED)."""
    await asyncio.to_thread(stack.sentinels.switch)
    stack.failovers += 1
    await _repaired(stack)


@fault
async def primary_paused(stack: SentinelStack, chance: random.Random) -> None:
    """SIGSTOP the primary for less than the sentinels' time limit."""
    with _paused(await _primary(stack)):
        await asyncio.sleep(chance.uniform(0.2, 0.6) * DOWN_AFTER_MS / 1000)
    await _repaired(stack)


@fault
async def primary_paused_until_replaced(stack: SentinelStack, _: random.Random) -> None:
    """SIGSTOP the primary until a replica is promoted; it resumes without knowing that."""
    node = await _primary(stack)
    with _paused(node):
        await asyncio.to_thread(stack.sentinels.wait_until_replaced, node)
    stack.failovers += 1
    await _repaired(stack)


@fault
async def primary_killed_without_commits(stack: SentinelStack, chance: random.Random) -> None:
    """SIGKILL the primary while the flusher is stopped: the ledger has none of the last updates."""
    stack.signal("flusher", signal.SIGSTOP)
    try:
        await asyncio.sleep(chance.uniform(0.2, 0.6))
        await asyncio.to_thread(stack.sentinels.fail_over)
        stack.failovers += 1
    finally:
        stack.signal("flusher", signal.SIGCONT)
    await _repaired(stack)


@fault
async def replica_killed(stack: SentinelStack, chance: random.Random) -> None:
    """SIGKILL one of the two replicas: the primary refuses updates until it is back."""
    primary = await _primary(stack)
    replica = chance.choice([node for node in stack.sentinels.nodes if node is not primary])
    await asyncio.to_thread(replica.kill)
    await asyncio.sleep(chance.uniform(0.5, 2))
    await _repaired(stack)


@fault
async def sentinel_away_in_a_failover(stack: SentinelStack, chance: random.Random) -> None:
    """SIGKILL a sentinel and the primary: the other two sentinels promote a replica."""
    await asyncio.to_thread(chance.choice(stack.sentinels.sentinels).kill)
    await primary_killed(stack, chance)


@fault
async def sentinels_killed(stack: SentinelStack, chance: random.Random) -> None:
    """SIGKILL all sentinels while the primary runs, and the api, which then has to find it."""
    for one in stack.sentinels.sentinels:
        await asyncio.to_thread(one.kill)
    await asyncio.to_thread(stack.services["api"].kill)
    await asyncio.sleep(chance.uniform(0.2, 1))
    await _repaired(stack)
    await stack.start("api")


@fault
async def everything_but_postgres_killed(stack: SentinelStack, _: random.Random) -> None:
    """Kill all services, servers and sentinels, and start them with their files."""
    for service in stack.services.values():
        await asyncio.to_thread(service.kill)
    for server in (*stack.sentinels.sentinels, *stack.sentinels.nodes):
        await asyncio.to_thread(server.kill)
    await _repaired(stack)
    await stack.start()
