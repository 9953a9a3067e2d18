"""Writes batches to PostgreSQL: one transaction each. Owns the flusher's connection and its lease.

Called by the lane of a partition. What stays true: the ledger's key alone decides what counts, and
scores move by the sum of what was inserted, so a batch may come twice, late or from two flushers;
the row of ``flush_state`` is locked first, so commits of a partition are one after another, and it
moves in the same transaction; whatever is acknowledged afterwards has a row somewhere.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Self

import psycopg
from msgspec import Struct

from flusher.batch import BIGINT_MAX, COLUMNS, Batch, Gap, follow, occurred_at, rows, uuid_of
from flusher.failures import Meaning, describe, meaning_of
from flusher.quarantine import DeadEvent, park, park_bad, restore
from scoreboard import archive, resources
from scoreboard.archive import Position
from scoreboard.errors import DatabaseUnavailable, PoisonFlood, SchemaMismatch, UnsafeDatabase
from scoreboard.events import CORRECTION, Event, decode
from scoreboard.lifecycle import Stop, backoff_s
from scoreboard.migrations import require_current
from scoreboard.model import Partition
from scoreboard.postgres import Connection, connect
from scoreboard.settings import Settings
from scoreboard.telemetry import get_logger

_CREATE_BATCH: Final = resources.query("create_flush_batch")
_COPY_BATCH: Final = resources.query("copy_flush_batch")
_CLEAR_BATCH: Final = resources.query("clear_flush_batch")
_COUNT_BATCH: Final = resources.query("count_flush_batch")
_INSERT_LATE: Final = resources.query("insert_late_duplicates")
_INSERT_CORRECTION: Final = resources.query("insert_correction")
_MARK_CORRECTED: Final = resources.query("mark_corrected")
_INSERT_DEAD: Final = resources.query("insert_dead_event")
_LOCK_STATE: Final = resources.query("lock_flush_state")
_SELECT_STATE: Final = resources.query("select_position")
_INSERT_STATE: Final = resources.query("insert_flush_state")
_SELECT_OPEN: Final = resources.query("select_open_duplicates")
_SELECT_ARRIVALS: Final = resources.query("select_arrivals")
_SELECT_DEAD: Final = resources.query("select_dead_events")
_ADVANCE_STATE: Final = resources.query("advance_flush_state")
_LOCK_LEASE: Final = resources.query("lock_flusher")
_SELECT_SESSION: Final = resources.query("select_session")

TYPES: Final = (
    *("uuid", "text", "text", "int8", "int8", "int4"),
    *("int4", "text", "text", "timestamptz", "bool"),
)
"""Types of ``batch.COLUMNS``: binary COPY converts nothing."""

LEASE_LOCK: Final = 0x5B0F
"""Class of the advisory locks that make one flusher of a partition active."""

LEASE_SLICE_S: Final = 60
"""A standby asks anew after this long, so that a connection that hangs is noticed."""

CANCEL_AGAIN_S: Final = 0.2

IDLE_LIMIT_S: Final = 20
"""A leader that says nothing for so long (stopped, swapped out) loses its session and its lease."""

TRANSACTION_LIMIT_S: Final = 60.0
"""Longest transaction seen from here; the server's own limits are shorter, if it still answers."""

CONTENTION_TRIES: Final = 20
"""Tries of a batch under contention before the connection is made anew."""

POISON_MAX: Final = 10
"""More unstorable rows in one batch than these are no accident of rows: stop, park none."""

OPEN_PAGE: Final = 64
"""Users corrected in one go; also the most that lua/repair.lua takes."""

OWED_MAX: Final = 10_000
"""Most parked entries read; with more of them nobody should correct anything by itself."""

_log = get_logger(__name__)


class Flushed(Struct, frozen=True):
    """What a committed batch did. ``position`` is where the partition stands after it."""

    position: Position
    counted: int = 0
    redelivered: int = 0
    late: int = 0
    dead: int = 0
    corrections: int = 0
    drifted: int = 0
    rewound: int = 0
    """Rows counted although their seq was committed before: Redis came back older."""


class Superseded(Struct, frozen=True):
    """Nothing was written: another epoch began since the batch was read."""


