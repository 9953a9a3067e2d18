"""A flusher's PostgreSQL session: connection, lease, position, and a time limit on every call.

Invariants: the lease and the transactions share one connection, so they are lost together; a leader
that stops responding loses the session; every call has a time limit.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Self

import psycopg

from scoreboard.errors import DatabaseUnavailable, UnsafeDatabase
from scoreboard.ledger.checks import read_durability
from scoreboard.ledger.migrations import require_schema
from scoreboard.ledger.pool import Connection, connect, describe
from scoreboard.ledger.positions import Position, find_position, where
from scoreboard.ledger.sessions import require_session
from scoreboard.model import Partition
from scoreboard.runtime import resources
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger

_CREATE_BATCH: Final = resources.query("create_flush_batch")
_LOCK_POSITION: Final = resources.query("lock_position")
_INSERT_STATE: Final = resources.query("insert_flush_state")
_LOCK_LEASE: Final = resources.query("lock_flusher")
_UNLOCK_LEASE: Final = resources.query("unlock_flusher")
_COUNT_FLUSHERS: Final = resources.query("count_flushers")
_SET_LIMITS: Final = resources.query("set_limits")

LEASE_LOCK: Final = 0x5B0F
"""Class of the advisory locks that make one flusher per partition the leader."""

LOGIN_CHECK_S: Final = 1.0
"""Interval at which a standby checks whether to stop waiting."""

LEASE_SLICE_S: Final = 60
"""A standby repeats its request after this time, to detect a dead connection."""

CANCEL_AGAIN_S: Final = 0.2

LOCK_LIMIT_S: Final = 5
STATEMENT_LIMIT_S: Final = 30

IDLE_LIMIT_S: Final = 20
"""A leader idle for this long (stopped, swapped out) loses its session and its lease."""

TRANSACTION_LIMIT_S: Final = 40.0
"""Longest transaction; the server's own limits are shorter and apply while it responds."""

QUICK_LIMIT_S: Final = 10.0
"""Longest single statement."""

_log = get_logger(__name__)


