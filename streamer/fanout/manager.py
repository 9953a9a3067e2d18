"""State shared by all connections of a process: limits, channels, deadlines and token checks.

The manager also is the listener that the BoardWatcher notifies.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, Protocol

from scoreboard.broadcast.admission import overloaded
from scoreboard.broadcast.close_codes import CloseCode
from scoreboard.broadcast.messages import now_ms
from scoreboard.broadcast.state import BoardState
from scoreboard.broadcast.watcher import BoardWatcher
from scoreboard.errors import (
    InternalError,
    KeysUnavailable,
    ScoreboardError,
    Unauthenticated,
    Uninitialised,
)
from scoreboard.http.request_ids import RequestIds
from scoreboard.model import TOP, Span
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger
from scoreboard.security.tokens import Caller, Verifier
from streamer import metrics
from streamer.fanout.hub import Channel, Hub
from streamer.fanout.places import Places
from streamer.fanout.timing_wheel import TimingWheel
from streamer.handshake.admission import Admission, Capacity
from streamer.handshake.request import HandshakeConfig

OPENED_PER_TURN: Final = 20
"""Handshakes continued in one iteration of the loop after their board was opened."""

CHECK_TIMEOUT_S: Final = 5.0
"""Maximum time for one token check; the issuer's keys may have to be fetched."""

_log = get_logger(__name__)


class Connection(Protocol):
    """A connection as the manager sees it, before or after its opening handshake."""

    slot: int

    @property
    def is_ack_paced(self) -> bool:
        """Return whether boards wait for its pongs."""
        ...

    def on_deadline(self, now_s: float) -> None:
        """Handle what is due, and schedule the next deadline."""
        ...

    def token_checked(self, outcome: Caller | ScoreboardError) -> None:
        """Apply the result of a token check."""
        ...

    def token_check_failed(self) -> None:
        """Close with 1011: the token check failed by an error of the server."""
        ...

    def access_revoked(self, board: str) -> None:
        """Apply that a board is no longer public."""
        ...

    def board_deleted(self, board: str) -> None:
        """Close if the connection is for this board, which was deleted; end a subscription."""
        ...

    def window_dropped(self, channel: Channel) -> None:
        """Close if the connection is for this window, which its board no longer has."""
        ...

    def shut_down(self, code: CloseCode, delay_ms: tuple[int, int]) -> None:
        """Close: a viewer gets ``bye`` first, a handshake is rejected."""
        ...

    def abort(self) -> None:
        """Drop the connection at once."""
        ...


class BoardWaiter(Protocol):
    """A handshake or a subscription that waits for a board."""

    def board_opened(self, outcome: Channel | ScoreboardError) -> None:
        """Continue with the channel of the board, or reject."""
        ...

    def abort(self) -> None:
        """Drop the connection at once."""
        ...


class PendingConnection(Connection, BoardWaiter, Protocol):
    """A connection that is not a viewer yet."""

    def evict(self) -> None:
        """Drop the connection: newer ones need its place."""
        ...


