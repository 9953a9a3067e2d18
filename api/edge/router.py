"""Around every request: its id, its limits, its metrics, its line in the log.

The handler behind the server (scoreboard.http). What stays true: the gateway's request id wins,
and an id from outside is taken only in a safe form; no more requests are under way than the
settings allow, and one whose body is still coming takes no place; every request ends in time and in
an answer; no token and no body reaches a log.
"""

import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import structlog

from api import metrics
from scoreboard.errors import (
    InternalError,
    OutcomeUnknown,
    Overloaded,
    ScoreboardError,
    Unavailable,
)
from scoreboard.http.asgi import AsgiApp, ask, build_scope
from scoreboard.http.problems import status_of
from scoreboard.http.request import Request
from scoreboard.http.request_ids import HEADER, RequestIds
from scoreboard.http.response import NOSNIFF, HttpResponse, error_response
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger

LOGGED_SHARE: Final = 0.01
"""Share of good answers that get a line in the log; all others do."""

StreamResponder = Callable[[], Awaitable[None]]
"""What a handler returns that was granted a stream: it runs beyond the limits of a request."""

RouteHandler = Callable[[Request], Awaitable[HttpResponse | StreamResponder]]

_log = get_logger(__name__)


class Router:
    """Serves direct handlers itself and leaves everything else to the framework's application."""

    def __init__(
        self,
        settings: Settings,
        inner: AsgiApp,
        direct: Mapping[tuple[str, str], RouteHandler],
    ) -> None:
        """``direct`` maps method and path to handlers that need no framework."""
        self._inner = inner
        self._direct = direct
        self._most = settings.requests_in_flight
        self._limit_s = settings.request_timeout_s
        self._under_way = 0
        self._waiting = 0
        metrics.IN_PROGRESS.set_function(lambda: self._under_way)
        self._ids = RequestIds()

    @property
    def under_way(self) -> int:
        """How many requests are being answered."""
        return self._under_way

    @property
    def waiting(self) -> int:
        """How many more wait for the rest of their body."""
        return self._waiting

    async def __call__(self, request: Request) -> HttpResponse | None:
        """Answer one request; None where a stream answered it."""
        started_s = time.perf_counter()
        head = request.head
        request.id = self._ids.of(head.headers)
        request.awaiting = self._without_a_place
        handler = self._direct.get((head.method, head.path))
        status, route, code = 500, metrics.UNMATCHED if handler is None else head.path, ""
        self._under_way += 1
        try:
            with request.within(self._limit_s):
                if self._under_way > self._most and not head.path.startswith("/health/"):
                    raise Overloaded  # noqa: TRY301 (all refusals are answered below)
                if handler is None:
                    answer, route, code = await self._framed(request)
                else:
                    answer = await handler(request)
            status = answer.status if isinstance(answer, HttpResponse) else 200
        except Exception as error:  # noqa: BLE001 (a request's entry: its caller gets an answer)
            known = _as_known(error, head.method, request.id)
            status, code = status_of(type(known)), known.code
            answer = error_response(known, request.id)
        finally:
            self._under_way -= 1
            seconds = time.perf_counter() - started_s
            metrics.observe(head.method, route, status, seconds)
            if status >= 400 or random.random() < LOGGED_SHARE:  # noqa: S311 (sampling)
                _log.info(
                    "request_served",
                    method=head.method[:16],
                    client=request.peer[0],
                    request_id=request.id,
                    route=route,
                    status=status,
                    code=code,
                    duration_ms=round(seconds * 1000, 2),
                )
        if not isinstance(answer, HttpResponse):
            await answer()
            return None
        answer.headers.append((HEADER, request.id.encode()))
        return answer

    def refuse(self, error: ScoreboardError, peer: str) -> HttpResponse:
        """Return the answer to what the server could not read, or has no place for."""
        request_id = self._ids.new()
        answer = error_response(error, request_id)
        answer.headers.append((HEADER, request_id.encode()))
        metrics.observe("", metrics.UNMATCHED, answer.status, 0.0)
        _log.info(
            "request_refused",
            client=peer,
            request_id=request_id,
            status=answer.status,
            code=error.code,
        )
        return answer

    @contextmanager
    def _without_a_place(self) -> Iterator[None]:
        """Leave the request's place to others while its body comes: anyone can send it slowly.

        Raises Overloaded where there is none afterwards.
        """
        self._under_way -= 1
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self._under_way += 1
        if self._under_way > self._most:
            raise Overloaded

    async def _framed(self, request: Request) -> tuple[HttpResponse, str, str]:
        """Let the framework answer; return its answer, the route and the code of its problem."""
        scope = build_scope(request)
        scope["state"]["request_id"] = request.id
        with structlog.contextvars.bound_contextvars(request_id=request.id):
            answer = await ask(self._inner, scope, request)
        if not any(name == NOSNIFF[0] for name, _ in answer.headers):
            answer.headers.append(NOSNIFF)
        route = str(scope.get("path_template") or metrics.UNMATCHED)
        return answer, route, str(scope["state"].get("code", ""))


def _as_known(error: Exception, method: str, request_id: str) -> ScoreboardError:
    """Return the error to answer with; what nobody expected is logged here."""
    if isinstance(error, ScoreboardError):
        return error
    if isinstance(error, TimeoutError):
        return OutcomeUnknown() if method == "POST" else Unavailable("It took too long")
    _log.error("request_failed", request_id=request_id, exc_info=error)
    return InternalError()
