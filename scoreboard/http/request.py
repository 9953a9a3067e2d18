"""What a handler gets of a request, and its two ways to answer: a whole Answer, or a stream."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from math import inf
from typing import TYPE_CHECKING, Final, Protocol, Self

from scoreboard.errors import ScoreboardError
from scoreboard.http.head import Head
from scoreboard.http.response import Fields, HttpResponse

if TYPE_CHECKING:
    from scoreboard.http.connection import Connection

_LAST_CHUNK: Final = b"0\r\n\r\n"


class Handler(Protocol):
    """The application behind a server."""

    def __call__(self, request: "Request") -> Awaitable[HttpResponse | None]:
        """Answer a request; None where it was answered by a stream."""
        ...

    def refuse(self, error: ScoreboardError, peer: str) -> HttpResponse:
        """Return the answer to what the server does not serve: it could not be read, or held."""
        ...


class Request:
    """One request. The server has read its head; the body comes when it is asked for."""

    __slots__ = ("_connection", "awaiting", "head", "id")

    def __init__(self, connection: "Connection", head: Head) -> None:
        self._connection = connection
        self.head = head
        self.id = ""
        """Names the request in logs and answers; the handler sets it."""
        self.awaiting: Callable[[], AbstractContextManager[None]] = nullcontext
        """Made around the wait for a body that has not come whole; the handler may set it."""

    @property
    def peer(self) -> tuple[str, int]:
        """Address and port of the other end."""
        return self._connection.peer

    @property
    def local(self) -> tuple[str, int]:
        """Address and port of this end."""
        return self._connection.local

    async def wait_disconnected(self) -> None:
        """Wait until the peer has closed its side."""
        await self._connection.wait_disconnected()

    async def read_body(self) -> bytes:
        """Return the whole body.

        Raises BodyTooLarge, and Malformed for a body that cannot be read or does not come in time.
        """
        if self._connection.has_body:
            return await self._connection.read_body()
        with self.awaiting():
            return await self._connection.read_body()

    def within(self, seconds: float) -> "TimeLimit":
        """Limit what the handler does in a ``with``, which raises TimeoutError when it is late."""
        return TimeLimit(self._connection, seconds)

    def start_stream(self, status: int, headers: Fields, *, send_s: float) -> "Stream":
        """Begin an answer that ends with the connection; each write must be taken in ``send_s``."""
        is_chunked = bool(self.head.minor)
        self._connection.start_stream(status, headers, is_chunked=is_chunked)
        return Stream(self._connection, is_chunked=is_chunked, send_s=send_s)


class Stream:
    """An answer whose parts are written as they come."""

    __slots__ = ("_connection", "_is_chunked", "_send_s")

    def __init__(self, connection: "Connection", *, is_chunked: bool, send_s: float) -> None:
        self._connection = connection
        self._is_chunked = is_chunked
        self._send_s = send_s

    async def write(self, data: bytes) -> None:
        """Write a part and wait until nothing of it is left here.

        Raises TimeoutError where the peer did not take it in time (the connection is aborted), and
        ConnectionError where the peer is gone.
        """
        if self._is_chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        await self._connection.write(data, send_s=self._send_s)

    async def end(self) -> None:
        """Say that this was all."""
        if self._is_chunked:
            await self._connection.write(_LAST_CHUNK, send_s=self._send_s)


class TimeLimit:
    """A limit on a part of a handler; the server's sweep enforces it.

    It costs no timer, unlike ``asyncio.timeout``, and is kept to within the sweep's tick.
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
        # As asyncio.timeout does: our own cancellation becomes an error, others' stay.
        is_cut = self._is_late and kind is asyncio.CancelledError and self._task is not None
        if is_cut and self._task is not None and self._task.uncancel() == 0:
            raise TimeoutError

    def expire(self) -> None:
        """Cancel the handler."""
        self.due_s = inf
        self._is_late = True
        if self._task is not None:
            self._task.cancel()
