"""A bounded cache of users' names and metadata, read from PostgreSQL.

Invariants: one task queries PostgreSQL for all reads; a read waits at most a quarter of a second,
few reads wait at once, and none waits for five seconds after a wait that timed out; names that are
outdated by ten minutes at most are returned rather than none; errors are never raised to a read.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Final

import psycopg
from msgspec import Struct
from psycopg_pool import AsyncConnectionPool

from scoreboard.errors import DatabaseUnavailable
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.ledger.users import PublicProfile, select_public_profiles
from scoreboard.runtime.telemetry import counter, get_logger

NAMES_MAX: Final = 20_000
"""Maximum number of cached users; the least recently read are evicted."""

FRESH_S: Final = 60.0
"""Age at which a name is read again."""

KEPT_S: Final = 600.0
"""Age at which a name is no longer returned: it may have been erased while PostgreSQL was away."""

WAIT_S: Final = 0.25
"""Longest wait of a read for names."""

WAITING_MAX: Final = 16
"""Maximum number of reads that wait at once; each counts as a request in flight."""

PAUSE_S: Final = 5.0
"""Time in which no read waits, after a wait that timed out."""

LOOKUP_S: Final = 5.0
"""Time limit of one query."""

_MISSED: Final = counter(
    "names_unavailable_total",
    "Reads answered with missing or outdated names",
    unit="reads",
    normal="0; increases while PostgreSQL is away",
)
_log = get_logger(__name__)


class _CachedName(Struct):
    profile: PublicProfile | None
    expires_at_s: float


class NameCache:
    """Looks up names by user id. Run ``run`` in a task group."""

    def __init__(self, pool: AsyncConnectionPool[Connection] | None) -> None:
        """``pool`` is open, or None without a database: then no user has a name."""
        self._pool = pool
        self._known: dict[str, _CachedName] = {}
        self._wanted: set[str] = set()
        self._is_wanted = asyncio.Event()
        self._has_looked = asyncio.Event()
        """Set after a lookup, and then replaced."""
        self._waiting = 0
        self._paused_until_s = 0.0

    async def of(self, user_ids: Sequence[str]) -> dict[str, PublicProfile]:
        """Return the names and metadata of the users that have one of them."""
        missing = self._missing(user_ids)
        if missing and self._pool is not None and not await self._wait_for(missing):
            _MISSED.inc()
        profiles: dict[str, PublicProfile] = {}
        oldest_s = time.monotonic() - (KEPT_S - FRESH_S)
        for user_id in user_ids:
            known = self._known.pop(user_id, None)
            if known is not None:
                self._known[user_id] = known  # the most recently read are last
                if known.profile is not None and known.expires_at_s > oldest_s:
                    profiles[user_id] = known.profile
        return profiles

    async def run(self) -> None:
        """Look up requested names until cancelled."""
        if self._pool is None:
            return
        while True:
            await self._is_wanted.wait()
            self._is_wanted.clear()
            wanted, self._wanted = sorted(self._wanted), set()
            if not await self._look_up(self._pool, wanted):
                self._pause()
            self._has_looked.set()
            self._has_looked = asyncio.Event()

    def _missing(self, user_ids: Iterable[str]) -> list[str]:
        now_s = time.monotonic()
        return [
            user_id
            for user_id in user_ids
            if (known := self._known.get(user_id)) is None or known.expires_at_s < now_s
        ]

    @property
    def _is_paused(self) -> bool:
        return time.monotonic() < self._paused_until_s

    def _pause(self) -> None:
        self._paused_until_s = time.monotonic() + PAUSE_S

    async def _wait_for(self, user_ids: list[str]) -> bool:
        """Wait for the lookup of users; return whether all are cached now."""
        if self._is_paused or self._waiting >= WAITING_MAX:
            return False
        self._wanted.update(user_ids)
        self._is_wanted.set()
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_S):
                while self._missing(user_ids):
                    if self._is_paused:
                        return False
                    await self._has_looked.wait()
        except TimeoutError:
            self._pause()
            return False
        finally:
            self._waiting -= 1
        return True

    async def _look_up(self, pool: AsyncConnectionPool[Connection], user_ids: list[str]) -> bool:
        try:
            async with (
                asyncio.timeout(LOOKUP_S),
                translate_errors(),
                pool.connection() as connection,
            ):
                found = await select_public_profiles(connection, user_ids)
        except (TimeoutError, DatabaseUnavailable, psycopg.Error) as error:
            _log.warning("names_unavailable", error=type(error).__name__)
            return False
        expires_at_s = time.monotonic() + FRESH_S
        for user_id in user_ids:
            self._known[user_id] = _CachedName(found.get(user_id), expires_at_s)
        while len(self._known) > NAMES_MAX:
            del self._known[next(iter(self._known))]
        return True
