"""The Redis client that all parts of the store share, and what all of them read."""

from typing import Any

import redis.asyncio as aioredis

from scoreboard.model import Partition
from scoreboard.store.cluster import ClusterClient
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.replies import read_reply


class StoreClient:
    """Base of the parts of the store. The caller owns the client and closes it."""

    def __init__(self, client: aioredis.Redis) -> None:
        """Use a client that decodes replies, as ``store.client.make_client`` returns it."""
        self._client = client

    @property
    def is_cluster(self) -> bool:
        """Whether the client is one of a cluster."""
        return isinstance(self._client, ClusterClient)

    async def _beside(self, partition: Partition) -> dict[str, Any]:
        """Return the options that send a command without a key to the server of a partition.

        Raises RedisUnavailable.
        """
        if not isinstance(self._client, ClusterClient):
            return {}
        key = PartitionKeys(partition).meta
        return await read_reply(self._client.options_at(key), dict[str, Any], key)

    async def banned(self, partition: Partition) -> set[str]:
        """Read the users that are kept off a partition because they are banned.

        Raises RedisUnavailable, UnexpectedReply.
        """
        name = PartitionKeys(partition).banned
        reply = self._client.hgetall(name)
        return set(await read_reply(reply, dict[str, str], f"HGETALL {name}"))
