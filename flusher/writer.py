"""Writes batches to PostgreSQL, one transaction each.

Invariants: only the ledger's primary key decides what counts, and scores change by the sum of the
inserted rows, so a batch may be repeated, late, or written by two flushers; the row of
``flush_state`` is locked first, so the commits of a partition are serialised, and it is updated in
the same transaction; every entry acknowledged afterwards has a row.
"""

import asyncio
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final, Self

import psycopg
from msgspec import Struct

from flusher.batch import (
    COLUMNS,
    Batch,
    Gap,
    Progress,
    Row,
    advance,
    count_after,
    make_rows,
    parameters_of,
    split_held,
)
from flusher.database_errors import ErrorClass, classify
from flusher.dead_letters import DeadEvent, dead_event, dead_event_of
from flusher.session import TRANSACTION_LIMIT_S, Session
from flusher.values import insert_unchanged, rebase
from scoreboard.errors import DatabaseUnavailable, SchemaMismatch, TooManyPoisonEvents
from scoreboard.events import BIGINT_MAX, Event, event_time, season_id_of, stream_id_key
from scoreboard.ledger.held import Held, insert_held
from scoreboard.ledger.pool import describe
from scoreboard.ledger.positions import Position
from scoreboard.ledger.retention import DETACHED
from scoreboard.ledger.seasons import open_season
from scoreboard.model import scores_name
from scoreboard.runtime import resources
from scoreboard.runtime.lifecycle import backoff_s
from scoreboard.runtime.telemetry import get_logger
from scoreboard.seasons import Season
from scoreboard.store.corrections import REPAIR_MAX

_COPY_BATCH: Final = resources.query("copy_flush_batch")
_CLEAR_BATCH: Final = resources.query("clear_flush_batch")
_COUNT_BATCH: Final = resources.query("count_flush_batch")
_RESOLVE_USERS: Final = resources.query("resolve_flush_users")
_INSERT_LATE: Final = resources.query("insert_late_duplicates")
_INSERT_CORRECTION: Final = resources.query("insert_correction")
_CLOSE_LATE_DUPLICATES: Final = resources.query("close_late_duplicates")
_INSERT_DEAD: Final = resources.query("insert_dead_event")
_COUNT_DEAD_BETWEEN: Final = resources.query("count_dead_between")
_SELECT_OPEN: Final = resources.query("select_open_duplicates")
_ADVANCE_STATE: Final = resources.query("advance_flush_state")
_INSERT_TURN: Final = resources.query("insert_season_turn")

TYPES: Final = (
    *("uuid", "text", "text", "int8", "int8", "int4"),
    *("int4", "text", "text", "timestamptz", "bool"),
)
"""Types of ``batch.COLUMNS``: binary COPY does not convert values."""

CONTENTION_ATTEMPTS_MAX: Final = 20
"""Attempts of a batch under contention before the connection is replaced."""

RESOLVE_ATTEMPTS_MAX: Final = 3
"""Attempts to count a batch: user ids may have to be resolved between two of them."""

POISON_MAX: Final = 10
"""Maximum number of unstorable rows of a batch; more of them point to a fault elsewhere: stop."""

_log = get_logger(__name__)


class Flushed(Struct, frozen=True):
    """The result of a committed batch. ``position`` is the committed position after it."""

    position: Position
    fresh: int
    """Entries that no earlier batch committed: the last ones of this batch."""
    counted: int = 0
    redelivered: int = 0
    late: int = 0
    dead: int = 0
    dead_requests: tuple[str, ...] = ()
    """The ids of the requests whose entries became dead letters, as far as they are known."""
    corrections: int = 0
    held: int = 0
    """Actions that exceeded a limit, without those that had been recorded before."""
    drifted: int = 0


class Superseded(Struct, frozen=True):
    """Nothing was written: another epoch began after the batch was read."""


class SeqsReused(Struct, frozen=True):
    """Nothing was written: actions that are new here have seqs that were committed before.

    Redis lost data, and must be fenced first: a flusher that dies after a COMMIT would forget it.
    """


class GapFound(Struct, frozen=True):
    """Nothing was written: seqs are missing before an entry of the batch."""

    gap: Gap


