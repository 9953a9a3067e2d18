"""Health and metrics of one process on the operators' port: /health/live, /health/ready, /metrics.

Used by the streamer and the flusher. Answered on the loop that does the work, so that a live answer
means a live loop. One request a connection; never through the gateway. What stays true: heads,
times and connections are bounded, and silent connections keep no probe out.
"""

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, Self

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from scoreboard.errors import (
    HeadTooLarge,
    Malformed,
    MethodNotAllowed,
    NotFound,
    ScoreboardError,
    SettingInvalid,
)
from scoreboard.problems import MEDIA_TYPE, Headers, body_of, headers_of, status_of
from scoreboard.request_ids import HEADER, RequestIds
from scoreboard.telemetry import REGISTRY

REQUEST_S: Final = 5.0
"""Longest a caller may take to ask and to take the answer."""

HEAD_BYTES: Final = 8192
CONNECTIONS: Final = 32
"""At once, as probes are few; beyond, the oldest is closed."""

_JSON: Final = b"application/json"

State = Callable[[], tuple[bool, Mapping[str, Any]]]
"""Tells whether the process is ready, and the state of each thing that decides it."""


class OperatorPort:
    """The operators' port of one process; an async context manager while it listens."""

    def __init__(self, host: str, port: int, state: State, *, variables: str) -> None:
        """Take where to listen; port 0 listens nowhere. ``variables`` name host and port."""
        self._host = host
        self._port = port
        self._state = state
        self._variables = variables
        self._ids = RequestIds()
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.StreamWriter, None] = {}
        """Oldest first."""

    async def __aenter__(self) -> Self:
        """Listen.

        Raises SettingInvalid when the address cannot be had.
        """
        if self._port:
            try:
                self._server = await asyncio.start_server(
                    self._serve, self._host, self._port, limit=HEAD_BYTES
                )
            except OSError as error:
                raise SettingInvalid(
                    f"{self._variables}: cannot listen on {self._host}:{self._port}: "
                    f"{error.strerror}"
                ) from error
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Stop listening, and end what is open."""
        if self._server is not None:
            self._server.close()
        for writer in tuple(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = None
        if len(self._open) > CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
        try:
            async with asyncio.timeout(REQUEST_S):
                writer.write(await self._answer(reader))
                writer.write_eof()
                await writer.drain()
                await reader.read(
                    HEAD_BYTES
                )  # the caller closes; or its unread bytes would reset it
        except (OSError, RuntimeError, TimeoutError, asyncio.IncompleteReadError):
            writer.transport.abort()  # RuntimeError: uvloop's, for a write to a closed connection
        finally:
            self._open.pop(writer, None)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        is_head_only = False
        try:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError:
                raise HeadTooLarge(f"A head has at most {HEAD_BYTES} bytes") from None
            method, path = _request_line(head)
            is_head_only = method == b"HEAD"
            if method not in {b"GET", b"HEAD"}:
                raise MethodNotAllowed("Use GET or HEAD", allow="GET, HEAD")
            status, kind, body = self._respond(path)
            headers: Headers = [(b"cache-control", b"no-store")]
            request_id = self._ids.choose()
        except ScoreboardError as error:
            request_id = self._ids.choose()
            status, kind = status_of(type(error)), MEDIA_TYPE.encode()
            headers, body = headers_of(error), body_of(error, request_id)
        fields = [
            (b"content-type", kind),
            (b"content-length", b"%d" % len(body)),
            (HEADER.lower().encode(), request_id.encode()),
            *headers,
            (b"connection", b"close"),
        ]
        lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
        lines += [b"%s: %s" % field for field in fields]
        return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if is_head_only else body)

    def _respond(self, path: bytes) -> tuple[int, bytes, bytes]:
        match path:
            case b"/metrics":
                return 200, CONTENT_TYPE_LATEST.encode(), generate_latest(REGISTRY)
            case b"/health/live":
                return 200, _JSON, msgspec.json.encode({"status": "live"})
            case b"/health/ready":
                is_ready, facts = self._state()
                body = {"status": "ready" if is_ready else "not ready", **facts}
                return 200 if is_ready else 503, _JSON, msgspec.json.encode(body)
            case _:
                raise NotFound("There is /health/live, /health/ready and /metrics")


def _request_line(head: bytes) -> tuple[bytes, bytes]:
    """Give method and path of a request."""
    words = head.partition(b"\r\n")[0].split(b" ")
    if len(words) != 3 or words[2] not in {b"HTTP/1.1", b"HTTP/1.0"}:
        raise Malformed("A request line is a method, a target and HTTP/1.1")
    return words[0], words[1].partition(b"?")[0]
