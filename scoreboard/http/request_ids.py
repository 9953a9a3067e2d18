"""Gives every request an id: the gateway's, else the client's, else a new one. No I/O.

What stays true: an id that comes from outside is taken only in a safe form, because it reaches logs
and answers; the gateway's wins, because its own log has it too.
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
        # Unique over processes and restarts, and cheap: a request must not wait for randomness.
        self._prefix = secrets.token_hex(6)
        self._numbers = itertools.count(1)

    def of(self, headers: Mapping[bytes, bytes]) -> str:
        """Return the id of a request; names of ``headers`` are in lower case."""
        for name in (GATEWAY_HEADER, HEADER):
            given = headers.get(name)
            if given is not None and _SAFE.fullmatch(given):
                return given.decode("ascii")
        return self.new()

    def new(self) -> str:
        """Return an id for a request that has none, or could not be read."""
        return f"{self._prefix}-{next(self._numbers):x}"
