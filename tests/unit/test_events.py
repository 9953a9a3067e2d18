"""Stream records: decoding, and the reason of a BadRecord."""

import pytest

from scoreboard.events import BadRecord, Event, decode

GOOD = {
    b"q": b"7",
    b"u": b"alice",
    b"a": b"win:1",
    b"d": b"10",
    b"s": b"30",
    b"e": b"2",
    b"t": b"req-1",
}


def test_a_record_is_decoded() -> None:
    event = decode(b"1700000000123-4", GOOD)

    assert event == Event("1700000000123-4", 7, "alice", "win:1", 10, 30, 2, "", "req-1")
    assert event.occurred_at_ms == 1_700_000_000_123


def test_a_held_action_names_the_limit_and_is_no_action() -> None:
    event = decode(b"1-0", GOOD | {b"k": b"h", b"l": b"window"})

    assert isinstance(event, Event)
    assert (event.limit, event.is_action) == ("window", False)
    correction = decode(b"1-0", GOOD | {b"k": b"c"})
    assert isinstance(correction, Event)
    assert not correction.is_action


@pytest.mark.parametrize("traceparent", [b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"\xff"])
def test_a_trace_does_not_change_what_a_record_means(traceparent: bytes) -> None:
    assert decode(b"1-0", GOOD | {b"w": traceparent}) == decode(b"1-0", GOOD)


@pytest.mark.parametrize("name", [b"q", b"u", b"a", b"d", b"s", b"e"])
def test_a_missing_field_is_named(name: bytes) -> None:
    record = decode(b"1-0", {key: value for key, value in GOOD.items() if key != name})

    assert isinstance(record, BadRecord)
    assert f"field {name.decode()} " in record.reason


@pytest.mark.parametrize(
    "changed",
    [
        {b"q": b"x"},
        {b"q": b"0"},
        {b"e": b"0"},
        {b"d": b"0"},
        {b"d": b"1.5"},
        {b"d": b"99999999999"},
        {b"s": b"-1"},
        {b"s": b"2147483648"},
        {b"u": b""},
        {b"u": b"a b"},
        {b"u": b"\xff\xfe"},
        {b"a": b"nul\x00"},
        {b"a": b"x" * 129},
        {b"k": b"zzz"},
        {b"k": b"h"},
        {b"k": b"h", b"l": b"zzz"},
        {b"t": b"x" * 129},
        {b"t": b"line\nbreak"},
    ],
)
def test_a_record_that_breaks_a_rule_is_kept_with_its_reason(changed: dict[bytes, bytes]) -> None:
    record = decode(b"1-0", GOOD | changed)

    assert isinstance(record, BadRecord)
    assert record.reason
    assert record.fields == GOOD | changed
