"""One viewer after the opening handshake: an asyncio protocol around a Sans-I/O one.

Inbound frames go through the websockets library. Boards bypass it, because every viewer gets the
same bytes. A viewer has no task and no queue: its only pending message is the newest frame of its
channel, and of those of its further boards (streamer.connection.subscriptions). A viewer that
cannot take data (its buffer is not empty, or the pong that acknowledges the last board is
outstanding) skips boards and later gets the newest one.

Invariants: no board follows a close frame; a lost viewer is removed from channel, manager and
counts exactly once.
"""

import asyncio
import fcntl
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, cast

from msgspec import UNSET
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from scoreboard.broadcast.close_codes import CloseCode, make_bye
from scoreboard.broadcast.messages import (
    AuthExpiring,
    Heartbeat,
    Message,
    Problem,
    encode,
    now_ms,
)
from scoreboard.errors import Forbidden, Malformed, ScoreboardError, UnknownBoard
from scoreboard.model import is_identifier
from scoreboard.runtime.audit import audit_refusal
from scoreboard.runtime.lifecycle import jitter
from scoreboard.security.access import can_read
from scoreboard.security.tokens import Caller
from streamer import metrics
from streamer.connection.flow_control import KEEPALIVE_FRAME, FlowControl
from streamer.connection.framing import close_frame, ping_frame, text_frame
from streamer.connection.inbound import (
    CHUNK_BYTES,
    FrameError,
    MessageReader,
    Parser,
    read_pong,
)
from streamer.connection.subscriptions import Subscriptions
from streamer.connection.token_session import TokenSession
from streamer.fanout.hub import Channel
from streamer.fanout.manager import ConnectionManager
from streamer.fanout.places import PlaceWatch
from streamer.protocol import Auth, Inbound, Subscribe, Sync, Unsubscribe, Watch

CLOSE_TIMEOUT_S: Final = 2.0
"""Maximum time for a viewer to answer a close frame."""

PLACES_ACK: Final = b"p"
"""The payload of the ping behind places; no other ping of a viewer waits at the same time."""

WATCH_INTERVAL_S: Final = 1.0
"""Least time between two applied ``watch`` messages; of those between, the newest waits."""

PLACES_PING: Final = ping_frame(PLACES_ACK)

AGE_SPREAD: Final = 0.25
_SIOCOUTQNSD: Final = 0x894B
_KNOWN_CODES: Final = frozenset(CloseCode) | {1005, 1006}


