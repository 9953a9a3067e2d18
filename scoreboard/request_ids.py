"""Gives every request an id: the gateway's, else the client's, else a new one. No I/O.

What stays true: an id that comes from outside is taken only in a safe form, because it reaches logs
and answers; the gateway's wins, because its own log has it too.
"""

import itertools
import re
import secrets
from typing import Final

GATEWAY_HEADER: Final = "X-Kong-Request-Id"
HEADER: Final = "X-Request-Id"

_SAFE: Final = re.compile(r"[A-Za-z0-9._-]{8,128}")


class RequestIds:
    """The ids of one process."""

    def __init__(self) -> None:
        # Unique over processes and restarts, and cheap: a request must not wait for randomness.
        self._prefix = secrets.token_hex(6)
        self._numbers = itertools.count(1)

    def choose(self, *given: str | None) -> str:
        """Return the first id of ``given`` that has a safe form, or a new one."""
        for text in given:
            if text is not None and _SAFE.fullmatch(text):
                return text
        return f"{self._prefix}-{next(self._numbers):x}"
