"""The flusher's metrics."""

import time

from flusher.writer import Flushed
from scoreboard.runtime.telemetry import FLUSH_BUCKETS, counter, gauge, histogram

PARTITION = ("board", "part")

STREAM_LENGTH = gauge("stream_length", "Entries in a stream", *PARTITION)
STREAM_PENDING = gauge(
    "stream_pending_entries", "Entries delivered and not yet acknowledged", *PARTITION
)
STREAM_LAG = gauge(
    "stream_lag_entries", "Actions accepted by Redis and not committed to PostgreSQL", *PARTITION
)
STREAM_AGE = gauge(
    "stream_oldest_unacked_age_seconds", "Age of the oldest entry not committed", *PARTITION
)
LEADING = gauge("flusher_leading", "1 if this process holds the partition's lease", *PARTITION)
ACCEPTING = gauge("partition_open", "1 if the partition accepts actions", *PARTITION)
LAST_SUCCESS = gauge(
    "flusher_last_success_timestamp_seconds",
    "Time of the last successful iteration, with or without entries",
    *PARTITION,
)
BATCHES = counter("flusher_batches_total", "Batches by result", "result")
ROWS = counter("flusher_rows_total", "Committed stream entries by result", "result")
DEAD_LETTERS = counter("flusher_dead_letter_total", "Entries stored in dead_events")
DRIFTED = counter(
    "flusher_drifted_total", "Users whose score in PostgreSQL differed from the score in the stream"
)
FAULTS = counter(
    "flusher_faults_total", "Signs that Redis lost entries or did not deliver them", "kind"
)
FLUSH_DURATION = histogram(
    "flusher_flush_duration_seconds", "Duration of a batch's transaction", FLUSH_BUCKETS
)
BATCH_ROWS = histogram(
    "flusher_batch_rows", "Entries of one batch", (1, 10, 50, 100, 250, 500, 1000, 2000, 5000)
)
FLUSH_DELAY = histogram(
    "flush_delay_seconds",
    "Time from Redis's acceptance of a batch's oldest action to its COMMIT",
    FLUSH_BUCKETS,
)

DRIFT_USERS = gauge(
    "drift_users", "Users whose stores differed when they were last compared, at most 1000", "board"
)
VERIFICATIONS = counter(
    "verify_total",
    "Verifications, and steps of the continuous comparison, by result",
    "board",
    "result",
)
VERIFIED_AT = gauge(
    "verify_last_success_timestamp_seconds",
    "Time of the last completed verification or step, whatever it found",
    "board",
)
BACKUP_AT = gauge(
    "backup_last_success_timestamp_seconds",
    "Time at which the newest checked backup was taken; 0 if none is recorded",
)


def count(result: Flushed, *, oldest_s: float) -> None:
    """Count a committed batch; ``oldest_s`` is when Redis accepted its first entry."""
    BATCHES.labels("committed").inc()
    ROWS.labels("counted").inc(result.counted)
    ROWS.labels("redelivered").inc(result.redelivered)
    ROWS.labels("late").inc(result.late)
    ROWS.labels("correction").inc(result.corrections)
    ROWS.labels("dead").inc(result.dead)
    DEAD_LETTERS.inc(result.dead)
    FLUSH_DELAY.observe(max(0.0, time.time() - oldest_s))
