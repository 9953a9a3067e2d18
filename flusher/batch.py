"""Converts stream entries to rows for PostgreSQL. No clock, no I/O.

Invariants: every entry is in exactly one of five lists (actions, corrections, held actions, turns,
bad records), so every acknowledged entry has a row; the stored position never passes a seq that was
not in the stream.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from msgspec import Struct

from scoreboard.events import (
    BIGINT_MAX,
    CORRECTION,
    HELD,
    TURN,
    BadRecord,
    Event,
    decode,
    event_time,
    stream_id_key,
)
from scoreboard.model import kind_of, user_uuid

Entry = tuple[bytes, Mapping[bytes, bytes]]
"""A stream entry as Redis returns it: id and fields."""

Row = tuple[Any, ...]
"""An action for the staging table; columns as in ``COLUMNS``."""

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
    """Seqs that are missing before an entry."""

    expected: int
    found: int
    stream_id: str


class Progress(Struct, frozen=True):
    """The last seq of a batch, and the first gap before it."""

    seq: int
    gap: Gap | None = None


class Batch(Struct, frozen=True):
    """Entries of one partition in stream order, grouped by how they are stored."""

    entries: tuple[Entry, ...]
    actions: tuple[Event, ...]
    corrections: tuple[Event, ...]
    held: tuple[Event, ...]
    turns: tuple[Event, ...]
    """Seasons that began."""
    bad: tuple[BadRecord, ...]
    steps: tuple[tuple[str, int], ...]
    """Stream id and seq of each entry; seq 0 if the entry cannot be decoded."""
    rows: list[Row]
    """The rows of ``actions``, built here so that the next batch is ready after a COMMIT."""
    times_ms: list[int]
    """When Redis accepted each entry, ms since 1970, in ascending order."""
    seasons: tuple[str, ...] = ()
    """The seasons of the entries as id:start:end, in order; empty for a board without seasons."""

    @property
    def ids(self) -> list[bytes]:
        """The stream ids, for the acknowledgement."""
        return [stream_id for stream_id, _ in self.entries]

    @property
    def last_id(self) -> str:
        """The stream id of the last entry."""
        return self.steps[-1][0]

    @property
    def last_read_id(self) -> str:
        """The stream id of the last entry that could be decoded; of the last one if none could."""
        return next((stream_id for stream_id, seq in reversed(self.steps) if seq), self.last_id)


def build(entries: Iterable[Entry]) -> Batch:
    """Decode entries and group them."""
    kept = tuple(entries)
    actions: list[Event] = []
    others: dict[str, list[Event]] = {CORRECTION: [], HELD: [], TURN: []}
    seasons: dict[str, None] = {}
    bad: list[BadRecord] = []
    steps: list[tuple[str, int]] = []
    for stream_id, fields in kept:
        record = decode(stream_id, fields)
        if isinstance(record, Event):
            reason = _beyond_columns(record)
            if not reason:
                (actions if record.is_action else others[record.kind]).append(record)
                if record.season:
                    seasons[record.season] = None
                steps.append((record.stream_id, record.seq))
                continue
            record = BadRecord(record.stream_id, reason, dict(fields))
        bad.append(record)
        steps.append((record.stream_id, 0))
    return Batch(
        kept,
        tuple(actions),
        tuple(others[CORRECTION]),
        tuple(others[HELD]),
        tuple(others[TURN]),
        tuple(bad),
        tuple(steps),
        make_rows(actions),
        [int(stream_id.partition("-")[0]) for stream_id, _ in steps],
        tuple(seasons),
    )


def advance(batch: Batch, committed: int, earlier: int = 0) -> Progress:
    """Return how far a batch advances from the committed seq, and its first gap.

    An entry that cannot be decoded fills the place of one missing seq; ``earlier`` is the number of
    such entries between the committed one and the batch. One that precedes a committed seq was
    counted with it before.
    """
    reached, unread = committed, 0
    gap: Gap | None = None
    for stream_id, seq in batch.steps:
        if not seq:
            unread += 1
        elif seq > reached:
            missing = seq - reached - 1
            unread, earlier = unread + earlier, 0
            if missing > unread:
                gap = gap or Gap(reached + 1, seq, stream_id)
                unread = 0
            else:
                unread -= missing
            reached = seq
        else:
            unread = 0
    return Progress(reached, gap)


def split_held(batch: Batch) -> tuple[list[Event], list[Event]]:
    """Return the held actions to record before the actions are counted, and those after.

    The first entry of an action decides whether it is held or counts.
    """
    if not batch.held:
        return [], []
    counted: dict[tuple[str, str], int] = {}
    for event in batch.actions:
        counted.setdefault((event.user_id, event.action_id), event.seq)
    before: list[Event] = []
    after: list[Event] = []
    for event in batch.held:
        at = counted.get((event.user_id, event.action_id))
        (before if at is None or event.seq < at else after).append(event)
    return before, after


def count_after(batch: Batch, stream_id: str) -> int:
    """Count the entries after a stream id."""
    before = bisect_right(
        batch.steps, stream_id_key(stream_id), key=lambda step: stream_id_key(step[0])
    )
    return len(batch.steps) - before


def make_rows(actions: Sequence[Event]) -> list[Row]:
    """Return the rows of actions for the staging table."""
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


def parameters_of(event: Event) -> dict[str, Any]:
    """Return the parameters of the statements that store one event, without its partition."""
    return {
        "user_id": event.user_id,
        "preferred_id": user_uuid(event.user_id),
        "action_id": event.action_id,
        "epoch": event.epoch,
        "seq": event.seq,
        "delta": event.delta,
        "score_after": event.score_after,
        "request_id": event.request_id or None,
        "occurred_at": event_time(event.stream_id),
    }


def _beyond_columns(event: Event) -> str:
    """Return why a decoded event fits no row; empty if it does."""
    if event.seq > BIGINT_MAX or event.epoch > BIGINT_MAX:
        return "seq or epoch exceeds a BIGINT"
    return ""
