"""Why a viewer's connection ends, in numbers and words; shared by WebSockets and event streams.

docs/protocol.md says per code what a viewer should do, docs/asyncapi.yaml repeats the table; tests
compare.
"""

from enum import IntEnum
from typing import Final

from msgspec import Struct

from scoreboard.broadcast.frames import Bye


class CloseCode(IntEnum):
    """Why a connection ends. A viewer must survive codes it does not know: back off."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED = 1003
    BAD_TEXT = 1007
    TOO_BIG = 1009
    INTERNAL = 1011
    RESTART = 1012
    FULL = 1013
    MALFORMED = 4400
    TOKEN_EXPIRED = 4401
    FORBIDDEN = 4403
    NO_PONG = 4408
    TOO_CHATTY = 4429
    TOO_SLOW = 4450


class CloseReason(Struct, frozen=True):
    """What a viewer is told with a close code, and whether and when it should come back."""

    reason: str
    reconnect: bool
    delay_ms: tuple[int, int]


ENDINGS: Final[dict[CloseCode, CloseReason]] = {
    CloseCode.NORMAL: CloseReason("closed by the viewer", False, (0, 0)),
    CloseCode.GOING_AWAY: CloseReason("the server stops now", True, (500, 5000)),
    CloseCode.PROTOCOL_ERROR: CloseReason("a frame breaks RFC 6455", False, (0, 0)),
    CloseCode.UNSUPPORTED: CloseReason("messages are text", False, (0, 0)),
    CloseCode.BAD_TEXT: CloseReason("a message is not UTF-8", False, (0, 0)),
    CloseCode.TOO_BIG: CloseReason("a message is too big", False, (0, 0)),
    CloseCode.INTERNAL: CloseReason("the server failed", True, (1000, 10_000)),
    CloseCode.RESTART: CloseReason(
        "connect again: a restart or an old connection", True, (100, 3000)
    ),
    CloseCode.FULL: CloseReason("the server is full", True, (5000, 15_000)),
    CloseCode.MALFORMED: CloseReason("too many messages that cannot be read", False, (0, 0)),
    CloseCode.TOKEN_EXPIRED: CloseReason("the token has expired", True, (0, 0)),
    CloseCode.FORBIDDEN: CloseReason("the token does not allow this board", False, (0, 0)),
    CloseCode.NO_PONG: CloseReason("no pong came", True, (500, 5000)),
    CloseCode.TOO_CHATTY: CloseReason("too many messages", True, (30_000, 60_000)),
    CloseCode.TOO_SLOW: CloseReason("the connection takes no data", True, (500, 5000)),
}


def bye_of(code: CloseCode, delay_ms: tuple[int, int] | None = None) -> Bye:
    """Give the message that goes before an end."""
    ending = ENDINGS[code]
    return Bye(code, ending.reason, ending.reconnect, delay_ms or ending.delay_ms)
