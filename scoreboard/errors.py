"""The tree of errors. Services map it to their own edge: HTTP status, close code, exit code.

ScoreboardError
├── Refused                 the caller's; never alerts
│   ├── Malformed             the request cannot be read
│   ├── Invalid               it can be read, but a value breaks a rule
│   │   ├── UnknownKind         the kind of action earns no points
│   │   └── ScoreOutOfRange     the score would leave 0…2³¹−1
│   ├── Unauthenticated       no token, or one that does not verify
│   ├── Forbidden             a good token that may not do this
│   ├── NotFound
│   │   ├── UnknownUser         the user has no score on the board
│   │   └── UnknownBoard
│   ├── ActionConflict        the action counted before with other points
│   ├── BodyTooLarge
│   ├── TargetTooLong         the request line is too long
│   ├── HeadTooLarge          the head of the request is too large
│   ├── VersionUnsupported    neither HTTP/1.1 nor HTTP/1.0
│   ├── ExpectationFailed     another expectation than 100-continue
│   ├── ForeignOrigin         a page of an origin that may not connect
│   ├── UnsupportedMedia
│   ├── MethodNotAllowed      the address exists, for other methods
│   ├── UpgradeRequired       the address speaks WebSocket only
│   ├── RateLimited           too many calls by this caller
│   │   └── TooManyConnections  the address or the user has its share of viewers
│   └── OperatorMistake       a command that would do harm, or cannot apply
├── Unavailable             a dependency's; the same request may succeed later
│   ├── Uninitialised         Redis is empty: reseed it
│   ├── Fenced                an operator's repair is under way
│   ├── Busy                  the stream is at its cap: PostgreSQL is behind
│   ├── Overloaded            this process has all the work it may hold
│   ├── RedisUnavailable      nothing was sent, or it was only a read
│   ├── OutcomeUnknown        sent, no answer: repeat with the same actionId
│   ├── Outdated              what was known of a partition has changed: read it again
│   ├── DatabaseUnavailable
│   ├── KeysUnavailable       the issuer's key set could not be read
│   ├── SecretsUnavailable    a secret could not be read, nor was it before
│   └── NotInTime             a command waited for something that did not come
└── Broken                  ours; alerts
    ├── UnexpectedReply       Redis answered what cannot be used
    │   └── ScriptFailed        a script answered what its header does not list
    ├── SettingInvalid        a setting is wrong: the process does not start
    ├── SchemaMismatch        the database is behind or ahead of the code
    ├── UnsafeRedis           Redis is configured to lose or evict data
    ├── UnsafeDatabase        PostgreSQL is configured to lose what it has committed
    ├── PoisonFlood           too many rows of one batch fit no table: not the rows' fault
    ├── EmbeddedFailed        an embedded server did not start
    └── ServiceEnded          a part of `scoreboard up` ended by itself
"""

from typing import ClassVar


class ScoreboardError(Exception):
    """Base of every error this project raises on purpose.

    ``code`` is stable and machine-readable (it names the problem type, the frame's error and the
    metric label); ``title`` is the sentence people read first; ``str(error)`` says what to change.
    """

    code: ClassVar[str] = "error"
    title: ClassVar[str] = "Something went wrong"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or self.title)

    @property
    def detail(self) -> str:
        """The sentence for the caller. It never holds a token, a statement or a key."""
        return str(self.args[0])


class Refused(ScoreboardError):  # noqa: N818 (says what happened)
    """The caller's mistake or missing right; repeating the same request changes nothing."""


class Malformed(Refused):
    code = "malformed"
    title = "The request cannot be read"


class Invalid(Refused):
    code = "invalid"
    title = "A value breaks a rule"


class UnknownKind(Invalid):
    code = "unknown-kind"
    title = "This kind of action earns no points"


class ScoreOutOfRange(Invalid):
    code = "score-out-of-range"
    title = "The score would leave 0…2147483647"


class Unauthenticated(Refused):
    code = "unauthenticated"
    title = "A valid bearer token is needed"

    def __init__(self, detail: str = "", *, reason: str = "missing") -> None:
        """``reason`` is a word of a closed set, for the metric and the WWW-Authenticate header."""
        super().__init__(detail)
        self.reason = reason


class Forbidden(Refused):
    code = "forbidden"
    title = "The token does not allow this"

    def __init__(self, detail: str = "", *, scope: str | None = None) -> None:
        """``scope`` names the missing scope where one would have been enough."""
        super().__init__(detail)
        self.scope = scope


class NotFound(Refused):
    code = "not-found"
    title = "There is nothing here"


class UnknownUser(NotFound):
    code = "unknown-user"
    title = "This user has no score"


class UnknownBoard(NotFound):
    code = "unknown-board"
    title = "There is no such board"


class ActionConflict(Refused):
    code = "action-conflict"
    title = "This action counted before with other points"


