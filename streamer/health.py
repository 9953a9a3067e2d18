"""Health and metrics on the operators' port: /health/live, /health/ready, /metrics.

Answered on the loop that serves the viewers, so that a live answer means a live loop. A few lines
of HTTP/1.1, one request a connection; never through the gateway.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, Self

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from scoreboard.errors import SettingInvalid
from scoreboard.telemetry import REGISTRY

REQUEST_TIMEOUT_S: Final = 5.0
HEAD_BYTES: Final = 8192
CONNECTIONS: Final = 32
"""More at once are closed unanswered: probes are few."""

Answer = tuple[int, str, bytes]
State = Callable[[], tuple[bool, Mapping[str, str]]]
"""Tells whether the process is ready, and the state of each thing that decides it."""


class Health:
    """The operators' port of one process; an async context manager while it listens."""

    def __init__(self, host: str, port: int, state: State) -> None:
        """Take where to listen; port 0 listens nowhere."""
        self._host = host
        self._port = port
        self._state = state
        self._server: asyncio.Server | None = None
        self._open = 0

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
                    "SCOREBOARD_METRICS_HOST, SCOREBOARD_WS_METRICS_PORT: cannot listen on "
                    f"{self._host}:{self._port}: {error.strerror}"
                ) from error
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Stop listening; requests under way end by their own time-out."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open > CONNECTIONS:
                return
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                status, kind, body = self._answer(head)
                writer.write(
                    f"HTTP/1.1 {status} {_PHRASES[status]}\r\nContent-Type: {kind}\r\n"
                    f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\n"
                    "Connection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open -= 1
            writer.close()

    def _answer(self, head: bytes) -> Answer:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method != b"GET":
            return 405, "text/plain", b"GET only\n"
        if path == b"/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(REGISTRY)
        if path == b"/health/live":
            return 200, "application/json", msgspec.json.encode({"status": "live"})
        if path == b"/health/ready":
            is_ready, parts = self._state()
            body = {"status": "ready" if is_ready else "not ready", **parts}
            return 200 if is_ready else 503, "application/json", msgspec.json.encode(body)
        return 404, "text/plain", b"/health/live, /health/ready, /metrics\n"


_PHRASES: Final = {
    200: "OK",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}
