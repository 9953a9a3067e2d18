"""The spans of a flush: their number is bounded, and a failure is recorded in every trace."""

import pytest

from flusher.batch import Batch, Entry, build
from flusher.flush_tracing import FlushTracing
from scoreboard.errors import DatabaseUnavailable
from scoreboard.model import Partition
from scoreboard.runtime.otel import Tracing
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.trace_context import LINKS_MAX, TraceContext
from tests.support.fakes.otlp import Collector


class Done:
    """What a transaction returned."""


def entry(seq: int, traceparent: bytes = b"") -> Entry:
    fields = {b"q": b"%d" % seq, b"u": b"alice", b"a": b"win:%d" % seq, b"d": b"5", b"s": b"5"}
    fields |= {b"e": b"1"} | ({b"w": traceparent} if traceparent else {})
    return b"1000-%d" % seq, fields


def traceparent(number: int) -> bytes:
    return TraceContext(f"{number:032x}", f"{number:016x}").encode()


@pytest.fixture
def tracing(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Tracing:
    for name, text in collector.environment.items():
        monkeypatch.setenv(name, text)
    return Tracing(Settings(redis_url=Secret("redis://x")), "flusher")


async def flush(tracing: Tracing, batch: Batch, error: Exception | None = None) -> object:
    async def commit() -> Done:
        if error is not None:
            raise error
        return Done()

    async with tracing.running():
        return await FlushTracing(tracing, Partition("main", 3)).trace(batch, commit)


async def test_a_batch_without_a_valid_trace_has_no_span(
    tracing: Tracing, collector: Collector
) -> None:
    unsampled = TraceContext("a" * 32, "b" * 16, is_sampled=False).encode()
    batch = build([entry(1), entry(2, b"garbage"), entry(3, b"\xff" * 99), entry(4, unsampled)])

    assert isinstance(await flush(tracing, batch), Done)
    assert len(batch.actions) == 4, "an invalid trace does not make a record invalid"
    assert collector.spans == []


async def test_the_spans_of_a_batch_are_bounded(tracing: Tracing, collector: Collector) -> None:
    batch = build(entry(number, traceparent(number)) for number in range(1, 1001))

    await flush(tracing, batch)

    [flush_span] = collector.named("flush")
    commits = collector.named("commit")
    assert len(commits) == len(flush_span.links) == LINKS_MAX
    assert flush_span.links[0] == (f"{1:032x}", f"{1:016x}")
    assert flush_span.attributes == {
        "scoreboard.board": "main",
        "scoreboard.partition": 3,
        "scoreboard.entries": 1000,
        "scoreboard.outcome": "done",
    }
    for number, span in enumerate(commits, 1):
        assert (span.trace_id, span.parent_id) == (f"{number:032x}", f"{number:016x}")
        assert span.links == [(flush_span.trace_id, flush_span.span_id)]


async def test_a_failed_transaction_is_recorded_in_each_trace(
    tracing: Tracing, collector: Collector
) -> None:
    batch = build([entry(1, traceparent(1)), entry(2)])

    with pytest.raises(DatabaseUnavailable):
        await flush(tracing, batch, DatabaseUnavailable("password=s3cret"))

    assert [span.is_error for span in collector.spans] == [True, True]
    assert {span.attributes["error.type"] for span in collector.spans} == {"DatabaseUnavailable"}
    assert b"s3cret" not in collector.raw
