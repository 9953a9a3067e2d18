"""The flusher's metrics."""

import time
from contextlib import suppress
from typing import Final

from flusher.batch import Batch
from flusher.writer import Flushed
from scoreboard.model import Partition
from scoreboard.runtime.collectors import LoopHistogram
from scoreboard.runtime.telemetry import FLUSH_BUCKETS, Children, counter, gauge, histogram

PARTITION: Final = ("board", "part")

OTHER_BOARDS: Final = "*"
"""The label of boards without series of their own. No board has this name."""

STREAM_LENGTH: Final = Children(
    gauge(
        "stream_length",
        "Entries in a stream",
        *PARTITION,
        unit="entries",
        normal="those of the last second; SCOREBOARD_STREAM_CAP is the limit",
    )
)
STREAM_PENDING: Final = Children(
    gauge(
        "stream_pending_entries",
        "Entries delivered and not yet acknowledged",
        *PARTITION,
        unit="entries",
        normal="at most two batches",
    )
)
STREAM_LAG: Final = gauge(
    "stream_lag_entries",
    "Actions accepted by Redis and not committed to PostgreSQL",
    *PARTITION,
    unit="actions",
    normal="those of the last second; absent in a standby",
)
STREAM_AGE: Final = Children(
    gauge(
        "stream_oldest_unacked_age_seconds",
        "Age of the oldest entry not committed",
        *PARTITION,
        normal="below 1",
    )
)
LEADING: Final = gauge(
    "flusher_leading",
    "1 if this process holds the partition's lease",
    *PARTITION,
    unit="0 or 1",
    normal="1 in one process for each partition, else 0",
)
ACCEPTING: Final = Children(
    gauge(
        "partition_open",
        "1 if the partition accepts actions",
        *PARTITION,
        unit="0 or 1",
        normal="1; 0 while it is reseeded or repaired, and if the board is archived",
    )
)
LAST_SUCCESS: Final = gauge(
    "flusher_last_success_timestamp_seconds",
    "Time of the last successful iteration, with or without entries",
    *PARTITION,
    normal="a second ago in the leader; 0 in a standby, so take the maximum for each partition",
)
BATCHES: Final = Children(
    counter(
        "flusher_batches_total",
        "Batches by result",
        "result",
        unit="batches",
        normal="nearly all committed; superseded only after a reseed; gap: 0",
    ),
    "committed",
    "superseded",
    "gap",
)
ROWS: Final = Children(
    counter(
        "flusher_rows_total",
        "Committed stream entries by result",
        "result",
        unit="entries",
        normal="nearly all counted; redelivered after a restart; held: 0 without limits; dead: 0",
    ),
    *("counted", "redelivered", "late", "correction", "held", "dead"),
)
DEAD_LETTERS: Final = counter(
    "flusher_dead_letter_total", "Entries stored in dead_events", unit="entries", normal="0"
)
OPEN_DEAD_LETTERS: Final = Children(
    gauge(
        "dead_letters",
        "Dead letters that no operator has resolved, of SCOREBOARD_BOARDS and of up to 50 other "
        "boards that have some; the rest: `*`",
        "board",
        unit="entries",
        normal="0",
    )
)
SEASON_OVERDUE: Final = gauge(
    "season_overdue_seconds",
    "How long the current season has been over, of the partition that accepts actions and for "
    "which this is longest",
    normal="below 2",
)
HELD_ACTIONS: Final = gauge(
    "held_actions",
    "Actions that exceeded a limit and wait for a decision, of all boards",
    unit="actions",
    normal="0 without limits",
)
HELD_AGE: Final = gauge(
    "held_oldest_age_seconds",
    "Age of the oldest action that exceeded a limit and waits for a decision; 0 without one",
    normal="below a day",
)
WAITING: Final = gauge(
    "flusher_waiting_partitions",
    "Partitions with work that wait for a turn in this process",
    unit="partitions",
    normal="0; else raise SCOREBOARD_FLUSH_PARTITIONS",
)
DRIFTED: Final = counter(
    "flusher_drifted_total",
    "Users whose score in PostgreSQL differed from the score in the stream",
    unit="users",
    normal="0",
)
FAULTS: Final = Children(
    counter(
        "flusher_faults_total",
        "Signs that Redis lost entries or did not deliver them",
        "kind",
        unit="faults",
        normal="0",
    ),
    *("outdated", "vanished", "rewind", "hidden", "gap"),
)
FLUSH_DURATION: Final = histogram(
    "flusher_flush_duration_seconds",
    "Duration of a batch's transaction",
    FLUSH_BUCKETS,
    normal="below 0.1",
)
BATCH_ROWS: Final = histogram(
    "flusher_batch_rows",
    "Entries of one batch",
    (1, 10, 50, 100, 250, 500, 1000, 2000, 5000),
    unit="entries",
    normal="grows with the load; SCOREBOARD_FLUSH_BATCH × 2.5 only while catching up",
)
FLUSH_DELAY: Final = histogram(
    "flush_delay_seconds",
    "Time from Redis's acceptance of a batch's oldest action to its COMMIT",
    FLUSH_BUCKETS,
    normal="p99 below 0.5",
)
ACCEPT_TO_COMMIT: Final = LoopHistogram(
    "accept_to_commit_seconds",
    "Time from Redis's acceptance of an action to its COMMIT, for every entry of a stream",
    FLUSH_BUCKETS,
    normal="p99 below 0.5",
).series()

DRIFT_USERS: Final = gauge(
    "drift_users",
    "Users whose stores differed when they were last compared, at most 1000",
    "board",
    unit="users",
    normal="0",
)
VERIFICATIONS: Final = Children(
    counter(
        "verify_total",
        "Verifications, and steps of the continuous comparison, by result",
        "board",
        "result",
        unit="verifications",
        normal="nearly all sound; postponed during a repair; drift and findings: 0",
    )
)
VERIFICATION_RESULTS: Final = ("sound", "drift", "findings", "postponed", "failed")
VERIFIED_AT: Final = gauge(
    "verify_last_success_timestamp_seconds",
    "Time of the last completed verification or step, whatever it found; 0 if there was none here",
    "board",
    normal="some minutes ago in the process that verifies; take the maximum",
)
BACKUP_AT: Final = gauge(
    "backup_last_success_timestamp_seconds",
    "Time at which the newest checked backup was taken; 0 if none is recorded",
    normal="within the interval of backups",
)


def forget_partition(partition: Partition) -> None:
    """Remove the series of a partition that this process does not serve any more."""
    labels = (partition.board, str(partition.number))
    for children in (STREAM_LENGTH, STREAM_PENDING, STREAM_AGE, ACCEPTING):
        children.remove(labels)
    for metric in (STREAM_LAG, LEADING, LAST_SUCCESS):
        with suppress(KeyError):
            metric.remove(*labels)


def count(result: Flushed, batch: Batch) -> None:
    """Count a batch that was just committed."""
    now_ms = time.time() * 1000
    BATCHES["committed"].inc()
    ROWS["counted"].inc(result.counted)
    ROWS["redelivered"].inc(result.redelivered)
    ROWS["late"].inc(result.late)
    ROWS["correction"].inc(result.corrections)
    ROWS["held"].inc(result.held)
    ROWS["dead"].inc(result.dead)
    DEAD_LETTERS.inc(result.dead)
    FLUSH_DELAY.observe(max(0.0, now_ms - batch.times_ms[0]) / 1000)
    fresh_ms = batch.times_ms[len(batch.times_ms) - result.fresh :]
    ACCEPT_TO_COMMIT.observe_delays(fresh_ms, now_ms)
