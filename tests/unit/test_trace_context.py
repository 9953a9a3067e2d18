"""The header traceparent: what is accepted and what is ignored (W3C Trace Context, level 2)."""

import pytest

from scoreboard.trace_context import (
    CONTEXT_BYTES,
    NOTICE,
    NOTICE_BYTES_MAX,
    NOTICE_MAX,
    TraceContext,
    parse_notice,
    parse_traceparent,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("header", "is_sampled"),
    [
        (GOOD, True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-02", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"00-{TRACE}-{SPAN}-ff", True),
        (f"01-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", True),
        (f"cc-{TRACE}-{SPAN}-01-", True),
    ],
)
def test_a_valid_header_is_parsed(header: str, is_sampled: bool) -> None:
    assert parse_traceparent(header.encode()) == TraceContext(TRACE, SPAN, is_sampled)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"00-{TRACE}-{SPAN}-0A",
        f"CC-{TRACE}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE}-{SPAN[:-1]}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-01.",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"0-{TRACE}-{SPAN}-01",
        f"000-{TRACE}-{SPAN}-01",
        f"00_{TRACE}_{SPAN}_01",
        f"{GOOD}\n",
        f" {GOOD}",
        f"{GOOD},{GOOD}",
        f"{GOOD}, {GOOD}",
        f"00-{TRACE}-{SPAN}-\u0660\u0661",
        "x" * 10_000,
    ],
)
def test_an_invalid_header_is_ignored(header: str | None) -> None:
    assert parse_traceparent(None if header is None else header.encode()) is None


@pytest.mark.parametrize("is_sampled", [True, False])
def test_a_context_survives_its_encoding(is_sampled: bool) -> None:
    context = TraceContext(TRACE, SPAN, is_sampled)

    assert len(context.encode()) == CONTEXT_BYTES
    assert parse_traceparent(context.encode()) == context


def test_a_notice_is_parsed_within_its_limits() -> None:
    contexts = [TraceContext(TRACE, f"{number:016x}") for number in range(1, 20)]
    notice = NOTICE + b" ".join(context.encode() for context in contexts)

    assert parse_notice(notice) == contexts[:NOTICE_MAX]
    assert len(NOTICE + b" ".join(one.encode() for one in contexts[:NOTICE_MAX])) < NOTICE_BYTES_MAX
    assert parse_notice(NOTICE + b"garbage " + contexts[0].encode()) == contexts[:1]
    assert parse_notice(NOTICE) == []
