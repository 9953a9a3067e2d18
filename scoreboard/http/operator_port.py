"""Health and metrics of one process on the operators' port: /health/live, /health/ready, /metrics.

Used by every service; never through the gateway. It is served on the loop that does the work, so
that a live answer means a live loop, and by scoreboard.http, so that heads, times and connections
are bounded, and silent connections keep no probe out.
"""

import asyncio
import socket
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final, Self

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from scoreboard.errors import MethodNotAllowed, NotFound, ScoreboardError, SettingInvalid
from scoreboard.http.request import Request
from scoreboard.http.request_ids import HEADER, RequestIds
from scoreboard.http.response import NOSNIFF, HttpResponse, error_response
from scoreboard.http.server import Server, ServerLimits
from scoreboard.runtime.limits import HeadLimits
from scoreboard.runtime.sockets import bind
from scoreboard.runtime.telemetry import REGISTRY

LIMITS: Final = ServerLimits(
    head=HeadLimits(head_bytes=8192),
    body_bytes=0,
    head_s=5.0,
    body_s=5.0,
    keep_alive_s=5.0,
    send_s=5.0,
    connections=32,
    connections_per_address=32,
)
"""Probes are few; beyond these connections the longest idle one is closed."""

_JSON: Final = b"application/json"

State = Callable[[], tuple[bool, Mapping[str, Any]]]
"""Tells whether the process is ready, and the state of each thing that decides it."""


class OperatorPort:
    """The operators' port of one process; an async context manager while it is served."""

    def __init__(
        self,
        listener: socket.socket | None,
        state: State | None = None,
        *,
        registry: CollectorRegistry = REGISTRY,
        is_slow: bool = False,
    ) -> None:
        """Take a bound socket; None serves nothing. Without ``state`` readiness is told elsewhere.

        Metrics of a ``registry`` that is slow to collect are collected in a thread.
        """
        self._listener = listener
        self._state = state
        self._registry = registry
        self._is_slow = is_slow
        self._ids = RequestIds()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Serve."""
        if self._listener is not None:
            server = Server(self, LIMITS)
            await self._stack.enter_async_context(server.listening(self._listener))
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Stop serving, at once."""
        await self._stack.aclose()

    async def __call__(self, request: Request) -> HttpResponse:
        """Answer one request."""
        request.id = self._ids.of(request.head.headers)
        try:
            answer = await self._respond(request)
        except ScoreboardError as error:
            answer = error_response(error, request.id)
        answer.headers.append((HEADER, request.id.encode()))
        return answer

    def refuse(self, error: ScoreboardError, peer: str) -> HttpResponse:  # noqa: ARG002 (the server's)
        """Return the answer to what the server could not read, or has no place for."""
        request_id = self._ids.new()
        answer = error_response(error, request_id)
        answer.headers.append((HEADER, request_id.encode()))
        return answer

    async def _respond(self, request: Request) -> HttpResponse:
        if request.head.method not in {"GET", "HEAD"}:
            raise MethodNotAllowed("Use GET or HEAD", allow="GET, HEAD")
        match request.head.path:
            case "/metrics":
                return _answer(200, CONTENT_TYPE_LATEST.encode(), await self._metrics())
            case "/health/live":
                return _answer(200, _JSON, msgspec.json.encode({"status": "live"}))
            case "/health/ready" if self._state is not None:
                is_ready, facts = self._state()
                body = {"status": "ready" if is_ready else "not ready", **facts}
                return _answer(200 if is_ready else 503, _JSON, msgspec.json.encode(body))
            case _:
                raise NotFound("There is /health/live, /health/ready and /metrics")

    async def _metrics(self) -> bytes:
        if self._is_slow:
            return await asyncio.to_thread(generate_latest, self._registry)
        return generate_latest(self._registry)


def bind_operators(host: str, port: int, *, variables: str) -> socket.socket | None:
    """Take the address of an operators' port; None for port 0.

    Raises SettingInvalid, naming its ``variables``, where it cannot be had.
    """
    if not port:
        return None
    try:
        return bind(host, port)
    except OSError as error:
        raise SettingInvalid(
            f"{variables}: cannot listen on {host}:{port}: {error.strerror}"
        ) from error


def _answer(status: int, kind: bytes, body: bytes) -> HttpResponse:
    headers = [(b"content-type", kind), (b"cache-control", b"no-store"), NOSNIFF]
    return HttpResponse(status, headers, body)
