"""One client's connection: requests are read one at a time, and each is answered before the next.

Made by scoreboard.http.server. What stays true:

- nothing is read ahead: what comes behind a request waits until it is answered, and reading pauses;
- every wait on the peer has a limit, which the server's sweep enforces (``overdue``);
- behind a request that could not be read, or whose body was not read to its end, nothing is read;
- what was received whole before the peer closed its sending half is answered (RFC 9112, 9.6).
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
"""A peer that is still sending has this long to read its answer; a close would reset it away."""

DISCARD_BYTES: Final = 65_536
"""Most bytes that are read only to be thrown away."""

SLICE_BYTES: Final = 65_536
"""So much of a long answer is written at once; each slice must be taken within the limit."""

FAREWELL_S: Final = 1.0
"""Time for a request that has begun to come, or for the first one, once the server drains."""

_WAITING: Final = 0
"""Nothing of a request has come."""

_READING: Final = 1
"""A part of a head has come."""

_SERVING: Final = 2
_LINGERING: Final = 3
"""The last answer is written; what still comes is thrown away."""

_GONE: Final = 4

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE: Final = b"connection: close\r\n"
_KEEP_ALIVE: Final = b"connection: keep-alive\r\n"
_CHUNKED: Final = b"transfer-encoding: chunked\r\n"

_log = get_logger(__name__)


class Connection(asyncio.Protocol):
    """One connection, from its acceptance to its end."""

    __slots__ = (
        "_body",
        "_body_error",
        "_body_waiter",
        "_discarded",
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
        "_leave_waiter",
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
        self._phase = _WAITING
        self.now_s = server.now_s
        self.peer = ("", 0)
        self.address: Address | None = None
        """By what the server counts this connection; None where it counts in total only."""
        self.due_s = inf
        """When the peer is overdue."""
        self.limit: TimeLimit | None = None
        self.task: asyncio.Task[None] | None = None
        """Serves the request under way."""
        self._held = b""
        """Received, and not read yet."""
        self._reader: LengthReader | ChunkReader | None = None
        """Of the body under way, until it is complete."""
        self._body = b""
        self._body_error: ScoreboardError | None = None
        self._body_waiter: asyncio.Future[None] | None = None
        self._drain_waiter: asyncio.Future[None] | None = None
        self._leave_waiter: asyncio.Future[None] | None = None
        self._discarded = 0
        self._is_continue_due = False
        self._is_half_closed = False
        self._is_last = False
        """Whether the connection ends with the answer under way."""
        self._is_overdue = False
        self._is_paused = False
        self._is_stalled = False
        self._is_unread = False
        """Whether the peer sent, or may be sending, what is not read."""
        self._is_used = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Enter the server, or be refused."""
        self._transport = cast("asyncio.Transport", transport)
        # So pause_writing() tells at once that the kernel did not take everything.
        self._transport.set_write_buffer_limits(high=0)
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.peer = peer[:2]
        refusal = self._server.enter(self)
        if refusal is None:
            self.due_s = self.now_s() + self._server.limits.head_s
        else:
            self._refuse(refusal)

    def data_received(self, data: bytes) -> None:
        """Read what the peer sent, as far as it is its turn."""
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
        """Go on while something is to be answered: a peer may close its sending half alone."""
        self._is_half_closed = True
        if self._phase != _SERVING:
            return False
        self._note_end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's name)
        """Leave the server, and wake whoever waits for the peer."""
        self._leave()
        self._note_end()
        _wake(self._drain_waiter)

    def pause_writing(self) -> None:
        """Note that the peer has not taken everything."""
        self._is_stalled = True

    def resume_writing(self) -> None:
        """Note that the peer has taken everything."""
        self._is_stalled = False
        _wake(self._drain_waiter)

    # For the server

    def overdue(self) -> None:
        """End the wait whose limit has passed."""
        if self._body_waiter is not None:
            limit_s = self._server.limits.body_s
            self._fail_body(Malformed(f"The body did not arrive within {limit_s:g} s"))
            return
        self._is_overdue = True
        self.abort()

    def retire(self) -> None:
        """End soon: the server drains, and there is no request under way."""
        if self._phase == _WAITING and self._is_used:
            self._close()
        else:
            self.due_s = min(self.due_s, self.now_s() + FAREWELL_S)

    def abort(self) -> None:
        """End at once, whatever is under way."""
        self._leave()
        self._transport.abort()

    # For the handler, by scoreboard.http.request

    @property
    def local(self) -> tuple[str, int]:
        """Address and port of this end."""
        name = self._transport.get_extra_info("sockname")
        return name[:2] if isinstance(name, tuple) else ("", 0)

    async def wait_disconnected(self) -> None:
        """Wait until the peer has closed its side."""
        if self._phase == _SERVING and not self._is_half_closed:
            self._leave_waiter = self._server.loop.create_future()
            await self._leave_waiter

    @property
    def has_body(self) -> bool:
        """Tell whether the body of the request under way is there, or will not come."""
        return self._reader is None

    async def read_body(self) -> bytes:
        """Return the body of the request under way.

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
        """Write the head of an answer that ends with the connection.

        Raises ConnectionError where the peer is gone.
        """
        if self._phase != _SERVING:
            raise ConnectionResetError
        self._end_requests()
        self._adjust_reading()  # so that the peer's leaving is noticed
        connection = self._transport.get_extra_info("socket")
        if connection is not None:
            # What is not sent stays here, where something newer can take its place.
            with suppress(OSError):  # the peer has gone, and the loop has not noticed yet
                limit_send_buffer(connection)
        lines = [self._server.date_line, _CLOSE, *([_CHUNKED] if is_chunked else [])]
        self._transport.write(encode_head(status, headers, *lines))

    async def write(self, data: bytes | memoryview, *, send_s: float) -> None:
        """Write a part of an answer, and wait until the peer has taken everything.

        Raises TimeoutError where it did not in time, ConnectionError where it is gone.
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

    # Requests, one after the other

    def _read(self, data: bytes) -> None:
        """Read on in a head; serve the request when it is complete."""
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
        if self._phase == _WAITING:
            self._phase = _READING
            if self._is_used:
                self.due_s = self.now_s() + limits.head_s

    def _begin(self, head: Head, rest: bytes) -> None:
        """Serve a request; ``rest`` came behind its head.

        Raises Malformed where the body cannot be read.
        """
        length, limit = head.length, self._server.limits.body_bytes
        self._is_last = head.is_last
        self._body_error = None
        if 0 <= length <= len(rest) and length <= limit:
            self._body, rest = rest[:length], rest[length:]
        elif length > limit:
            rest = self._fail_body(BodyTooLarge(f"A body has at most {limit} bytes"))
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
        self._server.begin(self)
        self.due_s = inf
        self.task = self._server.loop.create_task(self._serve(Request(self, head)))
        if rest:
            self._hold(rest)
        self._adjust_reading()

    def _take_body(self, data: bytes) -> bytes:
        """Give what came to the body's reader; return what lies behind the body."""
        reader = self._reader
        assert reader is not None  # noqa: S101 (the caller has looked)
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
        """Tell the handler why there is no body; return what can be read behind it: nothing."""
        self._body_error = error
        self._end_requests()
        _wake(self._body_waiter)
        return b""

    def _note_end(self) -> None:
        """Note that the peer sends no more."""
        if self._reader is not None:
            self._fail_body(Malformed("The body ended before it was complete"))
        _wake(self._leave_waiter)

    def _end_requests(self) -> None:
        """Read no further request from this connection."""
        self._reader = None
        self._held = b""
        self._is_last = True
        self._is_unread = True

    def _hold(self, data: bytes) -> None:
        """Keep what came behind the request under way."""
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
        """Read, unless what was read already has to wait."""
        pauses = self._phase == _SERVING and (bool(self._held) or self._discarded > DISCARD_BYTES)
        if pauses is self._is_paused or self._is_half_closed:
            return
        self._is_paused = pauses
        if pauses:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    async def _serve(self, request: Request) -> None:
        """Answer one request, and turn to the next."""
        try:
            answer = await self._server.handler(request)
            if answer is not None:
                await self._answer(request.head, answer)
        except Exception as error:  # noqa: BLE001 (a request's entry)
            _log.error("request_aborted", exc_info=error)
            self.abort()
        finally:
            self.task = None
            self._server.end(self)
        if self._phase == _SERVING:
            self._next()

    async def _answer(self, head: Head, answer: HttpResponse) -> None:
        """Write an answer; end the connection where the peer does not take it."""
        if self._reader is not None:
            # What is missing of the body must not be taken for the next request.
            self._end_requests()
        if self._server.is_draining:
            self._is_last = True
        written, body = self._encode(answer, head)
        send_s = self._server.limits.send_s
        try:
            # A long body is not copied: its bytes may be those of many answers.
            await self.write(written + body[:SLICE_BYTES], send_s=send_s)
            for start in range(SLICE_BYTES, len(body), SLICE_BYTES):
                await self.write(memoryview(body)[start : start + SLICE_BYTES], send_s=send_s)
        except (ConnectionError, TimeoutError):
            self.abort()

    def _encode(self, answer: HttpResponse, head: Head | None = None) -> tuple[bytes, bytes]:
        """Return head and body of an answer to a request, or to what was none.

        In the second case the connection ends.
        """
        lines = [self._server.date_line]
        if head is None or self._is_last:
            lines.append(_CLOSE)
        elif not head.minor:
            lines.append(_KEEP_ALIVE)
        if not has_body(answer.status):
            return encode_head(answer.status, answer.headers, *lines), b""
        lines.append(b"content-length: %d\r\n" % len(answer.body))
        written = encode_head(answer.status, answer.headers, *lines)
        return written, b"" if head is not None and head.method == "HEAD" else answer.body

    def _next(self) -> None:
        """Read what came behind the request that was answered, or wait for the next."""
        if self._is_last:
            self._finish()
            return
        self._phase = _WAITING
        self._is_used = True
        self._body = b""
        self._server.wait(self)
        self.due_s = self.now_s() + self._server.limits.keep_alive_s
        if self._held:
            held, self._held = self._held, b""
            self._read(held)
        if self._is_half_closed and self._phase <= _READING:
            self._close()
        self._adjust_reading()

    # Ends

    def _refuse(self, error: ScoreboardError, *, is_head: bool = False) -> None:
        """Answer what could not be read, or held; nothing is read behind it."""
        self._end_requests()
        answer = self._server.handler.refuse(error, self.peer[0])
        head, body = self._encode(answer)
        self._transport.write(head if is_head else head + body)
        self._finish()

    def _finish(self) -> None:
        """End behind the last answer, once the peer has had time to read it."""
        if not self._is_unread or self._is_half_closed:
            self._close()
            return
        self._phase = _LINGERING
        self._server.linger(self)
        self.due_s = self.now_s() + LINGER_S
        self._adjust_reading()
        try:
            self._transport.write_eof()
        except OSError:  # the peer has gone, and the loop has not noticed yet
            self.abort()

    def _close(self) -> None:
        self._leave()
        self._transport.close()

    def _leave(self) -> None:
        if self._phase != _GONE:
            self._phase = _GONE
            self._server.leave(self)


def _wake(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
