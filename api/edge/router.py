"""Routes requests, with their id, limits, metrics and access log: the handler of the server.

Invariants: no more requests are in flight than the settings allow, and one that waits for its body
is not counted; every request ends in time, with a response; no token and no body is logged.
"""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

import structlog

from api import metrics
from api.edge.access_log import AccessLog, trace_of
from api.edge.cors import Cors
from api.edge.request_tracing import RequestTracing
from scoreboard.errors import (
    InternalError,
    OutcomeUnknown,
    Overloaded,
    ScoreboardError,
    Unavailable,
)
from scoreboard.http.asgi import AsgiApp, build_scope, call_app
from scoreboard.http.problems import status_of
from scoreboard.http.request import Request
from scoreboard.http.request_ids import HEADER, RequestIds
from scoreboard.http.response import NOSNIFF, HttpResponse, error_response
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger

StreamResponder = Callable[[], Awaitable[None]]
"""Writes a stream, outside the limits of a request; returned by the handler that admits it."""

RouteHandler = Callable[[Request], Awaitable[HttpResponse | StreamResponder | None]]
"""Answers a request; None leaves it to the framework."""

_log = get_logger(__name__)


class Router:
    """Serves ``routes`` itself and leaves every other request to the framework's application."""

    def __init__(
        self,
        settings: Settings,
        framework: AsgiApp,
        routes: Mapping[tuple[str, str], RouteHandler],
        tracing: RequestTracing | None = None,
    ) -> None:
        """``routes`` maps method and path to handlers without the framework.

        The last segment of a path may be a parameter, such as ``{user_id}``.
        """
        self._tracing = tracing
        self._cors = Cors(settings)
        self._framework = framework
        self._routes = routes
        self._templates = {
            path.rpartition("/")[0]: path for _, path in routes if path.endswith("}")
        }
        self._max_in_flight = settings.requests_in_flight
        self._timeout_s = settings.request_timeout_s
        self._in_flight = 0
        self._waiting = 0
        metrics.IN_PROGRESS.set_function(lambda: self._in_flight)
        self._ids = RequestIds()
        self._access_log = AccessLog(settings)

    @property
    def in_flight(self) -> int:
        """The number of requests being answered."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """The number of requests that wait for the rest of their body."""
        return self._waiting

    async def __call__(self, request: Request) -> HttpResponse | None:
        """Answer one request; return None if it was answered by a stream."""
        started_s = time.perf_counter()
        head = request.head
        request.id = self._ids.of(head.headers)
        request.body_wait = self._waiting_for_body
        span = None if self._tracing is None else self._tracing.begin(request)
        status, route = 500, head.path
        handler = self._routes.get((head.method, route))
        if handler is None:
            handler, route = self._find_template(head.method, route)
        known: ScoreboardError | None = None
        self._in_flight += 1
        try:
            with request.time_limit(self._timeout_s):
                if self._in_flight > self._max_in_flight and not head.path.startswith("/health/"):
                    raise Overloaded  # noqa: TRY301 (all errors are answered below)
                response = None if handler is None else await handler(request)
                if response is None:
                    response = self._cors.preflight(head)
                if response is None:
                    response, route = await self._call_framework(request)
            known = request.state.get("error")
            status = response.status if isinstance(response, HttpResponse) else 200
        except Exception as error:  # noqa: BLE001 (entry point of a request)
            known = _as_scoreboard_error(error, request)
            status = status_of(type(known))
            response = error_response(known, request.id)
        finally:
            self._in_flight -= 1
            seconds = time.perf_counter() - started_s
            metrics.observe(head.method, route, status, seconds)
            if self._tracing is not None and span is not None:
                code = "" if known is None else known.code
                self._tracing.end(span, request, route, status, code)
            self._access_log.write(
                request, route=route, status=status, seconds=seconds, error=known
            )
        if not isinstance(response, HttpResponse):
            await response()
            return None
        response.headers.append((HEADER, request.id.encode()))
        response.headers.extend(self._cors.headers(head))
        return response

    def refuse(self, error: ScoreboardError, peer: str) -> HttpResponse:
        """Return the response to an unreadable request or to a connection over the limit."""
        request_id = self._ids.new()
        response = error_response(error, request_id)
        response.headers.append((HEADER, request_id.encode()))
        metrics.observe("", metrics.UNMATCHED, response.status, 0.0)
        self._access_log.write_refused(error, peer, request_id, response.status)
        return response

    @contextmanager
    def _waiting_for_body(self) -> Iterator[None]:
        """Do not count the request as in flight while its body arrives: it may be sent slowly.

        Raises Overloaded if the limit is reached afterwards.
        """
        self._in_flight -= 1
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self._in_flight += 1
        if self._in_flight > self._max_in_flight:
            raise Overloaded

    def _find_template(self, method: str, path: str) -> tuple[RouteHandler | None, str]:
        """Return the handler of a path whose last segment is a parameter, and its route."""
        parent, _, value = path.rpartition("/")
        route = self._templates.get(parent, metrics.UNMATCHED) if value else metrics.UNMATCHED
        handler = self._routes.get((method, route))
        return handler, metrics.UNMATCHED if handler is None else route

    async def _call_framework(self, request: Request) -> tuple[HttpResponse, str]:
        """Return the framework's response and the route; an error is in the request's state."""
        scope = build_scope(request)
        scope["state"]["request_id"] = request.id
        trace = trace_of(request)
        bound = {} if trace is None else {"trace": trace}
        with structlog.contextvars.bound_contextvars(request_id=request.id, **bound):
            response = await call_app(self._framework, scope, request)
        if not any(name == NOSNIFF[0] for name, _ in response.headers):
            response.headers.append(NOSNIFF)
        route = str(scope.get("path_template") or metrics.UNMATCHED)
        return response, route


def _as_scoreboard_error(error: Exception, request: Request) -> ScoreboardError:
    """Return the error to answer with; log an unexpected one."""
    if isinstance(error, ScoreboardError):
        return error
    if isinstance(error, TimeoutError):
        is_update = request.head.method == "POST"
        return OutcomeUnknown() if is_update else Unavailable("It took too long")
    _log.error("request_failed", request_id=request.id, trace=trace_of(request), exc_info=error)
    return InternalError()