class Viewer(asyncio.Protocol):
    """One viewer, from its 101 response to the end of its connection."""

    is_compact = False
    """Whether the viewer takes deltas."""

    __slots__ = (
        "_address",
        "_channel",
        "_close_code",
        "_closed_by",
        "_deadline_s",
        "_expires_at_s",
        "_flow",
        "_is_lost",
        "_is_open",
        "_manager",
        "_parser",
        "_reader",
        "_sent_frame",
        "_sent_status",
        "_session",
        "_subscriptions",
        "_transport",
        "_watch",
        "index",
        "slot",
    )

    def __init__(
        self,
        manager: ConnectionManager,
        transport: asyncio.Transport,
        channel: Channel,
        *,
        address: str,
        caller: Caller | None,
    ) -> None:
        """Take over a connection whose 101 response is ready but not yet written."""
        now_s = manager.clock()
        settings = manager.settings
        self._manager = manager
        self._transport = transport
        self._channel = channel
        self._address = address
        self._session = (
            TokenSession(caller, manager.to_loop_time(caller.expires_at_s)) if caller else None
        )
        self._is_open = True
        self._is_lost = False
        self._close_code = 0
        self._closed_by = ""
        self._sent_frame = b""
        self._sent_status = channel.initial_status
        self._flow = FlowControl(settings, now_s)
        self._expires_at_s = now_s + jitter(settings.viewer_age_s, AGE_SPREAD)
        self._deadline_s = 0.0
        self._watch: PlaceWatch | None = None
        # Created on demand: most viewers send nothing but pongs.
        self._parser: Parser | None = None
        self._reader: MessageReader | None = None
        self._subscriptions: Subscriptions | None = None
        self.index = -1
        self.slot = 0

    def start(self, response: bytes, received: bytes, end: CloseCode | None) -> None:
        """Write the 101 response, followed by the current board or by a close frame.

        ``received`` is what the peer sent before the response. ``end`` closes the connection.
        """
        if end is not None:
            self._transport.write(response)
            self.close(end)
            return
        channel, manager = self._channel, self._manager
        self._sent_frame = channel.frame
        channel.sent += 1
        channel.add(self)
        manager.admission.viewers += 1
        self._transport.write(response + channel.first_frame)
        self.push()
        self._watch_itself()
        manager.wheel.schedule(self, self._next_deadline_s())
        if received:
            self.data_received(received)

    # Called by the channel.

    def push(self) -> None:
        """Write the frame and the status that this viewer lacks, unless it cannot take data."""
        channel, flow = self._channel, self._flow
        frame = channel.frame
        if flow.is_held:
            channel.skipped += self._sent_frame is not frame
            return
        if self._sent_frame is not frame:
            # Set first: write() itself may call pause_writing().
            self._sent_frame = frame
            channel.sent += 1
            if flow.is_ack_paced:
                self.hold(channel.ack)
                self._transport.write(channel.frame_with_ping)
            else:
                self._transport.write(frame)
        if self._sent_status is not channel.status and not flow.paused_at_s:
            self._sent_status = channel.status
            self._transport.write(channel.status)

    def hold(self, ack: bytes) -> None:
        """Hold further boards until a ping with this payload, written next, is answered."""
        manager = self._manager
        now_s = manager.clock()
        self._flow.await_pong(ack, now_s)
        manager.wheel.schedule(self, now_s + manager.settings.slow_viewer_s)

    def _push_all(self) -> None:
        """Push all boards of this viewer, which can take data again."""
        if self._subscriptions is None:
            self.push()
        else:
            self._subscriptions.push_in_turn()

    def push_heartbeat(self, frame: bytes) -> None:
        """Write a heartbeat, unless this viewer cannot take data."""
        if not self._flow.is_held:
            self._transport.write(frame)

    # Called for the users that it watches.

    def push_places(self) -> bool:
        """Write the places that this viewer lacks; return False if it cannot take data."""
        watch, flow = self._watch, self._flow
        if watch is None:
            return True
        if flow.is_held:
            return False
        frames = watch.take()
        watch.had_turn |= bool(frames)
        if frames and flow.is_ack_paced:
            manager = self._manager
            now_s = manager.clock()
            flow.await_pong(PLACES_ACK, now_s)
            manager.wheel.schedule(self, now_s + manager.settings.slow_viewer_s)
            frames += PLACES_PING
        if frames:
            self._transport.write(frames)
        return True

    def _push_waiting(self) -> None:
        """Push boards and places of this viewer, which can take data again, in turn.

        Where each waits for a pong, a busy board would else leave no room for places.
        """
        watch = self._watch
        if watch is None:
            self._push_all()
        elif watch.had_turn:
            watch.had_turn = False
            self._push_all()
            self.push_places()
        else:
            self.push_places()
            self._push_all()

    @property
    def is_ack_paced(self) -> bool:
        """Return whether boards wait for this viewer's pongs."""
        return self._is_open and self._flow.is_ack_paced

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """Parse frames in small chunks, so that a flood is stopped early."""
        if self._parser is None and self._take_pong(data):
            return
        parser = self._use_parser()
        for start in range(0, len(data), CHUNK_BYTES):
            parser.receive_data(data[start : start + CHUNK_BYTES])
            was_open = self._is_open
            for event in parser.events_received():
                self._handle_frame(cast("Frame", event))
                if was_open and not self._is_open:
                    break
            if self._transport.is_closing():
                return
            if self._is_open and parser.state is not State.OPEN:
                self._closed_by_library(parser)
            self._flush(parser)

    def eof_received(self) -> bool:
        """Close: a peer that sends no more cannot answer a ping."""
        if self._is_open:
            self._begin_close(1006, "client")
        # Unsent data must not keep the connection open indefinitely.
        self._manager.wheel.schedule(self, self._deadline_s)
        return False

    def pause_writing(self) -> None:
        """Record that the buffer is not empty: this viewer skips boards."""
        now_s = self._manager.clock()
        self._flow.pause(now_s)
        if self._is_open:
            self._manager.wheel.schedule(self, now_s + self._manager.settings.slow_viewer_s)

    def resume_writing(self) -> None:
        """Send the newest board: the buffer is empty again."""
        self._flow.resume()
        if self._is_open:
            self._push_waiting()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's name)
        """Release everything, once."""
        if self._is_lost:
            return
        self._is_lost = True
        if self._is_open:
            self._begin_close(1006, "network")
        manager = self._manager
        code = str(self._close_code) if self._close_code in _KNOWN_CODES else "other"
        metrics.CLOSES[code, self._closed_by].inc()
        manager.remove(self)
        manager.admission.remove_address(self._address)
        manager.admission.remove_viewer(self._session.caller.subject if self._session else None)
        if self._parser is not None:
            # The parser refers to itself, and the wheel may hold this viewer for a while.
            self._parser.parser.close()
            self._parser = None

    # Called by the connection manager.

    def on_deadline(self, now_s: float) -> None:
        """Handle what is due, and schedule the next deadline."""
        if self._is_lost:
            return
        if not self._is_open:
            if now_s >= self._deadline_s:
                self._transport.abort()
            else:
                self._manager.wheel.schedule(self, self._deadline_s)
            return
        settings, flow = self._manager.settings, self._flow
        if flow.is_stalled(settings, now_s):
            self.close(CloseCode.TOO_SLOW)
        elif flow.is_pong_overdue(settings, now_s):
            self.close(CloseCode.TOO_SLOW if flow.paused_at_s else CloseCode.PONG_TIMEOUT)
        elif now_s >= self._expires_at_s:
            self.close(CloseCode.RESTART)
        else:
            self._check_session(now_s)
            if self._is_open:
                self._watch_itself()
            if self._is_open and flow.is_ping_due(now_s):
                flow.ping_sent(now_s)
                self._observe_unsent()
                self._transport.write(KEEPALIVE_FRAME)
        if self._is_open:
            self._manager.wheel.schedule(self, self._next_deadline_s())

    def token_checked(self, outcome: Caller | ScoreboardError) -> None:
        """Apply the result of a renewal; after a refusal the old token stays valid."""
        session = self._session
        if not self._is_open or session is None:
            return
        session.is_checking = False
        if not isinstance(outcome, Caller):
            metrics.RENEWALS[outcome.code].inc()
            audit_refusal(outcome, user_id=session.caller.subject, client=self._address)
            self._send(Problem(outcome.code, outcome.detail))
            return
        ends_at_s = self._manager.to_loop_time(outcome.expires_at_s)
        try:
            session.renew(outcome, ends_at_s, is_public=self._channel.is_public)
        except Malformed as error:
            metrics.RENEWALS["not-later"].inc()
            self._send(Problem(error.code, error.detail))
        except Forbidden as error:
            metrics.RENEWALS["forbidden"].inc()
            audit_refusal(error, user_id=session.caller.subject, client=self._address)
            self.close(CloseCode.FORBIDDEN)
        else:
            metrics.RENEWALS["renewed"].inc()
            if self._subscriptions is not None:
                self._subscriptions.check_access()
            self._manager.wheel.schedule(self, session.next_deadline_s(self._manager.settings))
            board = self._channel.leaderboard
            if board is not None:
                exp = int(outcome.expires_at_s)
                self._send(Heartbeat(board.board, board.epoch, board.seq, now_ms(), exp))

    def token_check_failed(self) -> None:
        """Close with 1011: the token check failed by an error of the server."""
        self.close(CloseCode.INTERNAL_ERROR)

    @property
    def caller(self) -> Caller | None:
        """The caller that this viewer's token is of; None without a token."""
        return self._session.caller if self._session else None

    @property
    def address(self) -> str:
        """The address of the client."""
        return self._address

    def access_revoked(self, board: str) -> None:
        """Close if this viewer was admitted only because the board was public."""
        channel = self._channel
        if channel.board != board:
            if self._subscriptions is not None:
                self._subscriptions.check_access()
        elif not can_read(self.caller, is_public=channel.is_public):
            self.close(CloseCode.FORBIDDEN)

    def board_deleted(self, board: str) -> None:
        """Close if this viewer views the board, which was deleted."""
        if self._channel.board == board:
            self.close(CloseCode.BOARD_DELETED)
        elif self._subscriptions is not None:
            self._subscriptions.end(board, UnknownBoard())

    def window_dropped(self, channel: Channel) -> None:
        """Close if this viewer views the window; a new handshake says why it does not exist."""
        if self._channel is channel:
            self.close(CloseCode.RESTART)
        elif self._subscriptions is not None:
            self._subscriptions.window_dropped(channel)

    def shut_down(self, code: CloseCode, delay_ms: tuple[int, int]) -> None:
        """Send ``bye`` and close: the process is stopping."""
        self.close(code, delay_ms)

    def abort(self) -> None:
        """Drop the connection at once."""
        self._transport.abort()

    # Closing

    def close(self, code: CloseCode, delay_ms: tuple[int, int] | None = None) -> None:
        """Send ``bye`` and a close frame; drop the connection after CLOSE_TIMEOUT_S."""
        if not self._is_open:
            return
        is_paused = bool(self._flow.paused_at_s)
        self._begin_close(code, "server")
        if is_paused:
            # A close frame would wait behind the full buffer.
            self._transport.abort()
            return
        bye = make_bye(code, delay_ms)
        parser = self._use_parser()  # it reads the viewer's close frame
        parser.send_close(code, bye.reason)
        close = b"".join(parser.data_to_send())
        self._transport.write(text_frame(encode(bye)) + close)

    def _fail(self, code: CloseCode, reason: str) -> None:
        """Fail the connection (RFC 6455, 7.1.7): close without waiting, read nothing more."""
        if not self._is_open:
            self._transport.abort()
            return
        self._begin_close(code, "server")
        parser = self._use_parser()
        parser.fail(code, reason)
        # Discard the library's output: it includes the pongs of a flood, and where the peer's close
        # frame was in the same chunk, the answer to it.
        parser.data_to_send()
        self._transport.write(close_frame(code, reason))
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _closed_by_library(self, parser: Parser) -> None:
        """Record that the library has answered a close frame or a protocol error."""
        received, sent = parser.close_rcvd, parser.close_sent
        if received is not None and parser.parser_exc is None:
            self._begin_close(received.code, "client")
        else:
            self._begin_close(sent.code if sent else 1006, "server")

    def _begin_close(self, code: int, by: str) -> None:
        self._is_open = False
        self._close_code = code
        self._closed_by = by
        if self._subscriptions is not None:
            self._subscriptions.close()
        if self.index >= 0:
            self._channel.remove(self)
            self._manager.admission.viewers -= 1
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._deadline_s = self._manager.clock() + CLOSE_TIMEOUT_S
        self._manager.wheel.schedule(self, self._deadline_s)

    # Inbound messages

    def _use_parser(self) -> Parser:
        if self._parser is None:
            self._parser = Parser(self._manager.settings)
        return self._parser

    def _take_pong(self, data: bytes) -> bool:
        """Handle data that is an expected pong and nothing else; return False for other data."""
        payload = read_pong(data)
        return payload is not None and self._is_expected_pong(payload, self._manager.clock())

    def _is_expected_pong(self, payload: bytes, now_s: float) -> bool:
        if not self._flow.pong_received(payload, self._manager.settings, now_s):
            return False
        if self._is_open:
            self._push_waiting()
        return True

    def _handle_frame(self, frame: Frame) -> None:
        manager = self._manager
        now_s = manager.clock()
        if frame.opcode is Opcode.PONG and self._is_expected_pong(bytes(frame.data), now_s):
            return
        if self._reader is None:
            self._reader = MessageReader(manager.settings, now_s)
        try:
            message = self._reader.receive(frame, now_s)
        except FrameError as error:
            self._fail(error.code, error.reason)
        except Malformed as error:
            if self._is_open:
                self._send(Problem(error.code, error.detail))
        else:
            if message is not None and self._is_open:
                self._handle_message(message, now_s)

    def _handle_message(self, message: Inbound, now_s: float) -> None:
        match message:
            case Auth():
                self._renew(message.token, now_s)
            case Sync() if self._subscriptions is None and message.board in {UNSET, self.board}:
                self.resync()
            case Sync():
                self._use_subscriptions().sync(message.board)
            case Subscribe():
                self._use_subscriptions().subscribe(message)
            case Unsubscribe():
                self._use_subscriptions().unsubscribe(message.board)
            case Watch():
                self._take_watch(message.user_ids, now_s)

    def _use_subscriptions(self) -> Subscriptions:
        if self._subscriptions is None:
            self._subscriptions = Subscriptions(self, self._manager, self._flow, self._transport)
        return self._subscriptions

    # Called by the subscriptions

    @property
    def board(self) -> str:
        """The board of the handshake."""
        return self._channel.board

    @property
    def channel(self) -> Channel:
        """The channel of the board of the handshake, or of the window of it that is viewed."""
        return self._channel

    def send(self, message: Message) -> None:
        """Write a message that is for this viewer only."""
        self._send(message)

    def resync(self) -> None:
        """Send the board of the handshake, even if it was sent."""
        channel, flow = self._channel, self._flow
        if flow.is_held or flow.is_ack_paced:
            self._sent_frame = b""
        else:
            self._sent_frame = channel.frame
            channel.sent += 1
            self._transport.write(channel.first_frame)
        self.push()

    def move(self, channel: Channel) -> None:
        """View another window of the same board."""
        self._channel.remove(self)
        self._channel = channel
        self._sent_status = channel.initial_status
        channel.add(self)
        self.resync()

    def _watch_itself(self) -> None:
        """Watch the user of the token, if its subject can be one and nobody was chosen.

        At the limit it is tried again at each deadline.
        """
        session, watch = self._session, self._watch
        if session is None or (watch is not None and watch.is_used):
            return
        if is_identifier(session.caller.subject):
            is_first = watch is None
            if not self._watch_users((session.caller.subject,)) and is_first:
                metrics.WATCHES_REFUSED.inc()

    def _take_watch(self, user_ids: Sequence[str], now_s: float) -> None:
        """Apply a ``watch`` message now, or when the interval has passed."""
        watch = self._use_watch()
        watch.waiting = user_ids
        if watch.timer is None:
            wait_s = watch.watched_at_s + WATCH_INTERVAL_S - now_s
            if wait_s > 0:
                loop = asyncio.get_running_loop()
                watch.timer = loop.call_later(wait_s, self._apply_watch)
            else:
                self._apply_watch()

    def _apply_watch(self) -> None:
        watch = self._use_watch()
        watch.timer = None
        watch.watched_at_s = self._manager.clock()
        if not self._watch_users(watch.waiting):
            metrics.WATCHES_REFUSED.inc()
            self._send(Problem("too-many-watched", "This server watches too many users"))

    def _use_watch(self) -> PlaceWatch:
        if self._watch is None:
            own = self._session.caller.subject if self._session is not None else None
            self._watch = PlaceWatch(self._manager.places, self, own)
        return self._watch

    def _watch_users(self, user_ids: Sequence[str]) -> bool:
        """Watch these users and no others; return False if the process watches too many."""
        if not self._use_watch().replace(self._channel.board, user_ids):
            return False
        self.push_places()
        return True

    def _renew(self, token: str, now_s: float) -> None:
        session = self._session
        if session is None:
            self._send(Problem("no-token", "This connection has no token to renew"))
        elif now_s - session.tried_at_s < self._manager.settings.auth_interval_s:
            self._fail(CloseCode.RATE_LIMITED, "too many auth messages")
        elif not session.is_checking:
            session.tried_at_s = now_s
            session.is_checking = True
            self._manager.check_token(self, token)

    def _check_session(self, now_s: float) -> None:
        session, settings = self._session, self._manager.settings
        if session is None or now_s < session.next_deadline_s(settings):
            return
        if session.is_warned:
            self.close(CloseCode.TOKEN_EXPIRED)
            return
        session.is_warned = True
        exp, grace_ms = int(session.caller.expires_at_s), int(settings.token_grace_s * 1000)
        self._send(AuthExpiring(exp, grace_ms))

    def _next_deadline_s(self) -> float:
        settings = self._manager.settings
        deadline_s = min(self._flow.next_deadline_s(settings), self._expires_at_s)
        if self._session is None:
            return deadline_s
        return min(deadline_s, self._session.next_deadline_s(settings))

    def _send(self, message: Message) -> None:
        self._transport.write(text_frame(encode(message)))

    def _observe_unsent(self) -> None:
        """Record the kernel's unsent bytes (Linux only)."""
        connection = self._transport.get_extra_info("socket")
        if connection is None or sys.platform != "linux":
            return
        with suppress(OSError, ValueError):
            found = fcntl.ioctl(connection.fileno(), _SIOCOUTQNSD, bytes(4))
            metrics.UNSENT.observe(struct.unpack("i", found)[0])

    def _flush(self, parser: Parser) -> None:
        """Write the library's output; an empty chunk means a half-close."""
        for data in parser.data_to_send():
            if self._transport.is_closing():
                return
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                self._transport.write_eof()


class CompactViewer(Viewer):
    """A viewer that takes deltas: a frame is replaced by what differs from the one before it."""

    is_compact = True

    __slots__ = ()

    def push(self) -> None:
        """Write the frame, or the delta to it, and the status that this viewer lacks."""
        channel, flow = self._channel, self._flow
        frame = channel.frame
        if flow.is_held:
            channel.skipped += self._sent_frame is not frame
            return
        if self._sent_frame is not frame:
            data = channel.next_for(self._sent_frame)
            self._sent_frame = frame
            channel.sent += 1
            if flow.is_ack_paced:
                self.hold(channel.ack)
                data += ping_frame(channel.ack)
            self._transport.write(data)
        if self._sent_status is not channel.status and not flow.paused_at_s:
            self._sent_status = channel.status
            self._transport.write(channel.status)
