"""Flushes one partition: takes its lease, then reads, commits and acknowledges until stopped.

Invariants: an entry is acknowledged only after its COMMIT; after every error the pending entries
are read again; a failing partition is retried without a limit and does not affect others. After a
change of the secret the session is replaced between two batches, once its successor is connected.

A partition outside of the configured boards is given back when it has no work: its stream is empty,
and nothing is to be corrected or recovered. It is given back earlier, also with work, while other
partitions wait for a turn; then it waits for its next one.
"""

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from flusher import metrics
from flusher.bans import copy_bans
from flusher.batch import Batch, Gap, build
from flusher.consumer import Consumer, GroupMissing
from flusher.flush_tracing import FlushTracing
from flusher.late_duplicates import correct_late_duplicates
from flusher.leases import Leases
from flusher.recovery import Finding, compare_positions, is_own_fence, reseed_partition
from flusher.spare_sessions import SpareSessions
from flusher.status import Condition, PartitionStatus
from flusher.writer import Flushed, GapFound, SeqsReused, Superseded, Writer
from scoreboard.errors import (
    ClientError,
    DatabaseUnavailable,
    Outdated,
    RedisUnavailable,
    ScoreboardError,
    Unavailable,
    Uninitialised,
)
from scoreboard.events import stream_id_key
from scoreboard.ledger.positions import Position
from scoreboard.model import Layout, Partition
from scoreboard.runtime.audit import write_audit
from scoreboard.runtime.lifecycle import StopEvent, backoff_s
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.partitions import GAP_FENCE, REWIND_FENCE, PartitionState
from scoreboard.store.store import Store

if TYPE_CHECKING:
    from scoreboard.runtime.otel import Tracing

CATCH_UP_FACTOR: Final = 2.5
"""Factor of the batch size while the stream holds more than one batch."""

CORRECTION_PAGES_MAX: Final = 16
"""Maximum number of pages of corrections in a row; then new actions are flushed."""

CHECK_EVERY_S: Final = 1.0
"""Interval of comparing the positions and keeping the lease alive."""

RENEW_AGAIN_S: Final = 5.0
"""Time between a failed attempt to replace a session and the next one."""

CORRECT_EVERY_S: Final = 3.0
"""Interval of searching for corrections left by others, such as an operator."""

TURN_S: Final = 1.0
"""How long a partition with work may keep others waiting for a turn."""

UNREACHABLE_S: Final = 5.0
"""How long a leader keeps the lease of a partition whose primary does not answer it.

On a cluster the primary may answer another flusher. If it is away, its flushers take turns.
"""

LEADS_LONGER_S: Final = 2.0
"""A leader of an idle partition stays longer than those that wait: they would take over."""

_log = get_logger(__name__)


class Turns(Protocol):
    """What a partition that may be given back asks about the other ones."""

    @property
    def is_contended(self) -> bool:
        """Return whether other partitions with work wait for a turn in this process."""
        ...

    @property
    def is_listening(self) -> bool:
        """Return whether this process is told of partitions that get work."""
        ...


class _PositionChanged(Exception):  # noqa: N818 (not an error)
    """The epoch, server or position changed: compare the positions again."""


