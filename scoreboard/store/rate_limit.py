"""Sliding-window counters of calls, one list per caller (lua/rate_limit.lua)."""

from typing import Final

import redis.asyncio as aioredis
from msgspec import Struct

from scoreboard.model import Count
from scoreboard.store.keys import limit_key
from scoreboard.store.scripts import Script, call

WINDOW_S: Final = 60
_RATE_LIMIT: Final = Script.load("rate_limit")


class CallWindow(Struct, frozen=True, array_like=True):
    """The calls of one caller after an attempt."""

    counted: Count
    """Number of calls that were within the limit."""
    remaining: Count
    reset_ms: Count
    """Time until the oldest call leaves the window."""


async def count_calls(
    client: aioredis.Redis, kind: str, caller: str, count: int, *, per_minute: int
) -> CallWindow:
    """Count calls of a caller, as many as ``per_minute`` allows in the last minute.

    Raises RedisUnavailable, ScriptFailed.
    """
    key = limit_key(kind, caller, per_minute)
    return await call(client, _RATE_LIMIT, [key], [per_minute, WINDOW_S, count], CallWindow)
