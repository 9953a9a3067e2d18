"""Follows the boards for one process: subscribe, read, tell a listener what viewers should see.

The streamer and the api's event stream each run one. What stays true: at most one read per frame
interval and board, whatever the write rate; a read follows every confirmed subscription, so nothing
published in between is missed; a lost message is mended by the next reconciliation; a listener is
never told an older board, and never an empty one for want of Redis.
"""

import asyncio
import time
from typing import Final, Protocol

import msgspec

from scoreboard.broadcast.frames import StaleReason
from scoreboard.broadcast.state import BoardState, Verdict
from scoreboard.errors import InternalError, ScoreboardError, Uninitialised
from scoreboard.model import WATCHED_TOP, Board, Partition, Window
from scoreboard.runtime.lifecycle import backoff_s
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import counter, gauge, get_logger
from scoreboard.store.client import make_client
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from scoreboard.store.subscription import RECONNECT_MOST_S, Subscription

READ_TIMEOUT_S: Final = 2.0
RECONCILE_S: Final = 5.0
"""A message may be lost; this bounds for how long viewers can miss a change."""

STALE_AFTER_S: Final = 2.0
"""A reconnection within this is nobody's business."""

LOST_AFTER_S: Final = 1.0
"""A change found by reconciling whose message has not come by then counts as lost."""

READ_CONNECTIONS: Final = 4

_SEQ = gauge("board_seq", "Sequence number of the last accepted read", "board")
_EPOCH = gauge("board_epoch", "Epoch of the last accepted read", "board")
_AGE = gauge("board_age_seconds", "Time since the last accepted read", "board")
_REGRESSIONS = counter("board_regressions_total", "Times a board came back older", "board")
_MISMATCHES = counter("reconcile_mismatches_total", "Changes whose message never came", "board")
_log = get_logger(__name__)


class Listener(Protocol):
    """Who is told. All three are called on the loop and must not block."""

    def board_changed(self, feed: BoardState, noticed_at_s: float) -> None:
        """Show ``feed.frame``; ``noticed_at_s`` is when the change was first heard of (loop)."""
        ...

    def status_changed(self, feed: BoardState) -> None:
        """Show whether ``feed.trouble`` is None (live) or a reason (stale)."""
        ...

    def access_changed(self, feed: BoardState) -> None:
        """Heed that ``feed.is_public`` differs."""
        ...


class _Watch:
    """One board's reading: its feed, its wake-up, its pace."""

    __slots__ = ("dirty", "failures", "feed", "messages", "next_at_s", "noticed_at_s", "stale")

    def __init__(self, board: str) -> None:
        self.feed = BoardState(board)
        self.dirty = asyncio.Event()
        self.failures = 0
        self.messages = 0
        self.next_at_s = 0.0
        self.noticed_at_s = 0.0
        self.stale: asyncio.TimerHandle | None = None


