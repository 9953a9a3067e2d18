"""How many viewers each process has of each board (lua/viewers.lua)."""

from collections.abc import Mapping
from typing import Final

import redis.asyncio as aioredis

from scoreboard.errors import ScoreboardError
from scoreboard.store.keys import viewers_key
from scoreboard.store.scripts import Script, call_each

LIFETIME_S: Final = 16
"""A process that has not called for this time is not counted any more."""

BOARDS_PER_CALL: Final = 100
"""Boards of one round trip: it must not hold Redis."""

_VIEWERS: Final = Script.load("viewers")


async def count_viewers(
    client: aioredis.Redis, process: str, counts: Mapping[str, int]
) -> tuple[dict[str, int], ScoreboardError | None]:
    """Set the viewers that a process has, by board; return those of all processes.

    A board that could not be counted is left out; the second result is why, for the first one.

    Raises RedisUnavailable, ScriptFailed if no board of a round trip could be counted.
    """
    totals: dict[str, int] = {}
    failure: ScoreboardError | None = None
    boards = list(counts)
    for start in range(0, len(boards), BOARDS_PER_CALL):
        page = boards[start : start + BOARDS_PER_CALL]
        calls = [([viewers_key(one)], [process, counts[one], LIFETIME_S]) for one in page]
        replies = await call_each(client, _VIEWERS, calls, int, reads=False)
        for board, reply in zip(page, replies, strict=True):
            if isinstance(reply, ScoreboardError):
                failure = failure or reply
            else:
                totals[board] = reply
    return totals, failure
