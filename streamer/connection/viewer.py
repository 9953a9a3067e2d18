"""One viewer after its 101: an asyncio protocol around the Sans-I/O one. No task, no queue.

Made by streamer.handshake.greeting. Inbound frames go through the library; boards bypass it,
because every viewer gets the same bytes. The viewer's one slot is its room's newest frame: while it
can take nothing (its buffer is not empty, or the pong that acknowledges the last board has not
come) boards pass it by, and then it gets the newest. What stays true: no board after a close frame,
and whoever is gone has left room, wheel and counts exactly once.
"""

import asyncio
import fcntl
import struct
import sys
import time
from contextlib import suppress
from typing import Final, cast

from websockets.frames import Frame, Opcode
from websockets.protocol import State

from scoreboard.broadcast.close_codes import CloseCode, bye_of
from scoreboard.broadcast.frames import AuthExpiring, Heartbeat, Message, Problem, encode
from scoreboard.errors import Forbidden, Malformed, ScoreboardError
from scoreboard.security.access import can_read
from scoreboard.security.tokens import Caller
from streamer import metrics
from streamer.connection.framing import close_frame, text_frame
from streamer.connection.inbound import CHUNK_BYTES, Inbound, Parser, Unwelcome
from streamer.connection.pace import KEEPALIVE_FRAME, FlowControl, spread
from streamer.connection.ticket import TokenSession
from streamer.fanout.hub import Channel
from streamer.fanout.venue import ConnectionManager
from streamer.protocol import Auth, Sync

CLOSE_S: Final = 2.0
"""A viewer has this long to answer a close frame."""

AGE_SPREAD: Final = 0.25
_SIOCOUTQNSD: Final = 0x894B
_KNOWN_CODES: Final = frozenset(CloseCode) | {1005, 1006}


