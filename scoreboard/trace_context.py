"""W3C Trace Context: the header ``traceparent``, and its form in stream records. No I/O.

Invariants: a header that violates the standard is ignored, as the standard requires; what is
written is always version 00, so its length is fixed.
"""

import re
from typing import Final

from msgspec import Struct

HEADER: Final = b"traceparent"
FIELD: Final = b"w"
"""Field of a stream record: the context of the span that sent the update to Redis."""

CONTEXT_BYTES: Final = 55
"""Length of a context as it is written."""

LINKS_MAX: Final = 32
"""Maximum number of traces that one span names."""

NOTICE: Final = b"traces "
"""Start of a notification that lists contexts; lua/submit.lua writes it (a test compares)."""

NOTICE_MAX: Final = 8
"""Maximum number of contexts in a notification."""

NOTICE_BYTES_MAX: Final = len(NOTICE) + NOTICE_MAX * (CONTEXT_BYTES + 1)

_TRACEPARENT: Final = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_SAMPLED: Final = 1


class TraceContext(Struct, frozen=True):
    """A trace, and the span in it that is the parent of the next one."""

    trace_id: str
    span_id: str
    is_sampled: bool = True

    def encode(self) -> bytes:
        """Return the context as a ``traceparent`` of version 00."""
        return f"00-{self.trace_id}-{self.span_id}-{self.is_sampled:02x}".encode()


def parse_traceparent(value: bytes | None) -> TraceContext | None:
    """Parse a ``traceparent``; return None if it is missing or invalid.

    A later version than 00 may have more fields, which are ignored.
    """
    found = _TRACEPARENT.fullmatch(value) if value else None
    if found is None or (found[1] == b"00" and found[5]):
        return None
    is_sampled = bool(int(found[4], 16) & _SAMPLED)
    return TraceContext(found[2].decode(), found[3].decode(), is_sampled)


def parse_notice(data: bytes) -> list[TraceContext]:
    """Parse a notification of contexts; invalid ones are left out."""
    found = map(parse_traceparent, data.removeprefix(NOTICE).split(b" ")[:NOTICE_MAX])
    return [context for context in found if context is not None]