class BoardWatcher:
    """The one subscription and the reads of a process. Run ``run`` in a task group."""

    def __init__(self, settings: Settings, listener: Listener, *, name: str) -> None:
        """Take the settings and whom to tell; connects to nothing yet."""
        self._settings = msgspec.structs.replace(
            settings, redis_timeout_s=min(settings.redis_timeout_s, READ_TIMEOUT_S)
        )
        self._listener = listener
        self._name = name
        self._interval_s = settings.frame_interval_ms / 1000
        self._watches = {board: _Watch(board) for board in settings.boards}
        self._unread = set(settings.boards)
        self._settled = asyncio.Event()
        self._by_channel: dict[str, _Watch] = {}
        for board in settings.boards:
            self._channels(Board(board))
        self._changes = Subscription(
            self._settings,
            self._by_channel,
            name=f"{name}-changes",
            on_change=self._on_change,
            on_up=self._on_up,
            on_down=self._on_down,
        )

    @property
    def feeds(self) -> dict[str, BoardState]:
        """Give the feed of each board served, by name."""
        return {board: watch.feed for board, watch in self._watches.items()}

    async def settle(self) -> None:
        """Wait until every board has been read, or could not be, once."""
        await self._settled.wait()

    @property
    def is_ready(self) -> bool:
        """Tell whether some board is known and the live store answers."""
        feeds = [watch.feed for watch in self._watches.values()]
        return (
            self._changes.is_up
            and any(feed.frame is not None for feed in feeds)
            and all(feed.trouble != "unreachable" for feed in feeds)
        )

    async def run(self) -> None:
        """Follow the boards until cancelled; losing Redis never ends it."""
        client = make_client(
            self._settings,
            name=f"{self._name}-reads",
            connections=min(READ_CONNECTIONS, len(self._watches)),
        )
        store = Store(client)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._changes.run())
                for watch in self._watches.values():
                    tasks.create_task(self._follow(store, watch))
        finally:
            for watch in self._watches.values():
                _cancel_stale(watch)
            await client.aclose()

    def _channels(self, board: Board) -> list[str]:
        names = [
            PartitionKeys(Partition(board.name, number)).changes
            for number in range(board.layout.partitions)
        ]
        self._by_channel.update(dict.fromkeys(names, self._watches[board.name]))
        return names

    def _on_change(self, channel: str) -> None:
        watch = self._by_channel.get(channel)
        if watch is not None:
            watch.messages += 1
            self._wake(watch)

    def _on_up(self) -> None:
        for watch in self._watches.values():
            watch.failures = 0
            self._wake(watch)

    def _on_down(self) -> None:
        for watch in self._watches.values():
            self._doubt(watch)

    def _wake(self, watch: _Watch) -> None:
        if not watch.dirty.is_set():
            watch.noticed_at_s = asyncio.get_running_loop().time()
            watch.dirty.set()

    async def _follow(self, store: Store, watch: _Watch) -> None:
        loop = asyncio.get_running_loop()
        reconcile_at_s = loop.time()
        while True:
            wait_s = reconcile_at_s - loop.time()
            if watch.failures:
                wait_s = min(wait_s, backoff_s(watch.failures, most_s=RECONNECT_MOST_S))
            if not watch.dirty.is_set():
                try:
                    async with asyncio.timeout(max(wait_s, 0.0)):
                        await watch.dirty.wait()
                except TimeoutError:
                    watch.noticed_at_s = loop.time()
            await asyncio.sleep(max(watch.next_at_s - loop.time(), 0.0))
            was_told = watch.dirty.is_set()
            watch.dirty.clear()
            started_at_s = loop.time()
            watch.next_at_s = started_at_s + self._interval_s
            if started_at_s >= reconcile_at_s or watch.feed.frame is None:
                reconcile_at_s = started_at_s + RECONCILE_S
                await self._read(store, watch, was_told=was_told, with_board=True)
            else:
                await self._read(store, watch, was_told=was_told, with_board=False)
            self._unread.discard(watch.feed.board)
            if not self._unread:
                self._settled.set()

    async def _read(self, store: Store, watch: _Watch, *, was_told: bool, with_board: bool) -> None:
        feed = watch.feed
        try:
            if with_board:
                await self._read_board(store, feed)
            window = await self._read_window(store, feed)
        except Uninitialised:
            watch.failures = 0
            self._tell(watch, "uninitialised")
            return
        except ScoreboardError as error:
            watch.failures += 1
            if isinstance(error, InternalError):
                _log.error("board_unreadable", board=feed.board, reason=error.detail)
            self._doubt(watch)
            return
        watch.failures = 0
        had_frame = feed.frame is not None
        verdict = feed.take(window, time.time_ns() // 1_000_000)
        if verdict is Verdict.REWOUND:
            if feed.trouble != "rewound":
                _REGRESSIONS.labels(feed.board).inc()
                _log.error("board_rewound", board=feed.board, epoch=window.epoch, seq=window.seq)
            self._tell(watch, "rewound")
            return
        loop = asyncio.get_running_loop()
        accepted_at_s = loop.time()
        _AGE.labels(feed.board).set_function(lambda: loop.time() - accepted_at_s)
        _EPOCH.labels(feed.board).set(window.epoch)
        _SEQ.labels(feed.board).set(window.seq)
        if verdict is Verdict.NEWS:
            if had_frame and not was_told:
                loop.call_later(LOST_AFTER_S, self._count_lost, watch, watch.messages)
            self._listener.board_changed(feed, watch.noticed_at_s)
        if self._changes.is_up:
            self._trust(watch)

    async def _read_window(self, store: Store, feed: BoardState) -> Window:
        window = await store.leaderboard(feed.board, limit=WATCHED_TOP)
        if feed.frame is not None and feed.frame.epoch != window.epoch:
            await self._read_board(store, feed)  # a reseed may have changed what is fixed
        return window

    async def _read_board(self, store: Store, feed: BoardState) -> None:
        board = await store.board(feed.board)
        self._changes.want(self._channels(board))
        if board.is_public != feed.is_public:
            feed.is_public = board.is_public
            self._listener.access_changed(feed)

    def _count_lost(self, watch: _Watch, messages_before: int) -> None:
        if watch.messages == messages_before:
            _MISMATCHES.labels(watch.feed.board).inc()

    def _doubt(self, watch: _Watch) -> None:
        """Say that the store cannot be reached, unless it comes back soon."""
        if watch.stale is None and watch.feed.trouble is None:
            watch.stale = asyncio.get_running_loop().call_later(
                STALE_AFTER_S, self._tell, watch, "unreachable"
            )

    def _trust(self, watch: _Watch) -> None:
        """Take note of a good read on a live subscription."""
        _cancel_stale(watch)
        if watch.feed.trouble is not None:
            watch.feed.trouble = None
            _log.info("board_live", board=watch.feed.board)
            self._listener.status_changed(watch.feed)

    def _tell(self, watch: _Watch, reason: StaleReason) -> None:
        _cancel_stale(watch)
        was_live = watch.feed.trouble is None
        watch.feed.trouble = reason
        if was_live:
            _log.warning("board_stale", board=watch.feed.board, reason=reason)
            self._listener.status_changed(watch.feed)


def _cancel_stale(watch: _Watch) -> None:
    if watch.stale is not None:
        watch.stale.cancel()
        watch.stale = None
