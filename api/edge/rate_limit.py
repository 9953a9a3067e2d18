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
from scoreboard.store.rate_limit import WINDOW_S, count_call

_CONNECTIONS: Final = 8


class Quota(Struct, frozen=True):
    """The rest of a caller's updates in the window."""

    limit: int
    remaining: int
    reset_s: int

    def headers(self) -> Headers:
        """Return the RateLimit headers."""
        return quota_headers(self.limit, WINDOW_S, self.remaining, self.reset_s)


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
        kind = "trusted" if trusted else "user"
        window = await count_call(self._client, kind, caller.subject, per_minute=limit)
        reset_s = max(1, math.ceil(window.reset_ms / 1000))
        if not window.is_counted:
            raise QuotaExceeded(limit=limit, window_s=WINDOW_S, retry_after_s=reset_s)
        return Quota(limit, window.remaining, reset_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
