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
from msgspec import Struct

from api.schemas import Problem
from scoreboard.errors import (
    ActionConflict,
    BodyTooLarge,
    Broken,
    Busy,
    Fenced,
    Forbidden,
    Invalid,
    KeysUnavailable,
    Malformed,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    RateLimited,
    RedisUnavailable,
    Refused,
    ScoreboardError,
    ScoreOutOfRange,
    Unauthenticated,
    Unavailable,
    Uninitialised,
    UnknownBoard,
    UnknownKind,
    UnknownUser,
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


class Kind(Struct, frozen=True):
    """What all errors of a class have in common at this edge."""

    status: int
    advice: str


KINDS: Final[Mapping[type[ScoreboardError], Kind]] = {
    Malformed: Kind(400, "Mend the request: what was sent cannot be read at all."),
    Unauthenticated: Kind(
        401,
        "Send `Authorization: Bearer <token>` with a token of the issuer that is still valid. "
        "`WWW-Authenticate` and `detail` say what is wrong with the one that was sent.",
    ),
    Forbidden: Kind(
        403,
        "The token is good, but not for this: it lacks the scope that `WWW-Authenticate` names, or "
        "`userId` is somebody else's.",
    ),
    NotFound: Kind(404, "Compare the address with those of this documentation."),
    UnknownUser: Kind(404, "The user has not scored on this board yet; not an error for a page."),
    UnknownBoard: Kind(404, "Leave `board` out, or name a board that is served here."),
    MethodNotAllowed: Kind(405, "Use a method of the header `Allow`."),
    ActionConflict: Kind(
        409,
        "This `actionId` counted before with other points. Nothing was changed. Two different "
        "actions need two ids; a repeat must state the points of the first try.",
    ),
    BodyTooLarge: Kind(413, "Send one action, which takes a few hundred bytes."),
    UnsupportedMedia: Kind(415, "Send JSON, and say so: `Content-Type: application/json`."),
    Invalid: Kind(422, "Change the value that `detail` names."),
    UnknownKind: Kind(
        422,
        "The part of `actionId` before the first colon names the kind of action, and this kind "
        "earns no points here. Ask the operator for the catalogue of actions.",
    ),
    ScoreOutOfRange: Kind(422, "The score would leave 0…2147483647. Nothing was changed."),
    RateLimited: Kind(429, "Wait as many seconds as `Retry-After` says; then send it again."),
    Unavailable: Kind(503, "Wait as many seconds as `Retry-After` says; then send it again."),
    Uninitialised: Kind(
        503, "The board is not loaded. An operator must load it; go on trying at a slow pace."
    ),
    Fenced: Kind(503, "The board is being mended, which takes seconds; send the action again."),
    Busy: Kind(
        503,
        "The action did not count: too many wait to be stored. Send it again after `Retry-After`.",
    ),
    Overloaded: Kind(503, "This process has all the work it may hold. Send the request again."),
    RedisUnavailable: Kind(503, "The action did not count. Send it again after `Retry-After`."),
    OutcomeUnknown: Kind(
        503,
        "The answer was lost, so the action may have counted. Send it again **with the same "
        "`actionId`**: it counts once, and the answer tells the score.",
    ),
    KeysUnavailable: Kind(503, "The issuer's keys cannot be read now. Send the request again."),
    Broken: Kind(500, "Our fault. Tell the operator the `request_id`."),
}
"""Every kind of problem there is; a class that is not listed is what its nearest base is."""


def kind_of(error: type[ScoreboardError]) -> type[ScoreboardError]:
    """Give the documented class that an error's class belongs to."""
    return next((base for base in error.__mro__ if base in KINDS), Broken)


def status_of(error: type[ScoreboardError]) -> int:
    """Give the HTTP status of a class of errors."""
    return KINDS[kind_of(error)].status


def problem_of(error: ScoreboardError, request_id: str) -> Problem:
    """Describe an error to the caller. What is ours to mend is not explained to strangers."""
    kind = kind_of(type(error))
    status, advice = KINDS[kind].status, KINDS[kind].advice.replace("`", "").replace("**", "")
    says_more = kind is not Broken and error.detail != type(error).title
    detail = error.detail if says_more else advice
    return Problem(TYPE_PREFIX + kind.code, kind.title, status, detail, request_id)


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
