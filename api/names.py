"""Users' names for the leaderboard: a bounded memory over PostgreSQL that never holds a read up.

What stays true: a read waits for names a quarter of a second at most, and where PostgreSQL did not
answer, for five seconds not at all; old names are shown rather than none; nothing here fails.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from psycopg_pool import AsyncConnectionPool

from scoreboard import archive
from scoreboard.errors import DatabaseUnavailable
from scoreboard.postgres import Connection
from scoreboard.telemetry import counter, get_logger

NAMES_MAX: Final = 20_000
"""Most users remembered; the longest unread go first."""

FRESH_S: Final = 60.0
"""After this a name is asked for again."""

WAIT_S: Final = 0.25
PAUSE_S: Final = 5.0
"""Time without questions after one that got no answer."""

_MISSED = counter("names_unavailable_total", "Reads answered without fresh names")
_log = get_logger(__name__)


class _Known(Struct):
    name: str | None
    until_s: float


class Names:
    """Looks up names by user id."""

    def __init__(self, pool: AsyncConnectionPool[Connection] | None) -> None:
        """Take an open pool, or None where there is no database: then no name is known."""
        self._pool = pool
        self._known: dict[str, _Known] = {}
        self._paused_until_s = 0.0

    async def of(self, user_ids: Sequence[str]) -> dict[str, str]:
        """Give the names of those users who have one."""
        now_s = time.monotonic()
        missing = [
            user_id
            for user_id in user_ids
            if (known := self._known.get(user_id)) is None or known.until_s < now_s
        ]
        if (
            missing
            and self._pool is not None
            and (now_s < self._paused_until_s or not await self._learn(self._pool, missing))
        ):
            _MISSED.inc()
        names: dict[str, str] = {}
        for user_id in user_ids:
            known = self._known.pop(user_id, None)
            if known is not None:
                self._known[user_id] = known  # the most recently read stand last
                if known.name:
                    names[user_id] = known.name
        return names

    async def _learn(self, pool: AsyncConnectionPool[Connection], user_ids: list[str]) -> bool:
        try:
            async with (
                asyncio.timeout(WAIT_S),
                archive.reaching(),
                pool.connection() as connection,
            ):
                found = await archive.select_names(connection, user_ids)
        except (TimeoutError, DatabaseUnavailable) as error:
            self._paused_until_s = time.monotonic() + PAUSE_S
            _log.warning("names_unavailable", error=type(error).__name__)
            return False
        until_s = time.monotonic() + FRESH_S
        for user_id in user_ids:
            self._known[user_id] = _Known(found.get(user_id), until_s)
        while len(self._known) > NAMES_MAX:
            del self._known[next(iter(self._known))]
        return True
