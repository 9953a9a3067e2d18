"""The system for fault tests on a primary with two replicas, which three sentinels watch."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import redis.asyncio as aioredis

from scoreboard.model import Board
from tests.faults.replicated_stack import ReplicatedStack
from tests.faults.stack import LAYOUT
from tests.support.servers.sentinels import NODES, Sentinels

BOARDS = (Board("main", LAYOUT), Board("wide", msgspec.structs.replace(LAYOUT, partitions=2)))


class SentinelStack(ReplicatedStack):
    """The stack on servers with sentinels. Both replicas have to confirm an update.

    With one of them, what was acknowledged is lost if the primary restarts at the moment of its
    failover: its offset begins anew, so the sentinels promote the replica with the older data.
    """

    def __init__(
        self, folder: Path, *, boards: Sequence[Board] = BOARDS, replicas: int = NODES - 1
    ) -> None:
        self.sentinels = Sentinels(folder / "sentinels", min_replicas_to_write=replicas)
        super().__init__(folder, self.sentinels, boards=boards, replicas=replicas)

    @asynccontextmanager
    async def servers(self) -> AsyncIterator[list["aioredis.Redis"]]:
        """Open a plain client of the primary."""
        primary = await asyncio.to_thread(self.sentinels.primary)
        async with aioredis.Redis.from_url(primary.url) as client:
            yield [client]
