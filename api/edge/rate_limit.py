"""The limit on updates where no gateway stands in front: sliding, exact, over all processes.

Only with SCOREBOARD_RATE_LIMIT=app. Counters live in the same Redis under keys.LIMIT_PREFIX; each
expires with its window. Refused updates are not counted, replays are.
"""

import math
import time
from typing import Final

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from msgspec import Struct

from scoreboard.errors import RedisUnavailable
from scoreboard.http.problems import Headers, QuotaExceeded, quota_headers
from scoreboard.runtime.settings import Settings
from scoreboard.security.tokens import Caller
from scoreboard.store.client import make_pool
from scoreboard.store.keys import LIMIT_PREFIX
from scoreboard.store.replies import checking_reply

WINDOW_S: Final = 60
_CONNECTIONS: Final = 8


class Quota(Struct, frozen=True):
    """What is left of a caller's updates."""

    limit: int
    remaining: int
    reset_s: int

    def headers(self) -> Headers:
        """Give the headers that tell it."""
        return quota_headers(self.limit, WINDOW_S, self.remaining, self.reset_s)


class RateLimiter:
    """Counts updates per token subject."""

    def __init__(self, settings: Settings) -> None:
        self._pool = make_pool(settings, name="api-limit", connections=_CONNECTIONS)
        storage = RedisStorage(
            "redis://",
            implementation="redispy",
            key_prefix=LIMIT_PREFIX,
            wrap_exceptions=True,
            connection_pool=self._pool,  # pyright: ignore[reportArgumentType] (limits' stub)
        )
        self._strategy = MovingWindowRateLimiter(storage)
        self._user = RateLimitItemPerMinute(settings.updates_per_minute)
        trusted = settings.trusted_updates_per_minute
        self._trusted = RateLimitItemPerMinute(trusted) if trusted else None

    async def take(self, caller: Caller, *, trusted: bool) -> Quota | None:
        """Count one update; give what is left, or None where there is no limit.

        Raises QuotaExceeded, RedisUnavailable, UnexpectedReply.
        """
        item = self._trusted if trusted else self._user
        if item is None:
            return None
        who = ("trusted" if trusted else "user", caller.subject)
        try:
            with checking_reply("The limit's counters"):
                is_allowed = await self._strategy.hit(item, *who)
                stats = await self._strategy.get_window_stats(item, *who)
                reset_s = max(1, math.ceil(stats.reset_time - time.time()))
        except StorageError as error:
            raise RedisUnavailable from error
        if not is_allowed:
            raise QuotaExceeded(limit=item.amount, window_s=WINDOW_S, retry_after_s=reset_s)
        return Quota(item.amount, max(0, stats.remaining), reset_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()
