"""Describes every error as an RFC 9457 problem. The only home of HTTP statuses. No I/O.

The api and the streamer answer with these; docs/reference/problems.md is written from here. What
stays true: every error has a problem; a problem says what to change and holds no trace, token or
statement; ``type`` is stable and documented at the address it names.
"""

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from scoreboard.errors import (
    ActionConflict,
    BodyTooLarge,
    Busy,
    ExpectationFailed,
    Fenced,
    Forbidden,
    ForeignOrigin,
    HeadTooLarge,
    InternalError,
    Invalid,
    KeysUnavailable,
    Malformed,
    MethodNotAllowed,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    RateLimited,
    RedisUnavailable,
    ScoreboardError,
    ScoreOutOfRange,
    TargetTooLong,
    TooManyConnections,
    Unauthenticated,
    Unavailable,
    Uninitialised,
    UnknownBoard,
    UnknownKind,
    UnknownUser,
    UnsupportedMedia,
    UpgradeRequired,
    VersionUnsupported,
)

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "/docs/problems/"
REALM: Final = "scoreboard"

Headers = list[tuple[bytes, bytes]]

_encode: Final = msgspec.json.Encoder().encode


class Problem(Struct, frozen=True):
    """What went wrong, and what to change (RFC 9457)."""

    type: Annotated[str, Meta(description="Which kind of problem; stable, documented there.")]
    title: str
    status: int
    detail: str
    request_id: Annotated[str, Meta(description="Names this request in our logs.")]


class QuotaExceeded(RateLimited):
    """The api's own limit refused; ``limit`` updates are allowed in ``window_s`` seconds."""

    def __init__(self, *, limit: int, window_s: int, retry_after_s: int) -> None:
        super().__init__(
            f"At most {limit} updates in {window_s} seconds; try again in {retry_after_s} s",
            retry_after_s=retry_after_s,
        )
        self.limit = limit
        self.window_s = window_s


class ProblemType(Struct, frozen=True):
    """What all errors of a class have in common at this edge."""

    status: int
    advice: str
    is_of_api: bool = True
    """False for what only the streamer answers: no operation of the api lists it."""


PROBLEM_TYPES: Final[Mapping[type[ScoreboardError], ProblemType]] = {
    Malformed: ProblemType(400, "Change what `detail` names: the request cannot be read as it is."),
    Unauthenticated: ProblemType(
        401,
        "Send `Authorization: Bearer <token>` with a token of the issuer that is still valid. "
        "`WWW-Authenticate` and `detail` say what is wrong with the one that was sent.",
    ),
    Forbidden: ProblemType(
        403,
        "The token is good, but not for this: it lacks the scope that `WWW-Authenticate` names, or "
        "`userId` is somebody else's.",
    ),
    ForeignOrigin: ProblemType(
        403,
        "The page comes from another host that the deployment does not list, and may not connect.",
    ),
    NotFound: ProblemType(404, "Compare the address with those of this documentation."),
    UnknownUser: ProblemType(
        404, "The user has not scored on this board yet; not an error for a page."
    ),
    UnknownBoard: ProblemType(404, "Leave `board` out, or name a board that is served here."),
    MethodNotAllowed: ProblemType(405, "Use a method of the header `Allow`."),
    ActionConflict: ProblemType(
        409,
        "This `actionId` counted before with other points. Nothing was changed. Two different "
        "actions need two ids; a repeat must state the points of the first try.",
    ),
    BodyTooLarge: ProblemType(413, "Send one action, which takes a few hundred bytes."),
    TargetTooLong: ProblemType(414, "Send a shorter address."),
    UnsupportedMedia: ProblemType(415, "Send JSON, and say so: `Content-Type: application/json`."),
    ExpectationFailed: ProblemType(417, "Send no `Expect`, or `Expect: 100-continue`."),
    Invalid: ProblemType(422, "Change the value that `detail` names."),
    UnknownKind: ProblemType(
        422,
        "The part of `actionId` before the first colon names the kind of action, and this kind "
        "earns no points here: the catalogue of actions does not have it, or it is disabled. Ask "
        "the operator for the catalogue.",
    ),
    ScoreOutOfRange: ProblemType(422, "The score would leave 0…2147483647. Nothing was changed."),
    UpgradeRequired: ProblemType(
        426,
        "Connect with a WebSocket client: a GET over HTTP/1.1 that asks for the upgrade to "
        "version 13.",
        is_of_api=False,
    ),
    RateLimited: ProblemType(
        429, "Wait as many seconds as `Retry-After` says; then send it again."
    ),
    TooManyConnections: ProblemType(
        429,
        "The address or the user has as many connections as it may have, or opens too many. Close "
        "one, or wait as many seconds as `Retry-After` says.",
    ),
    HeadTooLarge: ProblemType(431, "Send fewer or shorter headers."),
    Unavailable: ProblemType(
        503, "Wait as many seconds as `Retry-After` says; then send it again."
    ),
    Uninitialised: ProblemType(
        503, "The board is not loaded. An operator must load it; go on trying at a slow pace."
    ),
    Fenced: ProblemType(
        503, "The board is being mended, which takes seconds; send the action again."
    ),
    Busy: ProblemType(
        503,
        "The action did not count: too many wait to be stored. Send it again after `Retry-After`.",
    ),
    Overloaded: ProblemType(
        503, "This process has all the work it may hold. Send the request again."
    ),
    RedisUnavailable: ProblemType(
        503, "The action did not count. Send it again after `Retry-After`."
    ),
    OutcomeUnknown: ProblemType(
        503,
        "The answer was lost, so the action may have counted. Send it again **with the same "
        "`actionId`**: it counts once, and the answer tells the score.",
    ),
    KeysUnavailable: ProblemType(
        503, "The issuer's keys cannot be read now. Send the request again."
    ),
    InternalError: ProblemType(500, "Our fault. Tell the operator the `request_id`."),
    VersionUnsupported: ProblemType(505, "Use HTTP/1.1."),
}
"""Every kind of problem there is; a class that is not listed is what its nearest base is."""