class Session:
    """The connection of one partition; close it with ``aclose``."""

    def __init__(self, connection: Connection, partition: Partition) -> None:
        self.connection = connection
        self.partition = partition
        self.where: Mapping[str, Any] = where(partition)
        self._lease = {"class": LEASE_LOCK, "key": zlib.crc32(str(partition).encode()) - 2**31}

    @classmethod
    async def open(cls, settings: Settings, partition: Partition) -> Self:
        """Connect and check that a COMMIT is durable.

        Raises DatabaseUnavailable, SchemaMismatch, UnsafeDatabase.
        """
        connection = await connect(
            settings,
            name="flusher",
            idle_session_timeout=f"{IDLE_LIMIT_S}s",
            # Prepared plans are kept while tables grow: a plan made for a small table must not scan
            # a large one. Every query here has an index, named in its header.
            enable_seqscan="off",
            jit="off",
        )
        session = cls(connection, partition)
        try:
            await require_session(settings, connection)
            await require_ready(connection)
            async with session.time_limit(TRANSACTION_LIMIT_S):
                await connection.execute(_CREATE_BATCH)
        except BaseException:
            await session.aclose()
            raise
        return session

    async def aclose(self) -> None:
        """Close the connection, which releases the lease."""
        with suppress(psycopg.Error):
            await self.connection.close()

    async def acquire_lease(self, stop: StopEvent, may_wait: Callable[[], bool]) -> bool:
        """Wait until this flusher is the leader.

        Return False if it was stopped before, if it may not wait any longer, or if the login of its
        connection is outdated.

        Raises DatabaseUnavailable.
        """
        is_leaving = False

        def must_leave() -> bool:
            # Final: the request is cancelled, even if Redis answers again meanwhile.
            nonlocal is_leaving
            is_leaving |= stop.is_set or not may_wait() or self.connection.is_login_outdated
            return is_leaving

        await self._limit(lock_s=LEASE_SLICE_S, statement_s=0)
        failure: DatabaseUnavailable | None = None
        async with asyncio.TaskGroup() as group:
            canceller = group.create_task(self._cancel_on(must_leave, stop))
            try:
                await self._wait_for_lease(must_leave)
            except DatabaseUnavailable as error:
                failure = error  # raised below: the task group would wrap it
            canceller.cancel()
        if failure:
            raise failure
        if must_leave():
            return False
        await self._limit(lock_s=LOCK_LIMIT_S, statement_s=STATEMENT_LIMIT_S)
        return True

    async def release_lease(self) -> None:
        """Let another flusher lead the partition; the connection stays open.

        Raises DatabaseUnavailable: the lease ends with the connection.
        """
        async with self.time_limit(QUICK_LIMIT_S):
            await self.connection.execute(_UNLOCK_LEASE, self._lease)

    async def count_flushers(self) -> int:
        """Return how many flushers hold or want the lease.

        Raises DatabaseUnavailable: the lease may be gone.
        """
        async with self.time_limit(QUICK_LIMIT_S):
            row = await (await self.connection.execute(_COUNT_FLUSHERS, self._lease)).fetchone()
        return row[0] if row else 0

    async def ping(self) -> None:
        """Keep the session alive.

        Raises DatabaseUnavailable: the lease may be gone.
        """
        await self.position()

    async def position(self) -> Position | None:
        """Read the committed position; None if the partition has none yet.

        Raises DatabaseUnavailable.
        """
        async with self.time_limit(QUICK_LIMIT_S):
            return await find_position(self.connection, self.partition)

    async def insert_position(self, epoch: int) -> None:
        """Insert the partition's position at the start of an epoch.

        Raises DatabaseUnavailable.
        """
        async with self.time_limit(QUICK_LIMIT_S):
            await self.connection.execute(_INSERT_STATE, {**self.where, "epoch": epoch})

    @asynccontextmanager
    async def locked(self, epoch: int) -> AsyncIterator[Position | None]:
        """Block commits during the block; yield None if another epoch began.

        Raises DatabaseUnavailable.
        """
        async with self.time_limit(TRANSACTION_LIMIT_S), self.connection.transaction():
            position = await self.lock_position()
            yield position if position and position.epoch == epoch else None

    async def lock_position(self) -> Position | None:
        """Read the position and block other commits until this transaction ends.

        Raises psycopg.Error, which ``flush`` classifies.
        """
        row = await (await self.connection.execute(_LOCK_POSITION, self.where)).fetchone()
        return Position(*row) if row else None

    async def _limit(self, *, lock_s: int, statement_s: int) -> None:
        limits = {"lock": f"{lock_s}s", "statement": f"{statement_s}s"}
        async with self.time_limit(QUICK_LIMIT_S):
            await self.connection.execute(_SET_LIMITS, limits)

    async def _wait_for_lease(self, must_leave: Callable[[], bool]) -> None:
        while not must_leave():
            try:
                async with self.time_limit(LEASE_SLICE_S + 10, raw=True):
                    await self.connection.execute(_LOCK_LEASE, self._lease)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled):
                continue
            except psycopg.Error as error:
                raise DatabaseUnavailable(describe(error)) from error
            return

    async def _cancel_on(self, must_leave: Callable[[], bool], stop: StopEvent) -> None:
        while not must_leave():
            await stop.sleep(LOGIN_CHECK_S)
        while True:  # repeated, because a cancel may come before the statement
            with suppress(psycopg.Error):
                await self.connection.cancel_safe(timeout=2.0)
            await asyncio.sleep(CANCEL_AGAIN_S)

    @asynccontextmanager
    async def time_limit(self, limit_s: float, *, raw: bool = False) -> AsyncIterator[None]:
        """Limit the time of a block; raise DatabaseUnavailable for every error of PostgreSQL.

        With ``raw`` the server's errors pass, for the caller to classify.
        """
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError as error:
            await self.aclose()
            raise DatabaseUnavailable(f"no answer within {limit_s:g} s") from error
        except psycopg.Error as error:
            if raw:
                raise
            raise DatabaseUnavailable(describe(error)) from error


async def require_ready(connection: Connection) -> None:
    """Check that a COMMIT is durable, as the stream is trimmed after it, and the schema current.

    Raises SchemaMismatch, UnsafeDatabase; DatabaseUnavailable, also for a standby, which may be
    promoted.
    """
    session = await read_durability(connection)
    if session.is_standby:
        raise DatabaseUnavailable("The database is a standby")
    if session.synchronous_commit == "off":
        raise UnsafeDatabase("synchronous_commit is off for the flusher's session")
    if session.fsync != "on":
        _log.warning("database_fsync_off")
    await require_schema(connection)
