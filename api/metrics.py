"""Metrics of the api; scoreboard.runtime.telemetry defines those shared by services."""

from typing import Final

from prometheus_client import Counter, Histogram

from scoreboard.runtime.telemetry import HTTP_BUCKETS, Children, counter, gauge, histogram

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods used as labels; any other method is OTHER, so that the set of labels is closed."""

UNMATCHED: Final = "unmatched"
"""The route label of paths that do not exist."""

_REQUESTS: Final = counter(
    "http_requests_total",
    "Requests answered",
    "method",
    "route",
    "status",
    unit="requests",
    normal="status 5xx below 0.1 %",
)
_SECONDS: Final = histogram(
    "http_request_duration_seconds",
    "Time from the request head to the response",
    HTTP_BUCKETS,
    "method",
    "route",
    "status",
    normal="updates: p99 below 0.05",
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
UPDATES: Final = Children(
    counter(
        "score_updates_total",
        "Updates by outcome; rate_limited only with SCOREBOARD_RATE_LIMIT=app, else Kong refuses",
        "outcome",
        unit="updates",
        normal="applied, and some replayed and rate_limited; unknown, busy and unavailable: 0",
    ),
    *("applied", "replayed", "conflict", "busy", "range", "unknown"),
    *("rate_limited", "unavailable"),
)

_children: Final[dict[tuple[str, str, int], tuple[Counter, Histogram]]] = {}


def observe(method: str, route: str, status: int, seconds: float) -> None:
    """Count one answered request.

    Lookups of labels are cached, because they cost more than the counting.
    """
    found = _children.get((method, route, status))
    if found is None:
        if method not in METHODS and method != "OTHER":
            # One key for all, so that clients cannot fill the cache.
            observe("OTHER", route, status, seconds)
            return
        labels = (method, route, str(status))
        found = (_REQUESTS.labels(*labels), _SECONDS.labels(*labels))
        _children[method, route, status] = found
    found[0].inc()
    found[1].observe(seconds)
