"""Request ids: the gateway's, else the client's, else a new one. No I/O.

Invariants: an id from outside is used only in a safe form, because it is written to logs and
responses; the gateway's id takes precedence, because the gateway logs it too.
"""

import itertools
import re
import secrets
from collections.abc import Mapping
from typing import Final

GATEWAY_HEADER: Final = b"x-kong-request-id"
HEADER: Final = b"x-request-id"

_SAFE: Final = re.compile(rb"[A-Za-z0-9._-]{8,128}")


class RequestIds:
    """The ids of one process."""

    def __init__(self) -> None:
        # Unique over processes and restarts; a counter is cheaper than randomness per request.
        self._prefix = secrets.token_hex(6)
        self._numbers = itertools.count(1)

    def of(self, headers: Mapping[bytes, bytes]) -> str:
        """Return the id of a request; ``headers`` have names in lower case."""
        for name in (GATEWAY_HEADER, HEADER):
            given = headers.get(name)
            if given is not None and _SAFE.fullmatch(given):
                return given.decode("ascii")
        return self.new()

    def new(self) -> str:
        """Return a new id, for a request without one or one that could not be read."""
        return f"{self._prefix}-{next(self._numbers):x}"
