"""One client connection, which serves its requests one after the other.

Invariants:

- pipelined requests wait until the current one is answered, and reading pauses meanwhile;
- every wait for the peer has a time limit, enforced by the server's sweep (``overdue``);
- after an unreadable request, or one whose body was not read completely, nothing more is read;
- a complete request is answered even if the peer has closed its sending half (RFC 9112, 9.6).
"""

import asyncio
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Final, cast

from scoreboard.errors import BodyTooLarge, Malformed, ScoreboardError
from scoreboard.http.body import ChunkReader, LengthReader
from scoreboard.http.head import CHUNKED, Head, head_size, read_head
from scoreboard.http.problems import Headers
from scoreboard.http.request import Request, TimeLimit
from scoreboard.http.response import HttpResponse, encode_head, has_body
from scoreboard.runtime.sockets import limit_send_buffer
from scoreboard.runtime.telemetry import get_logger

if TYPE_CHECKING:
    from scoreboard.http.server import Address, Server

LINGER_S: Final = 2.0
"""Time for a peer that still sends to read its response; closing would reset the connection."""

DISCARD_BYTES: Final = 65_536
"""Maximum bytes that are read only to be discarded."""

SLICE_BYTES: Final = 65_536
"""Long responses are written in slices; the peer must read each within the limit."""

RETIRE_S: Final = 1.0
"""Time for an incomplete head, or for the first request, once the server drains."""

_IDLE: Final = 0
"""No byte of a request has arrived."""

_READING: Final = 1
"""A part of a head has arrived."""

_SERVING: Final = 2
_LINGERING: Final = 3
"""The last response is written; received bytes are discarded."""

_CLOSED: Final = 4

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE: Final = b"connection: close\r\n"
_KEEP_ALIVE: Final = b"connection: keep-alive\r\n"
_CHUNKED: Final = b"transfer-encoding: chunked\r\n"

_log = get_logger(__name__)


