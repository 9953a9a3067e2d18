"""Limits of what waits for a collector or for viewers."""

import time
from types import SimpleNamespace

import pytest

from scoreboard.broadcast.messages import Leaderboard
from scoreboard.broadcast.state import BoardState
from scoreboard.broadcast.watcher import NoticedTrace
from scoreboard.model import Row, Span
from scoreboard.runtime.otel import Tracing
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.trace_context import TraceContext
from streamer.fanout.frame_tracing import PENDING_MAX, FrameTracing
from streamer.fanout.hub import Hub
from tests.support.fakes.otlp import Collector


@pytest.fixture
def tracing(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Tracing:
    limits = {"OTEL_BSP_MAX_QUEUE_SIZE": "200", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "100"}
    for name, text in (collector.environment | limits).items():
        monkeypatch.setenv(name, text)
    return Tracing(Settings(redis_url=Secret("redis://x")), "streamer")


async def test_spans_beyond_the_queue_are_dropped_without_waiting(
    tracing: Tracing, collector: Collector
) -> None:
    collector.may_answer.clear()
    async with tracing.running():
        began_s = time.monotonic()
        for _ in range(5000):
            tracing.start("span", "internal", {}).end()
        assert time.monotonic() - began_s < 5
        collector.may_answer.set()

    assert 200 <= len(collector.spans) <= 400, "the queue, and what is being sent"


async def test_a_stop_does_not_wait_for_a_silent_collector(
    tracing: Tracing, collector: Collector
) -> None:
    collector.may_answer.clear()
    async with tracing.running():
        tracing.start("span", "internal", {}).end()
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 3


async def test_the_spans_of_frames_are_bounded_and_end_with_the_sweep(
    tracing: Tracing, collector: Collector
) -> None:
    hub = Hub(("main",), lambda: None)
    channel, frames = hub.channels["main"], FrameTracing(tracing, hub)
    viewer = SimpleNamespace(index=-1, is_compact=False, push=lambda: None)
    channel.add(viewer)
    state = BoardState("main")
    state.message = Leaderboard("main", 1, 7, 0, (Row(1, "alice", 5),))
    traces = [
        NoticedTrace(TraceContext(f"{number:032x}", f"{number:016x}"), time.time_ns())
        for number in range(1, PENDING_MAX + 11)
    ]
    async with tracing.running():
        channel.publish(state.message, 0.0, 0.0)
        frames.board_traced(state, traces)
        frames.turn_ended([channel])
        assert len(frames._pending["main"]) == PENDING_MAX
        frames.turn_ended([hub.window("main", Span(10, 10))])
        assert len(frames._pending["main"]) == PENDING_MAX, "a window is not the board"
        channel.run_turn(10, lambda: 0.0, 1.0)
        frames.turn_ended([channel])
        assert not frames._pending

    assert len(collector.named("frame")) == len(traces)


async def test_a_frame_without_viewers_ends_at_once(tracing: Tracing, collector: Collector) -> None:
    hub = Hub(("main",), lambda: None)
    frames = FrameTracing(tracing, hub)
    state = BoardState("main")
    frames.board_traced(state, [NoticedTrace(TraceContext("a" * 32, "b" * 16), 1)])
    state.message = Leaderboard("main", 1, 7, 0, ())
    async with tracing.running():
        frames.board_traced(state, [NoticedTrace(TraceContext("a" * 32, "b" * 16), 1)])

    [span] = collector.spans
    assert span.attributes["scoreboard.viewers"] == 0
    assert span.parent_id == "b" * 16
