"""The further boards of one viewer: what it subscribes to, and whose turn it is to be sent.

A viewer has these only after its first ``subscribe``. A subscription is a viewer of its channel, as
the viewer itself is of the board of the handshake. All share the viewer's connection and its flow
control: one that cannot take data skips boards of all of them.

Invariants: a board has one window per viewer; of several boards that wait for a slow connection,
each gets its turn; a viewer causes reads and whole frames at a limited rate only.
"""

from asyncio import Transport
from collections import deque
from typing import Final, Protocol

from msgspec import UNSET, UnsetType

from scoreboard.broadcast.admission import TokenBucket, overloaded
from scoreboard.broadcast.messages import Message, Problem
from scoreboard.errors import ScoreboardError, Uninitialised
from scoreboard.model import Span
from scoreboard.runtime.audit import audit_refusal
from scoreboard.security.access import require_read
from scoreboard.security.tokens import Caller
from streamer.connection.flow_control import FlowControl
from streamer.connection.framing import ping_frame
from streamer.fanout.hub import Channel, Subscriber
from streamer.fanout.manager import ConnectionManager
from streamer.protocol import Subscribe

SUBSCRIPTIONS_MAX: Final = 8
"""Boards of a viewer besides that of its handshake."""

NEW_WINDOWS_PER_S: Final = 1.0
NEW_WINDOWS_BURST: Final = 16
"""Limits of the boards and windows that a viewer begins with: each is read, and sent whole."""


class Owner(Subscriber, Protocol):
    """A viewer as its subscriptions see it."""

    @property
    def board(self) -> str:
        """The board of the handshake."""
        ...

    @property
    def channel(self) -> Channel:
        """The channel of that board, or of the window of it that is viewed."""
        ...

    @property
    def caller(self) -> Caller | None:
        """The caller that the viewer's token is of."""
        ...

    @property
    def address(self) -> str:
        """The address of the client."""
        ...

    def hold(self, ack: bytes) -> None:
        """Hold further boards until a ping with this payload is answered."""
        ...

    def send(self, message: Message) -> None:
        """Write a message that is for this viewer only."""
        ...

    def resync(self) -> None:
        """Send the board of the handshake, even if it was sent."""
        ...

    def move(self, channel: Channel) -> None:
        """View another window of the board of the handshake."""
        ...

    def abort(self) -> None:
        """Drop the connection at once."""
        ...


class Subscription:
    """One further board of a viewer."""

    __slots__ = ("_flow", "_owner", "_sent_frame", "_sent_status", "_transport", "channel", "index")

    def __init__(
        self, channel: Channel, owner: Owner, flow: FlowControl, transport: Transport
    ) -> None:
        self.channel = channel
        self.index = -1
        self._owner = owner
        self._flow = flow
        self._transport = transport
        self._sent_frame = b""
        self._sent_status = channel.initial_status

    @property
    def is_compact(self) -> bool:
        """Return whether the viewer takes deltas."""
        return self._owner.is_compact

    def push(self) -> None:
        """Write the frame and the status that the viewer lacks, unless it cannot take data."""
        channel, flow = self.channel, self._flow
        frame = channel.frame
        if flow.is_held:
            channel.skipped += self._sent_frame is not frame
            return
        if self._sent_frame is not frame:
            is_delta_fit = self.is_compact or not self._sent_frame
            data = channel.next_for(self._sent_frame) if is_delta_fit else frame
            self._sent_frame = frame
            channel.sent += 1
            if flow.is_ack_paced:
                self._owner.hold(channel.ack)
                data += ping_frame(channel.ack)
            self._transport.write(data)
        if self._sent_status is not channel.status and not flow.paused_at_s:
            self._sent_status = channel.status
            self._transport.write(channel.status)

    def push_heartbeat(self, frame: bytes) -> None:
        """Write a heartbeat, unless the viewer cannot take data."""
        if not self._flow.is_held:
            self._transport.write(frame)

    def resync(self) -> None:
        """Send the board, even if it was sent."""
        self._sent_frame = b""
        self.push()

    def move(self, channel: Channel) -> None:
        """View another window of the same board."""
        self.channel.remove(self)
        self.channel = channel
        self._sent_status = channel.initial_status
        channel.add(self)
        self.resync()


class _Opening:
    """A ``subscribe`` message that waits for its board."""

    __slots__ = ("_message", "_of")

    def __init__(self, of: "Subscriptions", message: Subscribe) -> None:
        self._of = of
        self._message = message

    def board_opened(self, outcome: Channel | ScoreboardError) -> None:
        """Subscribe to the channel, or say why not."""
        self._of.board_opened(self, self._message, outcome)

    def abort(self) -> None:
        """Drop the connection of the viewer."""
        self._of.abort()


