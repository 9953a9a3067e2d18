"""Origins of pages: which may open live connections, read responses and show frames. No I/O.

Live connections are open to listed origins and those of the same host. CORS does not prevent
WebSocket handshakes or the opening of event streams, so the streamer and the api check the header
Origin.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from scoreboard.errors import ForeignOrigin, SettingInvalid

DEFAULT_PORTS: Final = {"http": 80, "https": 443}

ANY: Final = "*"
"""Stands for every origin, where that is allowed."""

_HOST: Final = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
"""A listed host: a name in lower case (ASCII), or an address of IPv6 without its brackets."""

Origin = tuple[str, str, int]
"""Scheme, host and port."""


class Origins:
    """The allowed origins."""

    def __init__(self, listed: Iterable[str]) -> None:
        """Parse SCOREBOARD_ORIGINS.

        Raises SettingInvalid, naming it, for an invalid origin.
        """
        self._listed = frozenset(_listed_origin(text) for text in listed)

    def __bool__(self) -> bool:
        """Return whether an origin is listed."""
        return bool(self._listed)

    def is_listed(self, origin: bytes) -> bool:
        """Return whether the value of a header Origin is a listed origin."""
        return _parse(origin.decode("latin-1")) in self._listed

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


def frame_sources(listed: Iterable[str], variable: str) -> str:
    """Return the sources of a ``frame-ancestors`` directive; without origins, ``'none'``.

    Raises SettingInvalid, naming ``variable``, for an invalid origin.
    """
    sources = [
        ANY if text.strip() == ANY else _source(_listed_origin(text, variable)) for text in listed
    ]
    return " ".join(dict.fromkeys(sources)) or "'none'"


def _source(origin: Origin) -> str:
    scheme, host, port = origin
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}" + ("" if port == DEFAULT_PORTS[scheme] else f":{port}")


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


def _listed_origin(text: str, variable: str = "SCOREBOARD_ORIGINS") -> Origin:
    origin = _parse(text.strip())
    if origin is None or not _HOST.fullmatch(origin[1]):
        raise SettingInvalid(f"{variable}: {text!r} is not an origin like https://example.com")
    return origin
