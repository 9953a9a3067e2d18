"""Default bounds of requests: settings change them, `scoreboard.http` enforces them. No I/O."""

from typing import Final

from msgspec import Struct

HEAD_BYTES: Final = 16_384
"""Room for a token of 4,096 bytes, 8 KiB of cookies, and what browsers and gateways add."""

HEAD_FIELDS: Final = 64
"""A browser sends about 20 fields, a gateway and a content network add about as many."""

REQUEST_LINE_BYTES: Final = 4096


class HeadLimits(Struct, frozen=True):
    """How large a head may be."""

    head_bytes: int = HEAD_BYTES
    fields: int = HEAD_FIELDS
    line_bytes: int = REQUEST_LINE_BYTES
