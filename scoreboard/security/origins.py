"""Which pages may open a stream: their origins, listed or of the same host. No I/O.

CORS guards neither WebSockets nor server-sent events that nobody reads, so streamer and api compare
the header Origin themselves.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from scoreboard.errors import ForeignOrigin, SettingInvalid

DEFAULT_PORTS: Final = {"http": 80, "https": 443}

Origin = tuple[str, str, int]
"""Scheme, host, port: what must agree exactly."""


class Origins:
    """The origins that may connect."""

    def __init__(self, listed: Iterable[str]) -> None:
        """Read SCOREBOARD_ORIGINS.

        Raises SettingInvalid, naming it, for what is no origin.
        """
        self._listed = frozenset(_listed_origin(text) for text in listed)

    def check(self, origin: bytes | None, host: bytes) -> None:
        """Let a request pass: one without an origin is no page's, its token decides.

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
        raise SettingInvalid(f"SCOREBOARD_ORIGINS: {text!r} is no origin like https://example.com")
    return origin
