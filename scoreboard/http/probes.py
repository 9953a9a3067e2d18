"""Responses to health probes and metric scrapes, the same on every port. No I/O."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST

from scoreboard.http.response import NOSNIFF, HttpResponse

_JSON: Final = b"application/json"


def liveness(status: str = "live") -> HttpResponse:
    """Return the response of a process that runs."""
    return _response(200, _JSON, msgspec.json.encode({"status": status}))


def readiness(*, is_ready: bool, facts: Mapping[str, Any]) -> HttpResponse:
    """Return whether a process should get requests, with the ``facts`` that decide it.

    ``facts`` may hold a more exact ``status``.
    """
    body = {"status": "ready" if is_ready else "not ready", **facts}
    return _response(200 if is_ready else 503, _JSON, msgspec.json.encode(body))


def metrics(text: bytes) -> HttpResponse:
    """Return metrics in the Prometheus text format."""
    return _response(200, CONTENT_TYPE_LATEST.encode(), text)


def _response(status: int, media_type: bytes, body: bytes) -> HttpResponse:
    headers = [(b"content-type", media_type), (b"cache-control", b"no-store"), NOSNIFF]
    return HttpResponse(status, headers, body)