class Viewer(asyncio.Protocol):
    """One viewer, from its 101 to the end of its connection."""

    __slots__ = (
        "_address",
        "_by",
        "_code",
        "_deadline_s",
        "_inbound",
        "_is_gone",
        "_is_open",
        "_leaves_at_s",
        "_pace",
        "_protocol",
        "_room",
        "_seen",
        "_ticket",
        "_told",
        "_transport",
        "_venue",
        "index",
        "slot",
    )

    def __init__(
        self,
        venue: ConnectionManager,
        transport: asyncio.Transport,
        protocol: Parser,
        room: Channel,
        *,
        address: str,
        caller: Caller | None,
    ) -> None:
        """Take over a connection whose answer 101 is ready but not written."""
        now_s = venue.clock()
        settings = venue.settings
        self._venue = venue
        self._transport = transport
        self._protocol = protocol
        self._room = room
        self._address = address
        self._ticket = TokenSession(caller, venue.deadline(caller.expires_at_s)) if caller else None
        self._is_open = True
        self._is_gone = False
        self._code = 0
        self._by = ""
        self._seen = b""
        self._told = room.initial_status
        self._pace = FlowControl(settings, now_s)
        self._leaves_at_s = now_s + spread(settings.viewer_age_s, AGE_SPREAD)
        self._deadline_s = 0.0
        # Most viewers never send anything.
        self._inbound: Inbound | None = None
        self.index = -1
        self.slot = 0

    def begin(self, answer: bytes, rest: bytes, end: CloseCode | None) -> None:
        """Write the 101 with the current board behind it, or with a close frame.

        ``rest`` is what the peer sent before it had an answer.
        """
        if end is not None:
            self._transport.write(answer)
            self.close(end)
            return
        room, venue = self._room, self._venue
        self._seen = room.frame
        room.sent += 1
        room.add(self)
        venue.admission.viewers += 1
        self._transport.write(answer + room.frame)
        self.push()
        venue.wheel.put(self, self._next_due_s())
        if rest:
            self.data_received(rest)

    # hub.Watcher

    def push(self) -> None:
        """Write what the room has and this viewer does not, unless it can take nothing now."""
        room, pace = self._room, self._pace
        frame = room.frame
        if pace.is_held:
            room.skipped += self._seen is not frame
            return
        if self._seen is not frame:
            # First: write() itself may call pause_writing().
            self._seen = frame
            room.sent += 1
            if pace.is_watched:
                self._push_watched()
            else:
                self._transport.write(frame)
        if self._told is not room.status and not pace.paused_at_s:
            self._told = room.status
            self._transport.write(room.status)

    def _push_watched(self) -> None:
        venue = self._venue
        now_s = venue.clock()
        self._pace.await_pong(self._room.ack, now_s)
        venue.wheel.put(self, now_s + venue.settings.slow_viewer_s)
        self._transport.write(self._room.paced)

    def beat(self, frame: bytes) -> None:
        """Write a heartbeat, unless this viewer can take nothing now."""
        if not self._pace.is_held:
            self._transport.write(frame)

    @property
    def is_watched(self) -> bool:
        """Tell whether boards wait for this viewer's pongs."""
        return self._is_open and self._pace.is_watched

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """Take frames from the viewer, a little at a time, so that a flood ends early."""
        protocol = self._protocol
        for start in range(0, len(data), CHUNK_BYTES):
            protocol.receive_data(data[start : start + CHUNK_BYTES])
            was_open = self._is_open
            for event in protocol.events_received():
                self._take(cast("Frame", event))
                if was_open and not self._is_open:
                    break
            if self._transport.is_closing():
                return
            if self._is_open and protocol.state is not State.OPEN:
                self._ended_by_protocol()
            self._flush()

    def eof_received(self) -> bool:
        """Close: a viewer that sends no more cannot answer a ping."""
        if self._is_open:
            self._end(1006, "client")
        # What is still unwritten must not keep the connection for ever.
        self._venue.wheel.put(self, self._deadline_s)
        return False

    def pause_writing(self) -> None:
        """Note that the buffer is not empty: boards pass this viewer by."""
        now_s = self._venue.clock()
        self._pace.pause(now_s)
        if self._is_open:
            self._venue.wheel.put(self, now_s + self._venue.settings.slow_viewer_s)

    def resume_writing(self) -> None:
        """Show the newest board: the buffer is empty again."""
        self._pace.resume()
        if self._is_open:
            self.push()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's name)
        """Leave everything, once."""
        if self._is_gone:
            return
        self._is_gone = True
        if self._is_open:
            self._end(1006, "network")
        venue = self._venue
        code = str(self._code) if self._code in _KNOWN_CODES else "other"
        metrics.CLOSES.labels(code, self._by).inc()
        venue.depart(self)
        venue.admission.give_address(self._address)
        venue.admission.give_place(self._ticket.caller.subject if self._ticket else None)
        # The parser refers to itself; and the wheel may hold this viewer for a while.
        self._protocol.parser.close()
        del self._protocol

    # venue.Guest

    def due(self, now_s: float) -> None:
        """Do what the time asks for, and wait in the wheel for the next deadline."""
        if self._is_gone:
            return
        if not self._is_open:
            if now_s >= self._deadline_s:
                self._transport.abort()
            else:
                self._venue.wheel.put(self, self._deadline_s)
            return
        settings, pace = self._venue.settings, self._pace
        if pace.is_stuck(settings, now_s):
            self.close(CloseCode.TOO_SLOW)
        elif pace.is_silent(settings, now_s):
            self.close(CloseCode.TOO_SLOW if pace.paused_at_s else CloseCode.NO_PONG)
        elif now_s >= self._leaves_at_s:
            self.close(CloseCode.RESTART)
        else:
            self._check_ticket(now_s)
            if self._is_open and pace.wants_ping(now_s):
                pace.pinged(now_s)
                self._note_unsent()
                self._transport.write(KEEPALIVE_FRAME)
        if self._is_open:
            self._venue.wheel.put(self, self._next_due_s())

    def checked(self, outcome: Caller | ScoreboardError) -> None:
        """Take the outcome of a renewal's check; the old token stands if it was refused."""
        ticket = self._ticket
        if not self._is_open or ticket is None:
            return
        ticket.is_checking = False
        if not isinstance(outcome, Caller):
            metrics.RENEWALS.labels(outcome.code).inc()
            self._send(Problem(outcome.code, outcome.detail))
            return
        ends_at_s = self._venue.deadline(outcome.expires_at_s)
        try:
            ticket.renew(outcome, ends_at_s, is_public=self._room.is_public)
        except Malformed as error:
            metrics.RENEWALS.labels("not-later").inc()
            self._send(Problem(error.code, error.detail))
        except Forbidden:
            metrics.RENEWALS.labels("forbidden").inc()
            self.close(CloseCode.FORBIDDEN)
        else:
            metrics.RENEWALS.labels("renewed").inc()
            self._venue.wheel.put(self, ticket.due_s(self._venue.settings))
            state = self._room.state
            if state is not None:
                exp = int(outcome.expires_at_s)
                self._send(Heartbeat(state.board, state.epoch, state.seq, _now_ms(), exp))

    def access_lost(self, room: Channel) -> None:
        """End if only the board's being public let this viewer in."""
        caller = self._ticket.caller if self._ticket else None
        if room is self._room and not can_read(caller, is_public=room.is_public):
            self.close(CloseCode.FORBIDDEN)

    def leave(self, code: CloseCode, delay_ms: tuple[int, int]) -> None:
        """Say ``bye`` and close; the process goes away."""
        self.close(code, delay_ms)

    def abort(self) -> None:
        """End at once."""
        self._transport.abort()

    # Ends

    def close(self, code: CloseCode, delay_ms: tuple[int, int] | None = None) -> None:
        """Say why and whether to come back, close, and hang up after CLOSE_S at the latest."""
        if not self._is_open:
            return
        is_stuck = bool(self._pace.paused_at_s)
        self._end(code, "server")
        if is_stuck:
            # No close frame would get through.
            self._transport.abort()
            return
        bye = bye_of(code, delay_ms)
        self._protocol.send_close(code, bye.reason)
        farewell = b"".join(self._protocol.data_to_send())
        self._transport.write(text_frame(encode(bye)) + farewell)

    def _fail(self, code: CloseCode, reason: str) -> None:
        """Close without waiting for an answer, and read nothing more: the peer misbehaves."""
        if not self._is_open:
            self._transport.abort()
            return
        self._end(code, "server")
        self._protocol.fail(code, reason)
        # Not what the library wants to write: that includes the pongs of a flood, and where the
        # peer's close came in the same piece, it has answered that one.
        self._protocol.data_to_send()
        self._transport.write(close_frame(code, reason))
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _ended_by_protocol(self) -> None:
        """Follow the library, which has answered a close frame or a broken one."""
        received, sent = self._protocol.close_rcvd, self._protocol.close_sent
        if received is not None and self._protocol.parser_exc is None:
            self._end(received.code, "client")
        else:
            self._end(sent.code if sent else 1006, "server")

    def _end(self, code: int, by: str) -> None:
        self._is_open = False
        self._code = code
        self._by = by
        if self.index >= 0:
            self._room.remove(self)
            self._venue.admission.viewers -= 1
        self._deadline_s = self._venue.clock() + CLOSE_S
        self._venue.wheel.put(self, self._deadline_s)

    # What viewers send

    def _take(self, frame: Frame) -> None:
        venue = self._venue
        now_s = venue.clock()
        if frame.opcode is Opcode.PONG and self._pace.take_pong(
            bytes(frame.data), venue.settings, now_s
        ):
            if self._is_open:
                self.push()
            return
        if self._inbound is None:
            self._inbound = Inbound(venue.settings, now_s)
        try:
            message = self._inbound.take(frame, now_s)
        except Unwelcome as unwelcome:
            self._fail(unwelcome.code, unwelcome.reason)
        except Malformed as error:
            if self._is_open:
                self._send(Problem(error.code, error.detail))
        else:
            if message is not None and self._is_open:
                self._obey(message, now_s)

    def _obey(self, message: Auth | Sync, now_s: float) -> None:
        if isinstance(message, Sync):
            self._seen = b""
            self.push()
        else:
            self._renew(message.token, now_s)

    def _renew(self, token: str, now_s: float) -> None:
        ticket = self._ticket
        if ticket is None:
            self._send(Problem("no-token", "This connection has no token that could be renewed"))
        elif now_s - ticket.tried_at_s < self._venue.settings.auth_interval_s:
            self._fail(CloseCode.TOO_CHATTY, "too many auth")
        elif not ticket.is_checking:
            ticket.tried_at_s = now_s
            ticket.is_checking = True
            self._venue.check(self, token)

    def _check_ticket(self, now_s: float) -> None:
        ticket, settings = self._ticket, self._venue.settings
        if ticket is None or now_s < ticket.due_s(settings):
            return
        if ticket.is_warned:
            self.close(CloseCode.TOKEN_EXPIRED)
            return
        ticket.is_warned = True
        exp, grace_ms = int(ticket.caller.expires_at_s), int(settings.token_grace_s * 1000)
        self._send(AuthExpiring(exp, grace_ms))

    def _next_due_s(self) -> float:
        settings = self._venue.settings
        due_s = min(self._pace.due_s(settings), self._leaves_at_s)
        return due_s if self._ticket is None else min(due_s, self._ticket.due_s(settings))

    def _send(self, message: Message) -> None:
        self._transport.write(text_frame(encode(message)))

    def _note_unsent(self) -> None:
        """Look up what the kernel could not send yet, where it can be asked."""
        connection = self._transport.get_extra_info("socket")
        if connection is None or sys.platform != "linux":
            return
        with suppress(OSError, ValueError):
            found = fcntl.ioctl(connection.fileno(), _SIOCOUTQNSD, bytes(4))
            metrics.UNSENT.observe(struct.unpack("i", found)[0])

    def _flush(self) -> None:
        """Write what the library wants written; an empty piece means: half-close."""
        for data in self._protocol.data_to_send():
            if self._transport.is_closing():
                return
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                self._transport.write_eof()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
