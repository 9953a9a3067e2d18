"""How reading scripts of boards are sent: here one by one, by a client.

The api sends them in batches: scoreboard.store.read_batcher.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import redis.asyncio as aioredis
from msgspec import Struct

from scoreboard.model import Partition
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.scripts import Script, call_many

Reading = tuple[Any, int]
"""A reply of a script, and the number of the first read in it."""


class ReadScript(Struct, frozen=True, eq=False):
    """A reading script of a partition: the shape of its reply, and its limit.

    It takes the arguments of up to ``reads_max`` reads, ``width`` of each, one after the other.
    """

    script: Script
    shape: type
    width: int
    reads_max: int = 1


class Reads(Protocol):
    """Runs reading scripts."""

    async def read(
        self, script: ReadScript, reads: Sequence[tuple[Partition, Sequence[Any]]]
    ) -> Sequence[Reading]:
        """Run reads of partitions, each with its arguments, in one round trip.

        The arguments may be those of several reads, up to the script's limit: they are then of one
        moment.

        Raises RedisUnavailable, ScriptFailed, Overloaded, and the error of a refusal.
        """
        ...


class ClientReads:
    """Runs each read as a call of its own."""

    def __init__(self, client: aioredis.Redis) -> None:
        self._client = client

    async def read(
        self, script: ReadScript, reads: Sequence[tuple[Partition, Sequence[Any]]]
    ) -> Sequence[Reading]:
        """Run reads of partitions, each with its arguments, in one round trip."""
        calls = [(PartitionKeys(partition).read, args) for partition, args in reads]
        replies = await call_many(self._client, script.script, calls, script.shape)
        return [(reply, 0) for reply in replies]