class Subscriptions:
    """The subscriptions of one viewer."""

    __slots__ = (
        "_boards",
        "_bucket",
        "_flow",
        "_manager",
        "_opening",
        "_owner",
        "_transport",
        "_turns",
    )

    def __init__(
        self, owner: Owner, manager: ConnectionManager, flow: FlowControl, transport: Transport
    ) -> None:
        self._owner = owner
        self._manager = manager
        self._flow = flow
        self._transport = transport
        self._boards: dict[str, Subscription] = {}
        self._bucket = TokenBucket(NEW_WINDOWS_PER_S, NEW_WINDOWS_BURST, manager.clock())
        self._opening: dict[str, _Opening] = {}
        """The newest message for each board that is being opened."""
        self._turns: deque[Subscriber] = deque([owner])

    def push_in_turn(self) -> None:
        """Push boards until the connection is held; the next call goes on with the others."""
        for _ in range(len(self._turns)):
            self._turns[0].push()
            self._turns.rotate(-1)
            if self._flow.is_held:
                return

    # Messages of the viewer

    def subscribe(self, message: Subscribe) -> None:
        """Subscribe to a board, or replace the window of one; do nothing if it is the same."""
        board, span = message.board, Span(message.offset, message.rows)
        current = self._channel_of(board)
        others = (self._boards.keys() | self._opening.keys()) - {board, self._owner.board}
        if current is None and len(others) >= SUBSCRIPTIONS_MAX:
            text = f"At most {SUBSCRIPTIONS_MAX} boards besides that of the handshake"
            self._owner.send(Problem("too-many-boards", text, board))
            return
        if current is not None and current.span == span:
            self._opening.pop(board, None)
            self._is_of_season(message, current)
            return
        if not self._bucket.take(self._manager.clock()):
            self._refuse(board, overloaded("This connection asks for too many windows"))
            return
        self._opening.pop(board, None)
        try:
            channel = self._manager.watched_channel(board, span)
            if channel is None:
                opening = self._opening[board] = _Opening(self, message)
                self._manager.open_board(opening, board, span)
                return
        except ScoreboardError as error:
            self._opening.pop(board, None)
            self._refuse(board, error)
        else:
            self._view(message, channel)

    def board_opened(
        self, opening: _Opening, message: Subscribe, outcome: Channel | ScoreboardError
    ) -> None:
        """Continue a ``subscribe``, unless a later message has taken its place."""
        if self._opening.get(message.board) is not opening:
            return
        del self._opening[message.board]
        if isinstance(outcome, ScoreboardError):
            self._refuse(message.board, outcome)
        elif not self._manager.hub.has(outcome):
            self._refuse(message.board, Uninitialised())
        else:
            self._view(message, outcome)

    def unsubscribe(self, board: str) -> None:
        """End the subscription of a board, if there is one."""
        self._opening.pop(board, None)
        if board == self._owner.board:
            text = "The board of the handshake ends with the connection"
            self._owner.send(Problem("main-board", text, board))
        else:
            self._drop(board)

    def sync(self, board: str | UnsetType) -> None:
        """Send a board even if it was sent; all boards if none is named."""
        if board is UNSET:
            self._owner.resync()
            for subscription in self._boards.values():
                subscription.resync()
        elif board == self._owner.board:
            self._owner.resync()
        elif board in self._boards:
            self._boards[board].resync()
        else:
            text = "The connection has no such board: send subscribe"
            self._owner.send(Problem("not-subscribed", text, board))

    # What ends subscriptions

    def check_access(self) -> None:
        """End the subscriptions of boards that the viewer may no longer read."""
        for board, subscription in tuple(self._boards.items()):
            try:
                require_read(self._owner.caller, is_public=subscription.channel.is_public)
            except ScoreboardError as error:
                self.end(board, error)

    def end(self, board: str, error: ScoreboardError) -> None:
        """End a subscription, if there is one, and say why."""
        if self._drop(board):
            self._send_problem(board, error)

    def window_dropped(self, channel: Channel) -> None:
        """End the subscription of a window that its board no longer has."""
        subscription = self._boards.get(channel.board)
        if subscription is not None and subscription.channel is channel:
            self.end(channel.board, Uninitialised("The board no longer has windows this deep"))

    def close(self) -> None:
        """End all subscriptions: the connection closes."""
        self._opening.clear()
        for board in tuple(self._boards):
            self._drop(board)

    def abort(self) -> None:
        """Drop the connection."""
        self._owner.abort()

    def _view(self, message: Subscribe, channel: Channel) -> None:
        board, owner = message.board, self._owner
        try:
            require_read(owner.caller, is_public=channel.is_public)
        except ScoreboardError as error:
            self._refuse(board, error)
            return
        if not self._is_of_season(message, channel):
            return
        subscription = self._boards.get(board)
        if board == owner.board:
            owner.move(channel)
        elif subscription is not None:
            subscription.move(channel)
        else:
            subscription = Subscription(channel, owner, self._flow, self._transport)
            self._boards[board] = subscription
            self._turns.append(subscription)
            channel.add(subscription)
            subscription.push()

    def _channel_of(self, board: str) -> Channel | None:
        """Return the channel that is viewed of a board, if it is one of this viewer."""
        if board == self._owner.board:
            return self._owner.channel
        subscription = self._boards.get(board)
        return subscription.channel if subscription is not None else None

    def _is_of_season(self, message: Subscribe, channel: Channel) -> bool:
        """Return whether a board is of the season that is expected; else say that it is not."""
        season = channel.leaderboard.season if channel.leaderboard is not None else UNSET
        if message.season is UNSET or message.season == season:
            return True
        text = (
            "Only the current season is live; ended ones are read with "
            "GET /api/scores/leaderboard?board=BOARD&season=SEASON"
        )
        self._owner.send(Problem("season-ended", text, message.board))
        return False

    def _drop(self, board: str) -> bool:
        subscription = self._boards.pop(board, None)
        if subscription is None:
            return False
        subscription.channel.remove(subscription)
        self._turns.remove(subscription)
        return True

    def _refuse(self, board: str, error: ScoreboardError) -> None:
        """Say why a ``subscribe`` is refused, and write an audit line if access was denied."""
        caller = self._owner.caller
        user = {} if caller is None else {"user_id": caller.subject}
        audit_refusal(error, client=self._owner.address, **user)
        self._send_problem(board, error)

    def _send_problem(self, board: str, error: ScoreboardError) -> None:
        self._owner.send(Problem(error.code, error.detail, board))
