"""Default limits of request heads; settings change them, scoreboard.http enforces them. No I/O."""

from typing import Final

from msgspec import Struct

HEAD_BYTES: Final = 16_384
"""Enough for a token of 4,096 bytes, 8 KiB of cookies, and headers of browsers and gateways."""

HEAD_FIELDS: Final = 64
"""A browser sends about 20 headers; gateways and content networks add about as many."""

REQUEST_LINE_BYTES: Final = 4096


class HeadLimits(Struct, frozen=True):
    """Limits on the size of a request head."""

    head_bytes: int = HEAD_BYTES
    fields: int = HEAD_FIELDS
    line_bytes: int = REQUEST_LINE_BYTES