class Connection(asyncio.Protocol):
    """One connection, from accept to close."""

    __slots__ = (
        "_body",
        "_body_error",
        "_body_waiter",
        "_discarded",
        "_disconnect_waiter",
        "_drain_waiter",
        "_held",
        "_is_continue_due",
        "_is_half_closed",
        "_is_last",
        "_is_overdue",
        "_is_paused",
        "_is_stalled",
        "_is_unread",
        "_is_used",
        "_phase",
        "_reader",
        "_server",
        "_transport",
        "address",
        "due_s",
        "limit",
        "now_s",
        "peer",
        "task",
    )

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._transport: asyncio.Transport
        self._phase = _IDLE
        self.now_s = server.now_s
        self.peer = ("", 0)
        self.address: Address | None = None
        """The address the connection is counted for; None if it counts in total only."""
        self.due_s = inf
        """The deadline of the current wait for the peer."""
        self.limit: TimeLimit | None = None
        self.task: asyncio.Task[None] | None = None
        """Serves the current request."""
        self._held = b""
        """Received bytes that are not parsed yet."""
        self._reader: LengthReader | ChunkReader | None = None
        """Reads the current body, until it is complete."""
        self._body = b""
        self._body_error: ScoreboardError | None = None
        self._body_waiter: asyncio.Future[None] | None = None
        self._drain_waiter: asyncio.Future[None] | None = None
        self._disconnect_waiter: asyncio.Future[None] | None = None
        self._discarded = 0
        self._is_continue_due = False
        self._is_half_closed = False
        self._is_last = False
        """Whether the connection ends after the current response."""
        self._is_overdue = False
        self._is_paused = False
        self._is_stalled = False
        self._is_unread = False
        """Whether the peer has sent, or may send, bytes that are not read."""
        self._is_used = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register with the server, or refuse the connection at its limits."""
        self._transport = cast("asyncio.Transport", transport)
        # pause_writing() is then called as soon as the kernel buffer is full.
        self._transport.set_write_buffer_limits(high=0)
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.peer = peer[:2]
        refusal = self._server.add(self)
        if refusal is None:
            self.due_s = self.now_s() + self._server.limits.head_s
        else:
            self._refuse(refusal)

    def data_received(self, data: bytes) -> None:
        """Handle received bytes according to the phase."""
        phase = self._phase
        if phase <= _READING:
            self._read(data)
        elif phase == _SERVING:
            if self._reader is not None:
                data = self._take_body(data)
            self._hold(data)
            self._adjust_reading()
        elif phase == _LINGERING:
            self._discard(len(data))

    def eof_received(self) -> bool:
        """Keep the connection open while a request is served: the peer may still read."""
        self._is_half_closed = True
        if self._phase != _SERVING:
            return False
        self._note_end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's name)
        """Unregister from the server, and wake the waiters."""
        self._unregister()
        self._note_end()
        _wake(self._drain_waiter)

    def pause_writing(self) -> None:
        """Note that the send buffer is not empty."""
        self._is_stalled = True

    def resume_writing(self) -> None:
        """Note that the send buffer is empty."""
        self._is_stalled = False
        _wake(self._drain_waiter)

    # Called by the server

    def overdue(self) -> None:
        """End the wait whose deadline has passed."""
        if self._body_waiter is not None:
            limit_s = self._server.limits.body_s
            self._fail_body(Malformed(f"The body did not arrive within {limit_s:g} s"))
            return
        self._is_overdue = True
        self.abort()

    def retire(self) -> None:
        """Close soon: the server drains, and no request is being served."""
        if self._phase == _IDLE and self._is_used:
            self._close()
        else:
            self.due_s = min(self.due_s, self.now_s() + RETIRE_S)

    def abort(self) -> None:
        """Close the connection immediately."""
        self._unregister()
        self._transport.abort()

    # Called by the handler, through scoreboard.http.request

    @property
    def local(self) -> tuple[str, int]:
        """Local address and port."""
        name = self._transport.get_extra_info("sockname")
        return name[:2] if isinstance(name, tuple) else ("", 0)

    async def wait_disconnected(self) -> None:
        """Wait until the peer has disconnected or closed its sending half."""
        if self._phase == _SERVING and not self._is_half_closed:
            self._disconnect_waiter = self._server.loop.create_future()
            await self._disconnect_waiter

    @property
    def has_body(self) -> bool:
        """Return whether the current body has arrived, or has failed."""
        return self._reader is None

    async def read_body(self) -> bytes:
        """Return the body of the current request.

        Raises BodyTooLarge, Malformed.
        """
        if self._reader is not None:
            if self._is_continue_due:
                self._is_continue_due = False
                self._transport.write(_CONTINUE)
            self._body_waiter = self._server.loop.create_future()
            self.due_s = self.now_s() + self._server.limits.body_s
            try:
                await self._body_waiter
            finally:
                self._body_waiter = None
                self.due_s = inf
        if self._body_error is not None:
            raise self._body_error
        return self._body

    def start_stream(self, status: int, headers: Headers, *, is_chunked: bool) -> None:
        """Write the head of a response that ends with the connection.

        Raises ConnectionError if the peer has disconnected.
        """
        if self._phase != _SERVING:
            raise ConnectionResetError
        self._end_requests()
        self._adjust_reading()  # so that a disconnect is noticed
        connection = self._transport.get_extra_info("socket")
        if connection is not None:
            # Keep unsent data out of the kernel, so that newer data can replace it.
            with suppress(OSError):  # the peer has disconnected, unnoticed by the loop
                limit_send_buffer(connection)
        lines = [self._server.date_line, _CLOSE, *([_CHUNKED] if is_chunked else [])]
        self._transport.write(encode_head(status, headers, *lines))

    async def write(self, data: bytes | memoryview, *, send_s: float) -> None:
        """Write a part of a response, and wait until the send buffer is empty.

        Raises TimeoutError if it does not empty in time, ConnectionError after a disconnect.
        """
        if self._phase == _SERVING and not self._transport.is_closing():
            self._transport.write(data)
            if self._is_stalled:
                self._drain_waiter = self._server.loop.create_future()
                self.due_s = self.now_s() + send_s
                try:
                    await self._drain_waiter
                finally:
                    self._drain_waiter = None
                    self.due_s = inf
        if self._phase != _SERVING or self._transport.is_closing():
            raise TimeoutError if self._is_overdue else ConnectionResetError

    # Requests

    def _read(self, data: bytes) -> None:
        """Parse a head; serve the request once it is complete."""
        searched = len(self._held)
        if searched:
            data = self._held + data
            self._held = b""
        limits = self._server.limits
        try:
            size = head_size(data, searched, limits.head)
            if size:
                self._begin(read_head(data[:size], limits.head), data[size:])
                return
        except ScoreboardError as error:
            self._refuse(error, is_head=data.startswith(b"HEAD "))
            return
        self._held = data
        if self._phase == _IDLE:
            self._phase = _READING
            if self._is_used:
                self.due_s = self.now_s() + limits.head_s

    def _begin(self, head: Head, rest: bytes) -> None:
        """Serve a request; ``rest`` are the bytes after its head.

        Raises Malformed if the body is invalid.
        """
        length, limit = head.length, self._server.limits.body_bytes
        self._is_last = head.is_last
        self._body_error = None
        if 0 <= length <= len(rest) and length <= limit:
            self._body, rest = rest[:length], rest[length:]
        elif length > limit:
            rest = self._fail_body(BodyTooLarge(f"The body must not exceed {limit} bytes"))
        else:
            self._reader = ChunkReader(limit) if length == CHUNKED else LengthReader(length)
            self._is_continue_due = head.expects_continue
            if rest:
                rest = self._take_body(rest)
            if self._is_half_closed:
                self._note_end()
            if isinstance(self._body_error, Malformed):
                raise self._body_error
        self._phase = _SERVING
        self._server.mark_busy(self)
        self.due_s = inf
        self.task = self._server.loop.create_task(self._serve(Request(self, head)))
        if rest:
            self._hold(rest)
        self._adjust_reading()

    def _take_body(self, data: bytes) -> bytes:
        """Pass bytes to the body's reader; return those after the body."""
        reader = self._reader
        assert reader is not None  # noqa: S101 (the caller has checked)
        self._is_continue_due = False
        try:
            rest = reader.take(data)
        except ScoreboardError as error:
            return self._fail_body(error)
        if reader.is_complete:
            self._reader = None
            self._body = reader.body()
            _wake(self._body_waiter)
        return rest

    def _fail_body(self, error: ScoreboardError) -> bytes:
        """Fail the body with an error; return the bytes that can be read after it: none."""
        self._body_error = error
        self._end_requests()
        _wake(self._body_waiter)
        return b""

    def _note_end(self) -> None:
        """Note that the peer sends no more data."""
        if self._reader is not None:
            self._fail_body(Malformed("The body is incomplete"))
        _wake(self._disconnect_waiter)

    def _end_requests(self) -> None:
        """Stop reading requests from this connection."""
        self._reader = None
        self._held = b""
        self._is_last = True
        self._is_unread = True

    def _hold(self, data: bytes) -> None:
        """Keep bytes that follow the current request."""
        if self._is_last:
            self._discard(len(data))
        else:
            self._held += data

    def _discard(self, size: int) -> None:
        self._discarded += size
        self._is_unread = self._is_unread or size > 0
        if self._discarded > DISCARD_BYTES and self._phase == _LINGERING:
            self.abort()

    def _adjust_reading(self) -> None:
        """Pause reading while received bytes have to wait, resume it otherwise."""
        pauses = self._phase == _SERVING and (bool(self._held) or self._discarded > DISCARD_BYTES)
        if pauses is self._is_paused or self._is_half_closed:
            return
        self._is_paused = pauses
        if pauses:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    async def _serve(self, request: Request) -> None:
        """Answer one request, then continue with the next."""
        try:
            response = await self._server.handler(request)
            if response is not None:
                await self._respond(request.head, response)
        except Exception as error:  # noqa: BLE001 (entry point of a request)
            _log.error("request_aborted", exc_info=error)
            self.abort()
        finally:
            self.task = None
            self._server.request_ended(self)
        if self._phase == _SERVING:
            self._next()

    async def _respond(self, head: Head, response: HttpResponse) -> None:
        """Write a response; close the connection if the peer does not read it."""
        if self._reader is not None:
            # The rest of the body must not be parsed as the next request.
            self._end_requests()
        if self._server.is_draining:
            self._is_last = True
        written, body = self._encode(response, head)
        send_s = self._server.limits.send_s
        try:
            # A long body is not copied: many responses may share it.
            await self.write(written + body[:SLICE_BYTES], send_s=send_s)
            for start in range(SLICE_BYTES, len(body), SLICE_BYTES):
                await self.write(memoryview(body)[start : start + SLICE_BYTES], send_s=send_s)
        except (ConnectionError, TimeoutError):
            self.abort()

    def _encode(self, response: HttpResponse, head: Head | None = None) -> tuple[bytes, bytes]:
        """Return the encoded head and the body of a response.

        Without a request, as for an unreadable one, the connection ends.
        """
        lines = [self._server.date_line]
        if head is None or self._is_last:
            lines.append(_CLOSE)
        elif not head.minor:
            lines.append(_KEEP_ALIVE)
        if not has_body(response.status):
            return encode_head(response.status, response.headers, *lines), b""
        lines.append(b"content-length: %d\r\n" % len(response.body))
        written = encode_head(response.status, response.headers, *lines)
        return written, b"" if head is not None and head.method == "HEAD" else response.body

    def _next(self) -> None:
        """Parse the bytes after the answered request, or wait for the next request."""
        if self._is_last:
            self._finish()
            return
        self._phase = _IDLE
        self._is_used = True
        self._body = b""
        self._server.mark_idle(self)
        self.due_s = self.now_s() + self._server.limits.keep_alive_s
        if self._held:
            held, self._held = self._held, b""
            self._read(held)
        if self._is_half_closed and self._phase <= _READING:
            self._close()
        self._adjust_reading()

    # Closing

    def _refuse(self, error: ScoreboardError, *, is_head: bool = False) -> None:
        """Answer an unreadable request, or a connection over the limit, and stop reading."""
        self._end_requests()
        response = self._server.handler.refuse(error, self.peer[0])
        head, body = self._encode(response)
        self._transport.write(head if is_head else head + body)
        self._finish()

    def _finish(self) -> None:
        """Close after the last response, once the peer has had time to read it."""
        if not self._is_unread or self._is_half_closed:
            self._close()
            return
        self._phase = _LINGERING
        self._server.mark_lingering(self)
        self.due_s = self.now_s() + LINGER_S
        self._adjust_reading()
        try:
            self._transport.write_eof()
        except OSError:  # the peer has disconnected, unnoticed by the loop
            self.abort()

    def _close(self) -> None:
        self._unregister()
        self._transport.close()

    def _unregister(self) -> None:
        if self._phase != _CLOSED:
            self._phase = _CLOSED
            self._server.remove(self)


def _wake(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
