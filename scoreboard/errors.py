"""The hierarchy of errors. Each edge maps it: to HTTP statuses, close codes, exit codes.

ScoreboardError
├── ClientError             the caller's fault; never alerts
│   ├── Malformed             the request cannot be parsed
│   ├── Invalid               a value violates a constraint
│   │   ├── UnknownKind         the kind of action earns no points
│   │   └── ScoreOutOfRange     the score would leave its bounds
│   ├── Unauthenticated       no token, or an invalid one
│   ├── Forbidden             the token does not allow this
│   │   ├── ProofRequired       the kind of action needs a proof of a game server
│   │   ├── ProofInvalid        the proof is not of this action, or not of a game server
│   │   └── Banned              the user is banned from the board
│   ├── NotFound
│   │   ├── UnknownUser         the user has no score on the board
│   │   ├── UnknownBoard
│   │   └── UnknownSeason       the board has no such season
│   ├── ActionConflict        the action was sent before with other points
│   ├── ActConflict           the id of an act is that of another one
│   ├── BoardArchived         the board accepts no more actions
│   ├── SeasonClosed          the season that the request states is not the current one
│   ├── BodyTooLarge
│   ├── TargetTooLong         the request line is too long
│   ├── HeadTooLarge          the request line and headers are too large
│   ├── VersionUnsupported    neither HTTP/1.1 nor HTTP/1.0
│   ├── ExpectationFailed     an expectation other than 100-continue
│   ├── ForeignOrigin         a page of an origin that is not allowed
│   ├── UnsupportedMedia
│   ├── MethodNotAllowed      the path exists, for other methods
│   ├── UpgradeRequired       the path accepts only WebSocket handshakes
│   ├── RateLimited           too many requests of this caller
│   │   └── TooManyConnections  the address or the user is at its connection limit
│   └── OperatorMistake       a command that would do harm, or does not apply
├── Unavailable             a dependency failed; the same request may succeed later
│   ├── Uninitialised         the board is not loaded into Redis: reseed it
│   ├── Fenced                a repair is in progress
│   ├── SeasonEnded           the next season is not open yet, or this one not final
│   ├── Busy                  the stream is at its cap: PostgreSQL is behind
│   ├── Overloaded            this process is at its limit
│   ├── RedisUnavailable      nothing was sent, or it was only a read
│   ├── OutcomeUnknown        sent, but no reply: repeat with the same actionId
│   ├── Outdated              the cached state of a partition has changed: read it again
│   ├── DatabaseUnavailable
│   ├── KeysUnavailable       a key set, of tokens or of proofs, could not be read
│   ├── SecretsUnavailable    a secret was never read successfully
│   │   └── SecretInvalid     its document is not a login
│   └── WaitTimeout           a command timed out while waiting
└── InternalError           a fault of the service or its installation; alerts
    ├── UnexpectedReply       Redis sent a reply that cannot be used
    │   └── ScriptFailed        a script sent a reply that its header does not list
    ├── SettingInvalid        a setting is wrong: the process does not start
    ├── SchemaMismatch        the database is behind or ahead of the code
    ├── UnsafeRedis           Redis is configured to lose or evict data
    ├── UnsafeDatabase        PostgreSQL is configured to lose committed data
    ├── TooManyPoisonEvents   most rows of a batch were rejected: not the fault of the rows
    ├── RotationFailed        a server refuses the new version of a secret
    ├── EmbeddedFailed        `scoreboard up` or one of its servers cannot start
    └── ServiceExited         a service of `scoreboard up` exited
"""

from typing import ClassVar


class ScoreboardError(Exception):
    """Base class of all errors that this project raises.

    ``code`` is stable and machine-readable: the problem type, the error code in frames, the metric
    label. ``title`` is a short description; ``str(error)`` says what to change.
    """

    code: ClassVar[str] = "error"
    title: ClassVar[str] = "Something went wrong"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or self.title)

    @property
    def detail(self) -> str:
        """The message for the caller. It never contains a token, an SQL statement or a key."""
        return str(self.args[0])


