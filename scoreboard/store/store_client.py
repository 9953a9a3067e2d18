"""The Redis client that all parts of the store share."""

import redis.asyncio as aioredis


class StoreClient:
    """Base of the parts of the store. The caller owns the client and closes it."""

    def __init__(self, client: aioredis.Redis) -> None:
        """Use a client that decodes replies, as ``store.client.make_client`` returns it."""
        self._client = client