class BodyTooLarge(Refused):
    code = "body-too-large"
    title = "The request body is too large"


class TargetTooLong(Refused):
    code = "uri-too-long"
    title = "The request line is too long"


class HeadTooLarge(Refused):
    code = "head-too-large"
    title = "The head of the request is too large"


class VersionUnsupported(Refused):
    code = "http-version"
    title = "This version of HTTP is not supported"


class ExpectationFailed(Refused):
    code = "expectation-failed"
    title = "The expectation cannot be met"


class ForeignOrigin(Refused):
    code = "origin"
    title = "Pages of this origin may not connect"


class UnsupportedMedia(Refused):
    code = "unsupported-media"
    title = "The body must be application/json"


class MethodNotAllowed(Refused):
    code = "method-not-allowed"
    title = "This address does not take that method"

    def __init__(self, detail: str = "", *, allow: str = "") -> None:
        """``allow`` lists the methods that are taken, for the header of that name."""
        super().__init__(detail)
        self.allow = allow


class UpgradeRequired(Refused):
    code = "upgrade-required"
    title = "This address speaks WebSocket only"


class RateLimited(Refused):
    code = "rate-limited"
    title = "Too many requests"
    retryable = True

    def __init__(self, detail: str = "", *, retry_after_s: int = 60) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class TooManyConnections(RateLimited):
    code = "too-many-connections"
    title = "Too many connections"


class OperatorMistake(Refused):
    code = "operator-mistake"
    title = "The command was not carried out"


class Unavailable(ScoreboardError):  # noqa: N818 (says what happened)
    """A dependency is away or busy; ``retry_after_s`` is a fair wait in whole seconds."""

    code = "unavailable"
    title = "The service cannot answer now"
    retryable = True
    retry_after_s: int = 1


class Uninitialised(Unavailable):
    code = "uninitialised"
    title = "The board is not loaded"
    retry_after_s = 5


class Fenced(Unavailable):
    code = "fenced"
    title = "The board is being repaired"
    retry_after_s = 2


class Busy(Unavailable):
    code = "busy"
    title = "The board accepts no new actions for the moment"
    retry_after_s = 5


class Overloaded(Unavailable):
    code = "overloaded"
    title = "This process is at its limit"

    def __init__(self, detail: str = "", *, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class RedisUnavailable(Unavailable):
    code = "redis-unavailable"
    title = "The live store cannot be reached"


class OutcomeUnknown(Unavailable):
    code = "outcome-unknown"
    title = "It is not known whether the action counted"


class Outdated(Unavailable):
    code = "outdated"
    title = "The partition has changed since it was looked at"


class DatabaseUnavailable(Unavailable):
    code = "database-unavailable"
    title = "The database cannot be reached"


class KeysUnavailable(Unavailable):
    code = "keys-unavailable"
    title = "Tokens cannot be verified now"
    retry_after_s = 5


class SecretsUnavailable(Unavailable):
    code = "secrets-unavailable"
    title = "The credentials cannot be read"
    retry_after_s = 5


class NotInTime(Unavailable):
    code = "not-in-time"
    title = "It did not happen in time"


class Broken(ScoreboardError):  # noqa: N818 (says what happened)
    """Our own fault or the installation's; someone must look."""

    code = "internal"
    title = "The service failed"


class UnexpectedReply(Broken):
    code = "unexpected-reply"
    title = "Redis gave an answer that cannot be used"


class ScriptFailed(UnexpectedReply):
    code = "script-failed"
    title = "A script answered what its contract does not list"


class SettingInvalid(Broken):
    code = "setting-invalid"
    title = "A setting is wrong"


class SchemaMismatch(Broken):
    code = "schema-mismatch"
    title = "The database schema does not fit this version"


class UnsafeRedis(Broken):
    code = "unsafe-redis"
    title = "Redis is configured to lose data"


class UnsafeDatabase(Broken):
    code = "unsafe-database"
    title = "PostgreSQL is configured to lose data"


class PoisonFlood(Broken):
    code = "poison-flood"
    title = "Too many events cannot be stored"


class EmbeddedFailed(Broken):
    code = "embedded-failed"
    title = "An embedded server did not start"


REFUSALS: dict[str, type[ScoreboardError] | None] = {
    "UNINIT": Uninitialised,
    "FENCED": Fenced,
    # The dispatcher learns from these two and sends the actions again.
    "BUCKET": None,
    "LAYOUT": Uninitialised,  # one that cannot be read: a reseed writes it anew
    "FENCE": OperatorMistake,
    "STALE": Outdated,
    "LAG": Busy,
    "RANGE": ScoreOutOfRange,
    "BADARG": ScriptFailed,
}
"""First words of refusals, the closed list (lua/README.md); None: for the dispatcher alone."""


class ServiceEnded(Broken):
    code = "service-ended"
    title = "A part of the system ended"
