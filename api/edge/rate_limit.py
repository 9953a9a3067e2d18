"""The limit on updates without a gateway: a sliding window per token subject, over all processes.

Used with SCOREBOARD_RATE_LIMIT=app. The counters are in the same Redis and expire with the window.
Refused updates are not counted; replays are.
"""

import math
from typing import Final

from msgspec import Struct

from scoreboard.http.problems import Headers, QuotaExceeded, quota_headers
from scoreboard.runtime.settings import Settings
from scoreboard.security.tokens import Caller
from scoreboard.store.client import make_client
from scoreboard.store.rate_limit import WINDOW_S, count_calls

_CONNECTIONS: Final = 8


class Quota(Struct, frozen=True):
    """The rest of a caller's updates in the window."""

    limit: int
    remaining: int
    reset_s: int

    def headers(self) -> Headers:
        """Return the RateLimit headers."""
        return quota_headers(self.limit, WINDOW_S, self.remaining, self.reset_s)

    def exceeded(self) -> QuotaExceeded:
        """Return the error of an update that was not counted."""
        return QuotaExceeded(limit=self.limit, window_s=WINDOW_S, retry_after_s=self.reset_s)


class RateLimiter:
    """Counts updates per token subject."""

    def __init__(self, settings: Settings) -> None:
        self._client = make_client(settings, name="api-limit", connections=_CONNECTIONS)
        self._user_limit = settings.updates_per_minute
        self._trusted_limit = settings.trusted_updates_per_minute

    async def take(self, caller: Caller, *, trusted: bool) -> Quota | None:
        """Count one update; return the rest of the quota, or None if there is no limit.

        Raises QuotaExceeded, RedisUnavailable, UnexpectedReply.
        """
        limit = self._trusted_limit if trusted else self._user_limit
        if not limit:
            return None
        counted, quota = await self._count(caller, "trusted" if trusted else "user", 1, limit)
        if not counted:
            raise quota.exceeded()
        return quota

    async def take_some(
        self, caller: Caller, count: int
    ) -> tuple[int, Quota | None, QuotaExceeded | None]:
        """Count updates of a trusted caller, as many as the limit allows.

        Returns how many, the rest of the quota (None if there is no limit), and the error of those
        that were not counted.

        Raises RedisUnavailable, UnexpectedReply.
        """
        if not self._trusted_limit:
            return count, None, None
        counted, quota = await self._count(caller, "trusted", count, self._trusted_limit)
        return counted, quota, quota.exceeded() if counted < count else None

    async def _count(self, caller: Caller, kind: str, count: int, limit: int) -> tuple[int, Quota]:
        window = await count_calls(self._client, kind, caller.subject, count, per_minute=limit)
        reset_s = max(1, math.ceil(window.reset_ms / 1000))
        return window.counted, Quota(limit, window.remaining, reset_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
