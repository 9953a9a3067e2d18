"""A connection before its 101: reads the head, judges it, and becomes a viewer or is refused.

Made by streamer.server for each accepted connection. What stays true: nothing behind the blank line
is parsed before the 101; a refusal ends the connection, so that no second request slips through
behind a proxy's rules; the token's check never holds up anyone else.
"""

import asyncio
from enum import Enum
from typing import Final, cast

from websockets.http11 import Request
from websockets.typing import Subprotocol

from scoreboard.broadcast.close_codes import CloseCode
from scoreboard.errors import (
    Forbidden,
    Malformed,
    Overloaded,
    ScoreboardError,
    TooManyConnections,
    Unauthenticated,
    Uninitialised,
)
from scoreboard.http.head import head_size, read_head
from scoreboard.http.problems import status_of
from scoreboard.http.request_ids import HEADER
from scoreboard.runtime.telemetry import get_logger
from scoreboard.security.access import require_read
from scoreboard.security.addresses import client_address, is_trusted_hop
from scoreboard.security.tokens import Caller
from streamer import metrics
from streamer.connection.inbound import Parser
from streamer.connection.viewer import Viewer
from streamer.fanout.hub import Channel
from streamer.fanout.venue import ConnectionManager
from streamer.handshake.request import Wish, answer_of, judge
from streamer.protocol import SUBPROTOCOL

LINGER_S: Final = 2.0
"""A refused peer has this long to read the answer and close."""

DISCARD_BYTES: Final = 65_536
"""Unread request bytes swallowed meanwhile; closing before them would reset the answer away."""


_log = get_logger(__name__)


class _Phase(Enum):
    HEAD = "head"
    CHECKING = "checking"
    REFUSED = "refused"
    DONE = "done"


