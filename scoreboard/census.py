"""Reads a partition of Redis member by member, page by page, without stopping anybody. For verify.

What is read here is of no single moment: whatever looks wrong is looked at again under a lock
(scoreboard.verify). Reads only.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import redis.asyncio as aioredis
from redis.exceptions import RedisError

from scoreboard.errors import RedisUnavailable
from scoreboard.keys import PartitionKeys
from scoreboard.model import Layout, Partition
from scoreboard.redis_client import LOST

PAGE: Final = 1000
"""Members of one read."""

UNEXPIRING: Final = -1
"""What PTTL answers for a key that never goes."""


class Census:
    """Reads of whole partitions over one client, which the caller owns and closes."""

    def __init__(self, client: aioredis.Redis) -> None:
        """Take a client that decodes replies (redis_client.make_client does)."""
        self._client = client

    async def count(self, partition: Partition) -> int:
        """Count the members of a partition.

        Raises RedisUnavailable.
        """
        try:
            return int(await self._client.zcard(PartitionKeys(partition).board))
        except (*LOST, RedisError) as error:
            raise RedisUnavailable from error

    async def packed_of(self, partition: Partition, users: Sequence[str]) -> list[int | None]:
        """Read the packed scores of some users, None for who is no member.

        Raises RedisUnavailable.
        """
        if not users:
            return []
        try:
            reply: Any = await self._client.zmscore(PartitionKeys(partition).board, list(users))
        except (*LOST, RedisError) as error:
            raise RedisUnavailable from error
        return [None if packed is None else int(packed) for packed in reply]

    async def members(self, partition: Partition) -> AsyncIterator[list[str]]:
        """Walk over all members, a page at a time; some may come twice.

        Raises RedisUnavailable.
        """
        key = PartitionKeys(partition).board
        cursor = 0
        while True:
            try:
                reply: Any = await self._client.zscan(key, cursor, count=PAGE)
            except (*LOST, RedisError) as error:
                raise RedisUnavailable from error
            cursor, pairs = int(reply[0]), reply[1]
            yield [str(user) for user, _ in pairs]
            if not cursor:
                return

    async def some_members(self, partition: Partition, count: int) -> list[str]:
        """Choose up to ``count`` different members by chance.

        Raises RedisUnavailable.
        """
        try:
            reply: Any = await self._client.zrandmember(PartitionKeys(partition).board, count)
        except (*LOST, RedisError) as error:
            raise RedisUnavailable from error
        return [str(user) for user in reply]

    async def unexpiring(self, partition: Partition, layout: Layout, generation: int) -> list[str]:
        """List the seen hashes around a generation that never go: memory would grow for ever.

        Raises RedisUnavailable.
        """
        keys = PartitionKeys(partition)
        names = [
            keys.seen(near, shard)
            for near in (generation - 1, generation, generation + 1)
            for shard in range(layout.seen_shards)
        ]
        try:
            pipe = self._client.pipeline(transaction=False)
            for name in names:
                pipe.pttl(name)
            replies: Any = await pipe.execute()
        except (*LOST, RedisError) as error:
            raise RedisUnavailable from error
        return [name for name, left in zip(names, replies, strict=True) if left == UNEXPIRING]
