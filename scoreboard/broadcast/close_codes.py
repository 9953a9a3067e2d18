"""Close codes and their reasons, shared by WebSockets and event streams.

Codes below 4000 are named after the WebSocket Close Code Number Registry (RFC 6455, section 11.7).
docs/reference/websocket.md says what a viewer should do on each code; docs/asyncapi.yaml repeats
the table. Tests compare both with this module.
"""

from enum import IntEnum
from typing import Final

from msgspec import Struct

from scoreboard.broadcast.messages import Bye


class CloseCode(IntEnum):
    """Why a connection ends. Viewers must handle unknown codes: back off and reconnect."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_PAYLOAD = 1007
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    RESTART = 1012
    TRY_AGAIN_LATER = 1013
    MALFORMED = 4400
    TOKEN_EXPIRED = 4401
    FORBIDDEN = 4403
    BOARD_DELETED = 4404
    PONG_TIMEOUT = 4408
    RATE_LIMITED = 4429
    TOO_SLOW = 4450


class CloseReason(Struct, frozen=True):
    """The reason sent with a close code, and whether and when the viewer should reconnect."""

    reason: str
    reconnect: bool
    delay_ms: tuple[int, int]


CLOSE_REASONS: Final[dict[CloseCode, CloseReason]] = {
    CloseCode.NORMAL: CloseReason("closed by the viewer", False, (0, 0)),
    CloseCode.GOING_AWAY: CloseReason("the server is stopping now", True, (500, 5000)),
    CloseCode.PROTOCOL_ERROR: CloseReason("invalid frame (RFC 6455)", False, (0, 0)),
    CloseCode.UNSUPPORTED_DATA: CloseReason("messages must be text", False, (0, 0)),
    CloseCode.INVALID_PAYLOAD: CloseReason("messages must be valid UTF-8", False, (0, 0)),
    CloseCode.MESSAGE_TOO_BIG: CloseReason("message too big", False, (0, 0)),
    CloseCode.INTERNAL_ERROR: CloseReason("internal server error", True, (1000, 10_000)),
    CloseCode.RESTART: CloseReason(
        "service restart or connection too old: reconnect", True, (100, 3000)
    ),
    CloseCode.TRY_AGAIN_LATER: CloseReason("the server is full", True, (5000, 15_000)),
    CloseCode.MALFORMED: CloseReason("too many unreadable messages", False, (0, 0)),
    CloseCode.TOKEN_EXPIRED: CloseReason("the token has expired", True, (0, 0)),
    CloseCode.FORBIDDEN: CloseReason("the token does not allow this board", False, (0, 0)),
    CloseCode.BOARD_DELETED: CloseReason("the board was deleted", False, (0, 0)),
    CloseCode.PONG_TIMEOUT: CloseReason("pong timeout", True, (500, 5000)),
    CloseCode.RATE_LIMITED: CloseReason("too many messages", True, (30_000, 60_000)),
    CloseCode.TOO_SLOW: CloseReason("the connection is too slow", True, (500, 5000)),
}


def make_bye(code: CloseCode, delay_ms: tuple[int, int] | None = None) -> Bye:
    """Return the message that precedes a close; ``delay_ms`` overrides the default."""
    close = CLOSE_REASONS[code]
    return Bye(code, close.reason, close.reconnect, delay_ms or close.delay_ms)
