"""The opening handshake of one connection: read the request, then accept or reject it.

Invariants: nothing after the request head is parsed before the 101 response; a rejection ends the
connection, so that no second request can pass behind a proxy's rules; a token check delays only the
connection that it is for.
"""

import asyncio
from enum import Enum
from typing import Final, cast

from scoreboard.broadcast.admission import overloaded
from scoreboard.broadcast.close_codes import CloseCode
from scoreboard.broadcast.messages import COMPACT
from scoreboard.errors import (
    Forbidden,
    Overloaded,
    ScoreboardError,
    TooManyConnections,
    Unauthenticated,
    UnknownBoard,
)
from scoreboard.http.head import head_size, read_head
from scoreboard.http.problems import status_of
from scoreboard.runtime.audit import audit_refusal
from scoreboard.runtime.telemetry import get_logger
from scoreboard.security.access import require_read
from scoreboard.security.addresses import client_address, is_trusted_hop
from scoreboard.security.tokens import Caller
from scoreboard.trace_context import HEADER as TRACEPARENT
from streamer import metrics
from streamer.connection.viewer import CompactViewer, Viewer
from streamer.fanout.hub import Channel
from streamer.fanout.manager import ConnectionManager
from streamer.handshake.request import (
    HandshakeRequest,
    check_lines,
    encode_acceptance,
    encode_rejection,
    parse_request,
)

LINGER_S: Final = 2.0
"""Maximum time for a rejected peer to read the response and close."""

DISCARD_BYTES: Final = 65_536
"""Maximum bytes discarded in this time. Closing a socket with unread data sends a reset, and the
peer could lose the response."""

_log = get_logger(__name__)


class _State(Enum):
    HEAD = "head"
    OPENING = "opening"
    """The board is not watched yet: it is looked up and read."""
    CHECKING = "checking"
    REJECTED = "rejected"
    DONE = "done"


_WAITING: Final = frozenset({_State.OPENING, _State.CHECKING})
"""States after the head was read, in which the peer is not read from."""


