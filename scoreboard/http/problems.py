"""Problem documents (RFC 9457) of all errors; the only table of HTTP statuses. No I/O.

The api and the streamer respond with these; docs/reference/problems.md is generated from here.

Invariants: every error has a problem; a problem says what to change, and contains no stack trace,
token or SQL statement; ``type`` is stable and documented at the path it names.
"""

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from scoreboard.errors import (
    ActConflict,
    ActionConflict,
    Banned,
    BoardArchived,
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
    OperatorMistake,
    OutcomeUnknown,
    Overloaded,
    ProofInvalid,
    ProofRequired,
    RateLimited,
    RedisUnavailable,
    ScoreboardError,
    ScoreOutOfRange,
    SeasonClosed,
    SeasonEnded,
    TargetTooLong,
    TooManyConnections,
    Unauthenticated,
    Unavailable,
    Uninitialised,
    UnknownBoard,
    UnknownKind,
    UnknownSeason,
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
    """A problem document (RFC 9457)."""

    type: Annotated[str, Meta(description="The problem type: a stable path to its documentation.")]
    title: str
    status: int
    detail: str
    request_id: Annotated[str, Meta(description="Identifies this request in the logs.")]


class QuotaExceeded(RateLimited):
    """The caller exceeded ``limit`` updates in ``window_s`` seconds."""

    def __init__(self, *, limit: int, window_s: int, retry_after_s: int) -> None:
        super().__init__(
            f"At most {limit} updates in {window_s} seconds; try again in {retry_after_s} s",
            retry_after_s=retry_after_s,
        )
        self.limit = limit
        self.window_s = window_s


class ProblemType(Struct, frozen=True):
    """The HTTP status and the advice of a class of errors."""

    status: int
    advice: str
    is_of_api: bool = True
    """False for problems that only the streamer returns: the OpenAPI document omits them."""


PROBLEM_TYPES: Final[Mapping[type[ScoreboardError], ProblemType]] = {
    Malformed: ProblemType(400, "The request cannot be parsed. Fix what `detail` names."),
    Unauthenticated: ProblemType(
        401,
        "Send `Authorization: Bearer <token>` with a valid token of the issuer. `WWW-Authenticate` "
        "and `detail` say why the token was refused.",
    ),
    Forbidden: ProblemType(
        403,
        "The token is valid, but does not allow this request: it lacks the scope that "
        "`WWW-Authenticate` names, or `userId` is another user.",
    ),
    ProofRequired: ProblemType(
        403,
        "Only game servers award points for actions of this kind. Get a proof of the action from "
        "the game server and send it as `proof`.",
    ),
    ProofInvalid: ProblemType(
        403,
        "Nothing was changed. `detail` says what is wrong with the proof. Get a new one from the "
        "game server, for the same `actionId`.",
    ),
    Banned: ProblemType(
        403,
        "An operator has banned the user from this board. Nothing was changed, and a new action "
        "counts only after the ban has ended. Actions that counted before are still answered as "
        "repeats.",
    ),
    ForeignOrigin: ProblemType(
        403,
        "The page's origin is not allowed. The operator can add it to the allowed origins.",
    ),
    NotFound: ProblemType(404, "Check the path against this documentation."),
    UnknownUser: ProblemType(404, "The user has not scored on this board yet."),
    UnknownBoard: ProblemType(404, "Omit `board`, or name an existing board."),
    UnknownSeason: ProblemType(
        404, "Name a season that `GET /api/scores/seasons` lists, or omit `season`."
    ),
    MethodNotAllowed: ProblemType(405, "Use a method that the header `Allow` lists."),
    ActionConflict: ProblemType(
        409,
        "This `actionId` was sent before with other points. Nothing was changed. Use a new id for "
        "a new action; a repeated request must state the same points.",
    ),
    ActConflict: ProblemType(
        409,
        "An act of an administrator with this `id` does something else, on another board, for "
        "another reason or by somebody else. Nothing was changed. Use a new random `id` for a new "
        "act; a repeated request must be the same.",
    ),
    BoardArchived: ProblemType(
        409,
        "The board accepts no more actions, and can still be read. Nothing was changed; do not "
        "repeat the request.",
    ),
    OperatorMistake: ProblemType(
        409,
        "The request of an administrator does not apply now; `detail` says why, such as that the "
        "action was voided before. Nothing was changed.",
    ),
    SeasonClosed: ProblemType(
        409,
        "The season that the request states is not the current one: it is over, or has not begun. "
        "Nothing was changed; do not repeat the request. Without `season` an action counts in the "
        "current season.",
    ),
    BodyTooLarge: ProblemType(413, "Send a smaller body; an action needs a few hundred bytes."),
    TargetTooLong: ProblemType(414, "Send a shorter request target."),
    UnsupportedMedia: ProblemType(415, "Send JSON with `Content-Type: application/json`."),
    ExpectationFailed: ProblemType(417, "Omit `Expect`, or send `Expect: 100-continue`."),
    Invalid: ProblemType(422, "Change the value that `detail` names."),
    UnknownKind: ProblemType(
        422,
        "The part of `actionId` before the first colon is the kind of action. This kind is not in "
        "the catalogue of actions, or is disabled. Ask the operator for the catalogue.",
    ),
    ScoreOutOfRange: ProblemType(
        422,
        "The score would leave the bounds of the board, by default 0 to 2147483647, or the stated "
        "value is outside of them. Nothing was changed.",
    ),
    UpgradeRequired: ProblemType(
        426,
        "Connect with a WebSocket client: a GET over HTTP/1.1 that requests the upgrade to version "
        "13.",
        is_of_api=False,
    ),
    RateLimited: ProblemType(
        429, "Wait for the number of seconds in `Retry-After`, then send the request again."
    ),
    TooManyConnections: ProblemType(
        429,
        "The address or the user has too many connections, or opens them too often. Close a "
        "connection, or wait for the number of seconds in `Retry-After`.",
    ),
    HeadTooLarge: ProblemType(431, "Send fewer or shorter headers."),
    Unavailable: ProblemType(
        503, "Wait for the number of seconds in `Retry-After`, then send the request again."
    ),
    Uninitialised: ProblemType(
        503, "The board is not loaded; an operator must load it. Retry at long intervals."
    ),
    Fenced: ProblemType(
        503,
        "Nothing was changed: the board is being repaired, which takes seconds. Send the request "
        "again after `Retry-After`.",
    ),
    SeasonEnded: ProblemType(
        503,
        "Nothing was changed: the next season is being opened, or the last actions of this one are "
        "being counted, which takes about a second. Send the request again after `Retry-After`.",
    ),
    Busy: ProblemType(
        503,
        "Nothing was changed: too many actions wait for PostgreSQL. Send the request again after "
        "`Retry-After`.",
    ),
    Overloaded: ProblemType(
        503,
        "This process is at a limit or is stopping. Send the request again after `Retry-After`.",
    ),
    RedisUnavailable: ProblemType(
        503, "Nothing was changed. Send the request again after `Retry-After`."
    ),
    OutcomeUnknown: ProblemType(
        503,
        "There was no confirmation in time, so the action may have been applied. Send it again "
        "**with the same `actionId`**: it is applied once, and the response contains the score.",
    ),
    KeysUnavailable: ProblemType(
        503,
        "The keys that verify tokens or proofs cannot be read at the moment. Send the request "
        "again later.",
    ),
    InternalError: ProblemType(500, "Internal error. Report the `request_id` to the operator."),
    VersionUnsupported: ProblemType(505, "Use HTTP/1.1."),
}
"""All problem types; a class that is not listed has the type of its nearest base class."""


def problem_class(error: type[ScoreboardError]) -> type[ScoreboardError]:
    """Return the listed class that a class of errors belongs to."""
    return next((base for base in error.__mro__ if base in PROBLEM_TYPES), InternalError)


def status_of(error: type[ScoreboardError]) -> int:
    """Return the HTTP status of a class of errors."""
    return PROBLEM_TYPES[problem_class(error)].status


def problem_of(error: ScoreboardError, request_id: str) -> Problem:
    """Return the problem document of an error. Details of internal errors are omitted."""
    kind = problem_class(type(error))
    status, advice = (
        PROBLEM_TYPES[kind].status,
        PROBLEM_TYPES[kind].advice.replace("`", "").replace("**", ""),
    )
    says_more = kind is not InternalError and error.detail != type(error).title
    detail = error.detail if says_more else advice
    return Problem(TYPE_PREFIX + kind.code, kind.title, status, detail, request_id)


def problem_headers(error: ScoreboardError) -> Headers:
    """Return the headers of an error response."""
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
    """Return the RateLimit headers of the IETF draft (version 11)."""
    return [
        (b"ratelimit-policy", b'"default";q=%d;w=%d' % (limit, window_s)),
        (b"ratelimit", b'"default";r=%d;t=%d' % (remaining, reset_s)),
    ]


def encode_problem(error: ScoreboardError, request_id: str) -> bytes:
    """Encode the problem document of an error."""
    return _encode(problem_of(error, request_id))


def _challenge(error: Unauthenticated) -> bytes:
    if error.reason == "missing":
        return f'Bearer realm="{REALM}"'.encode()
    description = error.detail.replace("\\", "").replace('"', "'")
    return (
        f'Bearer realm="{REALM}", error="invalid_token", error_description="{description}"'
    ).encode("ascii", "replace")
