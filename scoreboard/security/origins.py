"""Origins of pages that may open live connections: listed ones and those of the same host. No I/O.

CORS does not prevent WebSocket handshakes or the opening of event streams, so the streamer and the
api check the header Origin.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from scoreboard.errors import ForeignOrigin, SettingInvalid

DEFAULT_PORTS: Final = {"http": 80, "https": 443}

Origin = tuple[str, str, int]
"""Scheme, host and port."""


class Origins:
    """The allowed origins."""

    def __init__(self, listed: Iterable[str]) -> None:
        """Parse SCOREBOARD_ORIGINS.

        Raises SettingInvalid, naming it, for an invalid origin.
        """
        self._listed = frozenset(_listed_origin(text) for text in listed)

    def check(self, origin: bytes | None, host: bytes) -> None:
        """Check the origin of a request; one without an origin does not come from a page.

        Raises ForeignOrigin.
        """
        if origin is None:
            return
        found = _parse(origin.decode("latin-1"))
        if found is not None:
            same_host = _parse(f"{found[0]}://{host.decode('latin-1')}")
            if found in self._listed or found == same_host:
                return
        raise ForeignOrigin


@lru_cache(maxsize=1024)
def _parse(text: str) -> Origin | None:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    scheme = parts.scheme.lower()
    is_bare = not (parts.path or parts.query or parts.fragment or "@" in parts.netloc)
    if scheme not in DEFAULT_PORTS or not parts.hostname or not is_bare:
        return None
    return scheme, parts.hostname, port or DEFAULT_PORTS[scheme]


def _listed_origin(text: str) -> Origin:
    origin = _parse(text.strip())
    if origin is None:
        raise SettingInvalid(
            f"SCOREBOARD_ORIGINS: {text!r} is not an origin like https://example.com"
        )
    return origin
