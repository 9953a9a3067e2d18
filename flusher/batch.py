"""Turns stream entries into rows for PostgreSQL. Pure: no clock, no network, no driver.

The consumer brings entries, the writer takes batches. What stays true: every entry ends up in
exactly one of three lists (actions, corrections, bad records), so nothing is acknowledged without
a row; and the position to store never passes a seq that was not in the stream.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from msgspec import Struct

from scoreboard.events import (
    BIGINT_MAX,
    CORRECTION,
    BadRecord,
    Event,
    decode,
    event_time,
)
from scoreboard.model import kind_of, user_uuid

Entry = tuple[bytes, Mapping[bytes, bytes]]
"""One stream entry as Redis gives it: its id and its fields."""

Row = tuple[Any, ...]
"""One action for the staging table, columns as in ``COLUMNS``."""

COLUMNS: Final = (
    "user_id",
    "external_id",
    "action_id",
    "epoch",
    "seq",
    "delta",
    "score_after",
    "kind",
    "request_id",
    "occurred_at",
    "is_last",
)
"""Columns of the staging table, in the order of a row (a test compares with the statement)."""

_user_uuid = lru_cache(maxsize=65_536)(user_uuid)


class Gap(Struct, frozen=True):
    """Seqs that should stand before an entry, and do not."""

    expected: int
    found: int
    stream_id: str


class Progress(Struct, frozen=True):
    """How far a batch brings a partition: the last seq reached, and the first gap on the way."""

    seq: int
    gap: Gap | None = None


class Batch(Struct, frozen=True):
    """Entries of one partition in stream order, sorted by what happens to them."""

    entries: tuple[Entry, ...]
    actions: tuple[Event, ...]
    corrections: tuple[Event, ...]
    bad: tuple[BadRecord, ...]
    steps: tuple[tuple[str, int], ...]
    """Stream id and seq of each entry, 0 where the seq cannot be read."""
    rows: list[Row]
    """The rows of ``actions``: made here, so that the next batch is ready when one is committed."""

    @property
    def ids(self) -> list[bytes]:
        """The stream ids, for the acknowledgement."""
        return [stream_id for stream_id, _ in self.entries]

    @property
    def last_id(self) -> str:
        """The stream id of the last entry."""
        return self.steps[-1][0]

    @property
    def oldest_ms(self) -> int:
        """When Redis accepted the first entry, ms since 1970."""
        return int(self.steps[0][0].partition("-")[0])


def build(entries: Iterable[Entry]) -> Batch:
    """Read entries and sort them."""
    kept = tuple(entries)
    actions: list[Event] = []
    corrections: list[Event] = []
    bad: list[BadRecord] = []
    steps: list[tuple[str, int]] = []
    for stream_id, fields in kept:
        record = decode(stream_id, fields)
        if isinstance(record, Event):
            reason = _beyond_columns(record)
            if not reason:
                (corrections if record.kind == CORRECTION else actions).append(record)
                steps.append((record.stream_id, record.seq))
                continue
            record = BadRecord(record.stream_id, reason, dict(fields))
        bad.append(record)
        steps.append((record.stream_id, 0))
    return Batch(kept, tuple(actions), tuple(corrections), tuple(bad), tuple(steps), rows(actions))


def advance(batch: Batch, committed: int) -> Progress:
    """Walk a batch from the committed seq; a gap is reported once, and then walked past.

    An entry whose seq cannot be read may stand for a missing one, as it takes its place in the
    stream; seqs that were committed before are repeats and count for nothing here.
    """
    reached, unread = committed, 0
    gap: Gap | None = None
    for stream_id, seq in batch.steps:
        if not seq:
            unread += 1
        elif seq > reached:
            missing = seq - reached - 1
            if missing > unread:
                gap = gap or Gap(reached + 1, seq, stream_id)
                unread = 0
            else:
                unread -= missing
            reached = seq
    return Progress(reached, gap)


def rows(actions: Sequence[Event]) -> list[Row]:
    """Give the rows of actions."""
    last = {event.user_id: place for place, event in enumerate(actions)}
    return [
        (
            _user_uuid(event.user_id),
            event.user_id,
            event.action_id,
            event.epoch,
            event.seq,
            event.delta,
            event.score_after,
            kind_of(event.action_id),
            event.request_id or None,
            event_time(event.stream_id),
            last[event.user_id] == place,
        )
        for place, event in enumerate(actions)
    ]


def _beyond_columns(event: Event) -> str:
    """Say why an event, though readable, fits no row; empty where it does."""
    if event.seq > BIGINT_MAX or event.epoch > BIGINT_MAX:
        return "seq or epoch is beyond a BIGINT"
    return ""
