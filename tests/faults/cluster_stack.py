"""The system for fault tests on a cluster: every primary has partitions of the boards.

Services know the cluster by its URL alone; the proxies of the plain stack stay unused, except the
one before PostgreSQL.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import redis.asyncio as aioredis

from scoreboard.model import Board, Partition
from scoreboard.store.keys import PartitionKeys
from tests.faults.stack import LAYOUT, Stack
from tests.support.clients.forked import run_forked
from tests.support.servers.clusters import HOST, PASSWORD, Cluster, Node, slot_of

BOARDS = (
    Board("main", LAYOUT),
    Board("wide", msgspec.structs.replace(LAYOUT, partitions=4)),
    Board("league", LAYOUT),
    Board("duel", LAYOUT),
)
"""Their partitions spread over three primaries."""


class ClusterStack(Stack):
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
        super().__init__(folder, boards=boards, source=source)
        self._acknowledge = acknowledge
        self.replicas = 1 if acknowledge == "replicated" else 0
        self.cluster = Cluster(
            folder / "cluster",
            **{"min_replicas_to_write": 1, "can_be_severed": True, **options},
        )
        self.failovers = 0
        self._is_started = False

    @property
    def redis_url(self) -> str:
        """Return the address of the cluster."""
        return self.cluster.url

    @property
    def redis_variables(self) -> dict[str, str]:
        """Return the variables by which services know the cluster."""
        replicas = {"SCOREBOARD_REPLICAS": str(self.replicas)} if self.replicas else {}
        return {
            "REDIS_URL": self.cluster.url,
            "SCOREBOARD_ACKNOWLEDGE": self._acknowledge,
            **replicas,
        }

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
        await asyncio.to_thread(self.cluster.__enter__)
        self._is_started = True
        owners = self.cluster.owners()
        used = {owners[self.slot(partition)] for partition in self.partitions}
        assert used == set(self.cluster.primaries()), "a primary has no load"

    async def stop_redis(self) -> None:
        """End all nodes."""
        if self._is_started:
            await asyncio.to_thread(self.cluster.__exit__)

    async def verify(self) -> list[str]:
        """Run `scoreboard verify --full` on each board; return what it finds."""
        environment = {**os.environ, **self.redis_variables, "DATABASE_URL": self.postgres.url}
        found: list[str] = []
        for board in self.boards:
            words = ("verify", "--full", "--board", board.name)
            done = await asyncio.to_thread(run_forked, "cli", words, environment)
            if done.returncode:
                found.append(f"verify: {board.name}: {done.stdout} {done.stderr}")
        return found

    def slot(self, partition: Partition) -> int:
        """Return the slot of a partition."""
        return slot_of(PartitionKeys(partition).meta)

    def owner(self, partition: Partition) -> Node:
        """Return the primary of a partition."""
        return self.cluster.owners()[self.slot(partition)]
