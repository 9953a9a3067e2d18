"""A request as handlers get it, and its two kinds of response: an HttpResponse or a stream."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from math import inf
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from scoreboard.errors import ScoreboardError
from scoreboard.http.head import Head
from scoreboard.http.problems import Headers
from scoreboard.http.response import HttpResponse

if TYPE_CHECKING:
    from scoreboard.http.connection import Connection

_LAST_CHUNK: Final = b"0\r\n\r\n"


class Handler(Protocol):
    """The application behind a server."""

    def __call__(self, request: "Request") -> Awaitable[HttpResponse | None]:
        """Answer a request; return None if it was answered by a stream."""
        ...

    def refuse(self, error: ScoreboardError, peer: str) -> HttpResponse:
        """Return the response to an unreadable request or to a connection over the limit."""
        ...


class Request:
    """One request. The server has read its head; ``read_body`` reads the body."""

    __slots__ = ("_connection", "body_wait", "head", "id", "state")

    def __init__(self, connection: "Connection", head: Head) -> None:
        self._connection = connection
        self.head = head
        self.id = ""
        """Identifies the request in logs and responses; set by the handler."""
        self.state: dict[str, Any] = {}
        """What the handlers know about the request, for its log lines."""
        self.body_wait: Callable[[], AbstractContextManager[None]] = nullcontext
        """Makes the context in which an incomplete body is awaited; the handler may set it."""

    @property
    def peer(self) -> tuple[str, int]:
        """Address and port of the peer."""
        return self._connection.peer

    @property
    def local(self) -> tuple[str, int]:
        """Local address and port."""
        return self._connection.local

    async def wait_disconnected(self) -> None:
        """Wait until the peer has disconnected or closed its sending half."""
        await self._connection.wait_disconnected()

    async def read_body(self) -> bytes:
        """Return the whole body.

        Raises BodyTooLarge, and Malformed for a body that is invalid or does not arrive in time.
        """
        if self._connection.has_body:
            return await self._connection.read_body()
        with self.body_wait():
            return await self._connection.read_body()

    def time_limit(self, seconds: float) -> "TimeLimit":
        """Limit the time of a ``with`` block, which raises TimeoutError at the limit."""
        return TimeLimit(self._connection, seconds)

    def start_stream(self, status: int, headers: Headers, *, send_s: float) -> "Stream":
        """Start a response that ends with the connection; ``send_s`` limits each write."""
        is_chunked = bool(self.head.minor)
        self._connection.start_stream(status, headers, is_chunked=is_chunked)
        return Stream(self._connection, is_chunked=is_chunked, send_s=send_s)


class Stream:
    """A response that is written in parts."""

    __slots__ = ("_connection", "_is_chunked", "_send_s")

    def __init__(self, connection: "Connection", *, is_chunked: bool, send_s: float) -> None:
        self._connection = connection
        self._is_chunked = is_chunked
        self._send_s = send_s

    async def write(self, data: bytes) -> None:
        """Write a part and wait until it has left the process.

        Raises TimeoutError if the peer did not read it in time (the connection is aborted), and
        ConnectionError if the peer has disconnected.
        """
        if self._is_chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        await self._connection.write(data, send_s=self._send_s)

    async def end(self) -> None:
        """End the response."""
        if self._is_chunked:
            await self._connection.write(_LAST_CHUNK, send_s=self._send_s)


class TimeLimit:
    """A time limit on a part of a handler, enforced by the server's sweep.

    Unlike ``asyncio.timeout``, it needs no timer; it is accurate to one tick of the sweep.
    """

    __slots__ = ("_connection", "_is_late", "_seconds", "_task", "due_s")

    def __init__(self, connection: "Connection", seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None
        self._is_late = False
        self.due_s = inf

    def __enter__(self) -> Self:
        connection = self._connection
        self._task = connection.task
        self.due_s = connection.now_s() + self._seconds
        connection.limit = self
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._connection.limit = None
        # Like asyncio.timeout: our own cancellation becomes TimeoutError, others propagate.
        task = self._task
        is_ours = self._is_late and kind is asyncio.CancelledError
        if is_ours and task is not None and task.uncancel() == 0:
            raise TimeoutError

    def expire(self) -> None:
        """Cancel the handler."""
        self.due_s = inf
        self._is_late = True
        if self._task is not None:
            self._task.cancel()