class ConnectionManager:
    """The connections of one process."""

    def __init__(
        self,
        settings: Settings,
        verifier: Verifier,
        *,
        capacity: Capacity,
        tick_s: float = 1.0,
    ) -> None:
        """Read the settings.

        Raises SettingInvalid if origins or trusted hops are invalid.
        """
        self.settings = settings
        self.handshake_config = HandshakeConfig(settings)
        self.request_ids = RequestIds()
        self.clock = asyncio.get_running_loop().time
        self.sweep_needed = asyncio.Event()
        self.hub = Hub(settings.boards, self.sweep_needed.set)
        self.users_watched = asyncio.Event()
        """Set when somebody watches a user that nobody watched before."""
        self.places = Places(settings.watched_users, self.users_watched.set)
        self.wheel: TimingWheel[Connection] = TimingWheel(self.clock(), width_s=tick_s)
        self.admission = Admission(settings, capacity, self.clock())
        self.connections: set[Connection] = set()
        """Every connection that is not lost, in any state."""
        self.is_empty = asyncio.Event()
        self.is_empty.set()
        self._pending: OrderedDict[PendingConnection, None] = OrderedDict()
        """Connections that are not viewers, oldest first."""
        self._opening: dict[tuple[str, Span], list[BoardWaiter]] = {}
        """What waits for a board or window that is not watched yet, by its name and rows."""
        self._verifier = verifier
        self._tasks: asyncio.TaskGroup | None = None
        self._watcher: BoardWatcher | None = None

    def use(self, tasks: asyncio.TaskGroup, watcher: BoardWatcher) -> None:
        """Run token checks and searches for boards in this task group.

        There is at most one check per connection, and one search per board.
        """
        self._tasks = tasks
        self._watcher = watcher

    def add(self, connection: PendingConnection) -> None:
        """Add a connection; if too many are pending, drop the oldest of them.

        A viewer's handshake takes one round trip, so it usually ends long before it is the oldest.
        """
        self.connections.add(connection)
        self.is_empty.clear()
        self._pending[connection] = None
        if len(self._pending) > self.admission.capacity.handshakes:
            self._pending.popitem(last=False)[0].evict()

    def promote(self, connection: PendingConnection, viewer: Connection) -> None:
        """Replace a pending connection by the viewer that it has become."""
        self.connections.remove(connection)
        self._pending.pop(connection, None)
        self.connections.add(viewer)

    def remove(self, connection: Connection) -> None:
        """Remove a lost viewer."""
        self.connections.remove(connection)
        if not self.connections:
            self.is_empty.set()

    def remove_pending(self, connection: PendingConnection) -> None:
        """Remove a lost connection that never became a viewer."""
        self._pending.pop(connection, None)
        self.remove(connection)

    def watched_channel(self, board: str, span: Span = TOP) -> Channel | None:
        """Return the channel of a board or window that was read; it stays so for a while.

        Raises Uninitialised if a default board was not read.
        """
        channel = self.hub.find(board, span)
        if channel is None or not channel.frame:
            if span == TOP and board in self.settings.boards:
                raise Uninitialised
            return None
        if not channel.viewers and self._watcher is not None:
            self._watcher.use(board)
            if span != TOP:
                self._watcher.use_window(board, span)
        return channel

    def open_board(self, waiter: BoardWaiter, board: str, span: Span = TOP) -> None:
        """Watch a board, and a window of it; pass the result to ``waiter.board_opened``.

        Raises Overloaded if too many boards are being opened.
        """
        key = board, span
        waiting = self._opening.get(key)
        if waiting is None:
            if self._tasks is None or len(self._opening) >= self.admission.capacity.handshakes:
                raise overloaded("Too many boards are asked for at once")
            waiting = self._opening[key] = []
            self._tasks.create_task(self._open_board(board, span))
        waiting.append(waiter)

    async def _open_board(self, board: str, span: Span) -> None:
        try:
            outcome = await self._open(board, span)
        finally:
            waiting = self._opening.pop((board, span))
        for number, waiter in enumerate(waiting, 1):
            try:
                waiter.board_opened(outcome)
            except Exception as error:  # noqa: BLE001 (as above)
                _log.error("board_not_opened", exc_info=error)
                waiter.abort()
            if number % OPENED_PER_TURN == 0:
                await asyncio.sleep(0)

    async def _open(self, board: str, span: Span) -> Channel | ScoreboardError:
        if self._watcher is None:
            return Uninitialised()
        try:
            if span == TOP:
                await self._watcher.open(board)
            else:
                await self._watcher.open_window(board, span)
        except ScoreboardError as error:
            return error
        except Exception as error:  # noqa: BLE001 (it would end the task group, and the process)
            _log.error("board_not_opened", exc_info=error)
            return InternalError()
        return self.hub.window(board, span)

    def send_heartbeats(self, now_s: float) -> None:
        """Send a heartbeat on every channel that has been silent for the heartbeat interval."""
        for channel in self.hub.every_channel:
            if now_s - channel.frame_at_s >= self.settings.heartbeat_s:
                channel.publish_heartbeat(now_s, now_ms())

    def viewers_by_board(self) -> dict[str, int]:
        """Return the number of viewers of each board that has some."""
        counts = {board: self.hub.viewers_of(board) for board in self.hub.channels}
        return {board: count for board, count in counts.items() if count}

    def to_loop_time(self, unix_s: float) -> float:
        """Convert wall-clock time to the loop's clock, which no clock change moves."""
        return self.clock() + unix_s - time.time()

    def check_token(self, connection: Connection, token: str) -> None:
        """Verify a token in a task; pass the result to ``connection.token_checked``."""
        if self._tasks is not None:
            self._tasks.create_task(self._check_token(connection, token))

    async def _check_token(self, connection: Connection, token: str) -> None:
        try:
            connection.token_checked(await self._verify(token))
        except Exception as error:  # noqa: BLE001 (it would end the task group, and the process)
            _log.error("token_check_failed", exc_info=error)
            connection.token_check_failed()

    async def _verify(self, token: str) -> Caller | ScoreboardError:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                return await self._verifier.verify(token)
        except (Unauthenticated, KeysUnavailable) as error:
            return error
        except TimeoutError:
            return KeysUnavailable()

    def count_frames(self, channels: Iterable[Channel]) -> None:
        """Add the frames of channels to the metrics."""
        for channel in channels:
            if channel.sent:
                metrics.FRAMES_SENT.inc(channel.sent)
                channel.sent = 0
            if channel.skipped:
                metrics.FRAMES_SKIPPED.inc(channel.skipped)
                channel.skipped = 0

    # Called by the BoardWatcher.

    def board_changed(self, state: BoardState, noticed_at_s: float) -> None:
        """Send a new board to all viewers of its channel."""
        if state.message is not None:
            self.hub.channel(state.board).publish(
                state.message, self.clock(), noticed_at_s, state.accepted_at_s
            )

    def status_changed(self, state: BoardState) -> None:
        """Send the status of a board to all viewers of its channel."""
        self.hub.channel(state.board)
        for channel in self.hub.of_board(state.board):
            channel.publish_status(state.status)

    def access_changed(self, state: BoardState) -> None:
        """Apply that a board became public or private; close viewers that lost access."""
        self.hub.channel(state.board)
        for channel in self.hub.of_board(state.board):
            channel.is_public = state.is_public
        if not state.is_public:
            for connection in tuple(self.connections):
                connection.access_revoked(state.board)

    def least_gap_s(self, board: str) -> float:
        """Return the least time to the next board, from what the last one cost so far."""
        channel = self.hub.channels.get(board)
        return 0.0 if channel is None else channel.cost.least_gap_s(self.clock())

    def is_viewed(self, board: str) -> bool:
        """Return whether a board has viewers."""
        return any(channel.viewers for channel in self.hub.of_board(board))

    def board_dropped(self, board: str, *, is_deleted: bool) -> None:
        """Remove the channels of a board; end its viewers if the board was deleted."""
        dropped = self.hub.drop(board)
        if dropped and is_deleted:
            for connection in tuple(self.connections):
                connection.board_deleted(board)
        self.count_frames(dropped)

    def window_changed(self, state: BoardState, noticed_at_s: float) -> None:
        """Send the new rows of a window to its viewers."""
        if state.message is not None:
            channel = self.hub.window(state.board, state.span)
            channel.publish(state.message, self.clock(), noticed_at_s)

    def is_window_viewed(self, board: str, span: Span) -> bool:
        """Return whether a window has viewers."""
        channel = self.hub.find(board, span)
        return channel is not None and bool(channel.viewers)

    def window_dropped(self, board: str, span: Span) -> None:
        """Remove the channel of a window; end its viewers, if it has any."""
        channel = self.hub.drop_window(board, span)
        if channel is None:
            return
        if channel.viewers:
            for connection in tuple(self.connections):
                connection.window_dropped(channel)
        self.count_frames([channel])
