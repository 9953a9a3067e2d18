"""Turns every error into an RFC 9457 problem: total, and the only home of HTTP statuses.

What stays true: a problem says what to change, and never holds a trace, a token or a statement;
``type`` is stable and documented where it points (docs/problems.md is written from here).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from litestar import Request, Response
from litestar.exceptions import (
    ClientException,
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
    SerializationException,
    ValidationException,
)

from api.schemas import Problem
from scoreboard.errors import (
    ActionConflict,
    BodyTooLarge,
    Broken,
    Forbidden,
    Invalid,
    Malformed,
    NotFound,
    RateLimited,
    Refused,
    ScoreboardError,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
)
from scoreboard.telemetry import get_logger

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "/docs/problems/"
REALM: Final = "scoreboard"

Headers = list[tuple[bytes, bytes]]

_encode: Final = msgspec.json.Encoder().encode
_log = get_logger(__name__)


class MethodNotAllowed(Refused):
    """The address exists, for other methods; ``allow`` names them."""

    code = "method-not-allowed"
    title = "This address does not take that method"

    def __init__(self, detail: str = "", *, allow: str = "") -> None:
        super().__init__(detail)
        self.allow = allow


class QuotaSpent(RateLimited):
    """The api's own limit refused; ``limit`` updates are allowed in ``window_s`` seconds."""

    def __init__(self, *, limit: int, window_s: int, retry_after_s: int) -> None:
        super().__init__(
            f"At most {limit} updates in {window_s} seconds; try again in {retry_after_s} s",
            retry_after_s=retry_after_s,
        )
        self.limit = limit
        self.window_s = window_s


STATUSES: Final[Mapping[type[ScoreboardError], int]] = {
    Malformed: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    MethodNotAllowed: 405,
    ActionConflict: 409,
    BodyTooLarge: 413,
    UnsupportedMedia: 415,
    Invalid: 422,
    RateLimited: 429,
    Refused: 400,
    Unavailable: 503,
    ScoreboardError: 500,
}
"""The status of a class and of those below it that have none of their own."""


def status_of(kind: type[ScoreboardError]) -> int:
    """Give the HTTP status of a class of errors."""
    return next(STATUSES[base] for base in kind.__mro__ if base in STATUSES)


def problem_of(error: ScoreboardError, request_id: str) -> Problem:
    """Describe an error to the caller. What is ours to mend is not explained to strangers."""
    kind = Broken if isinstance(error, Broken) else type(error)
    detail = "Look for the request id in the logs" if kind is Broken else error.detail
    return Problem(TYPE_PREFIX + kind.code, kind.title, status_of(kind), detail, request_id)


def headers_of(error: ScoreboardError) -> Headers:
    """Give the headers that belong to an error."""
    headers: Headers = [(b"cache-control", b"no-store")]
    match error:
        case Unauthenticated():
            headers.append((b"www-authenticate", _challenge(error)))
        case Forbidden(scope=str(scope)):
            challenge = f'Bearer realm="{REALM}", error="insufficient_scope", scope="{scope}"'
            headers.append((b"www-authenticate", challenge.encode()))
        case MethodNotAllowed(allow=allow) if allow:
            headers.append((b"allow", allow.encode()))
        case RateLimited(retry_after_s=seconds) | Unavailable(retry_after_s=seconds):
            headers.append((b"retry-after", str(seconds).encode()))
        case _:
            pass
    if isinstance(error, QuotaSpent):
        headers += quota_headers(error.limit, error.window_s, 0, error.retry_after_s)
    return headers


def quota_headers(limit: int, window_s: int, remaining: int, reset_s: int) -> Headers:
    """Give the RateLimit headers of the IETF draft (version 11)."""
    return [
        (b"ratelimit-policy", b'"default";q=%d;w=%d' % (limit, window_s)),
        (b"ratelimit", b'"default";r=%d;t=%d' % (remaining, reset_s)),
    ]


def body_of(error: ScoreboardError, request_id: str) -> bytes:
    """Encode the problem of an error."""
    return _encode(problem_of(error, request_id))


def _challenge(error: Unauthenticated) -> bytes:
    if error.reason == "missing":
        return f'Bearer realm="{REALM}"'.encode()
    description = error.detail.replace("\\", "").replace('"', "'")
    return (
        f'Bearer realm="{REALM}", error="invalid_token", error_description="{description}"'
    ).encode("ascii", "replace")


def as_scoreboard_error(error: Exception) -> ScoreboardError:
    """Translate what the framework raises by itself; anything unknown is ours to mend."""
    known: ScoreboardError = Broken()
    match error:
        case ScoreboardError():
            known = error
        case NotFoundException():
            known = NotFound("There is nothing at this address; /docs shows what there is")
        case MethodNotAllowedException():
            allow = (error.headers or {}).get("allow", "")
            known = MethodNotAllowed(f"Use {allow or 'another method'}", allow=allow)
        case ValidationException():
            known = Invalid(_validation_detail(error))
        case SerializationException():
            known = Malformed("The body is not JSON")
        case HTTPException(status_code=413):
            known = BodyTooLarge()
        case HTTPException(status_code=415):
            known = UnsupportedMedia()
        case ClientException():
            known = Malformed("The request cannot be read")
        case _:
            pass
    return known


def _validation_detail(error: ValidationException) -> str:
    extra: Any = error.extra
    if not isinstance(extra, list):
        return "A value breaks a rule"
    entries: Sequence[Mapping[str, Any]] = extra
    return "; ".join(f"{entry.get('key', 'request')}: {entry.get('message')}" for entry in entries)


def respond(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer with the problem of whatever a handler raised (Litestar's exception handler)."""
    known = as_scoreboard_error(error)
    if isinstance(known, Broken):
        _log.error("request_failed", code=known.code, exc_info=error)
    state = request.scope["state"]
    state["code"] = known.code  # for the line in the log
    request_id = str(state.get("request_id", ""))
    return Response(
        body_of(known, request_id),
        status_code=status_of(type(known)),
        headers={name.decode(): value.decode() for name, value in headers_of(known)},
        media_type=MEDIA_TYPE,
    )
