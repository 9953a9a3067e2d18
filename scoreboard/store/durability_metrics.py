"""Exports whether Redis keeps what it acknowledges, from the services that require it."""

from typing import Final

import redis.asyncio as aioredis

from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import state_gauge
from scoreboard.store.durability import Durability, Requirements, check_durability

_REDIS_DURABLE: Final = state_gauge("redis_durable", "1 if Redis keeps all acknowledged writes")


async def measure_durability(client: aioredis.Redis, settings: Settings) -> Durability:
    """Check durability as the settings need it, and export the result.

    Raises RedisUnavailable, UnexpectedReply.
    """
    found = await check_durability(client, Requirements.of(settings))
    _REDIS_DURABLE.set(found.is_safe)
    if not found.is_primary:
        # After a failover the address may lead to another server: the next call connects again.
        # A cluster's client is told by the servers themselves, and all of its primaries are ones.
        await client.connection_pool.disconnect(inuse_connections=False)
    return found
