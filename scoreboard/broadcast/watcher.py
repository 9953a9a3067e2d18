"""Follow boards in Redis for one process: subscribe, read, notify a listener.

The streamer and the api's event streams each run one. The default boards (SCOREBOARD_BOARDS) are
watched always, others from when they are asked for until nobody has viewed them for a while.

Rows have the names that are known when a message is built. Names that arrive or change later cause
the same board to be sent again, with the same position (docs/decisions/0196).

Invariants: reads of a board keep its pace (scoreboard.broadcast.pace) at any write rate; a read
follows every confirmed subscription, so no change published in between is missed; the next
reconciliation corrects a lost message; the listener never gets an older board, nor an empty one
because Redis is unreachable; a board that was dropped leaves nothing behind; in a cluster a server
that is away delays and marks no board but those with a partition there.

Windows of a board (scoreboard.broadcast.windows) are read by the same loop as its top.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from math import inf
from typing import Final, Protocol
from weakref import WeakValueDictionary

import msgspec

from scoreboard.broadcast.admission import TokenBucket, overloaded
from scoreboard.broadcast.messages import StaleReason, now_ms
from scoreboard.broadcast.state import BoardState, ReadResult
from scoreboard.broadcast.watched_board import (
    EPOCH,
    MISMATCHES,
    REGRESSIONS,
    SEQ,
    NoticedTrace,
    WatchedBoard,
)
from scoreboard.broadcast.windows import IDLE_S as WINDOW_IDLE_S
from scoreboard.broadcast.windows import MAKE_ROOM_IDLE_S, MERGED_DEPTH_MAX, WatchedWindow
from scoreboard.errors import (
    InternalError,
    Malformed,
    RedisUnavailable,
    ScoreboardError,
    Uninitialised,
    UnknownBoard,
)
from scoreboard.ledger.name_cache import NameCache
from scoreboard.model import TOP, WATCHED_TOP, Board, Partition, Span, Window
from scoreboard.runtime.lifecycle import backoff_s
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import gauge, get_logger
from scoreboard.store.board_directory import BoardDirectory
from scoreboard.store.boards import Boards
from scoreboard.store.client import REDIS_UP, make_client
from scoreboard.store.cluster import Address
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.partition_subscription import PartitionSubscription
from scoreboard.store.subscription import RECONNECT_MOST_S
from scoreboard.trace_context import LINKS_MAX, TraceContext

READ_TIMEOUT_S: Final = 2.0
RECONCILE_S: Final = 5.0
"""Interval of reconciling reads: the longest time that a lost message can delay a change."""

STALE_AFTER_S: Final = 2.0
"""An outage shorter than this is not reported to viewers."""

LOST_AFTER_S: Final = 1.0
"""A change found by reconciliation counts as a lost message unless it arrives in this time."""

READS_MAX: Final = 4
"""Maximum reads of boards of a server at the same time, and connections for them."""

RETRIES_PER_S: Final = 100
"""With many boards, each failed read is repeated later, so that all together are not more."""

FIRST_READ_S: Final = 2.0
"""Longest wait for the first read of a board that was not watched before."""

CONFIRMATION_S: Final = 0.1
"""Longest wait of the first read of a board for the confirmation of its subscription."""

IDLE_S: Final = 60.0
"""Least time for which a board without viewers stays watched; at most two reconciliations more."""

DELETED_AFTER_S: Final = 1.5
"""A board counts as deleted when the list of boards is without it for this time."""

NEW_BOARDS_PER_S: Final = 100
NEW_BOARDS_BURST: Final = 200
"""Limits of the boards that a process starts to watch: each costs a subscription and two reads."""

NEW_WINDOWS_PER_S: Final = 50
NEW_WINDOWS_BURST: Final = 100
"""Limits of the windows that a process starts to watch."""

_WINDOWS: Final = gauge(
    "windows_watched",
    "Windows of boards, other than the top 10, that the process reads for viewers",
    unit="windows",
    normal="below SCOREBOARD_WINDOWS",
)
_WATCHED: Final = gauge(
    "boards_watched",
    "Boards that the process watches",
    unit="boards",
    normal="the boards of SCOREBOARD_BOARDS, and others with viewers in the last minute",
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

    def is_viewed(self, board: str) -> bool:
        """Return whether a board has viewers."""
        ...

    def board_dropped(self, board: str, *, is_deleted: bool) -> None:
        """Release what is kept of a board; it has viewers only if it was deleted."""
        ...


class WindowListener(Protocol):
    """Receiver of changes of windows. All methods are called on the event loop, as a Listener's."""

    def window_changed(self, state: BoardState, noticed_at_s: float) -> None:
        """Send ``state.message``, the rows of ``state.span``."""
        ...

    def is_window_viewed(self, board: str, span: Span) -> bool:
        """Return whether a window has viewers."""
        ...

    def window_dropped(self, board: str, span: Span) -> None:
        """Release what is kept of a window; it has viewers only if its board no longer has it."""
        ...


