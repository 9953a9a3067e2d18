"""Health and metrics of one process on the operators' port: /health/live, /health/ready, /metrics.

The port is not reachable through the gateway. It is served on the process's event loop, so a live
response means that the loop runs, and by scoreboard.http, so request heads, times and connections
are bounded, and idle connections cannot block probes.
"""

import asyncio
import inspect
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final, Self

from prometheus_client import CollectorRegistry, generate_latest

from scoreboard.errors import MethodNotAllowed, NotFound, ScoreboardError
from scoreboard.http import probes
from scoreboard.http.request import Request
from scoreboard.http.request_ids import HEADER, RequestIds
from scoreboard.http.response import HttpResponse, error_response
from scoreboard.http.server import Server, ServerLimits
from scoreboard.runtime.limits import HeadLimits
from scoreboard.runtime.sockets import bind_listener
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
"""Probes are few; for one more connection, the longest idle one is closed."""

Facts = tuple[bool, Mapping[str, Any]]
State = Callable[[], Facts | Awaitable[Facts]]
"""Returns whether the process is ready, and the facts that decide it."""


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
        """Take a bound socket; None serves nothing. Without ``state`` there is no /health/ready.

        A ``registry`` that is slow to collect is collected in a thread.
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
        """Stop serving immediately."""
        await self._stack.aclose()

    async def __call__(self, request: Request) -> HttpResponse:
        """Answer one request."""
        request.id = self._ids.of(request.head.headers)
        try:
            response = await self._respond(request)
        except ScoreboardError as error:
            response = error_response(error, request.id)
        response.headers.append((HEADER, request.id.encode()))
        return response

    def refuse(self, error: ScoreboardError, peer: str) -> HttpResponse:  # noqa: ARG002 (the server's)
        """Return the response to an unreadable request or to a connection over the limit."""
        request_id = self._ids.new()
        response = error_response(error, request_id)
        response.headers.append((HEADER, request_id.encode()))
        return response

    async def _respond(self, request: Request) -> HttpResponse:
        if request.head.method not in {"GET", "HEAD"}:
            raise MethodNotAllowed("Use GET or HEAD", allow="GET, HEAD")
        match request.head.path:
            case "/metrics":
                return probes.metrics(await self._metrics())
            case "/health/live":
                return probes.liveness()
            case "/health/ready" if self._state is not None:
                found = self._state()
                is_ready, facts = await found if inspect.isawaitable(found) else found
                return probes.readiness(is_ready=is_ready, facts=facts)
            case _:
                raise NotFound("This port serves /health/live, /health/ready and /metrics")

    async def _metrics(self) -> bytes:
        if self._is_slow:
            return await asyncio.to_thread(generate_latest, self._registry)
        return generate_latest(self._registry)


def bind_operators(host: str, port: int, *, variables: str) -> socket.socket | None:
    """Bind an operators' port; return None for port 0.

    Raises SettingInvalid, naming ``variables``, if the address cannot be bound.
    """
    return bind_listener(host, port, variables=variables) if port else None
