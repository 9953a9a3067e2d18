"""The audit stream: log lines that say who did what, with which outcome and why.

Lines have the logger ``scoreboard.audit``, are written at every log level and are never sampled.
Anyone can cause refusals, so the lines of one kind (action, outcome, reason) are limited; dropped
ones are counted, in a line and in a metric. Administrative acts also have a row in PostgreSQL,
which is authoritative (scoreboard.ledger.audit).
"""

import atexit
from typing import Any, Final, Literal, NamedTuple

import structlog

from scoreboard.errors import (
    Forbidden,
    ForeignOrigin,
    ProofInvalid,
    RateLimited,
    ScoreboardError,
    Unauthenticated,
)
from scoreboard.runtime.log_limits import WINDOW_S, LineRateLimiter
from scoreboard.runtime.settings import Settings, list_changed
from scoreboard.runtime.telemetry import AUDIT_LOGGER, counter, get_logger

LINES_MAX: Final = 200
"""Maximum lines of one kind per window (default)."""

DROPPED_ACTION: Final = "audit drop"

_DROPPED: Final = counter(
    "audit_lines_dropped_total",
    "Audit lines dropped by their rate limit",
    unit="lines",
    normal="0; increases while clients cause many refusals",
)

Outcome = Literal["success", "failure", "unknown"]


class EventClass(NamedTuple):
    """The category and the types of an action, as the Elastic Common Schema defines them."""

    category: str
    types: tuple[str, ...]


_CONFIGURED: Final = EventClass("configuration", ("change",))
_REBUILT: Final = EventClass("database", ("change",))
_MODERATED: Final = EventClass("database", ("change",))
_SECRET: Final = EventClass("iam", ("admin", "change"))

ACTIONS: Final[dict[str, EventClass]] = {
    # Requests
    "authenticate": EventClass("authentication", ("start",)),
    "authorize": EventClass("api", ("access", "denied")),
    "limit": EventClass("api", ("access", "denied")),
    "update": EventClass("api", ("change",)),
    # Administrative acts; these are also the actions of audit_log
    "board create": EventClass("configuration", ("creation",)),
    "board publish": _CONFIGURED,
    "board archive": _CONFIGURED,
    "board unarchive": _CONFIGURED,
    "board limit": _CONFIGURED,
    "board reshard": _REBUILT,
    "board delete": EventClass("configuration", ("deletion",)),
    "action set": _CONFIGURED,
    "action disable": _CONFIGURED,
    "user set": EventClass("iam", ("user", "change")),
    "user import": EventClass("iam", ("user", "change")),
    "user erase": EventClass("iam", ("user", "change")),
    "export": EventClass("database", ("access",)),
    "bench create": EventClass("configuration", ("creation",)),
    "bench remove": EventClass("configuration", ("deletion",)),
    "backup record": EventClass("database", ("info",)),
    "ledger separate": _REBUILT,
    "ledger detach": _REBUILT,
    "ledger attach": _REBUILT,
    "dead apply": _REBUILT,
    "dead discard": _REBUILT,
    "season revise": _REBUILT,
    "act correct": _MODERATED,
    "act void": _MODERATED,
    "act void window": _MODERATED,
    "act undo": _MODERATED,
    "act release": _MODERATED,
    "held void": EventClass("database", ("info",)),
    "act refuse": EventClass("database", ("info",)),
    "act ban": EventClass("iam", ("user", "change")),
    "act unban": EventClass("iam", ("user", "change")),
    "fence": _REBUILT,
    "repair": _REBUILT,
    "reseed": _REBUILT,
    # Secrets and tokens
    "secret set": _SECRET,
    "secret rotate": _SECRET,
    "secret retire": _SECRET,
    "secret discard": _SECRET,
    "session end": EventClass("session", ("end",)),
    "token issue": EventClass("iam", ("creation",)),
    "proof sign": EventClass("iam", ("creation",)),
    # Processes
    "service start": EventClass("configuration", ("info",)),
    "gateway configure": _CONFIGURED,
    DROPPED_ACTION: EventClass("api", ("info",)),
}
"""Every action of the audit stream."""

_log: Final = get_logger(AUDIT_LOGGER)


def write_audit(action: str, outcome: Outcome = "success", **fields: Any) -> None:  # noqa: ANN401
    """Write the audit line of an action; ``fields`` are names of scoreboard.runtime.log_fields.

    Without ``setup_logging`` nothing is written: structlog's default would print to stdout.
    """
    if not structlog.is_configured():
        return
    kind = f"{action} {outcome} {fields.get('code', '')}"
    if LIMIT.allow(kind):
        _write(action, outcome, fields)
    else:
        _DROPPED.inc()


def audit_refusal(error: ScoreboardError, **fields: Any) -> None:  # noqa: ANN401
    """Write the audit line of a refused request, if access was denied or a limit was reached."""
    match error:
        case Unauthenticated():
            action = "authenticate"
        case Forbidden() | ForeignOrigin():
            action = "authorize"
        case RateLimited():
            action = "limit"
        case _:
            return
    write_audit(action, "failure", code=error.code, reason=refusal_reason(error), **fields)


def refusal_reason(error: ScoreboardError) -> str:
    """Return why a request was refused."""
    return error.reason if isinstance(error, Unauthenticated | ProofInvalid) else error.detail


def configure_audit(settings: Settings) -> None:
    """Apply the settings to this process."""
    LIMIT.lines_max = settings.audit_lines


def audit_start(settings: Settings) -> None:
    """Write the audit line of a service that serves from now on, with its settings."""
    write_audit("service start", settings=list_changed(settings))


def _write(action: str, outcome: Outcome, fields: dict[str, Any]) -> None:
    found = ACTIONS[action]
    _log.info(
        action, kind="event", category=[found.category], type=found.types, outcome=outcome, **fields
    )


def _report(kind: str, count: int) -> None:
    _write(DROPPED_ACTION, "unknown", {"of": kind, "count": count, "within_s": WINDOW_S})


LIMIT: Final = LineRateLimiter(_report, lines_max=LINES_MAX)
"""The limit of this process."""

atexit.register(LIMIT.flush)
