"""One board that a process watches: its state, its wake-up event, the schedule of its reads."""

import asyncio
import itertools
import time
from typing import Final

from msgspec import Struct

from scoreboard.broadcast.pace import Pace
from scoreboard.broadcast.state import BoardState
from scoreboard.broadcast.windows import BoardWindows
from scoreboard.runtime.telemetry import Children, counter, gauge
from scoreboard.trace_context import TraceContext

SEQ: Final = Children(
    gauge(
        "board_seq",
        "seq of the board as last read",
        "board",
        unit="changes",
        normal="increases with each action; about the same in all processes",
    )
)
EPOCH: Final = Children(
    gauge(
        "board_epoch",
        "Epoch of the board as last read",
        "board",
        unit="reseeds",
        normal="constant, the same in all processes; increases with each reseed",
    )
)
_AGE: Final = Children(
    gauge(
        "board_age_seconds",
        "Time since the board was last read, or since the start if it never was",
        "board",
        normal="below 6: it is read at least every 5",
    )
)
REGRESSIONS: Final = Children(
    counter(
        "board_regressions_total",
        "Times Redis returned an older state of a board",
        "board",
        unit="times",
        normal="0",
    )
)
MISMATCHES: Final = Children(
    counter(
        "reconcile_mismatches_total",
        "Changes found by polling because their notification was lost",
        "board",
        unit="changes",
        normal="0; a few after the subscription was lost",
    )
)
_METRICS: Final = (SEQ, EPOCH, _AGE, REGRESSIONS, MISMATCHES)

_first_generations: Final = itertools.count(2**32, 2**32)
"""A board that is watched again must not repeat a generation that it had before."""


class NoticedTrace(Struct, frozen=True):
    """The trace of a change, and when this process noticed the change, in ns since 1970."""

    context: TraceContext
    noticed_at_ns: int


class WatchedBoard:
    """The state of one board and what its reads depend on; ``is_pinned``: it is never dropped."""

    __slots__ = (
        "absent_at_s",
        "channels",
        "dirty",
        "failures",
        "first_read",
        "generation",
        "is_board_changed",
        "is_pinned",
        "messages",
        "noticed_at_s",
        "pace",
        "read_at_s",
        "stale_timer",
        "state",
        "stirred",
        "task",
        "traces",
        "used_at_s",
        "windows",
    )

    def __init__(self, board: str, interval_s: float, *, is_pinned: bool) -> None:
        self.state = BoardState(board)
        self.windows = BoardWindows()
        self.pace = Pace(interval_s)
        self.is_pinned = is_pinned
        for metric in (REGRESSIONS, MISMATCHES):
            metric[board].inc(0)
        self.read_at_s = self.used_at_s = time.monotonic()
        """When the board was last read, at first when the process began to try; and viewed."""
        _AGE[board].set_function(lambda: time.monotonic() - self.read_at_s)
        self.channels: dict[str, int] = {}
        """The number of the partition of each channel."""
        self.dirty = asyncio.Event()
        """Set when the board may have changed."""
        self.stirred = asyncio.Event()
        """Set with ``dirty``, and when names of its users may have changed."""
        self.first_read = asyncio.Event()
        """Set when the first read has succeeded or failed."""
        self.is_board_changed = False
        """Whether visibility or state may have changed since the board was read."""
        self.failures = 0
        self.generation = next(_first_generations)
        """Increases whenever the board may have changed; see ``BoardWatcher.generation``."""
        self.messages = 0
        self.noticed_at_s = 0.0
        self.absent_at_s = 0.0
        """Since when the list of boards is without this one (monotonic); 0 if it is not."""
        self.stale_timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self.traces: list[NoticedTrace] = []
        """Traces of changes that no accepted read contains yet."""

    @property
    def name(self) -> str:
        """The name of the board."""
        return self.state.board

    @property
    def user_ids(self) -> frozenset[str]:
        """The users of its top and its windows."""
        return self.state.user_ids | self.windows.user_ids

    def cancel_stale_timer(self) -> None:
        """Cancel the timer that would mark the board stale."""
        if self.stale_timer is not None:
            self.stale_timer.cancel()
            self.stale_timer = None

    def close(self) -> None:
        """Release everything of a board that is watched no longer."""
        self.cancel_stale_timer()
        self.windows.clear()
        self.first_read.set()  # for those who wait; they find no message
        for metric in _METRICS:
            metric.remove(self.name)
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()