class _Reused(Exception):  # noqa: N818 (rolls a transaction back)
    """Seqs are used again."""


class _Tally(Struct):
    counted: int = 0
    rewound: int = 0
    """New rows, counted or late, whose seq was committed before: Redis lost data."""

    drifted: int = 0
    late: int = 0

    def add_late(self, seqs: Sequence[int], committed: int) -> Self:
        """Add late duplicates that were not recorded before, and return this."""
        self.late += len(seqs)
        # A batch that is delivered again adds none, so its seqs do not count here.
        self.rewound += sum(seq <= committed for seq in seqs)
        return self


class Writer(Session):
    """A session that commits batches."""

    _known_seasons: frozenset[str] = frozenset()
    """Seasons, as id:start:end, that PostgreSQL is known to have."""

    async def flush(
        self,
        batch: Batch,
        *,
        epoch: int,
        skip_gaps: bool = False,
        is_fenced: bool = False,
    ) -> Flushed | Superseded | SeqsReused | GapFound:
        """Commit a batch that was read in ``epoch``.

        Retries under contention; unstorable rows become dead letters. With ``skip_gaps`` missing
        seqs are ignored; reused ones are, too, and if the partition ``is_fenced``: a reseed
        follows.

        Raises DatabaseUnavailable (the batch may be committed: read and flush it again),
        SchemaMismatch, TooManyPoisonEvents (nothing was written).
        """
        isolate = False
        attempt = 0
        allow_reused = skip_gaps or is_fenced
        while True:
            try:
                async with self.time_limit(TRANSACTION_LIMIT_S, raw=True):
                    done = await self._commit(
                        batch,
                        epoch,
                        skip_gaps=skip_gaps,
                        allow_reused=allow_reused,
                        isolate=isolate,
                    )
                if isinstance(done, Flushed) and batch.seasons:
                    self._known_seasons = frozenset(batch.seasons)
                return done  # noqa: TRY300 (the loop returns when it is done)
            except _Reused:
                return SeqsReused()
            except psycopg.Error as error:
                match classify(error):
                    case ErrorClass.POISON if not isolate:
                        _log.warning("unstorable_row_found", reason=describe(error))
                        isolate = True
                    case ErrorClass.CONTENTION if attempt < CONTENTION_ATTEMPTS_MAX:
                        _log.info("flush_contended", attempt=attempt, reason=describe(error))
                        await asyncio.sleep(backoff_s(attempt, least_s=0.02, most_s=1.0))
                        attempt += 1
                    case ErrorClass.SCHEMA:
                        raise SchemaMismatch(
                            f"The database refuses the flusher's statements: {describe(error)}"
                        ) from error
                    case _:
                        raise DatabaseUnavailable(describe(error)) from error

    # Call the next two inside of ``locked``, which limits their time and translates their errors.

    async def select_open_duplicates(self) -> list[str]:
        """List a page of users with open late duplicates."""
        parameters = {**self.where, "limit": REPAIR_MAX}
        rows = await (await self.connection.execute(_SELECT_OPEN, parameters)).fetchall()
        return [str(row[0]) for row in rows]

    async def close_late_duplicates(self, user_id: str, position: Position) -> None:
        """Mark a user's late duplicates up to a position as corrected."""
        await self.connection.execute(
            _CLOSE_LATE_DUPLICATES,
            {
                **self.where,
                "user_id": user_id,
                "epoch": position.epoch,
                "seq": position.seq,
            },
        )

    async def _commit(
        self, batch: Batch, epoch: int, *, skip_gaps: bool, allow_reused: bool, isolate: bool
    ) -> Flushed | Superseded | GapFound:
        async with self.connection.transaction():
            previous = await self.lock_position()
            if previous is None or previous.epoch != epoch:
                return Superseded()
            progress = await self._advance(batch, previous)
            if progress.gap and not skip_gaps:
                return GapFound(progress.gap)
            dead = [dead_event_of(record) for record in batch.bad]
            for season in batch.seasons:
                if season not in self._known_seasons:
                    await open_season(self.connection, self.partition.board, Season.parse(season))
            early, repeats = split_held(batch)
            held = await self._hold(early, previous.seq)
            tally = await self._count_seasons(batch, previous, dead, isolate=isolate)
            held = held.plus(await self._hold(repeats, previous.seq))
            if tally.rewound + held.rewound and not allow_reused:
                raise _Reused
            for event in dead:
                await self.connection.execute(_INSERT_DEAD, {**self.where, **_as_row(event)})
            for correction in batch.corrections:
                await self._correct(correction)
            for turn in batch.turns:
                row = {**self.where, "epoch": turn.epoch, "seq": turn.seq}
                await self.connection.execute(
                    _INSERT_TURN, {**row, "season": season_id_of(turn.season)}
                )
            reached = previous
            if progress.seq > previous.seq:
                season = latest_season(previous.season, *batch.seasons)
                reached = Position(epoch, progress.seq, batch.last_read_id, season)
                await self.connection.execute(
                    _ADVANCE_STATE,
                    {
                        **self.where,
                        "seq": reached.seq,
                        "stream_id": reached.stream_id,
                        "season": reached.season,
                        "occurred_at": event_time(reached.stream_id),
                    },
                )
        staged = len(batch.actions) - (len(dead) - len(batch.bad))
        return Flushed(
            position=reached,
            fresh=count_after(batch, previous.stream_id),
            counted=tally.counted,
            redelivered=staged - tally.counted - tally.late + len(batch.held) - held.new,
            late=tally.late,
            dead=len(dead),
            dead_requests=tuple(event.request_id for event in dead if event.request_id),
            corrections=len(batch.corrections),
            held=held.new,
            # Late duplicates and dead letters explain a difference.
            drifted=0 if tally.late or dead or batch.corrections else tally.drifted,
        )

    async def _advance(self, batch: Batch, previous: Position) -> Progress:
        """Return how far a batch advances from the position, and its first gap.

        The first seqs may be those of dead letters at the end of an earlier batch: the position is
        still before them.
        """
        progress = advance(batch, previous.seq)
        gap = progress.gap
        if gap is None or gap.expected != previous.seq + 1:
            return progress
        # Entries up to the position can be in the batch again.
        reached = stream_id_key(previous.stream_id)
        parameters = {
            "expected": gap.expected,
            "found": gap.found,
            "after": previous.stream_id,
            "before": next(one for one, _ in batch.steps if stream_id_key(one) > reached),
        }
        found = await self.connection.execute(_COUNT_DEAD_BETWEEN, {**self.where, **parameters})
        (earlier,) = await found.fetchone() or (0,)
        return advance(batch, previous.seq, earlier)

    async def _hold(self, events: Sequence[Event], committed: int) -> Held:
        """Record actions that exceeded a limit; they change no score."""
        if not events:
            return Held()
        return await insert_held(self.connection, self.partition, events, committed=committed)

    async def _count_seasons(
        self, batch: Batch, previous: Position, dead: list[DeadEvent], *, isolate: bool
    ) -> _Tally:
        """Count the actions of a batch, one season after the other."""
        if not batch.seasons:
            if isolate:
                return await self._isolate(batch, batch.actions, previous, dead)
            return await self._count(batch.actions, batch.rows, previous.seq)
        total = _Tally()
        for _, group in groupby(batch.actions, key=lambda event: event.season):
            actions = list(group)
            if isolate:
                tally = await self._isolate(batch, actions, previous, dead)
            else:
                tally = await self._count(actions, make_rows(actions), previous.seq)
                await self.connection.execute(_CLEAR_BATCH)
            total.counted += tally.counted
            total.rewound += tally.rewound
            total.drifted += tally.drifted
            total.late += tally.late
        return total

    async def _count(
        self, actions: Sequence[Event], staged: Sequence[Row], committed: int
    ) -> _Tally:
        """Stage the rows of actions of one season and count the new ones."""
        late: list[int] = []
        season = season_id_of(actions[0].season) if actions else ""
        if any(event.keeps for event in actions):
            rebased = await rebase(self.connection, self.partition.board, actions)
            staged = make_rows(rebased.actions)
            late = await insert_unchanged(self.connection, self.partition, rebased.unchanged)
        if not staged:
            return _Tally().add_late(late, committed)
        async with self.connection.cursor() as cursor:
            async with cursor.copy(_COPY_BATCH) as copy:
                copy.set_types(TYPES)
                for row in staged:
                    await copy.write_row(row)
            counting = {
                **self.where,
                "seq": committed,
                "season": season or None,
                "scores": scores_name(self.partition.board, season),
            }
            for _ in range(RESOLVE_ATTEMPTS_MAX):
                await cursor.execute(_COUNT_BATCH, counting)
                counted, rewound, drifted, has_unresolved = await cursor.fetchone() or (
                    0,
                    0,
                    0,
                    True,
                )
                if not has_unresolved:
                    break
                await cursor.execute(_RESOLVE_USERS)
            else:
                raise DatabaseUnavailable("the rows of users changed while a batch was counted")
            if counted < len(staged):
                await cursor.execute(_INSERT_LATE, self.where)
                late += [seq for (seq,) in await cursor.fetchall()]
        return _Tally(counted, rewound, drifted).add_late(late, committed)

    async def _isolate(
        self, batch: Batch, actions: Sequence[Event], previous: Position, dead: list[DeadEvent]
    ) -> _Tally:
        """Count the storable rows in stream order; add the others, found by bisection, to ``dead``.

        A detached ledger refuses every row. Those up to the committed position are recorded: a
        Redis of before delivers them again.

        Raises TooManyPoisonEvents.
        """
        try:
            async with self.connection.transaction():
                tally = await self._count(actions, make_rows(actions), previous.seq)
                await self.connection.execute(_CLEAR_BATCH)
                return tally
        except psycopg.Error as error:
            if classify(error) is not ErrorClass.POISON:
                raise
            reason = describe(error)
            is_detached = error.diag.constraint_name == DETACHED
        if is_detached:
            fields_of = dict(batch.entries)
            dead += [
                dead_event(event.stream_id, fields_of[event.stream_id.encode()], reason)
                for event in actions
                if not _is_recorded(event, previous)
            ]
            return _Tally()
        if len(actions) == 1:
            event = actions[0]
            fields = next(
                fields
                for stream_id, fields in batch.entries
                if stream_id == event.stream_id.encode()
            )
            dead.append(dead_event(event.stream_id, fields, reason))
            found = sum(DETACHED not in one.reason for one in dead) - len(batch.bad)
            if found > POISON_MAX:
                raise TooManyPoisonEvents(
                    f"More than {POISON_MAX} rows of a batch cannot be stored: {reason}"
                )
            return _Tally()
        middle = len(actions) // 2
        first = await self._isolate(batch, actions[:middle], previous, dead)
        second = await self._isolate(batch, actions[middle:], previous, dead)
        return _Tally(
            first.counted + second.counted,
            first.rewound + second.rewound,
            late=first.late + second.late,
        )

    async def _correct(self, event: Event) -> None:
        """Insert a correction: it changes no score in PostgreSQL."""
        row = {**self.where, **parameters_of(event)}
        await self.connection.execute(_INSERT_CORRECTION, row)
        basis = event.action_id.removeprefix("correction:")
        if basis.isdigit():  # the committed seq that lua/repair.lua got
            position = Position(event.epoch, min(int(basis), BIGINT_MAX))
            await self.close_late_duplicates(event.user_id, position)


def latest_season(*seasons: str) -> str:
    """Return the season, as id:start:end, that begins last; empty if all are."""
    return max(seasons, key=lambda text: Season.parse(text).start_s if text else -1, default="")


def _is_recorded(event: Event, committed: Position) -> bool:
    """Return whether an entry of the stream is one of those up to the committed position.

    A Redis that lost data uses seqs again, but not ids of its stream, which are times.
    """
    return (event.epoch, event.seq) <= (committed.epoch, committed.seq) and stream_id_key(
        event.stream_id
    ) <= stream_id_key(committed.stream_id)


def _as_row(event: DeadEvent) -> dict[str, Any]:
    return {
        "stream_id": event.stream_id,
        "raw": event.raw,
        "raw_hash": event.raw_hash,
        "reason": event.reason,
        "seq": event.seq,
    }


assert len(COLUMNS) == len(TYPES)  # noqa: S101 (two descriptions of one row)
