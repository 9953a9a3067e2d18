"""The system for fault tests on a cluster: every primary has partitions of the boards."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import redis.asyncio as aioredis

from scoreboard.model import Board, Partition
from scoreboard.store.keys import PartitionKeys
from tests.faults.replicated_stack import ReplicatedStack
from tests.faults.stack import LAYOUT
from tests.support.servers.clusters import HOST, PASSWORD, Cluster, Node, slot_of

BOARDS = (
    Board("main", LAYOUT),
    Board("wide", msgspec.structs.replace(LAYOUT, partitions=4)),
    Board("league", LAYOUT),
    Board("duel", LAYOUT),
)
"""Their partitions spread over three primaries."""


class ClusterStack(ReplicatedStack):
    """The stack on a cluster of three primaries with a replica each."""

    def __init__(
        self,
        folder: Path,
        *,
        boards: Sequence[Board] = BOARDS,
        acknowledge: str = "replicated",
        source: Path | None = None,
        **options: Any,
    ) -> None:
        """``options`` are those of the cluster."""
        self.cluster = Cluster(
            folder / "cluster",
            **{"min_replicas_to_write": 1, "can_be_severed": True, **options},
        )
        super().__init__(
            folder, self.cluster, boards=boards, acknowledge=acknowledge, source=source
        )

    @asynccontextmanager
    async def servers(self) -> AsyncIterator[list["aioredis.Redis"]]:
        """Open a plain client of each primary."""
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(
                    aioredis.Redis(host=HOST, port=node.port, password=PASSWORD)
                )
                for node in await asyncio.to_thread(self.cluster.primaries)
            ]

    async def start_redis(self) -> None:
        """Form the cluster.

        Raises AssertionError if a primary has no partition.
        """
        await super().start_redis()
        owners = self.cluster.owners()
        used = {owners[self.slot(partition)] for partition in self.partitions}
        assert used == set(self.cluster.primaries()), "a primary has no load"

    def slot(self, partition: Partition) -> int:
        """Return the slot of a partition."""
        return slot_of(PartitionKeys(partition).meta)

    def owner(self, partition: Partition) -> Node:
        """Return the primary of a partition."""
        return self.cluster.owners()[self.slot(partition)]
