"""The spans of frames: in the trace of each change that a board shows, until it is written.

A span starts when this process noticed the change and ends when every viewer was offered the board.
Invariant: at most ``PENDING_MAX`` spans of a board are open; older ones end early.
"""

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from scoreboard.broadcast.state import BoardState
from scoreboard.broadcast.watcher import NoticedTrace
from scoreboard.model import TOP
from streamer.fanout.hub import Channel, Hub

if TYPE_CHECKING:
    from scoreboard.runtime.otel import Span, Tracing

PENDING_MAX: Final = 64


class FrameTracing:
    """The spans of one process."""

    def __init__(self, tracing: "Tracing", hub: Hub) -> None:
        self._tracing = tracing
        self._hub = hub
        self._pending: dict[str, deque[Span]] = {}
        """The open spans of each board whose sweep has not ended."""

    def board_traced(self, state: BoardState, traces: list[NoticedTrace]) -> None:
        """Start the spans of a new board, whose sweep has started (a TraceListener)."""
        board = state.message
        if board is None:
            return
        channel = self._hub.channel(state.board)
        pending = self._pending.setdefault(state.board, deque())
        attributes = {
            "scoreboard.board": state.board,
            "scoreboard.epoch": board.epoch,
            "scoreboard.seq": board.seq,
            "scoreboard.viewers": len(channel.viewers),
        }
        for trace in traces:
            if len(pending) >= PENDING_MAX:
                pending.popleft().end()
            pending.append(
                self._tracing.start(
                    "frame",
                    "consumer",
                    attributes,
                    parent=trace.context,
                    at_ns=trace.noticed_at_ns,
                )
            )
        self.turn_ended([channel])

    def turn_ended(self, channels: Iterable[Channel]) -> None:
        """End the spans of channels whose sweep has ended."""
        for channel in channels:
            if not channel.is_sweeping and channel.span == TOP:
                for span in self._pending.pop(channel.board, ()):
                    span.end()