class ClientError(ScoreboardError):
    """A fault of the caller; repeating the same request gives the same result."""

    def __init__(self, detail: str = "", *, hint: str = "") -> None:
        """``hint`` is what to do at a command line; responses to requests do not contain it."""
        super().__init__(detail)
        self.hint = hint


class Malformed(ClientError):
    code = "malformed"
    title = "The request is malformed"


class Invalid(ClientError):
    code = "invalid"
    title = "A value violates a constraint"


class UnknownKind(Invalid):
    code = "unknown-kind"
    title = "This kind of action earns no points"


class ScoreOutOfRange(Invalid):
    code = "score-out-of-range"
    title = "The score would leave its range"


class Unauthenticated(ClientError):
    code = "unauthenticated"
    title = "A valid bearer token is required"

    def __init__(self, detail: str = "", *, reason: str = "missing") -> None:
        """``reason`` is from a closed set, for the metric and the WWW-Authenticate header."""
        super().__init__(detail)
        self.reason = reason


class Forbidden(ClientError):
    code = "forbidden"
    title = "The token does not allow this request"

    def __init__(self, detail: str = "", *, scope: str | None = None) -> None:
        """``scope`` is the missing scope, if one scope would suffice."""
        super().__init__(detail)
        self.scope = scope


class ProofRequired(Forbidden):
    code = "proof-required"
    title = "Actions of this kind need a proof"


class ProofInvalid(Forbidden):
    code = "proof-invalid"
    title = "The proof is invalid"

    def __init__(self, detail: str = "", *, reason: str = "malformed") -> None:
        """``reason`` is from a closed set, for the metric and the audit log."""
        super().__init__(detail)
        self.reason = reason


class Banned(Forbidden):
    code = "banned"
    title = "The user is banned from this board"


class NotFound(ClientError):
    code = "not-found"
    title = "Not found"


class UnknownUser(NotFound):
    code = "unknown-user"
    title = "The user has no score"


class UnknownBoard(NotFound):
    code = "unknown-board"
    title = "No such board"


class UnknownSeason(NotFound):
    code = "unknown-season"
    title = "The board has no such season"


class ActionConflict(ClientError):
    code = "action-conflict"
    title = "The action was sent before with other points"


class ActConflict(ClientError):
    code = "act-conflict"
    title = "The id is that of another act"


class BoardArchived(ClientError):
    code = "board-archived"
    title = "The board is archived"


class SeasonClosed(ClientError):
    code = "season-closed"
    title = "The season is over, or has not begun"


class BodyTooLarge(ClientError):
    code = "body-too-large"
    title = "The request body is too large"


class TargetTooLong(ClientError):
    code = "uri-too-long"
    title = "The request line is too long"


class HeadTooLarge(ClientError):
    code = "head-too-large"
    title = "The request headers are too large"


class VersionUnsupported(ClientError):
    code = "http-version"
    title = "The HTTP version is not supported"


class ExpectationFailed(ClientError):
    code = "expectation-failed"
    title = "The expectation is not supported"


class ForeignOrigin(ClientError):
    code = "origin"
    title = "The origin is not allowed"


class UnsupportedMedia(ClientError):
    code = "unsupported-media"
    title = "The body must be application/json"


class MethodNotAllowed(ClientError):
    code = "method-not-allowed"
    title = "The path does not support this method"

    def __init__(self, detail: str = "", *, allow: str = "") -> None:
        """``allow`` lists the supported methods, for the header Allow."""
        super().__init__(detail)
        self.allow = allow


class UpgradeRequired(ClientError):
    code = "upgrade-required"
    title = "The path accepts only WebSocket handshakes"


class RateLimited(ClientError):
    code = "rate-limited"
    title = "Too many requests"

    def __init__(self, detail: str = "", *, retry_after_s: int = 60) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class TooManyConnections(RateLimited):
    code = "too-many-connections"
    title = "Too many connections"