def problem_class(error: type[ScoreboardError]) -> type[ScoreboardError]:
    """Give the documented class that an error's class belongs to."""
    return next((base for base in error.__mro__ if base in PROBLEM_TYPES), InternalError)


def status_of(error: type[ScoreboardError]) -> int:
    """Give the HTTP status of a class of errors."""
    return PROBLEM_TYPES[problem_class(error)].status


def problem_of(error: ScoreboardError, request_id: str) -> Problem:
    """Describe an error to the caller. What is ours to mend is not explained to strangers."""
    kind = problem_class(type(error))
    status, advice = (
        PROBLEM_TYPES[kind].status,
        PROBLEM_TYPES[kind].advice.replace("`", "").replace("**", ""),
    )
    says_more = kind is not InternalError and error.detail != type(error).title
    detail = error.detail if says_more else advice
    return Problem(TYPE_PREFIX + kind.code, kind.title, status, detail, request_id)


def problem_headers(error: ScoreboardError) -> Headers:
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
        case UpgradeRequired():
            headers += [(b"upgrade", b"websocket"), (b"sec-websocket-version", b"13")]
        case RateLimited(retry_after_s=seconds) | Unavailable(retry_after_s=seconds):
            headers.append((b"retry-after", str(seconds).encode()))
        case _:
            pass
    if isinstance(error, QuotaExceeded):
        headers += quota_headers(error.limit, error.window_s, 0, error.retry_after_s)
    return headers


def quota_headers(limit: int, window_s: int, remaining: int, reset_s: int) -> Headers:
    """Give the RateLimit headers of the IETF draft (version 11)."""
    return [
        (b"ratelimit-policy", b'"default";q=%d;w=%d' % (limit, window_s)),
        (b"ratelimit", b'"default";r=%d;t=%d' % (remaining, reset_s)),
    ]


def encode_problem(error: ScoreboardError, request_id: str) -> bytes:
    """Encode the problem of an error."""
    return _encode(problem_of(error, request_id))


def _challenge(error: Unauthenticated) -> bytes:
    if error.reason == "missing":
        return f'Bearer realm="{REALM}"'.encode()
    description = error.detail.replace("\\", "").replace('"', "'")
    return (
        f'Bearer realm="{REALM}", error="invalid_token", error_description="{description}"'
    ).encode("ascii", "replace")