class PartitionFlusher:
    """Flushes one partition; ``status`` may be read at any time."""

    def __init__(
        self,
        partition: Partition,
        settings: Settings,
        consumer: Consumer,
        store: Store,
        leases: Leases,
        *,
        turns: Turns | None = None,
        sessions: SpareSessions | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        """Without ``turns`` the partition is never given back."""
        self.partition = partition
        self._sessions = sessions or SpareSessions(settings)
        self._turns = turns
        self.is_leaving = False
        """Whether the partition is being given back. Work that it gets from now on is not seen."""
        self.has_work = False
        """Whether it is given back before its work is done."""
        self._wakes = 0
        self._active_at_s = self._turn_began_s = time.monotonic()
        self._leases = leases
        self._tracing = FlushTracing(tracing, partition) if tracing is not None else None
        self.status = PartitionStatus(partition, is_kept=turns is None)
        self.consumer = consumer
        self._settings = settings
        self._store = store
        self._attempt = 0
        self._must_claim = True
        self._has_late_duplicates = True
        self._has_dead_letters = False
        self._has_passed_seq = False
        self._is_fenced = False
        self._must_start_over = False
        self._replication_id = ""
        self._must_copy_bans = False
        self._epoch = 0
        self._is_idle = False
        self._is_awaited = True
        self._lagging_seq = 0
        self._position = Position()
        self._is_yielding = False
        self._unreachable_at_s: float | None = None
        """When Redis stopped answering this leader."""
        self._successor: Writer | None = None
        self._renew_at_s = 0.0
        self._checked_at_s = 0.0
        self._corrected_at_s = 0.0
        labels = (partition.board, str(partition.number))
        self._leading = metrics.LEADING.labels(*labels)
        self._last_success = metrics.LAST_SUCCESS.labels(*labels)

    async def run(self, stop: StopEvent) -> None:
        """Flush the partition while holding its lease, until ``stop`` or until it is given back."""
        try:
            while not stop.is_set and not self.is_leaving:
                try:
                    await self._serve(stop)
                except DatabaseUnavailable as error:
                    self.status.set_failed(Condition.DATABASE_AWAY, error)
                except ScoreboardError as error:
                    self.status.set_failed(Condition.BROKEN, error)
                    await self._pause(stop)
                    self._end_turn()  # it must not keep others waiting
                    continue
                if not self.is_leaving:
                    await self._pause(stop)
        finally:
            if self._successor is not None:
                await self._successor.aclose()
        self.status.set_condition(Condition.STOPPED)

    def keep(self) -> None:
        """Never give the partition back from now on."""
        self._turns = None
        self.status.is_kept = True

    def wake(self) -> None:
        """Note that the partition has work."""
        self._wakes += 1
        self._active_at_s = time.monotonic()

    async def _serve(self, stop: StopEvent) -> None:
        if not self._leases.is_redis_up:
            error = RedisUnavailable("this process does not wait for the lease")
            self.status.set_failed(Condition.REDIS_AWAY, error)
            return
        writer = self._successor or await self._sessions.open(self.partition)
        self._successor = None
        is_left = False
        try:
            self.status.set_condition(Condition.STANDBY)
            self.status.position = None  # the leader moves it
            since_s = time.monotonic()
            if not await writer.acquire_lease(stop, lambda: self._may_wait(since_s)):
                return
            self._turn_began_s = time.monotonic()
            self._leading.set(1)
            self._leases.take(self.partition)
            if self._turns is None:
                _log.info("lease_taken", partition=str(self.partition))
            else:  # partitions come and go
                _log.debug("lease_taken", partition=str(self.partition))
            await self._lead(writer, stop)
            is_left = self.is_leaving and self._is_contended
        finally:
            self._leading.set(0)
            self._leases.leave(self.partition)
            self._is_yielding = False
            await (self._sessions.leave(writer) if is_left else writer.aclose())

    async def _lead(self, writer: Writer, stop: StopEvent) -> None:
        self._must_claim = True
        self._unreachable_at_s = None
        while not stop.is_set and not self._is_ending and not await self._has_successor(writer):
            try:
                if self._must_start_over:
                    await self.consumer.start_over()
                    self._must_start_over = self._must_claim = False
                if not await self._check_position(writer, stop):
                    await writer.ping()
                    self._succeed()  # waiting for an operator is not a failure
                    await stop.sleep(CHECK_EVERY_S)
                    await self._consider_leaving()
                    continue
                if self._must_claim:
                    await self._claim_pending(writer, stop)
                self._must_claim = True
                await self._follow(writer, stop)
            except _PositionChanged:
                continue
            except Outdated as error:
                # Another server, another epoch, or entries not delivered to the group.
                _log.warning(
                    "position_outdated", partition=str(self.partition), reason=error.detail
                )
                metrics.FAULTS["outdated"].inc()
                self._must_start_over = True
                await self._pause(stop)
            except (RedisUnavailable, Uninitialised, GroupMissing) as error:
                self._must_start_over = False
                self.status.set_failed(Condition.REDIS_AWAY, error)
                if not isinstance(error, RedisUnavailable):
                    self._unreachable_at_s = None
                elif self._unreachable_at_s is None:
                    self._unreachable_at_s = time.monotonic()
                await self._pause(stop)
                await self._consider_yielding(writer)

    async def _has_successor(self, writer: Writer) -> bool:
        """Connect a successor if the login of a session is outdated; return whether there is one.

        While none can be connected, the session stays in use.
        """
        is_due = time.monotonic() >= self._renew_at_s
        if self._successor is None and is_due and writer.connection.is_login_outdated:
            try:
                self._successor = await Writer.open(self._settings, self.partition)
            except ScoreboardError as error:
                self._renew_at_s = time.monotonic() + RENEW_AGAIN_S
                _log.warning(
                    "database_login_not_renewed",
                    partition=str(self.partition),
                    reason=error.detail,
                )
        return self._successor is not None

    async def _check_position(self, writer: Writer, stop: StopEvent) -> bool:
        """Read and compare the positions; return whether the partition can be flushed.

        The replication id is read first: entries read later are acknowledged under that id only.
        PostgreSQL is read before Redis, so that its position is never ahead.
        """
        replication_id = await self._store.replication_id(self.partition)
        self._must_copy_bans |= replication_id != self._replication_id
        self._replication_id = replication_id
        position = await writer.position()
        state = await self._store.state(self.partition)
        self._epoch = state.epoch
        self._is_fenced = not state.is_open
        if not state.epoch:
            self.status.set_condition(
                Condition.RETIRED if state.is_retired else Condition.UNINITIALISED
            )
            return False
        if position is None:
            await writer.insert_position(state.epoch)
            raise _PositionChanged
        self._position = position
        self.status.position = position
        finding = compare_positions(position, state)
        if finding is Finding.WAIT:
            self.status.set_condition(Condition.FENCED)
            return False
        if await self.consumer.ensure_group():
            _log.warning("consumer_group_created", partition=str(self.partition))
        if finding.is_rewind or (self._has_passed_seq and state.is_open):
            # "passed": an action new to the ledger had a seq that was already committed.
            reason = finding.value if finding.is_rewind else "passed"
            await self._recover(writer, stop, reason, state)
        self.status.resumptions += 1
        self.status.set_condition(Condition.FLUSHING)
        return True

    async def _claim_pending(
        self, writer: Writer, stop: StopEvent, *, is_draining: bool = False
    ) -> None:
        """Flush the entries that were delivered to this or an earlier leader and are pending."""
        cursor, is_last = "0-0", False
        while not is_last and not stop.is_set:
            page = await self.consumer.claim(cursor)
            committed = stream_id_key(self._position.stream_id)
            lost = [one for one in page.vanished if stream_id_key(one) > committed]
            if lost:
                metrics.FAULTS["vanished"].inc(len(lost))
                _log.error(
                    "pending_entries_vanished",
                    partition=str(self.partition),
                    count=len(lost),
                    first_id=lost[0],
                    committed_id=self._position.stream_id,
                )
            if page.entries:
                _log.info(
                    "pending_entries_claimed",
                    partition=str(self.partition),
                    count=len(page.entries),
                )
                await self._flush(writer, build(page.entries), is_draining=is_draining)
            cursor, is_last = page.cursor, page.is_last

    async def _follow(self, writer: Writer, stop: StopEvent) -> None:
        usual = self._settings.flush_batch
        batch: Batch | None = None
        while batch or not stop.is_set:
            if batch is None:
                if self._is_ending or await self._has_successor(writer):
                    return
                batch = await self._read(usual, block=not self._is_contended)
                self._is_idle = batch is None
            following = None
            if batch:
                self._active_at_s = time.monotonic()
            if batch and len(batch.entries) >= usual and not self._is_ending:
                following = await self._flush_and_read(writer, batch, stop)
            elif batch:
                await self._flush(writer, batch)
                # Entries that arrive meanwhile share the next batch: the cost is mostly per batch.
                if not self._is_contended:
                    await stop.sleep(self._linger_s)
            batch = following
            self._succeed()
            if time.monotonic() - self._checked_at_s >= CHECK_EVERY_S:
                await self._check_state(writer)
            if self._is_contended:
                await self._consider_leaving()

    @property
    def _linger_s(self) -> float:
        """The pause after a batch that was not full."""
        settings = self._settings
        awaited_ms = settings.flush_linger_ms
        unawaited_ms = max(awaited_ms, settings.flush_linger_unawaited_ms)
        return (awaited_ms if self._is_awaited else unawaited_ms) / 1000

    async def _flush_and_read(self, writer: Writer, batch: Batch, stop: StopEvent) -> Batch | None:
        """Commit a batch and read the next one concurrently."""
        if stop.is_set:
            await self._flush(writer, batch)
            return None
        larger = int(self._settings.flush_batch * CATCH_UP_FACTOR)
        flushed, following = await asyncio.gather(
            self._flush(writer, batch), self._read(larger, block=False), return_exceptions=True
        )
        if isinstance(flushed, BaseException):
            raise flushed  # the entries read meanwhile stay pending and are claimed
        if isinstance(following, BaseException):
            raise following
        return following

    async def _read(self, count: int, *, block: bool = True) -> Batch | None:
        entries = await self.consumer.read(count, block=block)
        return build(entries) if entries else None

    async def _check_state(self, writer: Writer) -> None:
        """Check that Redis is unchanged, and keep the lease's session alive."""
        self._checked_at_s = time.monotonic()
        await self._consider_yielding(writer)
        replication_id = await self._store.replication_id(self.partition)
        state = await self._store.state(self.partition)
        is_fine = compare_positions(self._position, state) is Finding.FINE
        if (
            not is_fine
            or state.epoch != self._position.epoch
            or replication_id != self._replication_id
        ):
            raise _PositionChanged
        # A flusher that lost its lease may have left pending entries.
        if self._is_idle and state.seq > self._position.seq and self._lagging_seq == state.seq:
            raise _PositionChanged
        self._lagging_seq = state.seq if self._is_idle else 0
        is_due = self._checked_at_s - self._corrected_at_s >= CORRECT_EVERY_S
        if (self._has_late_duplicates or is_due) and state.is_open:
            self._corrected_at_s = self._checked_at_s
            await self._correct(writer)
        if self._must_copy_bans and state.is_open and state.layout is not None:
            await self._copy_bans(writer, state.layout)
        await self._consider_leaving()

    @property
    def _is_ending(self) -> bool:
        """Return whether the lease is left to another flusher, or the partition given back."""
        return self._is_yielding or self.is_leaving

    @property
    def _is_contended(self) -> bool:
        return self._turns is not None and self._turns.is_contended

    def _was_idle_for(self, seconds: float) -> bool:
        """Return whether the partition may be given back because it had no work for a time."""
        return (
            self._turns is not None
            and self._turns.is_listening
            and time.monotonic() - self._active_at_s >= seconds
        )

    def _may_wait(self, since_s: float) -> bool:
        """Return whether to wait for the lease, since a time, while another flusher leads.

        If that one ends without a trace, the partition is found by its entries.
        """
        is_turn_over = self._is_contended and time.monotonic() - since_s >= TURN_S
        self.is_leaving |= is_turn_over or self._was_idle_for(self._settings.flush_idle_s)
        return self._leases.is_redis_up and not self.is_leaving

    def _end_turn(self) -> None:
        """Give the partition back with its work if others wait for a turn."""
        if self._is_contended:
            self.is_leaving = self.has_work = True

    async def _consider_leaving(self) -> None:
        """Decide whether to give the partition back."""
        is_idle = self._was_idle_for(self._settings.flush_idle_s + LEADS_LONGER_S)
        if self._turns is None or self._is_ending or not (self._is_contended or is_idle):
            return
        wakes = self._wakes
        (found,) = await self._store.survey([self.partition])
        if isinstance(found, ScoreboardError):
            raise found
        # No await from here to the decision: a later wake sees that the partition is leaving.
        turns = self._turns
        if turns is None:
            return  # it is kept from now on
        is_done = (
            not found.entries
            and self._wakes == wakes
            and turns.is_listening
            # While the partition is closed, nothing can be corrected.
            and not (self._has_late_duplicates and found.state.is_open)
            and not is_own_fence(found.state)
        )
        if is_done:
            self.is_leaving = True
        elif time.monotonic() - self._turn_began_s >= TURN_S:
            self._end_turn()

    async def _consider_yielding(self, writer: Writer) -> None:
        """Decide whether another flusher should lead. It also keeps the lease's session alive."""
        flushers = await writer.count_flushers()
        since_s = self._unreachable_at_s
        is_unreachable = since_s is not None and time.monotonic() - since_s >= UNREACHABLE_S
        if not self._is_ending and self._leases.must_yield(
            self.partition, flushers, is_unreachable=is_unreachable
        ):
            self._is_yielding = True
            _log.info("lease_yielded", partition=str(self.partition))

    async def _copy_bans(self, writer: Writer, layout: Layout) -> None:
        """Copy bans to another server than before; on failure they are copied later."""
        try:
            await copy_bans(
                writer,
                self._store,
                self.partition,
                epoch=self._position.epoch,
                partitions=layout.partitions,
            )
            self._must_copy_bans = False
        except (DatabaseUnavailable, RedisUnavailable):
            raise
        except (Unavailable, ClientError) as error:
            _log.warning("correction_postponed", partition=str(self.partition), reason=error.detail)

    async def _correct(self, writer: Writer) -> None:
        """Correct late duplicates; on failure they are retried later."""
        epoch = self._position.epoch
        try:
            for _ in range(CORRECTION_PAGES_MAX):
                self._has_late_duplicates = await correct_late_duplicates(
                    writer, self._store, self.partition, epoch
                )
                if not self._has_late_duplicates:
                    return
        except (DatabaseUnavailable, RedisUnavailable):
            raise
        except (Unavailable, ClientError) as error:
            _log.warning("correction_postponed", partition=str(self.partition), reason=error.detail)

    async def _recover(
        self, writer: Writer, stop: StopEvent, reason: str, state: PartitionState
    ) -> None:
        """Recover from a Redis that lost acknowledged actions: fence, drain, reseed.

        Every surviving action is counted once. The number of lost actions is not known; both
        positions are logged.
        """
        if reason != Finding.RESUME.value:
            metrics.FAULTS["rewind"].inc()
            _log.error(
                "redis_rewound",
                partition=str(self.partition),
                reason=reason,
                redis_position=f"{state.epoch}:{state.seq}",
                committed_position=f"{self._position.epoch}:{self._position.seq}",
            )
            await self._store.fence(self.partition, REWIND_FENCE, state)
            self._audit_fence(REWIND_FENCE, reason)
            self._has_passed_seq = False  # from here the fence records it
        self.status.set_condition(Condition.RECOVERING)
        await self._drain(writer, stop)
        if not stop.is_set:
            done = await reseed_partition(self._settings, self._store, self.partition, writer)
            _log.warning(
                "partition_reseeded",
                partition=str(self.partition),
                epoch=done.epochs[0],
                users=done.users,
                duration_s=round(done.duration_s, 3),
            )
        raise _PositionChanged

    async def _drain(self, writer: Writer, stop: StopEvent) -> None:
        """Flush everything in the stream, regardless of its positions."""
        await self._claim_pending(writer, stop, is_draining=True)
        await self.consumer.start_over()
        while not stop.is_set:
            entries = await self.consumer.read(self._settings.flush_batch, block=False)
            if not entries:
                return
            await self._flush(writer, build(entries), is_draining=True)

    async def _flush(self, writer: Writer, batch: Batch, *, is_draining: bool = False) -> None:
        """Commit and acknowledge a batch. While draining, gaps and repeats are expected."""
        metrics.BATCH_ROWS.observe(len(batch.entries))
        commit = partial(
            writer.flush,
            batch,
            epoch=self._position.epoch,
            skip_gaps=is_draining,
            is_fenced=self._is_fenced,
        )
        with metrics.FLUSH_DURATION.time():
            result = await (self._tracing.trace(batch, commit) if self._tracing else commit())
        match result:
            case Superseded():
                metrics.BATCHES["superseded"].inc()
                _log.warning("batch_superseded", partition=str(self.partition))
                raise _PositionChanged
            case SeqsReused():
                self._has_passed_seq = True
                raise _PositionChanged
            case GapFound(gap):
                metrics.BATCHES["gap"].inc()
                await self._handle_gap(writer, gap)
                await self._flush(writer, batch, is_draining=True)
                return
            case Flushed():
                self._account(result, batch, is_draining=is_draining)
        receivers = await self.consumer.acknowledge(
            batch, replication_id=self._replication_id, epoch=self._epoch, skip_gaps=is_draining
        )
        # An api that answers after the COMMIT subscribes to the committed positions.
        self._is_awaited = receivers != 0
        if result.late and not is_draining:
            await self._correct(writer)

    async def _handle_gap(self, writer: Writer, gap: Gap) -> None:
        """Read undelivered entries again; fence the partition if entries are lost.

        Returns if they are lost. Redis then has more than the ledger, so nothing is repaired.
        """
        entries = await self.consumer.entries_before(gap.stream_id)
        if any(seq >= gap.expected for _, seq in build(entries).steps):
            _log.warning(
                "undelivered_entries_found", partition=str(self.partition), expected=gap.expected
            )
            metrics.FAULTS["hidden"].inc()
            await self.consumer.start_over()
            self._must_claim = False
            raise _PositionChanged
        state = await self._store.state(self.partition)
        if await writer.position() != self._position:
            raise _PositionChanged  # another flusher committed and trimmed them
        metrics.FAULTS["gap"].inc()
        _log.error(
            "entries_lost",
            partition=str(self.partition),
            expected=gap.expected,
            found=gap.found,
        )
        if state.is_open:
            await self._store.fence(self.partition, GAP_FENCE, state, committed=self._position.seq)
            self._audit_fence(GAP_FENCE, "entries lost")

    def _audit_fence(self, actor: str, reason: str) -> None:
        partition = self.partition
        write_audit(
            "fence",
            actor=actor,
            board=partition.board,
            partition=str(partition),
            reason=reason,
        )

    def _account(self, result: Flushed, batch: Batch, *, is_draining: bool) -> None:
        self._position = result.position
        self.status.position = result.position
        metrics.count(result, batch)
        if result.late:
            self._has_late_duplicates = True
            _log.warning("late_duplicates_found", partition=str(self.partition), count=result.late)
        if result.dead:
            self._has_dead_letters = True
            _log.error(
                "dead_letters_stored",
                partition=str(self.partition),
                count=result.dead,
                request_id=result.dead_requests or None,
            )
        # Dead letters and uncorrected late duplicates explain a difference.
        if result.drifted and not (
            is_draining or self._has_late_duplicates or self._has_dead_letters
        ):
            metrics.DRIFTED.inc(result.drifted)
            _log.error("scores_drifted", partition=str(self.partition), users=result.drifted)
        _log.debug(
            "batch_flushed",
            partition=str(self.partition),
            counted=result.counted,
            redelivered=result.redelivered,
            late=result.late,
            held=result.held,
            dead=result.dead,
            seq=result.position.seq,
        )
        self._succeed()

    def _succeed(self) -> None:
        self._attempt = 0
        self._unreachable_at_s = None
        self.status.last_success_s = time.time()
        self._last_success.set(self.status.last_success_s)

    async def _pause(self, stop: StopEvent) -> None:
        if not stop.is_set:
            await stop.sleep(backoff_s(self._attempt))
            self._attempt += 1
