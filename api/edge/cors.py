"""Cross-origin access (CORS): pages of listed origins may call the API. No I/O.

The router adds the headers to every response, so they are also on errors and on the responses of
handlers without the framework, whose own support covers neither.

Invariants: only origins of SCOREBOARD_ORIGINS are allowed, never all; browsers send no cookies, and
the API has none; the endpoints of administrators allow no origin.
"""

from typing import Final

from scoreboard.errors import ForeignOrigin
from scoreboard.http.head import Head
from scoreboard.http.problems import Headers
from scoreboard.http.response import HttpResponse
from scoreboard.runtime.settings import Settings
from scoreboard.security.origins import Origins

API: Final = "/api/"
ADMIN: Final = "/api/admin/"

METHODS: Final = ("GET", "HEAD", "POST")
REQUEST_HEADERS: Final = (
    "Authorization",
    "Content-Type",
    "If-None-Match",
    "Last-Event-ID",
    "X-Request-Id",
)
EXPOSED_HEADERS: Final = (
    "Allow",
    "ETag",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-Id",
)
MAX_AGE_S: Final = 600
"""How long a browser keeps the answer to a preflight request."""

_VARY: Final = (b"vary", b"Origin")
_EXPOSED: Final = (b"access-control-expose-headers", ", ".join(EXPOSED_HEADERS).encode())
_PREFLIGHT: Final = (
    (b"access-control-allow-methods", ", ".join(METHODS).encode()),
    (b"access-control-allow-headers", ", ".join(REQUEST_HEADERS).encode()),
    (b"access-control-max-age", b"%d" % MAX_AGE_S),
)


class Cors:
    """Answers preflight requests, and returns the headers of the other responses."""

    def __init__(self, settings: Settings) -> None:
        """Raise SettingInvalid for an invalid origin."""
        self._origins = Origins(settings.origins)

    def headers(self, head: Head) -> Headers:
        """Return the headers to add to the response to a request; none without listed origins."""
        if not self._origins or not _is_open(head.path):
            return []
        origin = head.headers.get(b"origin")
        if origin is None or not self._origins.is_listed(origin):
            return [_VARY]
        return [_VARY, (b"access-control-allow-origin", origin), _EXPOSED]

    def preflight(self, head: Head) -> HttpResponse | None:
        """Answer a preflight request; None if the request is none, or no origin is listed.

        Raises ForeignOrigin for an origin that is not listed.
        """
        origin = head.headers.get(b"origin")
        if (
            head.method != "OPTIONS"
            or origin is None
            or b"access-control-request-method" not in head.headers
            or not self._origins
            or not _is_open(head.path)
        ):
            return None
        if not self._origins.is_listed(origin):
            raise ForeignOrigin
        # The browser compares its method and headers with these.
        return HttpResponse(204, [*_PREFLIGHT])


def _is_open(path: str) -> bool:
    """Return whether a path is open to other origins; it is decoded, without empty segments."""
    return path.startswith(API) and not path.startswith(ADMIN)