class OperatorMistake(ClientError):
    code = "operator-mistake"
    title = "The command was not carried out"


class Unavailable(ScoreboardError):
    """A dependency is unavailable or busy; ``retry_after_s`` is the delay before a retry."""

    code = "unavailable"
    title = "The service is unavailable"
    retry_after_s: int = 1


class Uninitialised(Unavailable):
    code = "uninitialised"
    title = "The board is not loaded"
    retry_after_s = 5


class Fenced(Unavailable):
    code = "fenced"
    title = "The board is being repaired"
    retry_after_s = 2


class SeasonEnded(Unavailable):
    code = "season-ended"
    title = "The season of the board has just ended"
    retry_after_s = 1


class Busy(Unavailable):
    code = "busy"
    title = "The board does not accept actions at the moment"
    retry_after_s = 5


class Overloaded(Unavailable):
    code = "overloaded"
    title = "This process is at its limit"

    def __init__(self, detail: str = "", *, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class RedisUnavailable(Unavailable):
    code = "redis-unavailable"
    title = "Redis is unreachable"


class OutcomeUnknown(Unavailable):
    code = "outcome-unknown"
    title = "It is unknown whether the action was applied"


class Outdated(Unavailable):
    code = "outdated"
    title = "The partition has changed since it was read"


class DatabaseUnavailable(Unavailable):
    code = "database-unavailable"
    title = "The database is unreachable"


class KeysUnavailable(Unavailable):
    code = "keys-unavailable"
    title = "Signatures cannot be verified at the moment"
    retry_after_s = 5


class SecretsUnavailable(Unavailable):
    code = "secrets-unavailable"
    title = "The credentials cannot be read"
    retry_after_s = 5


class SecretInvalid(SecretsUnavailable):
    """A secret was read and is not a login; its content is not in the message."""


class WaitTimeout(Unavailable):
    code = "not-in-time"
    title = "The wait timed out"


class InternalError(ScoreboardError):
    """A fault of the service or its installation, which needs attention."""

    code = "internal"
    title = "Internal error"


class UnexpectedReply(InternalError):
    code = "unexpected-reply"
    title = "Redis sent an unexpected reply"


class ScriptFailed(UnexpectedReply):
    code = "script-failed"
    title = "A script sent a reply that its header does not list"


class SettingInvalid(InternalError):
    code = "setting-invalid"
    title = "A setting is invalid"


class SchemaMismatch(InternalError):
    code = "schema-mismatch"
    title = "The database schema does not match this version"


class UnsafeRedis(InternalError):
    code = "unsafe-redis"
    title = "Redis is configured to lose data"


class UnsafeDatabase(InternalError):
    code = "unsafe-database"
    title = "PostgreSQL is configured to lose data"


class TooManyPoisonEvents(InternalError):
    code = "poison-flood"
    title = "Too many events were rejected"


class RotationFailed(InternalError):
    code = "rotation-failed"
    title = "A server refuses the new version of a secret"


class EmbeddedFailed(InternalError):
    code = "embedded-failed"
    title = "The system did not start"


class ServiceExited(InternalError):
    code = "service-ended"
    title = "A service exited"


REFUSALS: dict[str, type[ScoreboardError] | None] = {
    "UNINIT": Uninitialised,
    "FENCED": Fenced,
    "ARCHIVED": BoardArchived,
    # The dispatcher updates its state from these and sends the actions again.
    "BUCKET": None,
    "SEASON": SeasonEnded,  # the next one cannot be computed
    "LAYOUT": Uninitialised,  # unreadable: a reseed writes it again
    "FENCE": OperatorMistake,
    "STALE": Outdated,
    "LAG": Busy,
    "RANGE": ScoreOutOfRange,
    "BADARG": ScriptFailed,
}
"""The refusal codes of scripts, a closed list, with the error of each; None: handled by the
dispatcher."""