TraceListener = Callable[[BoardState, list[NoticedTrace]], None]
"""Called after ``board_changed`` with the traces of changes that the board contains."""


class BoardWatcher:
    """The subscription and the reads of one process. Start ``run`` in a task group."""

    def __init__(
        self,
        settings: Settings,
        listener: Listener,
        *,
        name: str,
        directory: BoardDirectory | None = None,
        names: NameCache | None = None,
        on_traced: TraceListener | None = None,
        windows: WindowListener | None = None,
    ) -> None:
        """Read the settings; connect to nothing yet. ``on_traced`` is None without tracing.

        Without a ``directory`` only the default boards can be watched, without ``windows`` only the
        top of a board. Without ``names`` rows have user ids only; the caller runs it.
        """
        self._windows = windows
        self._new_windows = TokenBucket(NEW_WINDOWS_PER_S, NEW_WINDOWS_BURST, time.monotonic())
        self._names = names or NameCache(None)
        self._names.on_change(self._on_names)
        self._on_traced = on_traced
        self._settings = msgspec.structs.replace(
            settings, redis_timeout_s=min(settings.redis_timeout_s, READ_TIMEOUT_S)
        )
        self._listener = listener
        self._directory = directory
        self._client = make_client(self._settings, name=f"{name}-reads", connections=READS_MAX)
        self._store = Boards(self._client)
        self._reads: WeakValueDictionary[frozenset[Address | None], asyncio.Semaphore] = (
            WeakValueDictionary()
        )
        """Limits the reads of boards of the same server, or of the same ones."""
        self._tasks: asyncio.TaskGroup | None = None
        self._new = TokenBucket(NEW_BOARDS_PER_S, NEW_BOARDS_BURST, time.monotonic())
        self._watched: dict[str, WatchedBoard] = {}
        self._by_channel: dict[str, WatchedBoard] = {}
        for board in settings.boards:
            self._add(Board(board), is_pinned=True)
        self._pinned = tuple(self._watched.values())
        self._changes = PartitionSubscription(
            self._settings,
            self._by_channel,
            name=f"{name}-changes",
            on_change=self._on_change,
            on_heard=self._on_heard,
            on_lost=self._on_lost,
            on_traces=self._on_traces if on_traced is not None else None,
            on_board=self._on_board,
        )

    @property
    def states(self) -> dict[str, BoardState]:
        """Return the state of each default board, by name."""
        return {watched.name: watched.state for watched in self._pinned}

    def generation(self, board: str) -> int:
        """Return a number that increases when the watched rows of a board may have changed.

        It does at each notification, and when the subscription is lost or confirmed. It is 0 for a
        board that is not watched.
        """
        watched = self._watched.get(board)
        return 0 if watched is None else watched.generation

    def hears(self, board: str, partitions: int) -> bool:
        """Return whether each notification of a board of so many partitions arrives.

        When it becomes true, ``generation`` increases. A board that is not watched is not heard.
        """
        watched = self._watched.get(board)
        return (
            watched is not None
            and len(watched.channels) >= partitions
            and self._changes.hears(watched.channels)
        )

    def use(self, board: str) -> None:
        """Keep a board watched that is about to have a viewer."""
        watched = self._watched.get(board)
        if watched is not None:
            watched.used_at_s = time.monotonic()

    async def open(self, name: str) -> BoardState:
        """Return the state of a board that was read; watch it if it is not watched yet.

        The caller adds its viewer before it gives up control.

        Raises UnknownBoard, Uninitialised, RedisUnavailable; Overloaded at a limit of boards.
        """
        watched = self._watched.get(name) or self._watch(await self._find(name))
        watched.used_at_s = time.monotonic()
        state = watched.state
        if state.message is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_READ_S):
                    await watched.first_read.wait()
        if state.message is None or self._watched.get(name) is not watched:
            raise Uninitialised
        return state

    async def open_window(self, name: str, span: Span) -> BoardState:
        """Return the state of a window that was read; watch its board and it if necessary.

        The caller adds its viewer before it gives up control.

        Raises what ``open`` raises, and Malformed if the board has no windows that deep.
        """
        await self.open(name)
        watched = self._watched[name]
        window = watched.windows.find(span) or self._add_window(watched, span)
        window.used_at_s = time.monotonic()
        if window.state.message is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_READ_S):
                    await window.first_read.wait()
        if window.state.message is None or watched.windows.find(span) is not window:
            raise Uninitialised
        return window.state

    def use_window(self, board: str, span: Span) -> None:
        """Keep a window that is about to have a viewer."""
        watched = self._watched.get(board)
        window = watched.windows.find(span) if watched is not None else None
        if window is not None:
            window.used_at_s = time.monotonic()

    async def wait_for_first_reads(self) -> None:
        """Wait until the first read of every default board has succeeded or failed."""
        for watched in self._pinned:
            await watched.first_read.wait()

    @property
    def is_ready(self) -> bool:
        """Return whether at least one board is known and Redis is reachable.

        In a cluster it is while one board is: the others may be at a server that is away.
        """
        states = [watched.state for watched in self._watched.values()]
        are_reached = [state.stale_reason != "unreachable" for state in states]
        return (
            self._changes.is_up
            and any(state.message is not None for state in states)
            and (any(are_reached) if self._changes.is_cluster else all(are_reached))
        )

    async def run(self) -> None:
        """Follow the boards until cancelled; losing Redis does not end it."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._changes.run())
                self._tasks = tasks
                for watched in self._watched.values():
                    watched.task = tasks.create_task(self._follow(watched))
        finally:
            self._tasks = None
            for watched in self._watched.values():
                watched.cancel_stale_timer()
            await self._client.aclose()

    # Which boards are watched

    async def _find(self, name: str) -> Board:
        if self._directory is None:
            raise UnknownBoard
        return self._directory.known(name) or await self._directory.find(name)

    def _watch(self, board: Board) -> WatchedBoard:
        """Start watching a board.

        Raises Overloaded at a limit.
        """
        found = self._watched.get(board.name)
        if found is not None:  # added while the caller was looking for it
            return found
        if not self._new.take(time.monotonic()):
            raise overloaded("Too many boards are asked for at once")
        if len(self._watched) - len(self._pinned) >= self._settings.watched_boards:
            self._make_room()
        watched = self._add(board)
        self._changes.want(watched.channels)
        if not self._changes.is_up or self._changes.is_cluster:
            self._schedule_stale(watched)
        if self._tasks is not None:
            watched.task = self._tasks.create_task(self._follow(watched))
        return watched

    def _make_room(self) -> None:
        """Drop the board that has been without viewers for the longest time.

        Raises Overloaded if all have viewers.
        """
        idle = [
            watched
            for watched in self._watched.values()
            if not watched.is_pinned and not self._listener.is_viewed(watched.name)
        ]
        if not idle:
            raise overloaded("This server is at its limit of boards")
        self._drop(min(idle, key=lambda watched: watched.used_at_s))

    def _add(self, board: Board, *, is_pinned: bool = False) -> WatchedBoard:
        interval_s = self._settings.frame_interval_ms / 1000
        watched = WatchedBoard(board.name, interval_s, is_pinned=is_pinned)
        self._watched[board.name] = watched
        self._register_channels(watched, board)
        _WATCHED.set(len(self._watched))
        return watched

    def _register_channels(self, watched: WatchedBoard, board: Board) -> Iterable[str]:
        numbers = {
            PartitionKeys(Partition(board.name, number)).changes: number
            for number in range(board.layout.partitions)
        }
        watched.channels.update(numbers)
        self._by_channel.update(dict.fromkeys(numbers, watched))
        return numbers

    def _drop(self, watched: WatchedBoard, *, is_deleted: bool = False) -> None:
        """Stop watching a board and release everything of it."""
        del self._watched[watched.name]
        for channel in watched.channels:
            del self._by_channel[channel]
        self._changes.drop(watched.channels)
        watched.close()
        self._count_windows()
        self._listener.board_dropped(watched.name, is_deleted=is_deleted)
        _WATCHED.set(len(self._watched))
        if is_deleted:
            _log.info("board_deleted", board=watched.name)

    async def _is_over(self, watched: WatchedBoard, *, was_reconciled: bool) -> bool:
        """Drop a board that was deleted, or that nobody views any more; return whether it was."""
        if watched.is_pinned:
            return False
        now_s = time.monotonic()
        if self._listener.is_viewed(watched.name):
            watched.used_at_s = now_s
        elif now_s - watched.used_at_s >= IDLE_S + RECONCILE_S:
            self._drop(watched)
            return True
        is_due = was_reconciled or watched.state.stale_reason == "uninitialised"
        if is_due and await self._is_deleted(watched):
            self._drop(watched, is_deleted=True)
            return True
        return False

    async def _is_deleted(self, watched: WatchedBoard) -> bool:
        """Return whether the list of boards is without a board, for longer than a copy takes."""
        if self._directory is None:
            return False
        if watched.state.stale_reason == "uninitialised":
            self._directory.forget(watched.name)
        try:
            await self._directory.find(watched.name)
        except UnknownBoard:
            now_s = time.monotonic()
            watched.absent_at_s = watched.absent_at_s or now_s
            return now_s - watched.absent_at_s >= DELETED_AFTER_S
        except ScoreboardError:
            pass  # it is not known: Redis is unreachable, or was emptied
        watched.absent_at_s = 0.0
        return False

    # Windows

    def _add_window(self, watched: WatchedBoard, span: Span) -> WatchedWindow:
        """Start reading a window.

        Raises Malformed if the board has no windows that deep, Overloaded at a limit.
        """
        if len(watched.channels) > 1 and span.end > MERGED_DEPTH_MAX:
            raise Malformed(f"offset + rows is at most {MERGED_DEPTH_MAX} on this board")
        if not self._new_windows.take(time.monotonic()):
            raise overloaded("Too many windows are asked for at once")
        if len(watched.windows) >= self._settings.windows_per_board:
            self._make_room_for_window((watched,))
        if sum(len(one.windows) for one in self._watched.values()) >= self._settings.windows:
            self._make_room_for_window(self._watched.values())
        window = watched.windows.add(watched.name, span)
        self._count_windows()
        self._wake(watched)
        return window

    def _make_room_for_window(self, boards: Iterable[WatchedBoard]) -> None:
        """Drop the window of these boards that has been without viewers for the longest time.

        Raises Overloaded if all have viewers, or had one a moment ago or wait for one.
        """
        idle = [
            (used_at_s, watched, span)
            for watched in boards
            for used_at_s, span in self._unused_windows(watched, MAKE_ROOM_IDLE_S)[:1]
        ]
        if not idle:
            raise overloaded("This server is at its limit of windows")
        _, watched, span = min(idle, key=lambda one: one[0])
        self._drop_window(watched, span)

    def _unused_windows(self, watched: WatchedBoard, idle_s: float) -> list[tuple[float, Span]]:
        listener, board = self._windows, watched.name
        if listener is None:
            return []
        return watched.windows.unused(lambda span: listener.is_window_viewed(board, span), idle_s)

    def _drop_windows(self, watched: WatchedBoard, spans: Iterable[Span]) -> None:
        for span in spans:
            self._drop_window(watched, span)

    def _drop_window(self, watched: WatchedBoard, span: Span) -> None:
        watched.windows.drop(span)
        if self._windows is not None:
            self._windows.window_dropped(watched.name, span)
        self._count_windows()

    def _count_windows(self) -> None:
        _WINDOWS.set(sum(len(watched.windows) for watched in self._watched.values()))

    # Called by the subscription

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

    def _on_heard(self, channels: Collection[str]) -> None:
        """Read the boards whose notifications arrive from now on."""
        for watched in self._boards_of(channels):
            watched.generation += 1
            watched.is_board_changed = True
            watched.failures = 0
            self._wake(watched)
            self._note_away(watched)

    def _on_lost(self, channels: Collection[str]) -> None:
        for watched in self._boards_of(channels):
            watched.generation += 1
            self._schedule_stale(watched)
            self._note_away(watched)

    def _boards_of(self, channels: Collection[str]) -> Iterable[WatchedBoard]:
        found = (self._by_channel.get(channel) for channel in channels)
        return dict.fromkeys(watched for watched in found if watched is not None)

    def _on_names(self, user_ids: Collection[str] | None) -> None:
        """Send the boards that show one of the users with other names; None: any may have one.

        They are not read for it.
        """
        for watched in self._watched.values():
            if user_ids is None or not watched.user_ids.isdisjoint(user_ids):
                self._stir(watched)

    def _wake(self, watched: WatchedBoard) -> None:
        if not watched.dirty.is_set():
            watched.noticed_at_s = asyncio.get_running_loop().time()
            watched.dirty.set()
            watched.stirred.set()

    def _stir(self, watched: WatchedBoard) -> None:
        if not watched.stirred.is_set():
            watched.noticed_at_s = asyncio.get_running_loop().time()
            watched.stirred.set()

    # Reads

    async def _follow(self, watched: WatchedBoard) -> None:
        """Read a board whenever it may have changed, until it is dropped.

        When only names may have changed, it is not read, and sent again if they have.
        """
        loop = asyncio.get_running_loop()
        reconcile_at_s = loop.time()
        retry_at_s = inf
        if self._changes.is_up:  # the read that follows the confirmation is then the only one
            reconcile_at_s += CONFIRMATION_S
        while True:
            next_at_s = retry_at_s if watched.failures else watched.windows.due_at_s
            next_at_s = min(next_at_s, reconcile_at_s)
            is_due = loop.time() >= next_at_s
            if not watched.stirred.is_set():
                try:
                    async with asyncio.timeout(max(next_at_s - loop.time(), 0.0)):
                        await watched.stirred.wait()
                except TimeoutError:
                    watched.noticed_at_s = loop.time()
                    is_due = True
            await self._keep_pace(watched)
            if not (is_due or watched.dirty.is_set()):
                watched.stirred.clear()
                watched.pace.take(loop.time())
                self._rename(watched)
                continue
            async with self._limit_of(watched):
                was_notified = watched.dirty.is_set()
                watched.dirty.clear()
                watched.stirred.clear()
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
                if was_notified or with_board or watched.failures or await self._has_moved(watched):
                    await self._read(watched, was_notified=was_notified, with_board=with_board)
            if watched.failures:
                most_s = max(RECONNECT_MOST_S, len(self._watched) / RETRIES_PER_S)
                retry_at_s = loop.time() + backoff_s(watched.failures, most_s=most_s)
            self._rename(watched)
            watched.first_read.set()
            self._drop_windows(
                watched, [span for _, span in self._unused_windows(watched, WINDOW_IDLE_S)]
            )
            if await self._is_over(watched, was_reconciled=with_board):
                return

    def _limit_of(self, watched: WatchedBoard) -> asyncio.Semaphore:
        servers = self._changes.servers_of(watched.channels)
        return self._reads.setdefault(servers, asyncio.Semaphore(READS_MAX))

    async def _keep_pace(self, watched: WatchedBoard) -> None:
        """Wait until the board may be read; a fan-out that is under way defers it further."""
        board, loop = watched.name, asyncio.get_running_loop()
        while True:
            wait_s = watched.pace.next_at_s(self._listener.least_gap_s(board)) - loop.time()
            if wait_s <= 0:
                return
            await asyncio.sleep(wait_s)

    async def _read(self, watched: WatchedBoard, *, was_notified: bool, with_board: bool) -> None:
        state = watched.state
        noticed = len(watched.traces)  # the read contains their changes
        loop = asyncio.get_running_loop()
        try:
            if with_board:
                await self._read_board(watched)
            asked_at_s = loop.time()
            window, others = await self._read_windows(watched, asked_at_s)
        except Uninitialised:
            REDIS_UP.set(1)
            # Read again soon: a board opens one partition after another, and those of a layout that
            # is not known yet are not subscribed to.
            watched.failures += 1
            state.failure = ""
            self._mark_stale(watched, "uninitialised")
            return
        except ScoreboardError as error:
            self._note_failure(watched, error)
            return
        REDIS_UP.set(1)
        watched.failures = 0
        state.failure = ""
        had_message = state.message is not None
        names = self._names.known([row.user_id for row in window.rows], state.names)
        result = state.apply(window, now_ms(), names)
        if result is ReadResult.REWOUND:
            if state.stale_reason != "rewound":
                REGRESSIONS[state.board].inc()
                _log.error("board_rewound", board=state.board, epoch=window.epoch, seq=window.seq)
            watched.windows.put_off(asked_at_s)
            self._mark_stale(watched, "rewound")
            return
        state.note_times(window, asked_at_s)
        watched.read_at_s = time.monotonic()
        EPOCH[state.board].set(window.epoch)
        SEQ[state.board].set(window.seq)
        if result is ReadResult.CHANGED:
            if had_message and not was_notified:
                loop.call_later(LOST_AFTER_S, self._count_lost, watched, watched.messages)
            self._listener.board_changed(state, watched.noticed_at_s)
        self._report_windows(
            watched, watched.windows.apply(window, others, asked_at_s, self._names.known)
        )
        self._report_traces(watched, noticed, is_shown=result is ReadResult.CHANGED)
        if self._changes.hears(watched.channels):
            self._mark_live(watched)

    def _rename(self, watched: WatchedBoard) -> None:
        """Send the board again if other names are known than it was sent with.

        Names are also asked for here if they are outdated, even while Redis is away.
        """
        state = watched.state
        if state.rename(self._names.known(state.user_ids, state.names)):
            state.accepted_at_s = 0.0  # the change is no action
            self._listener.board_changed(state, watched.noticed_at_s)
        self._report_windows(watched, watched.windows.rename(self._names.known))

    def _note_failure(self, watched: WatchedBoard, error: ScoreboardError) -> None:
        is_away = isinstance(error, RedisUnavailable)
        REDIS_UP.set(not is_away)
        watched.failures += 1
        watched.state.failure = error.detail
        if is_away:
            self._changes.check_soon()
        elif isinstance(error, InternalError):
            _log.error("board_unreadable", board=watched.name, reason=error.detail)
        self._schedule_stale(watched)

    def _report_traces(self, watched: WatchedBoard, count: int, *, is_shown: bool) -> None:
        traces = watched.traces[:count]
        del watched.traces[:count]
        if traces and is_shown and self._on_traced is not None:
            self._on_traced(watched.state, traces)

    def _report_windows(self, watched: WatchedBoard, changed: Iterable[BoardState]) -> None:
        if self._windows is not None:
            for state in changed:
                self._windows.window_changed(state, watched.noticed_at_s)

    async def _has_moved(self, watched: WatchedBoard) -> bool:
        """Return whether the windows of a board may have changed: whether its seq has moved."""
        try:
            board = await self._store.leaderboard(watched.name, limit=0)
        except ScoreboardError:
            return True  # the read meets the same error, and handles it
        return watched.windows.have_changed(board.positions, asyncio.get_running_loop().time())

    async def _read_windows(
        self, watched: WatchedBoard, now_s: float
    ) -> tuple[Window, list[tuple[Span, Window]]]:
        """Read the top of a board and the windows to read with it."""
        message = watched.state.message
        if len(watched.channels) > 1:  # perhaps more than when the window was opened
            self._drop_windows(watched, watched.windows.too_deep())
        spans = watched.windows.to_read(now_s)
        if spans:
            top, *others = await self._store.windows(watched.name, (TOP, *spans))
        else:
            top, others = await self._store.leaderboard(watched.name, limit=WATCHED_TOP), []
        if message is not None and message.epoch != top.epoch:
            await self._read_board(watched)  # a reseed may have changed layout or access
        return top, list(zip(spans, others, strict=True))

    async def _read_board(self, watched: WatchedBoard) -> None:
        board, state = await self._store.board(watched.name), watched.state
        self._changes.want(self._register_channels(watched, board))
        if board.is_public != state.is_public:
            state.is_public = board.is_public
            self._listener.access_changed(state)

    def _count_lost(self, watched: WatchedBoard, messages_before: int) -> None:
        if watched.messages == messages_before and self._watched.get(watched.name) is watched:
            MISMATCHES[watched.name].inc()

    def _schedule_stale(self, watched: WatchedBoard) -> None:
        """Mark the board stale after STALE_AFTER_S, unless Redis comes back before."""
        if watched.stale_timer is None and watched.state.stale_reason is None:
            watched.stale_timer = asyncio.get_running_loop().call_later(
                STALE_AFTER_S, self._mark_stale, watched, "unreachable"
            )

    def _mark_live(self, watched: WatchedBoard) -> None:
        """Mark the board live, after a successful read while all its notifications arrive."""
        watched.cancel_stale_timer()
        if watched.state.stale_reason is not None:
            watched.state.stale_reason = None
            watched.state.away = ()
            _log.info("board_live", board=watched.name)
            self._listener.status_changed(watched.state)

    def _mark_stale(self, watched: WatchedBoard, reason: StaleReason) -> None:
        watched.cancel_stale_timer()
        was_live = watched.state.stale_reason is None
        watched.state.stale_reason = reason
        watched.state.away = self._away(watched) if reason == "unreachable" else ()
        if was_live:
            _log.warning("board_stale", board=watched.name, reason=watched.state.why_stale)
            self._listener.status_changed(watched.state)

    def _note_away(self, watched: WatchedBoard) -> None:
        """Send viewers of a stale board which partitions cannot be reached, when these change."""
        state = watched.state
        away = self._away(watched)
        if away and away != state.away and state.stale_reason == "unreachable":
            state.away = away
            self._listener.status_changed(state)

    def _away(self, watched: WatchedBoard) -> tuple[int, ...]:
        """Return the partitions whose server is unreachable; none if it is all of them."""
        unheard = self._changes.unheard(watched.channels)
        if len(unheard) == len(watched.channels):
            return ()
        return tuple(sorted(watched.channels[channel] for channel in unheard))