class Handshake(asyncio.Protocol):
    """One connection up to its 101."""

    __slots__ = (
        "_address",
        "_deadline_s",
        "_discarded",
        "_head",
        "_is_body_wanted",
        "_peer",
        "_phase",
        "_protocol",
        "_request",
        "_request_id",
        "_rest",
        "_source",
        "_transport",
        "_venue",
        "_wish",
        "slot",
    )

    def __init__(self, venue: ConnectionManager) -> None:
        self._venue = venue
        self._transport: asyncio.Transport
        self._phase = _Phase.HEAD
        self._head = bytearray()
        self._is_body_wanted = True
        self._rest = b""
        self._discarded = 0
        self._deadline_s = 0.0
        self._peer = ""
        self._source = ""
        """The address this connection counts for until it is a viewer; none behind a trusted hop,
        where it is known only from the head."""
        self._address = ""
        self._request_id = ""
        self._request: Request
        self._wish: Wish
        self._protocol: Parser
        self.slot = 0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless the address has its share: the whole handshake has a deadline."""
        venue = self._venue
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if peer else ""
        if not self._peer or not self._take_source():  # without a peer it is gone already
            self._phase = _Phase.DONE
            metrics.HANDSHAKES.labels("dropped").inc()
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=0)
        venue.arrive(self)
        self._deadline_s = venue.clock() + venue.settings.handshake_timeout_s
        venue.wheel.put(self, self._deadline_s)

    def data_received(self, data: bytes) -> None:
        """Take a piece of the head, or keep what came too early."""
        if self._phase is _Phase.HEAD:
            self._read_head(data)
            return
        self._discarded += len(data)
        if self._phase is _Phase.CHECKING:
            self._rest += data
        if self._discarded > DISCARD_BYTES:
            self._transport.abort()

    def eof_received(self) -> bool:
        """Close; a viewer that cannot be answered is none."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's name)
        """Give everything back; only a connection that never became a viewer ends here."""
        venue = self._venue
        if self not in venue.present:
            return
        venue.depart_early(self)
        self._give_back()
        if self._phase in {_Phase.HEAD, _Phase.CHECKING}:
            metrics.HANDSHAKES.labels("abandoned").inc()
        self._phase = _Phase.DONE

    # venue.Guest

    @property
    def is_watched(self) -> bool:
        """Tell that no boards are sent yet."""
        return False

    def due(self, now_s: float) -> None:
        """Drop a handshake, or a refused peer, that took too long."""
        if self._phase is _Phase.DONE:
            return
        if now_s < self._deadline_s:
            self._venue.wheel.put(self, self._deadline_s)
            return
        if self._phase is not _Phase.REFUSED:
            metrics.HANDSHAKES.labels("timeout").inc()
            self._phase = _Phase.REFUSED
        self._transport.abort()

    def checked(self, outcome: Caller | ScoreboardError) -> None:
        """Go on with the outcome of the token's check."""
        if self._phase is not _Phase.CHECKING:
            return
        room = self._venue.room(self._wish.board)
        if isinstance(outcome, Caller):
            try:
                require_read(outcome, is_public=room.is_public)
            except Forbidden as error:
                self._refuse(error)
            else:
                self._welcome(room, outcome)
        elif (
            isinstance(outcome, Unauthenticated)
            and outcome.reason == "expired"
            and self._venue.admission.may_expire(self._address, self._venue.clock())
        ):
            # A browser sees no status, only that it failed: the close code says what to do.
            self._welcome(room, None, end=CloseCode.TOKEN_EXPIRED)
        else:
            self._refuse(outcome)

    def access_lost(self, room: Channel) -> None:
        """Nothing yet: access is judged when the token is."""

    def leave(self, code: CloseCode, delay_ms: tuple[int, int]) -> None:  # noqa: ARG002
        """Refuse: the process goes away."""
        if self._phase in {_Phase.HEAD, _Phase.CHECKING}:
            self._refuse(Overloaded("This server is stopping; connect again"))

    def abort(self) -> None:
        """End at once."""
        self._transport.abort()

    # venue.Handshaking

    def displaced(self) -> None:
        """End: newer connections need this one's place."""
        metrics.HANDSHAKES.labels("displaced").inc()
        self._phase = _Phase.DONE
        self._transport.abort()

    # The handshake, step by step

    def _take_source(self) -> bool:
        """Count the connection for its address; tell whether that has room for it."""
        venue = self._venue
        if is_trusted_hop(self._peer, venue.rules.hops):
            return True
        address = client_address(self._peer, (), venue.rules.hops)
        if not venue.admission.may_try(address, venue.clock()):
            return False
        if not venue.admission.take_handshake(address):
            return False
        self._source = address
        return True

    def _give_back(self) -> None:
        """Give back what this connection counts for as long as it is no viewer."""
        admission = self._venue.admission
        if self._source:
            admission.give_handshake(self._source)
            self._source = ""
        if self._address:
            admission.give_address(self._address)
            self._address = ""

    def _read_head(self, data: bytes) -> None:
        head, searched = self._head, len(self._head)
        head += data
        try:
            size = head_size(head, searched, self._venue.rules.limits)
            if size:
                self._rest = bytes(head[size:])
                self._judge(bytes(head[:size]))
        except ScoreboardError as error:
            self._is_body_wanted = not head.startswith(b"HEAD ")
            self._refuse(error)

    def _judge(self, data: bytes) -> None:
        venue = self._venue
        self._head = bytearray()
        head = read_head(data, venue.rules.limits)
        self._request_id = venue.request_ids.of(head.headers)
        self._wish = wish = judge(head, self._peer, venue.rules)
        admission = venue.admission
        if not self._source and not admission.may_try(wish.address, venue.clock()):
            raise TooManyConnections("This address tries to connect too often", retry_after_s=60)
        admission.take_address(wish.address)
        self._address = wish.address
        admission.check_room()
        room = venue.room(wish.board)
        if not room.frame:
            raise Uninitialised
        self._protocol = Parser(venue.settings)
        self._protocol.receive_data(data)
        events = self._protocol.events_received()
        if not events:
            # The library takes lines of 8 KiB at most.
            raise Malformed("A header of the handshake cannot be read")
        self._request = cast("Request", events[0])
        if wish.token:
            self._phase = _Phase.CHECKING
            self._transport.pause_reading()
            venue.check(self, wish.token)
        else:
            require_read(None, is_public=room.is_public)
            self._welcome(room, None)

    def _welcome(
        self, room: Channel, caller: Caller | None, *, end: CloseCode | None = None
    ) -> None:
        venue, protocol = self._venue, self._protocol
        if self._wish.offers_subprotocol:
            protocol.available_subprotocols = [Subprotocol(SUBPROTOCOL)]
        response = protocol.accept(self._request)
        if response.status_code != 101:
            # The library is stricter than streamer.handshake.request about the form of lists.
            self._refuse(Malformed("A header of the handshake cannot be read"))
            return
        try:
            venue.admission.take_place(caller.subject if caller else None, venue.clock())
        except ScoreboardError as error:
            self._refuse(error)
            return
        response.headers[HEADER.decode()] = self._request_id
        protocol.send_response(response)
        metrics.HANDSHAKES.labels("accepted" if end is None else "expired").inc()
        viewer = Viewer(
            venue, self._transport, protocol, room, address=self._address, caller=caller
        )
        was_checking, self._phase = self._phase is _Phase.CHECKING, _Phase.DONE
        venue.replace(self, viewer)
        self._address = ""  # the viewer's from here on
        self._give_back()
        self._transport.set_protocol(viewer)
        viewer.begin(b"".join(protocol.data_to_send()), self._rest, end)
        # The wheel may hold this greeting for a while; the viewer's parser must not live as long.
        del self._protocol, self._request
        if was_checking and not self._transport.is_closing():
            self._transport.resume_reading()

    def _refuse(self, error: ScoreboardError) -> None:
        """Answer, half-close, and read no further than politeness asks."""
        if self._phase is _Phase.CHECKING:
            self._transport.resume_reading()
        status = status_of(type(error))
        request_id = self._request_id or self._venue.request_ids.new()
        metrics.HANDSHAKES.labels(str(status)).inc()
        _log.info(
            "handshake_refused",
            status=status,
            code=error.code,
            client=self._address or self._source or self._peer,
            request_id=request_id,
        )
        self._phase = _Phase.REFUSED
        if self._address:
            self._venue.admission.give_address(self._address)
            self._address = ""
        self._head = bytearray()
        self._rest = b""
        if self._transport.is_closing():
            return
        self._transport.write(answer_of(error, request_id, with_body=self._is_body_wanted))
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._deadline_s = self._venue.clock() + LINGER_S
        self._venue.wheel.put(self, self._deadline_s)
