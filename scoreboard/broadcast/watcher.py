"""Follow the boards in Redis for one process: subscribe, read, notify a listener.

The streamer and the api's event stream each run one.

Invariants: reads of a board keep its pace (scoreboard.broadcast.pace) at any write rate; a read
follows every confirmed subscription, so no change published in between is missed; the next
reconciliation corrects a lost message; the listener never gets an older board, nor an empty one
because Redis is unreachable.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from scoreboard.broadcast.messages import StaleReason, now_ms
from scoreboard.broadcast.pace import Pace
from scoreboard.broadcast.state import BoardState, ReadResult
from scoreboard.errors import InternalError, RedisUnavailable, ScoreboardError, Uninitialised
from scoreboard.model import WATCHED_TOP, Board, Partition, Window
from scoreboard.runtime.lifecycle import backoff_s
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import Children, counter, gauge, get_logger
from scoreboard.store.boards import Boards
from scoreboard.store.client import REDIS_UP, make_client
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.subscription import RECONNECT_MOST_S, Subscription
from scoreboard.trace_context import LINKS_MAX, TraceContext

READ_TIMEOUT_S: Final = 2.0
RECONCILE_S: Final = 5.0
"""Interval of reconciling reads: the longest time that a lost message can delay a change."""

STALE_AFTER_S: Final = 2.0
"""An outage shorter than this is not reported to viewers."""

LOST_AFTER_S: Final = 1.0
"""A change found by reconciliation counts as a lost message unless it arrives in this time."""

READ_CONNECTIONS: Final = 4

_SEQ: Final = Children(
    gauge(
        "board_seq",
        "seq of the board as last read",
        "board",
        unit="changes",
        normal="increases with each action; about the same in all processes",
    )
)
_EPOCH: Final = Children(
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
_REGRESSIONS: Final = Children(
    counter(
        "board_regressions_total",
        "Times Redis returned an older state of a board",
        "board",
        unit="times",
        normal="0",
    )
)
_MISMATCHES: Final = Children(
    counter(
        "reconcile_mismatches_total",
        "Changes found by polling because their notification was lost",
        "board",
        unit="changes",
        normal="0; a few after the subscription was lost",
    )
)
_log = get_logger(__name__)


class Listener(Protocol):
    """Receiver of changes. All methods are called on the event loop and must not block."""

    def board_changed(self, state: BoardState, noticed_at_s: float) -> None:
        """Send ``state.message``; ``noticed_at_s`` is when its change was noticed (loop time)."""
        ...

    def status_changed(self, state: BoardState) -> None:
        """Send whether ``state.stale_reason`` is None (live) or a reason (stale)."""
        ...

    def access_changed(self, state: BoardState) -> None:
        """Apply that ``state.is_public`` has changed."""
        ...

    def least_gap_s(self, board: str) -> float:
        """Return the least time to the next board (scoreboard.broadcast.pace.gap_after)."""
        ...


class NoticedTrace(Struct, frozen=True):
    """The trace of a change, and when this process noticed the change, in ns since 1970."""

    context: TraceContext
    noticed_at_ns: int


TraceListener = Callable[[BoardState, list[NoticedTrace]], None]
"""Called after ``board_changed`` with the traces of changes that the board contains."""


class _WatchedBoard:
    """One board: its state, its wake-up event, the schedule of its reads."""

    __slots__ = (
        "dirty",
        "failures",
        "generation",
        "is_board_changed",
        "messages",
        "noticed_at_s",
        "pace",
        "read_at_s",
        "stale_timer",
        "state",
        "traces",
    )

    def __init__(self, board: str, interval_s: float) -> None:
        self.state = BoardState(board)
        self.pace = Pace(interval_s)
        for metric in (_REGRESSIONS, _MISMATCHES):
            metric[board].inc(0)
        self.read_at_s = time.monotonic()
        """When the board was last read, at first when the process began to try."""
        _AGE[board].set_function(lambda: time.monotonic() - self.read_at_s)
        self.dirty = asyncio.Event()
        self.failures = 0
        self.generation = 0
        """Increases whenever the board may have changed; see ``BoardWatcher.generation``."""
        self.is_board_changed = False
        """Whether visibility or state may have changed since the board was read."""
        self.messages = 0
        self.noticed_at_s = 0.0
        self.stale_timer: asyncio.TimerHandle | None = None
        self.traces: list[NoticedTrace] = []
        """Traces of changes that no accepted read contains yet."""


class BoardWatcher:
    """The subscription and the reads of one process. Start ``run`` in a task group."""

    def __init__(
        self,
        settings: Settings,
        listener: Listener,
        *,
        name: str,
        on_traced: TraceListener | None = None,
    ) -> None:
        """Read the settings; connect to nothing yet. ``on_traced`` is None without tracing."""
        self._on_traced = on_traced
        self._settings = msgspec.structs.replace(
            settings, redis_timeout_s=min(settings.redis_timeout_s, READ_TIMEOUT_S)
        )
        self._listener = listener
        self._name = name
        interval_s = settings.frame_interval_ms / 1000
        self._watched = {board: _WatchedBoard(board, interval_s) for board in settings.boards}
        self._unread = set(settings.boards)
        self._all_read = asyncio.Event()
        self._by_channel: dict[str, _WatchedBoard] = {}
        for board in settings.boards:
            self._register_channels(Board(board))
        self._changes = Subscription(
            self._settings,
            self._by_channel,
            name=f"{name}-changes",
            on_change=self._on_change,
            on_up=self._on_up,
            on_down=self._on_down,
            on_traces=self._on_traces if on_traced is not None else None,
            on_board=self._on_board,
        )

    @property
    def states(self) -> dict[str, BoardState]:
        """Return the state of each board served, by name."""
        return {name: watched.state for name, watched in self._watched.items()}

    def generation(self, board: str) -> int:
        """Return a number that increases when the watched rows of a board may have changed.

        It does at each notification, and when the subscription is lost or confirmed. It is 0 for a
        board that is not watched.
        """
        watched = self._watched.get(board)
        return 0 if watched is None else watched.generation

    def hears(self, board: str, partitions: int) -> bool:
        """Return whether each notification of a board of so many partitions arrives.

        When it becomes true, ``generation`` increases.
        """
        last = PartitionKeys(Partition(board, partitions - 1)).changes
        return last in self._by_channel and self._changes.is_complete

    async def wait_for_first_reads(self) -> None:
        """Wait until the first read of every board has succeeded or failed."""
        await self._all_read.wait()

    @property
    def is_ready(self) -> bool:
        """Return whether at least one board is known and Redis is reachable."""
        states = [watched.state for watched in self._watched.values()]
        return (
            self._changes.is_up
            and any(state.message is not None for state in states)
            and all(state.stale_reason != "unreachable" for state in states)
        )

    async def run(self) -> None:
        """Follow the boards until cancelled; losing Redis does not end it."""
        client = make_client(
            self._settings,
            name=f"{self._name}-reads",
            connections=min(READ_CONNECTIONS, len(self._watched)),
        )
        store = Boards(client)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._changes.run())
                for watched in self._watched.values():
                    tasks.create_task(self._read_changes(store, watched))
        finally:
            for watched in self._watched.values():
                _cancel_stale_timer(watched)
            await client.aclose()

    def _register_channels(self, board: Board) -> list[str]:
        names = [
            PartitionKeys(Partition(board.name, number)).changes
            for number in range(board.layout.partitions)
        ]
        self._by_channel.update(dict.fromkeys(names, self._watched[board.name]))
        return names

    def _on_change(self, channel: str) -> None:
        watched = self._by_channel.get(channel)
        if watched is not None:
            watched.generation += 1
            watched.messages += 1
            self._wake(watched)

    def _on_board(self, channel: str) -> None:
        watched = self._by_channel.get(channel)
        if watched is not None:
            watched.is_board_changed = True

    def _on_traces(self, channel: str, contexts: list[TraceContext]) -> None:
        watched = self._by_channel.get(channel)
        if watched is not None:
            now_ns = time.time_ns()
            room = LINKS_MAX - len(watched.traces)
            watched.traces += [NoticedTrace(one, now_ns) for one in contexts[:room]]

    def _on_up(self) -> None:
        for watched in self._watched.values():
            watched.generation += 1
            watched.failures = 0
            self._wake(watched)

    def _on_down(self) -> None:
        for watched in self._watched.values():
            watched.generation += 1
            self._schedule_stale(watched)

    def _wake(self, watched: _WatchedBoard) -> None:
        if not watched.dirty.is_set():
            watched.noticed_at_s = asyncio.get_running_loop().time()
            watched.dirty.set()

    async def _read_changes(self, store: Boards, watched: _WatchedBoard) -> None:
        loop = asyncio.get_running_loop()
        reconcile_at_s = loop.time()
        while True:
            wait_s = reconcile_at_s - loop.time()
            if watched.failures:
                wait_s = min(wait_s, backoff_s(watched.failures, most_s=RECONNECT_MOST_S))
            if not watched.dirty.is_set():
                try:
                    async with asyncio.timeout(max(wait_s, 0.0)):
                        await watched.dirty.wait()
                except TimeoutError:
                    watched.noticed_at_s = loop.time()
            await self._keep_pace(watched)
            was_notified = watched.dirty.is_set()
            watched.dirty.clear()
            started_at_s = loop.time()
            watched.pace.take(started_at_s)
            with_board = (
                started_at_s >= reconcile_at_s
                or watched.state.message is None
                or watched.is_board_changed
            )
            if with_board:
                watched.is_board_changed = False
                reconcile_at_s = started_at_s + RECONCILE_S
            await self._read(store, watched, was_notified=was_notified, with_board=with_board)
            self._unread.discard(watched.state.board)
            if not self._unread:
                self._all_read.set()

    async def _keep_pace(self, watched: _WatchedBoard) -> None:
        """Wait until the board may be read; a fan-out that is under way defers it further."""
        board, loop = watched.state.board, asyncio.get_running_loop()
        while True:
            wait_s = watched.pace.next_at_s(self._listener.least_gap_s(board)) - loop.time()
            if wait_s <= 0:
                return
            await asyncio.sleep(wait_s)

    async def _read(
        self, store: Boards, watched: _WatchedBoard, *, was_notified: bool, with_board: bool
    ) -> None:
        state = watched.state
        noticed = len(watched.traces)  # the read contains their changes
        loop = asyncio.get_running_loop()
        try:
            if with_board:
                await self._read_board(store, state)
            asked_at_s = loop.time()
            window = await self._read_window(store, state)
        except Uninitialised:
            REDIS_UP.set(1)
            # Read again soon: a board opens one partition after another, and those of a layout that
            # is not known yet are not subscribed to.
            watched.failures += 1
            state.failure = ""
            self._mark_stale(watched, "uninitialised")
            return
        except ScoreboardError as error:
            REDIS_UP.set(not isinstance(error, RedisUnavailable))
            watched.failures += 1
            state.failure = error.detail
            if isinstance(error, InternalError):
                _log.error("board_unreadable", board=state.board, reason=error.detail)
            self._schedule_stale(watched)
            return
        REDIS_UP.set(1)
        watched.failures = 0
        state.failure = ""
        had_message = state.message is not None
        result = state.apply(window, now_ms())
        if result is ReadResult.REWOUND:
            if state.stale_reason != "rewound":
                _REGRESSIONS[state.board].inc()
                _log.error("board_rewound", board=state.board, epoch=window.epoch, seq=window.seq)
            self._mark_stale(watched, "rewound")
            return
        state.note_times(window, asked_at_s)
        watched.read_at_s = time.monotonic()
        _EPOCH[state.board].set(window.epoch)
        _SEQ[state.board].set(window.seq)
        if result is ReadResult.CHANGED:
            if had_message and not was_notified:
                loop.call_later(LOST_AFTER_S, self._count_lost, watched, watched.messages)
            self._listener.board_changed(state, watched.noticed_at_s)
        self._report_traces(watched, noticed, is_shown=result is ReadResult.CHANGED)
        if self._changes.is_up:
            self._mark_live(watched)

    def _report_traces(self, watched: _WatchedBoard, count: int, *, is_shown: bool) -> None:
        traces = watched.traces[:count]
        del watched.traces[:count]
        if traces and is_shown and self._on_traced is not None:
            self._on_traced(watched.state, traces)

    async def _read_window(self, store: Boards, state: BoardState) -> Window:
        window = await store.leaderboard(state.board, limit=WATCHED_TOP)
        if state.message is not None and state.message.epoch != window.epoch:
            await self._read_board(store, state)  # a reseed may have changed layout or access
        return window

    async def _read_board(self, store: Boards, state: BoardState) -> None:
        board = await store.board(state.board)
        self._changes.want(self._register_channels(board))
        if board.is_public != state.is_public:
            state.is_public = board.is_public
            self._listener.access_changed(state)

    def _count_lost(self, watched: _WatchedBoard, messages_before: int) -> None:
        if watched.messages == messages_before:
            _MISMATCHES[watched.state.board].inc()

    def _schedule_stale(self, watched: _WatchedBoard) -> None:
        """Mark the board stale after STALE_AFTER_S, unless Redis comes back before."""
        if watched.stale_timer is None and watched.state.stale_reason is None:
            watched.stale_timer = asyncio.get_running_loop().call_later(
                STALE_AFTER_S, self._mark_stale, watched, "unreachable"
            )

    def _mark_live(self, watched: _WatchedBoard) -> None:
        """Mark the board live, after a successful read with the subscription up."""
        _cancel_stale_timer(watched)
        if watched.state.stale_reason is not None:
            watched.state.stale_reason = None
            _log.info("board_live", board=watched.state.board)
            self._listener.status_changed(watched.state)

    def _mark_stale(self, watched: _WatchedBoard, reason: StaleReason) -> None:
        _cancel_stale_timer(watched)
        was_live = watched.state.stale_reason is None
        watched.state.stale_reason = reason
        if was_live:
            _log.warning("board_stale", board=watched.state.board, reason=watched.state.why_stale)
            self._listener.status_changed(watched.state)


def _cancel_stale_timer(watched: _WatchedBoard) -> None:
    if watched.stale_timer is not None:
        watched.stale_timer.cancel()
        watched.stale_timer = None
