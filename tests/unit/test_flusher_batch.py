"""Entries are sorted into exactly one list each, and gaps in the seqs are detected."""

from uuid import UUID

import pytest

from flusher.batch import (
    COLUMNS,
    Entry,
    Gap,
    Progress,
    advance,
    build,
    count_after,
    make_rows,
    split_held,
)
from flusher.dead_letters import dead_event
from flusher.writer import TYPES
from scoreboard.events import BadRecord
from scoreboard.ledger.dead_letters import fields_of
from scoreboard.runtime import resources


def entry(seq: int, *, at: str = "", **fields: str) -> Entry:
    known = {"q": str(seq), "u": "alice", "a": f"win:{seq}", "d": "5", "s": "5", "e": "1"} | fields
    return (at or f"1000-{seq}").encode(), {k.encode(): v.encode() for k, v in known.items() if v}


def test_every_entry_is_in_exactly_one_list() -> None:
    entries = [entry(1), entry(2, k="c"), entry(3, d=""), entry(4, u="no spaces"), entry(5)]
    entries.append(entry(6, k="h", l="window"))

    batch = build(entries)

    assert [event.seq for event in batch.actions] == [1, 5]
    assert [event.seq for event in batch.corrections] == [2]
    assert [(event.seq, event.limit) for event in batch.held] == [(6, "window")]
    assert [record.stream_id for record in batch.bad] == ["1000-3", "1000-4"]
    assert batch.ids == [stream_id for stream_id, _ in entries]
    assert batch.last_id == "1000-6"


def test_a_held_action_is_recorded_before_or_after_its_repeat_in_the_batch_counts() -> None:
    held = {"k": "h", "l": "action"}
    batch = build(
        [
            entry(1, a="early", **held),
            entry(2, a="early"),
            entry(3, a="late"),
            entry(4, a="late", **held),
            entry(5, a="late", u="bob", **held),
            entry(6, a="alone", **held),
        ]
    )

    before, after = split_held(batch)

    assert [event.seq for event in before] == [1, 5, 6]
    assert [event.seq for event in after] == [4]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"q": str(2**63)}, "exceeds a BIGINT"),
        ({"e": str(2**63)}, "exceeds a BIGINT"),
    ],
)
def test_values_beyond_a_column_are_bad_records(change: dict[str, str], reason: str) -> None:
    (record,) = build([entry(1, **change)]).bad

    assert reason in record.reason


def test_a_row_has_a_value_for_each_column_and_each_column_a_type() -> None:
    (row,) = make_rows(build([entry(7, t="req-1")]).actions)

    assert len(row) == len(COLUMNS) == len(TYPES)
    named = dict(zip(COLUMNS, row, strict=True))
    assert named["kind"] == "win"
    assert named["request_id"] == "req-1"
    assert named["occurred_at"].isoformat() == "1970-01-01T00:00:01+00:00"
    assert isinstance(named["user_id"], UUID)


def test_the_staging_statement_names_the_columns_in_the_order_of_a_row() -> None:
    statement = " ".join(resources.query("copy_flush_batch").decode().split())

    assert f"COPY flush_batch ( {', '.join(COLUMNS)} )" in statement


def test_the_last_row_of_each_user_is_marked() -> None:
    batch = build([entry(1), entry(2, u="bob"), entry(3), entry(4, u="bob")])

    assert [row[-1] for row in make_rows(batch.actions)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("seqs", "committed", "progress"),
    [
        ([1, 2, 3], 0, Progress(3)),
        ([4, 5], 3, Progress(5)),
        ([2, 3, 4], 3, Progress(4)),
        ([1, 2], 9, Progress(9)),
        ([5, 6], 3, Progress(6, Gap(4, 5, "1000-5"))),
        ([4, 7, 9], 3, Progress(9, Gap(5, 7, "1000-7"))),
    ],
)
def test_a_batch_advances_from_the_committed_position(
    seqs: list[int], committed: int, progress: Progress
) -> None:
    assert advance(build([entry(seq) for seq in seqs]), committed) == progress


def test_an_undecodable_record_fills_one_missing_seq() -> None:
    assert advance(build([entry(1), entry(2, q="?"), entry(3)]), 0) == Progress(3)
    assert advance(build([entry(1), entry(2, q="?"), entry(4)]), 0).gap == Gap(2, 4, "1000-4")


def test_an_undecodable_record_before_a_committed_seq_hides_no_later_loss() -> None:
    redelivered = [entry(1, q="?"), entry(2)]

    assert advance(build([*redelivered, entry(4)]), 2).gap == Gap(3, 4, "1000-4")
    assert advance(build([*redelivered, entry(3, q="?"), entry(4)]), 2) == Progress(4)


def test_undecodable_records_before_the_batch_fill_seqs_after_the_committed_one() -> None:
    assert advance(build([entry(2), entry(5)]), 2, 2) == Progress(5)
    assert advance(build([entry(2), entry(6)]), 2, 2).gap == Gap(3, 6, "1000-6")
    assert advance(build([entry(5), entry(7)]), 2, 2).gap == Gap(6, 7, "1000-7")


def test_a_dead_letter_keeps_every_byte() -> None:
    fields = {b"q": b"12", b"u": bytes(range(256)), b"\xff\x00": b"\0"}

    dead = dead_event("5-1", fields, "why\0" + "x" * 1000)

    assert fields_of(dead.raw) == fields
    assert dead.seq == 12
    assert len(dead.reason) == 500
    assert "\0" not in dead.reason


@pytest.mark.parametrize("seq", [b"", b"-1", b"0", b"x", b"9" * 30])
def test_an_invalid_seq_is_stored_as_null(seq: bytes) -> None:
    assert dead_event("5-1", {b"q": seq}, "why").seq is None


def test_the_reason_of_a_bad_record_is_kept() -> None:
    (record,) = build([entry(1, s="")]).bad

    assert isinstance(record, BadRecord)
    assert "score after" in record.reason


def test_entries_after_the_committed_one_are_counted_by_the_numbers_of_their_ids() -> None:
    batch = build([entry(1, at="9-0"), entry(2, at="10-2"), entry(3, at="10-10", d="")])

    assert batch.times_ms == [9, 10, 10]
    counts = [count_after(batch, one) for one in ("0-0", "9-0", "10-2", "10-9", "10-10", "11-0")]
    assert counts == [3, 2, 1, 1, 0, 0]
