"""Metrics of the api; scoreboard.runtime.telemetry defines those shared by services."""

from typing import Final

from prometheus_client import Counter, Histogram

from scoreboard.runtime.telemetry import HTTP_BUCKETS, counter, gauge, histogram

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods used as labels; any other method is OTHER, so that the set of labels is closed."""

UNMATCHED: Final = "unmatched"
"""The route label of paths that do not exist."""

_REQUESTS = counter("http_requests_total", "Requests answered", "method", "route", "status")
_SECONDS = histogram(
    "http_request_duration_seconds",
    "Time from the request head to the response",
    HTTP_BUCKETS,
    "method",
    "route",
    "status",
)
CONNECTIONS = gauge("http_connections", "Connections open")
IN_PROGRESS = gauge("http_requests_in_progress", "Requests in progress")
UPDATES = counter("score_updates_total", "Updates by outcome", "outcome")

_children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}


def observe(method: str, route: str, status: int, seconds: float) -> None:
    """Count one answered request.

    Lookups of labels are cached, because they cost more than the counting. Other methods are not
    cached, so that clients cannot fill the cache.
    """
    key = (method, route, status)
    found = _children.get(key)
    if found is None:
        label = method if method in METHODS else "OTHER"
        labels = (label, route, str(status))
        found = (_REQUESTS.labels(*labels), _SECONDS.labels(*labels))
        if label == method:
            _children[key] = found
    found[0].inc()
    found[1].observe(seconds)
