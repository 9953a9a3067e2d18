"""Strict parser of query strings. No I/O.

Invariant: a parameter has one value, because parsers treat repeated parameters differently. A
parameter that is declared as a list may be repeated, and means the same as its values in one.
"""

import re
from collections.abc import Container
from typing import Final
from urllib.parse import unquote_to_bytes

from scoreboard.errors import Malformed

PARAMETERS: Final = 16
"""Maximum number of parameters of a query."""

LIST_VALUES: Final = 100
"""Further parameters of a query that may have a list."""

_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_SHOWN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
"""Parameter names that an error message may repeat."""


def parse_query(
    query: bytes, known: Container[str] | None = None, *, joined: str | None = None
) -> dict[str, str]:
    """Return the parameters of a query string; ``known`` are the allowed ones, None for any.

    The values of the parameter ``joined``, which may be repeated, are joined by commas.

    Raises Malformed for a repeated or unknown parameter, naming it, and for invalid encoding.
    """
    if not query:
        return {}
    pieces = query.split(b"&")
    most = PARAMETERS if joined is None else PARAMETERS + LIST_VALUES
    if len(pieces) > most:
        raise Malformed(f"A query must not have more than {most} parameters")
    values: dict[str, str] = {}
    for piece in pieces:
        if not piece:
            continue
        raw_name, _, raw_value = piece.partition(b"=")
        name, value = _decoded(raw_name), _decoded(raw_value)
        if known is not None and name not in known:
            raise Malformed(f"This path does not support {_quote(name)}")
        if name not in values:
            values[name] = value
        elif name == joined:
            values[name] += f",{value}"
        else:
            raise Malformed(f"Do not repeat {_quote(name)}")
    return values


def _decoded(text: bytes) -> str:
    if _BAD_ESCAPE.search(text):
        raise Malformed("A % in a query must be followed by two hexadecimal digits")
    try:
        return unquote_to_bytes(text.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        raise Malformed("A query must be UTF-8") from None


def _quote(name: str) -> str:
    return f"the parameter {name}" if _SHOWN.fullmatch(name) else "that parameter"
