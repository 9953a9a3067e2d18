"""Around every request: its id, its limits, its metrics, its line in the log.

The outermost ASGI application. What stays true: a request id that comes from outside is taken only
in a safe form; no more requests are under way than the settings allow; every request ends in time
and in an answer; no token and no body reaches a log.
"""

import asyncio
import itertools
import random
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog
from msgspec import Struct

from api import metrics
from api.deadlines import Deadlines
from api.problems import MEDIA_TYPE, Headers, body_of, headers_of, status_of
from scoreboard.errors import (
    Broken,
    Malformed,
    OutcomeUnknown,
    Overloaded,
    ScoreboardError,
    Unavailable,
)
from scoreboard.settings import Settings
from scoreboard.telemetry import get_logger

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]

REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{8,128}")
LOGGED_SHARE: Final = 0.01
"""Share of good answers that get a line in the log; all others do."""

ONCE_ONLY: Final = frozenset({b"authorization", b"content-type", b"x-request-id"})
"""Headers of which two would mean that a gateway and we may have looked at different ones."""

_NOSNIFF: Final = (b"x-content-type-options", b"nosniff")
_log = get_logger(__name__)


class Answer(Struct, frozen=True):
    """A whole answer, ready to be sent."""

    status: int
    headers: Headers
    body: bytes


class Request(Struct, frozen=True):
    """What a direct handler gets: the scope's headers as a mapping, and how to read the body."""

    headers: Mapping[bytes, bytes]
    query: bytes
    receive: Receive
    id: str
    task: "asyncio.Task[Any]"
    loop: asyncio.AbstractEventLoop


DirectHandler = Callable[[Request], Awaitable[Answer]]


class _CutShort(Exception):  # noqa: N818 (says what happened)
    """An answer had begun and did not end in time."""


class Edge:
    """Serves direct handlers itself and leaves everything else to the framework's application."""

    def __init__(
        self,
        settings: Settings,
        inner: AsgiApp,
        direct: Mapping[tuple[str, str], DirectHandler],
    ) -> None:
        """``direct`` maps method and path to handlers that need no framework."""
        self._inner = inner
        self._direct = direct
        self._most = settings.requests_in_flight
        self._deadlines = Deadlines(settings.request_timeout_s)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._under_way = 0
        metrics.IN_PROGRESS.set_function(lambda: self._under_way)
        # Unique over processes and restarts, and cheap: a request must not wait for randomness.
        self._id_prefix = secrets.token_hex(6)
        self._id_numbers = itertools.count(1)

    @property
    def under_way(self) -> int:
        """How many requests are being answered."""
        return self._under_way

    async def run(self) -> None:
        """End requests that take too long, until cancelled."""
        await self._deadlines.run()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP is the framework's."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        started_s = time.perf_counter()
        method: str = scope["method"]
        path: str = scope["path"]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = self._id_of(headers)
        handler = self._direct.get((method, path))
        status, route, code = 500, metrics.UNMATCHED if handler is None else path, ""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 (a request is served in a task)
        self._under_way += 1
        try:
            with self._deadlines.begin(task, loop):
                if self._under_way > self._most and not path.startswith("/health/"):
                    raise Overloaded  # noqa: TRY301 (all refusals are answered below)
                if len(headers) != len(scope["headers"]):
                    _refuse_twins(scope["headers"])
                if handler is None:
                    status, route, code = await self._framed(scope, receive, send, request_id)
                else:
                    answer = await handler(
                        Request(headers, scope["query_string"], receive, request_id, task, loop)
                    )
                    status = answer.status
                    await _send(send, answer, request_id)
        except _CutShort:
            raise  # half an answer is out: the server can only close the connection
        except Exception as error:  # noqa: BLE001 (a request's entry: its caller gets an answer)
            known = _as_known(error, method, request_id)
            status, code = status_of(type(known)), known.code
            head = [(b"content-type", MEDIA_TYPE.encode()), *headers_of(known)]
            await _send(send, Answer(status, head, body_of(known, request_id)), request_id)
        finally:
            self._under_way -= 1
            seconds = time.perf_counter() - started_s
            metrics.observe(method, route, status, seconds)
            if status >= 400 or random.random() < LOGGED_SHARE:  # noqa: S311 (sampling)
                self._log_line(
                    scope,
                    request_id=request_id,
                    route=route,
                    status=status,
                    code=code,
                    duration_ms=round(seconds * 1000, 2),
                )

    def _id_of(self, headers: Mapping[bytes, bytes]) -> str:
        given = headers.get(b"x-request-id") or headers.get(b"x-kong-request-id")
        if given is not None and REQUEST_ID.fullmatch(given):
            return given.decode("ascii")
        return f"{self._id_prefix}-{next(self._id_numbers):x}"

    async def _framed(
        self, scope: Scope, receive: Receive, send: Send, request_id: str
    ) -> tuple[int, str, str]:
        """Let the framework answer; give status, route and the code of its problem."""
        status = 0
        inner = {**scope, "state": {**scope.get("state", {}), "request_id": request_id}}
        if scope["method"] == "HEAD":
            inner["method"] = "GET"  # the server leaves the body out
        added = [(b"x-request-id", request_id.encode()), _NOSNIFF]

        async def send_marked(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(pair for pair in added if pair[0] not in names),
                ]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._inner(inner, receive, send_marked)
            except asyncio.CancelledError:
                if not status:
                    raise
                raise _CutShort from None
        route = str(inner.get("path_template") or metrics.UNMATCHED)
        return status or 500, route, str(inner["state"].get("code", ""))

    def _log_line(self, scope: Scope, **facts: str | float) -> None:
        client = scope.get("client")
        _log.info(
            "request_served",
            method=scope["method"][:16],
            client=client[0] if client else "",
            **facts,
        )


def _as_known(error: Exception, method: str, request_id: str) -> ScoreboardError:
    """Give the error to answer with; what nobody expected is logged here."""
    if isinstance(error, ScoreboardError):
        return error
    if isinstance(error, TimeoutError):
        return OutcomeUnknown() if method == "POST" else Unavailable("It took too long")
    _log.error("request_failed", request_id=request_id, exc_info=error)
    return Broken()


def _refuse_twins(headers: list[tuple[bytes, bytes]]) -> None:
    names = [name for name, _ in headers]
    for name in ONCE_ONLY:
        if names.count(name) > 1:
            raise Malformed(f"The header {name.decode()} stands twice")


async def _send(send: Send, answer: Answer, request_id: str) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": answer.status,
            "headers": [
                *answer.headers,
                (b"content-length", str(len(answer.body)).encode()),
                (b"x-request-id", request_id.encode()),
                _NOSNIFF,
            ],
        }
    )
    try:
        await send({"type": "http.response.body", "body": answer.body})
    except asyncio.CancelledError:
        raise _CutShort from None
