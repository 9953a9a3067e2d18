"""A bounded cache of users' names and metadata, read from PostgreSQL by one connection of its own.

The api and the streamer each have one. Names that change are announced on the channel ``CHANNEL``
by a trigger (migration 0027); the cache then reads them again and calls its listeners.

Invariants: at most one query at a time, of bounded size, for all readers; ``known`` never waits; a
read by ``of`` waits at most a quarter of a second, few reads wait at once, and none waits for five
seconds after a wait that timed out; names that are outdated by ten minutes at most are returned
rather than none; a name that is shown is not lost because it was evicted; errors are never raised
to a reader; losing PostgreSQL does not end ``run``.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import msgspec
import psycopg
from msgspec import Struct
from psycopg import sql

from scoreboard.errors import DatabaseUnavailable, UnsafeDatabase
from scoreboard.ledger import pool
from scoreboard.ledger.pool import Connection, describe
from scoreboard.ledger.users import PublicProfile, select_public_profiles
from scoreboard.runtime.lifecycle import backoff_s
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import Children, counter, get_logger
from scoreboard.security.credentials import secret_store

CHANNEL: Final = "scoreboard_names"
"""PostgreSQL's channel: a JSON array of user ids, or ``*`` if any name may have changed."""

NAMES_MAX: Final = 20_000
"""Maximum number of cached users, if not set; the least recently read are evicted."""

LOOKUP_MAX: Final = 1_000
"""Maximum number of users of one query."""

FRESH_S: Final = 60.0
"""Age at which a name is read again: the effect of a lost announcement."""

KEPT_S: Final = 600.0
"""Age at which a name is no longer returned: it may have been erased while PostgreSQL was away."""

WAIT_S: Final = 0.25
"""Longest wait of a read for names."""

WAITING_MAX: Final = 16
"""Maximum number of reads that wait at once; each counts as a request in flight."""

PAUSE_S: Final = 5.0
"""Time in which nothing is looked up after a lookup that failed, or a wait that timed out."""

LOOKUP_S: Final = 5.0
"""Time limit of one query."""

RECONNECT_MOST_S: Final = 30.0
"""Longest pause between two attempts to connect: the login may not exist yet."""

LOG_EVERY_S: Final = 60.0
"""Least time between two lines about an outage whose reason changes."""

RENEW_EVERY_S: Final = 5.0
"""Interval of checking whether the login of the connection is outdated."""

_MISSED: Final = counter(
    "names_unavailable_total",
    "Reads answered with missing or outdated names",
    unit="reads",
    normal="0; increases while PostgreSQL is away",
)
_LOOKUPS: Final = Children(
    counter(
        "name_lookups_total",
        "Lookups of names in PostgreSQL by result",
        "result",
        unit="lookups",
        normal="nearly all ok; failed while PostgreSQL is away",
    ),
    "ok",
    "failed",
)
_ERRORS: Final = (TimeoutError, DatabaseUnavailable, UnsafeDatabase, psycopg.Error)
_log = get_logger(__name__)

Select = Callable[[Connection, Sequence[str]], Awaitable[dict[str, PublicProfile]]]
Listener = Callable[[Collection[str] | None], None]
"""Called with the users whose names have arrived or may have changed; None: any may have."""

_NO_NAMES: Final[Mapping[str, str]] = {}


class _Cached(Struct):
    profile: PublicProfile | None
    expires_at_s: float
    resets: int = 0
    """How often any name may have changed before this one was looked up."""


