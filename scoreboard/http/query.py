"""Reads a query string, once and strictly. No I/O.

Used by every endpoint that takes parameters, and by the streamer's handshake. What stays true: a
parameter has one value; two of a name would be read differently by different readers.
"""

import re
from collections.abc import Container
from typing import Final
from urllib.parse import unquote_to_bytes

from scoreboard.errors import Malformed

PARAMETERS: Final = 16
"""Most parameters of a query."""

_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_SHOWN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
"""Names that an error may repeat."""


def parse_query(query: bytes, known: Container[str] | None = None) -> dict[str, str]:
    """Return the parameters of a query string; ``known`` are those that may come, None for any.

    Raises Malformed, naming the parameter, for one that came twice or is not known, and for what
    cannot be decoded.
    """
    if not query:
        return {}
    pieces = query.split(b"&")
    if len(pieces) > PARAMETERS:
        raise Malformed(f"A query has at most {PARAMETERS} parameters")
    values: dict[str, str] = {}
    for piece in pieces:
        if not piece:
            continue
        raw_name, _, raw_value = piece.partition(b"=")
        name, value = _decoded(raw_name), _decoded(raw_value)
        if known is not None and name not in known:
            raise Malformed(f"This address does not take {_shown(name)}")
        if name in values:
            raise Malformed(f"Send {_shown(name)} once")
        values[name] = value
    return values


def _decoded(text: bytes) -> str:
    if _BAD_ESCAPE.search(text):
        raise Malformed("A % in a query is followed by two hexadecimal digits")
    try:
        return unquote_to_bytes(text.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        raise Malformed("A query is UTF-8") from None


def _shown(name: str) -> str:
    return f"the parameter {name}" if _SHOWN.fullmatch(name) else "that parameter"