class GapFound(Struct, frozen=True):
    """Nothing was written: seqs are missing before an entry of the batch."""

    gap: Gap


class _Tally(Struct):
    counted: int = 0
    rewound: int = 0
    drifted: int = 0
    late: int = 0


class Writer:
    """One partition's connection to PostgreSQL; close it with ``aclose``."""

    def __init__(self, connection: Connection, partition: Partition) -> None:
        self._connection = connection
        self._partition = partition
        self._where: Mapping[str, Any] = {"board": partition.board, "part": partition.number}

    @classmethod
    async def open(cls, settings: Settings, partition: Partition) -> Self:
        """Connect and check that a COMMIT here is for good.

        Raises DatabaseUnavailable, SchemaMismatch, UnsafeDatabase.
        """
        connection = await connect(
            settings, name="flusher", idle_session_timeout=f"{IDLE_LIMIT_S}s"
        )
        writer = cls(connection, partition)
        try:
            await require_ready(connection)
            async with writer._reaching(TRANSACTION_LIMIT_S):
                await connection.execute(_CREATE_BATCH)
        except BaseException:
            await writer.aclose()
            raise
        return writer

    async def aclose(self) -> None:
        """Close the connection; the lease goes with it."""
        with suppress(psycopg.Error):
            await self._connection.close()

    async def take_lease(self, stop: Stop) -> bool:
        """Wait until this flusher is the active one; tell whether it is (else: asked to stop).

        Raises DatabaseUnavailable.
        """
        lease = {"class": LEASE_LOCK, "key": zlib.crc32(str(self._partition).encode()) - 2**31}
        await self._execute(f"SET lock_timeout = '{LEASE_SLICE_S}s'")
        await self._execute("SET statement_timeout = 0")
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
        await self._execute("RESET lock_timeout")
        await self._execute("RESET statement_timeout")
        return True

    async def ping(self) -> None:
        """Show the server that this leader lives.

        Raises DatabaseUnavailable: the lease may be gone.
        """
        await self._execute("SELECT 1")

    async def position(self) -> Position | None:
        """Read how far the partition is committed; None where it has no record yet.

        Raises DatabaseUnavailable.
        """
        async with self._reaching(TRANSACTION_LIMIT_S):
            cursor = await self._connection.execute(_SELECT_STATE, self._where)
            row = await cursor.fetchone()
        return Position(*row) if row else None

    async def begin(self, epoch: int) -> None:
        """Make the partition's record, at the start of an epoch.

        Raises DatabaseUnavailable.
        """
        async with self._reaching(TRANSACTION_LIMIT_S):
            await self._connection.execute(_INSERT_STATE, {**self._where, "epoch": epoch})

    async def flush(
        self, batch: Batch, *, epoch: int, skip_gaps: bool = False
    ) -> Flushed | Superseded | GapFound:
        """Commit a batch that was read in an epoch.

        Contention is waited out; unstorable rows are parked. With ``skip_gaps`` missing seqs are
        passed over.

        Raises DatabaseUnavailable (it may have been committed: read and flush again),
        SchemaMismatch, PoisonFlood (nothing was written).
        """
        isolate = False
        attempt = 0
        while True:
            try:
                async with self._reaching(TRANSACTION_LIMIT_S, raw=True):
                    return await self._commit(batch, epoch, skip_gaps=skip_gaps, isolate=isolate)
            except psycopg.Error as error:
                match meaning_of(error):
                    case Meaning.POISON if not isolate:
                        _log.warning("poison_found", reason=describe(error))
                        isolate = True
                    case Meaning.CONTENTION if attempt < CONTENTION_TRIES:
                        _log.info("flush_contended", attempt=attempt, reason=describe(error))
                        await asyncio.sleep(backoff_s(attempt, least_s=0.02, most_s=1.0))
                        attempt += 1
                    case Meaning.SCHEMA:
                        raise SchemaMismatch(
                            f"The database refuses the flusher's statements: {describe(error)}"
                        ) from error
                    case _:
                        raise DatabaseUnavailable(describe(error)) from error

    @asynccontextmanager
    async def holding(self, epoch: int) -> AsyncIterator[Position | None]:
        """Let nobody commit while the block runs; gives None where another epoch began.

        Raises DatabaseUnavailable.
        """
        async with self._reaching(TRANSACTION_LIMIT_S), self._connection.transaction():
            row = await (await self._connection.execute(_LOCK_STATE, self._where)).fetchone()
            yield Position(*row) if row and row[0] == epoch else None

    # The next four belong inside of ``holding``, which limits them and translates their errors.

    async def open_duplicates(self) -> list[tuple[str, int]]:
        """List (user, score due) for users with open late duplicates, a page of them."""
        parameters = {**self._where, "limit": OPEN_PAGE}
        return await (await self._connection.execute(_SELECT_OPEN, parameters)).fetchall()

    async def arrivals(self, users: Sequence[str], score: int) -> list[str]:
        """Give those of ``users`` who have a score, in the order in which they reached it."""
        ids = [uuid_of(user) for user in users]
        parameters = {"board": self._partition.board, "users": ids, "score": score}
        rows = await (await self._connection.execute(_SELECT_ARRIVALS, parameters)).fetchall()
        return [str(row[0]) for row in rows]

    async def owed(self) -> dict[str, int]:
        """Sum up, by user, the parked actions that Redis counted and PostgreSQL still owes."""
        parameters = {**self._where, "limit": OWED_MAX}
        rows = await (await self._connection.execute(_SELECT_DEAD, parameters)).fetchall()
        sums: dict[str, int] = {}
        for stream_id, raw in rows:
            record = decode(stream_id.encode(), restore(raw))
            if isinstance(record, Event) and record.kind != CORRECTION:
                sums[record.user_id] = sums.get(record.user_id, 0) + record.delta
        return sums

    async def close_duplicates(self, user_id: str, position: Position) -> None:
        """Mark a user's late duplicates up to a position as corrected."""
        await self._connection.execute(
            _MARK_CORRECTED,
            {
                **self._where,
                "user_id": uuid_of(user_id),
                "epoch": position.epoch,
                "seq": position.seq,
            },
        )

    async def _commit(
        self, batch: Batch, epoch: int, *, skip_gaps: bool, isolate: bool
    ) -> Flushed | Superseded | GapFound:
        async with self._connection.transaction():
            cursor = await self._connection.execute(_LOCK_STATE, self._where)
            row = await cursor.fetchone()
            if row is None or row[0] != epoch:
                return Superseded()
            stood = Position(*row)
            progress = follow(batch, stood.seq)
            if progress.gap and not skip_gaps:
                return GapFound(progress.gap)
            dead = [park_bad(record) for record in batch.bad]
            if isolate:
                tally = await self._isolate(batch, batch.actions, stood.seq, dead)
            else:
                tally = await self._count(batch.actions, stood.seq)
            for event in dead:
                await self._connection.execute(_INSERT_DEAD, {**self._where, **_as_row(event)})
            for correction in batch.corrections:
                await self._correct(correction)
            reached = stood
            if progress.seq > stood.seq:
                reached = Position(epoch, progress.seq, batch.last_id)
                await self._connection.execute(
                    _ADVANCE_STATE,
                    {**self._where, "seq": reached.seq, "stream_id": reached.stream_id},
                )
        staged = len(batch.actions) - (len(dead) - len(batch.bad))
        return Flushed(
            position=reached,
            counted=tally.counted,
            redelivered=staged - tally.counted - tally.late,
            late=tally.late,
            dead=len(dead),
            corrections=len(batch.corrections),
            # Beside a late duplicate or a dead row Redis rightly says another score.
            drifted=0 if tally.late or dead or batch.corrections else tally.drifted,
            rewound=tally.rewound,
        )

    async def _count(self, actions: Sequence[Event], committed: int) -> _Tally:
        """Stage actions and count the new ones."""
        if not actions:
            return _Tally()
        async with self._connection.cursor() as cursor:
            async with cursor.copy(_COPY_BATCH) as copy:
                copy.set_types(TYPES)
                for row in rows(actions):
                    await copy.write_row(row)
            await cursor.execute(_COUNT_BATCH, {**self._where, "seq": committed})
            counted, rewound, drifted = await cursor.fetchone() or (0, 0, 0)
            tally = _Tally(counted, rewound, drifted)
            if counted < len(actions):
                await cursor.execute(_INSERT_LATE, self._where)
                tally.late = cursor.rowcount
        return tally

    async def _isolate(
        self, batch: Batch, actions: Sequence[Event], committed: int, dead: list[DeadEvent]
    ) -> _Tally:
        """Count what can be stored, in stream order, halving around what cannot; park that.

        Raises PoisonFlood.
        """
        try:
            async with self._connection.transaction():
                tally = await self._count(actions, committed)
                await self._connection.execute(_CLEAR_BATCH)
                return tally
        except psycopg.Error as error:
            if meaning_of(error) is not Meaning.POISON:
                raise
            reason = describe(error)
        if len(actions) == 1:
            event = actions[0]
            fields = next(
                fields
                for stream_id, fields in batch.entries
                if stream_id == event.stream_id.encode()
            )
            dead.append(park(event.stream_id, fields, reason))
            if len(dead) - len(batch.bad) > POISON_MAX:
                raise PoisonFlood(f"More than {POISON_MAX} rows of a batch fit no table: {reason}")
            return _Tally()
        middle = len(actions) // 2
        first = await self._isolate(batch, actions[:middle], committed, dead)
        second = await self._isolate(batch, actions[middle:], committed, dead)
        return _Tally(
            first.counted + second.counted,
            first.rewound + second.rewound,
            late=first.late + second.late,
        )

    async def _correct(self, event: Event) -> None:
        """Record a correction: it adds to nothing, Redis has only come back to the ledger."""
        row = {
            **self._where,
            "user_id": uuid_of(event.user_id),
            "action_id": event.action_id,
            "epoch": event.epoch,
            "seq": event.seq,
            "delta": event.delta,
            "score_after": event.score_after,
            "request_id": event.request_id or None,
            "occurred_at": occurred_at(event),
        }
        await self._connection.execute(_INSERT_CORRECTION, row)
        basis = event.action_id.removeprefix("correction:")
        if basis.isdigit():  # the committed seq that lua/repair.lua was told
            position = Position(event.epoch, min(int(basis), BIGINT_MAX))
            await self.close_duplicates(event.user_id, position)

    async def _execute(self, statement: str) -> None:
        async with self._reaching(TRANSACTION_LIMIT_S):
            await self._connection.execute(statement.encode())

    async def _wait_for_lease(self, lease: Mapping[str, int], stop: Stop) -> None:
        while not stop.is_set:
            try:
                async with self._reaching(LEASE_SLICE_S + 10, raw=True):
                    await self._connection.execute(_LOCK_LEASE, lease)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled):
                continue
            except psycopg.Error as error:
                raise DatabaseUnavailable(describe(error)) from error
            return

    async def _cancel_on(self, stop: Stop) -> None:
        await stop.wait()
        while True:  # until the wait has ended: the first cancel may come before its statement
            with suppress(psycopg.Error):
                await self._connection.cancel_safe(timeout=2.0)
            await asyncio.sleep(CANCEL_AGAIN_S)

    @asynccontextmanager
    async def _reaching(self, limit_s: float, *, raw: bool = False) -> AsyncIterator[None]:
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


def _as_row(event: DeadEvent) -> dict[str, Any]:
    return {
        "stream_id": event.stream_id,
        "raw": event.raw,
        "raw_hash": event.raw_hash,
        "reason": event.reason,
        "seq": event.seq,
    }


async def require_ready(connection: Connection) -> None:
    """Refuse a server whose COMMIT may be lost (the stream is cut right behind it), or its schema.

    Raises SchemaMismatch, UnsafeDatabase; DatabaseUnavailable, also for a standby, which may be
    promoted.
    """
    async with archive.reaching():
        row = await (await connection.execute(_SELECT_SESSION)).fetchone()
    synchronous_commit, fsync, is_standby = row or ("", "", True)
    if is_standby:
        raise DatabaseUnavailable("The database is a standby")
    if synchronous_commit == "off":
        raise UnsafeDatabase("synchronous_commit is off for the flusher's session")
    if fsync != "on":
        _log.warning("database_fsync_off")
    await require_current(connection)


assert len(COLUMNS) == len(TYPES)  # noqa: S101 (one row, two descriptions)