class NameCache:
    """Looks up names by user id. Run ``run`` in a task group."""

    def __init__(
        self,
        settings: Settings | None,
        *,
        name: str = "names",
        select: Select = select_public_profiles,
        most: int = NAMES_MAX,
    ) -> None:
        """Without a database ``settings`` is None: then no user has a name.

        ``name`` is that of the connection; ``select`` reads what the login may read; at most
        ``most`` users are cached. Nothing connects yet. Raises SettingInvalid if the settings do
        not give a login.
        """
        if settings is not None:
            pool.arguments(settings, name=name)
            secret_store(settings, "database")
        self._settings = settings
        self._name = name
        self._select = select
        self._most = most
        self._listeners: list[Listener] = []
        self._known: dict[str, _Cached] = {}
        self._wanted: dict[str, None] = {}
        """The users to look up, in the order in which they were asked for."""
        self._in_flight: frozenset[str] = frozenset()
        self._resets = 0
        """How often any name may have changed: what was looked up before may be outdated."""
        self._answered_at_s = -math.inf
        """When PostgreSQL last answered a lookup."""
        self._stirred = asyncio.Event()
        """Set when users are wanted, or the server has sent something."""
        self._has_looked = asyncio.Event()
        """Set after a lookup, and then replaced."""
        self._waiting = 0
        self._paused_until_s = 0.0
        self._reason = ""
        """The reason that was logged last; empty after a successful lookup."""
        self._logged_at_s = 0.0
        self.is_up = math.nan
        """1 while the connection works, else 0; NaN until the first one: there may be no login."""

    def on_change(self, listener: Listener) -> None:
        """Call ``listener`` once for all names that arrive or change together.

        It is called on the event loop and must not block.
        """
        self._listeners.append(listener)

    def known(
        self, user_ids: Iterable[str], shown: Mapping[str, str] = _NO_NAMES
    ) -> dict[str, str]:
        """Return the names that are known now, and ask for those that are missing or outdated.

        It never waits. Names that arrive later are announced to the listeners. ``shown`` are the
        names that the reader shows: one that was evicted is returned until it is looked up, unless
        PostgreSQL was away for ``KEPT_S``.
        """
        if self._settings is None:
            return {}
        names: dict[str, str] = {}
        now_s = time.monotonic()
        oldest_s = now_s - (KEPT_S - FRESH_S)
        if now_s - self._answered_at_s >= KEPT_S:
            shown = _NO_NAMES
        for user_id in user_ids:
            cached = self._known.pop(user_id, None)
            if cached is None:
                self._ask(user_id)
                if user_id in shown:
                    names[user_id] = shown[user_id]
                continue
            self._known[user_id] = cached  # the most recently read are last
            if not self._is_fresh(cached, now_s):
                self._ask(user_id)
            profile = cached.profile
            if profile is not None and profile.name and cached.expires_at_s > oldest_s:
                names[user_id] = profile.name
        return names

    async def of(self, user_ids: Sequence[str]) -> dict[str, PublicProfile]:
        """Return the names and metadata of the users that have one of them."""
        missing = self._missing(user_ids)
        if missing and self._settings is not None and not await self._wait_for(missing):
            _MISSED.inc()
        profiles: dict[str, PublicProfile] = {}
        oldest_s = time.monotonic() - (KEPT_S - FRESH_S)
        for user_id in user_ids:
            cached = self._known.pop(user_id, None)
            if cached is not None:
                self._known[user_id] = cached  # the most recently read are last
                if cached.profile is not None and cached.expires_at_s > oldest_s:
                    profiles[user_id] = cached.profile
        return profiles

    async def run(self) -> None:
        """Look up requested names, and hear of changes, until cancelled."""
        settings, failures = self._settings, 0
        if settings is None:
            return
        while True:
            try:
                async with await pool.connect(settings, name=self._name) as connection:
                    await self._listen(connection)
                    failures = 0
                    await self._serve(connection)
            except _ERRORS as error:
                self._note_failure(error)
            await asyncio.sleep(backoff_s(failures, most_s=RECONNECT_MOST_S))
            failures += 1

    # Readers

    def _missing(self, user_ids: Iterable[str]) -> list[str]:
        now_s = time.monotonic()
        return [
            user_id
            for user_id in user_ids
            if (cached := self._known.get(user_id)) is None or not self._is_fresh(cached, now_s)
        ]

    def _is_fresh(self, cached: _Cached, now_s: float) -> bool:
        return cached.expires_at_s >= now_s and cached.resets == self._resets

    def _ask(self, user_id: str) -> None:
        if len(self._wanted) < self._most and not self._is_paused:
            self._wanted[user_id] = None
            self._stirred.set()

    @property
    def _is_paused(self) -> bool:
        return time.monotonic() < self._paused_until_s

    def _pause(self) -> None:
        self._paused_until_s = time.monotonic() + PAUSE_S

    async def _wait_for(self, user_ids: list[str]) -> bool:
        """Wait for the lookup of users; return whether all are cached now."""
        if self._is_paused or self._waiting >= WAITING_MAX:
            return False
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_S):
                while missing := self._missing(user_ids):
                    if self._is_paused:
                        return False
                    for user_id in missing:
                        self._ask(user_id)
                    await self._has_looked.wait()
        except TimeoutError:
            self._pause()
            return False
        finally:
            self._waiting -= 1
        return True

    # The connection

    async def _listen(self, connection: Connection) -> None:
        """Subscribe to changes; those before it are not announced, so nothing counts as fresh."""
        statement = sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL))
        async with asyncio.timeout(LOOKUP_S):
            await connection.execute(statement)
        self._paused_until_s = 0.0
        self.is_up = 1.0
        self._forget_all()

    async def _serve(self, connection: Connection) -> None:
        """Look up and hear until the login is outdated.

        Raises psycopg.Error or TimeoutError if the connection fails.
        """
        while not connection.is_login_outdated:
            if self._wanted:
                await self._look_up(connection)
            else:
                await self._wait(connection)
            payloads = {notice.payload async for notice in connection.notifies(timeout=0)}
            if payloads:
                self._note_changes(payloads)

    async def _wait(self, connection: Connection) -> None:
        """Wait until users are wanted, the server sends something, or the login is to be checked.

        psycopg could wait for notifications only, and would have to be cancelled for a lookup.
        """
        loop, handle = asyncio.get_running_loop(), connection.fileno()
        loop.add_reader(handle, self._stirred.set)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEW_EVERY_S):
                    await self._stirred.wait()
        finally:
            loop.remove_reader(handle)
        self._stirred.clear()

    async def _look_up(self, connection: Connection) -> None:
        user_ids = list(self._wanted)[:LOOKUP_MAX]
        for user_id in user_ids:
            del self._wanted[user_id]
        self._in_flight, resets = frozenset(user_ids), self._resets
        try:
            async with asyncio.timeout(LOOKUP_S):
                found = await self._select(connection, user_ids)
        finally:
            self._in_flight = frozenset()
        _LOOKUPS["ok"].inc()
        self._note_success()
        self._answered_at_s = time.monotonic()
        expires_at_s = self._answered_at_s + FRESH_S
        changed: list[str] = []
        for user_id in user_ids:
            before, profile = self._known.get(user_id), found.get(user_id)
            # Somebody may still show the name of a user that was evicted.
            if before is None or _name_of(before.profile) != _name_of(profile):
                changed.append(user_id)
            self._known[user_id] = _Cached(profile, expires_at_s, resets)
        while len(self._known) > self._most:
            del self._known[next(iter(self._known))]
        self._end_lookup()
        if changed:
            self._tell(frozenset(changed))

    def _end_lookup(self) -> None:
        """Wake the reads that wait for a lookup."""
        self._has_looked.set()
        self._has_looked = asyncio.Event()

    def _note_success(self) -> None:
        if self._reason:
            self._reason = ""
            _log.info("names_available")

    def _note_failure(self, error: BaseException) -> None:
        """Let no read wait; log the first failure of an outage, and another reason later."""
        _LOOKUPS["failed"].inc()
        if not math.isnan(self.is_up):
            self.is_up = 0.0
        self._wanted.clear()
        self._pause()
        self._end_lookup()
        reason, now_s = _reason_of(error), time.monotonic()
        is_due = not self._reason or now_s - self._logged_at_s >= LOG_EVERY_S
        if reason != self._reason and is_due:
            self._reason, self._logged_at_s = reason, now_s
            _log.warning("names_unavailable", reason=reason)

    # Changes

    def _note_changes(self, payloads: Iterable[str]) -> None:
        """Read names again that were announced to have changed, by payloads that came together."""
        changed: set[str] = set()
        try:
            for payload in payloads:
                changed.update(msgspec.json.decode(payload, type=list[str]))
        except msgspec.DecodeError:  # also ``*``
            self._forget_all()
            return
        now_s = time.monotonic()
        evicted: set[str] = set()
        for user_id in changed:
            cached = self._known.get(user_id)
            if cached is not None:
                cached.expires_at_s = min(cached.expires_at_s, now_s)
                self._ask(user_id)
            else:
                evicted.add(user_id)
                if user_id in self._in_flight:
                    self._ask(user_id)
        if evicted:  # who shows one of them asks for it
            self._tell(evicted)

    def _forget_all(self) -> None:
        """Let no name count as fresh. The names that are shown are asked for by the listeners."""
        self._resets += 1
        self._tell(None)

    def _tell(self, user_ids: Collection[str] | None) -> None:
        for listener in self._listeners:
            listener(user_ids)


def _name_of(profile: PublicProfile | None) -> str:
    return (profile.name if profile is not None else None) or ""


def _reason_of(error: BaseException) -> str:
    """Return the cause of an error in one line, without rows or passwords."""
    if isinstance(error, DatabaseUnavailable | UnsafeDatabase):
        return error.detail
    if isinstance(error, psycopg.Error):
        return describe(error)
    return "PostgreSQL does not answer"