class OpeningHandshake(asyncio.Protocol):
    """One connection until its 101 response."""

    __slots__ = (
        "_address",
        "_channel",
        "_deadline_s",
        "_discarded",
        "_early_data",
        "_head",
        "_is_body_wanted",
        "_manager",
        "_peer",
        "_peer_address",
        "_request",
        "_request_id",
        "_state",
        "_traceparent",
        "_transport",
        "slot",
    )

    def __init__(self, manager: ConnectionManager) -> None:
        self._manager = manager
        self._transport: asyncio.Transport
        self._state = _State.HEAD
        self._head = b""
        self._is_body_wanted = True
        self._early_data = b""
        self._discarded = 0
        self._deadline_s = 0.0
        self._peer = ""
        self._peer_address = ""
        """The address that this pending connection counts for; empty behind a trusted hop, where
        the client's address is known only from the request head."""
        self._address = ""
        self._request_id = ""
        self._traceparent: bytes | None = None
        self._request: HandshakeRequest
        self._channel: Channel | None = None
        self.slot = 0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the handshake and its deadline, unless the address has reached its limit."""
        manager = self._manager
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if peer else ""
        if not self._peer or not self._count_peer():  # without a peer it is already disconnected
            self._state = _State.DONE
            metrics.HANDSHAKES["dropped"].inc()
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=0)
        manager.add(self)
        self._deadline_s = manager.clock() + manager.settings.handshake_timeout_s
        manager.wheel.schedule(self, self._deadline_s)

    def data_received(self, data: bytes) -> None:
        """Read the request head; buffer data that arrives while the handshake waits."""
        if self._state is _State.HEAD:
            self._read_head(data)
            return
        self._discarded += len(data)
        if self._state in _WAITING:
            self._early_data += data
        if self._discarded > DISCARD_BYTES:
            self._transport.abort()

    def eof_received(self) -> bool:
        """Close: half-closed connections are not accepted."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's name)
        """Release the counts of a connection that never became a viewer."""
        manager = self._manager
        if self not in manager.connections:
            return
        manager.remove_pending(self)
        self._release_counts()
        if self._state is _State.HEAD or self._state in _WAITING:
            metrics.HANDSHAKES["abandoned"].inc()
        self._state = _State.DONE

    # Called by the connection manager.

    @property
    def is_ack_paced(self) -> bool:
        """Return False: no boards are sent yet."""
        return False

    def on_deadline(self, now_s: float) -> None:
        """Drop a handshake, or a rejected peer, that took too long."""
        if self._state is _State.DONE:
            return
        if now_s < self._deadline_s:
            self._manager.wheel.schedule(self, self._deadline_s)
            return
        if self._state is not _State.REJECTED:
            metrics.HANDSHAKES["timeout"].inc()
            self._state = _State.REJECTED
        self._transport.abort()

    def token_checked(self, outcome: Caller | ScoreboardError) -> None:
        """Accept or reject the handshake by the result of the token check."""
        if self._state is not _State.CHECKING:
            return
        channel = self._channel
        if channel is None:
            return
        if isinstance(outcome, Caller):
            try:
                require_read(outcome, is_public=channel.is_public)
            except Forbidden as error:
                self._reject(error)
            else:
                self._accept(channel, outcome)
        elif (
            isinstance(outcome, Unauthenticated)
            and outcome.reason == "expired"
            and self._manager.admission.allow_expired(self._address, self._manager.clock())
        ):
            # Browsers hide the status of a rejected handshake; a close code tells what to do.
            audit_refusal(
                outcome, client=self._address, peer=self._peer, request_id=self._request_id
            )
            self._accept(channel, None, end=CloseCode.TOKEN_EXPIRED)
        else:
            self._reject(outcome)

    def token_check_failed(self) -> None:
        """Accept and close with 1011: browsers hide the status of a rejected handshake."""
        if self._state is _State.CHECKING and self._channel is not None:
            self._accept(self._channel, None, end=CloseCode.INTERNAL_ERROR)
        elif self._state is _State.DONE:
            self._transport.abort()

    def access_revoked(self, board: str) -> None:
        """Do nothing: access is checked after the token."""

    def board_deleted(self, board: str) -> None:
        """Reject the handshake if it is for this board, which was deleted."""
        channel = self._channel
        if channel is not None and channel.board == board and self._state is _State.CHECKING:
            self._reject(UnknownBoard())

    def window_dropped(self, channel: Channel) -> None:
        """Do nothing: a handshake for a window that was dropped is rejected later."""

    def board_opened(self, outcome: Channel | ScoreboardError) -> None:
        """Continue the handshake with the channel of its board, or reject it."""
        if self._state is not _State.OPENING:
            return
        if isinstance(outcome, ScoreboardError):
            self._reject(outcome)
            return
        try:
            self._check_access(outcome)
        except ScoreboardError as error:
            self._reject(error)

    def shut_down(self, code: CloseCode, delay_ms: tuple[int, int]) -> None:  # noqa: ARG002
        """Reject the handshake: the process is stopping."""
        if self._state is _State.HEAD or self._state in _WAITING:
            self._reject(Overloaded("This server is stopping; connect again"))

    def abort(self) -> None:
        """Drop the connection at once."""
        self._transport.abort()

    def evict(self) -> None:
        """Drop the connection: newer ones need its place."""
        metrics.HANDSHAKES["displaced"].inc()
        self._state = _State.DONE
        self._transport.abort()

    # The steps of the handshake

    def _count_peer(self) -> bool:
        """Count the connection for its address; return False if that has reached its limit."""
        manager = self._manager
        hops = manager.handshake_config.hops
        if is_trusted_hop(self._peer, hops):
            return True
        address = client_address(self._peer, (), hops)
        if not manager.admission.allow_attempt(address, manager.clock()):
            return False
        if not manager.admission.add_handshake(address):
            return False
        self._peer_address = address
        return True

    def _release_counts(self) -> None:
        """Release the counts that this connection holds while it is pending."""
        admission = self._manager.admission
        if self._peer_address:
            admission.remove_handshake(self._peer_address)
            self._peer_address = ""
        if self._address:
            admission.remove_address(self._address)
            self._address = ""

    def _read_head(self, data: bytes) -> None:
        searched = len(self._head)
        self._head = head = self._head + data
        try:
            size = head_size(head, searched, self._manager.handshake_config.limits)
            if size:
                self._head = b""
                self._early_data = head[size:]
                self._handle_request(head[:size])
        except ScoreboardError as error:
            self._is_body_wanted = not head.startswith(b"HEAD ")
            self._reject(error)

    def _handle_request(self, data: bytes) -> None:
        manager, config = self._manager, self._manager.handshake_config
        head = read_head(data, config.limits)
        check_lines(data)
        self._request_id = manager.request_ids.of(head.headers)
        self._traceparent = head.headers.get(TRACEPARENT)
        self._request = request = parse_request(head, self._peer, config)
        admission = manager.admission
        if not self._peer_address and not admission.allow_attempt(request.address, manager.clock()):
            raise TooManyConnections("This address connects too often", retry_after_s=60)
        admission.add_address(request.address)
        self._address = request.address
        admission.check_capacity()
        channel = manager.watched_channel(request.board, request.span)
        if channel is None:
            manager.open_board(self, request.board, request.span)
            self._state = _State.OPENING
            self._transport.pause_reading()
        else:
            self._check_access(channel)

    def _check_access(self, channel: Channel) -> None:
        """Accept an anonymous viewer of a public board; have a token checked.

        Raises what require_read raises.
        """
        token = self._request.token
        if not token:
            require_read(None, is_public=channel.is_public)
            self._accept(channel, None)
            return
        self._channel = channel
        if self._state is not _State.OPENING:
            self._transport.pause_reading()
        self._state = _State.CHECKING
        self._manager.check_token(self, token)

    def _accept(
        self, channel: Channel, caller: Caller | None, *, end: CloseCode | None = None
    ) -> None:
        manager = self._manager
        try:
            if not manager.hub.has(channel):
                raise overloaded("The board is not watched any more; connect again")
            manager.admission.add_viewer(caller.subject if caller else None, manager.clock())
        except ScoreboardError as error:
            self._reject(error)
            return
        metrics.HANDSHAKES[_result_of(end)].inc()
        kind = CompactViewer if self._request.subprotocol == COMPACT else Viewer
        viewer = kind(manager, self._transport, channel, address=self._address, caller=caller)
        was_waiting, self._state = self._state in _WAITING, _State.DONE
        manager.promote(self, viewer)
        self._address = ""  # from here on the viewer releases it
        self._release_counts()
        self._transport.set_protocol(viewer)
        viewer.start(encode_acceptance(self._request, self._request_id), self._early_data, end)
        if was_waiting and not self._transport.is_closing():
            self._transport.resume_reading()

    def _reject(self, error: ScoreboardError) -> None:
        """Send the error response, half-close, and discard what the peer still sends."""
        if self._state in _WAITING:
            self._transport.resume_reading()
        status = status_of(type(error))
        request_id = self._request_id or self._manager.request_ids.new()
        metrics.HANDSHAKES[str(status)].inc()
        client = self._address or self._peer_address or self._peer
        _log.info(
            "handshake_refused",
            status=status,
            code=error.code,
            client=client,
            peer=self._peer,
            request_id=request_id,
            trace=self._traceparent,
        )
        audit_refusal(
            error,
            client=client,
            peer=self._peer,
            request_id=request_id,
            trace=self._traceparent,
            status=status,
        )
        self._state = _State.REJECTED
        if self._address:
            self._manager.admission.remove_address(self._address)
            self._address = ""
        self._head = b""
        self._early_data = b""
        if self._transport.is_closing():
            return
        self._transport.write(encode_rejection(error, request_id, with_body=self._is_body_wanted))
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._deadline_s = self._manager.clock() + LINGER_S
        self._manager.wheel.schedule(self, self._deadline_s)


def _result_of(end: CloseCode | None) -> str:
    """Return the metric label of an accepted handshake that ends with a close code, if any."""
    match end:
        case None:
            return "accepted"
        case CloseCode.TOKEN_EXPIRED:
            return "expired"
        case _:
            return "failed"
