"""How many viewers each process has of each board (lua/viewers.lua)."""

from collections.abc import Mapping
from typing import Final

import redis.asyncio as aioredis

from scoreboard.store.keys import viewers_key
from scoreboard.store.scripts import Script, call_many

LIFETIME_S: Final = 16
"""A process that has not called for this time is not counted any more."""

BOARDS_PER_CALL: Final = 100
"""Boards of one round trip: it must not hold Redis."""

_VIEWERS: Final = Script.load("viewers")


async def count_viewers(
    client: aioredis.Redis, process: str, counts: Mapping[str, int]
) -> dict[str, int]:
    """Set the viewers that a process has, by board; return those of all processes.

    Raises RedisUnavailable, ScriptFailed.
    """
    totals: dict[str, int] = {}
    boards = list(counts)
    for start in range(0, len(boards), BOARDS_PER_CALL):
        page = boards[start : start + BOARDS_PER_CALL]
        calls = [([viewers_key(one)], [process, counts[one], LIFETIME_S]) for one in page]
        replies = await call_many(client, _VIEWERS, calls, int, reads=False)
        totals.update(zip(page, replies, strict=True))
    return totals
