"""Metrics of the api; scoreboard.runtime.telemetry defines those shared by services."""

from typing import Final

from scoreboard.runtime.collectors import LoopHistogram, Readings, Series
from scoreboard.runtime.telemetry import HTTP_BUCKETS, gauge

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods used as labels; any other method is OTHER, so that the set of labels is closed."""

UNMATCHED: Final = "unmatched"
"""The route label of paths that do not exist."""

_SECONDS: Final = LoopHistogram(
    "http_request_duration_seconds",
    "Time from the request head to the response",
    HTTP_BUCKETS,
    "method",
    "route",
    "status",
    normal="updates: p99 below 0.05",
)
Readings(
    "counter",
    "http_requests_total",
    "Requests answered",
    ("method", "route", "status"),
    _SECONDS.counts,
    unit="requests",
    normal="status 5xx below 0.1 %",
)
CONNECTIONS: Final = gauge(
    "http_connections",
    "Connections open",
    unit="connections",
    normal="well below SCOREBOARD_CONNECTIONS",
)
IN_PROGRESS: Final = gauge(
    "http_requests_in_progress",
    "Requests in progress",
    unit="requests",
    normal="well below SCOREBOARD_REQUESTS_IN_FLIGHT",
)
UPDATES: Final[dict[str, int]] = dict.fromkeys(
    (
        *("applied", "replayed", "held", "conflict", "busy", "range", "unknown"),
        *("rate_limited", "unavailable", "archived", "banned", "refused"),
        "season_closed",
    ),
    0,
)
"""Updates by outcome; the event loop's thread counts them."""

Readings(
    "counter",
    "score_updates_total",
    "Updates by outcome; rate_limited only with SCOREBOARD_RATE_LIMIT=app, else Kong refuses; "
    "refused: invalid items of bulk requests; "
    "held: actions that exceed a limit of their board",
    ("outcome",),
    lambda: (((outcome,), count) for outcome, count in UPDATES.items()),
    unit="updates",
    normal="applied, some replayed, rate_limited, banned, season_closed; held: 0 without limits, "
    "and few with them; archived, unknown, busy, unavailable: 0",
)

_known: Final[dict[tuple[str, str, int], Series]] = {}


def observe(method: str, route: str, status: int, seconds: float) -> None:
    """Count one answered request."""
    series = _known.get((method, route, status))
    if series is None:
        if method not in METHODS:
            # The label of all others, so that clients cannot fill the cache.
            _SECONDS.series("OTHER", route, str(status)).observe(seconds)
            return
        series = _known[method, route, status] = _SECONDS.series(method, route, str(status))
    series.observe(seconds)
