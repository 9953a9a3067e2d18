"""A flusher's session with PostgreSQL: connection, lease, position, limits on every call.

The writer stands on it. What stays true: lease and transactions share one connection, so they are
lost together; a leader that falls silent loses the session; no call waits without an end.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Self

import psycopg

from scoreboard.errors import DatabaseUnavailable, UnsafeDatabase
from scoreboard.ledger.checks import read_session
from scoreboard.ledger.migrations import require_current
from scoreboard.ledger.pool import Connection, connect, describe
from scoreboard.ledger.positions import Position, find_position
from scoreboard.ledger.sessions import require_session
from scoreboard.model import Partition
from scoreboard.runtime import resources
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger

_CREATE_BATCH: Final = resources.query("create_flush_batch")
_LOCK_STATE: Final = resources.query("lock_position")
_INSERT_STATE: Final = resources.query("insert_flush_state")
_LOCK_LEASE: Final = resources.query("lock_flusher")
_SET_LIMITS: Final = resources.query("set_limits")

LEASE_LOCK: Final = 0x5B0F
"""Class of the advisory locks that make one flusher of a partition active."""

LEASE_SLICE_S: Final = 60
"""A standby asks anew after this long, so that a connection that hangs is noticed."""

CANCEL_AGAIN_S: Final = 0.2

LOCK_LIMIT_S: Final = 5
STATEMENT_LIMIT_S: Final = 30

IDLE_LIMIT_S: Final = 20
"""A leader that says nothing for so long (stopped, swapped out) loses its session and its lease."""

TRANSACTION_LIMIT_S: Final = 40.0
"""Longest transaction seen from here; the server's own limits are shorter, if it still answers."""

QUICK_LIMIT_S: Final = 10.0
"""Longest single look."""

_log = get_logger(__name__)


class Session:
    """One partition's connection; close it with ``aclose``."""

    def __init__(self, connection: Connection, partition: Partition) -> None:
        self.connection = connection
        self.partition = partition
        self.where: Mapping[str, Any] = {"board": partition.board, "part": partition.number}

    @classmethod
    async def open(cls, settings: Settings, partition: Partition) -> Self:
        """Connect and check that a COMMIT here is for good.

        Raises DatabaseUnavailable, SchemaMismatch, UnsafeDatabase.
        """
        connection = await connect(
            settings,
            name="flusher",
            idle_session_timeout=f"{IDLE_LIMIT_S}s",
            # Plans are kept for long, and tables grow meanwhile: a plan that was right for a small
            # table must not scan it when it is large. Every query here has an index (its header).
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
        """Close the connection; the lease goes with it."""
        with suppress(psycopg.Error):
            await self.connection.close()

    async def acquire_lease(self, stop: StopEvent) -> bool:
        """Wait until this flusher is the active one; tell whether it is (else: asked to stop).

        Raises DatabaseUnavailable.
        """
        lease = {"class": LEASE_LOCK, "key": zlib.crc32(str(self.partition).encode()) - 2**31}
        await self._limit(lock_s=LEASE_SLICE_S, statement_s=0)
        failure: DatabaseUnavailable | None = None
        async with asyncio.TaskGroup() as group:
            canceller = group.create_task(self._cancel_on(stop))
            try:
                await self._wait_for_lease(lease, stop)
            except DatabaseUnavailable as error:
                failure = error  # raised below: a task group would wrap it
            canceller.cancel()
        if failure:
            raise failure
        if stop.is_set:
            return False
        await self._limit(lock_s=LOCK_LIMIT_S, statement_s=STATEMENT_LIMIT_S)
        return True

    async def ping(self) -> None:
        """Show the server that this leader lives.

        Raises DatabaseUnavailable: the lease may be gone.
        """
        await self.position()

    async def position(self) -> Position | None:
        """Read how far the partition is committed; None where it has no record yet.

        Raises DatabaseUnavailable.
        """
        async with self.time_limit(QUICK_LIMIT_S):
            return await find_position(self.connection, self.partition)

    async def begin(self, epoch: int) -> None:
        """Make the partition's record, at the start of an epoch.

        Raises DatabaseUnavailable.
        """
        async with self.time_limit(QUICK_LIMIT_S):
            await self.connection.execute(_INSERT_STATE, {**self.where, "epoch": epoch})

    @asynccontextmanager
    async def locked(self, epoch: int) -> AsyncIterator[Position | None]:
        """Let nobody commit while the block runs; gives None where another epoch began.

        Raises DatabaseUnavailable.
        """
        async with self.time_limit(TRANSACTION_LIMIT_S), self.connection.transaction():
            position = await self.lock_position()
            yield position if position and position.epoch == epoch else None

    async def lock_position(self) -> Position | None:
        """Read the position and let no other flusher commit before this transaction ends.

        Raises psycopg.Error, for the transaction around it.
        """
        row = await (await self.connection.execute(_LOCK_STATE, self.where)).fetchone()
        return Position(*row) if row else None

    async def _limit(self, *, lock_s: int, statement_s: int) -> None:
        limits = {"lock": f"{lock_s}s", "statement": f"{statement_s}s"}
        async with self.time_limit(QUICK_LIMIT_S):
            await self.connection.execute(_SET_LIMITS, limits)

    async def _wait_for_lease(self, lease: Mapping[str, int], stop: StopEvent) -> None:
        while not stop.is_set:
            try:
                async with self.time_limit(LEASE_SLICE_S + 10, raw=True):
                    await self.connection.execute(_LOCK_LEASE, lease)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled):
                continue
            except psycopg.Error as error:
                raise DatabaseUnavailable(describe(error)) from error
            return

    async def _cancel_on(self, stop: StopEvent) -> None:
        await stop.wait()
        while True:  # until the wait has ended: the first cancel may come before its statement
            with suppress(psycopg.Error):
                await self.connection.cancel_safe(timeout=2.0)
            await asyncio.sleep(CANCEL_AGAIN_S)

    @asynccontextmanager
    async def time_limit(self, limit_s: float, *, raw: bool = False) -> AsyncIterator[None]:
        """Limit a call; turn a lost or silent connection into DatabaseUnavailable.

        With ``raw`` the server's own errors pass, for the caller to tell apart.
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
    """Refuse a server whose COMMIT may be lost (the stream is cut right behind it), or its schema.

    Raises SchemaMismatch, UnsafeDatabase; DatabaseUnavailable, also for a standby, which may be
    promoted.
    """
    session = await read_session(connection)
    if session.is_standby:
        raise DatabaseUnavailable("The database is a standby")
    if session.synchronous_commit == "off":
        raise UnsafeDatabase("synchronous_commit is off for the flusher's session")
    if session.fsync != "on":
        _log.warning("database_fsync_off")
    await require_current(connection)
