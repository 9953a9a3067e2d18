"""The words of subprotocol ``scoreboard.v1``: messages from viewers, close codes, refusals.

Used by the whole streamer; no I/O. Messages to viewers are ``scoreboard.frames``. This is the only
place that maps the tree of errors to a handshake's status, and that says per close code what a
viewer should do; docs/protocol.md and docs/asyncapi.yaml repeat it, and tests compare.
"""

from enum import IntEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from scoreboard.auth import TOKEN_BYTES_MAX
from scoreboard.errors import (
    ActionConflict,
    BodyTooLarge,
    Broken,
    Forbidden,
    Invalid,
    Malformed,
    NotFound,
    OperatorMistake,
    RateLimited,
    Refused,
    ScoreboardError,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
)

PATH: Final = "/ws/scoreboard"
SUBPROTOCOL: Final = "scoreboard.v1"
BEARER_PREFIX: Final = "bearer."


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


class Ending(Struct, frozen=True):
    """What a viewer is told with a close code, and whether and when it should come back."""

    reason: str
    reconnect: bool
    delay_ms: tuple[int, int]


ENDINGS: Final[dict[CloseCode, Ending]] = {
    CloseCode.NORMAL: Ending("closed by the viewer", False, (0, 0)),
    CloseCode.GOING_AWAY: Ending("the server stops now", True, (500, 5000)),
    CloseCode.PROTOCOL_ERROR: Ending("a frame breaks RFC 6455", False, (0, 0)),
    CloseCode.UNSUPPORTED: Ending("messages are text", False, (0, 0)),
    CloseCode.BAD_TEXT: Ending("a message is not UTF-8", False, (0, 0)),
    CloseCode.TOO_BIG: Ending("a message is too big", False, (0, 0)),
    CloseCode.INTERNAL: Ending("the server failed", True, (1000, 10_000)),
    CloseCode.RESTART: Ending("connect again: a restart or an old connection", True, (100, 3000)),
    CloseCode.FULL: Ending("the server is full", True, (5000, 15_000)),
    CloseCode.MALFORMED: Ending("too many messages that cannot be read", False, (0, 0)),
    CloseCode.TOKEN_EXPIRED: Ending("the token has expired", True, (0, 0)),
    CloseCode.FORBIDDEN: Ending("the token does not allow this board", False, (0, 0)),
    CloseCode.NO_PONG: Ending("no pong came", True, (500, 5000)),
    CloseCode.TOO_CHATTY: Ending("too many messages", True, (30_000, 60_000)),
    CloseCode.TOO_SLOW: Ending("the connection takes no data", True, (500, 5000)),
}


class Auth(Struct, frozen=True, tag="auth", tag_field="type"):
    """A new token for this connection, of the same issuer and subject, that ends later."""

    token: Annotated[str, Meta(min_length=1, max_length=TOKEN_BYTES_MAX)]


class Sync(Struct, frozen=True, tag="sync", tag_field="type"):
    """Send the current board, whatever was sent before."""


class Refusal(Exception):  # noqa: N818 (says what happened)
    """How a handshake that is not granted ends: an HTTP answer, and the connection closed."""

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str = "",
        *,
        retry_after_s: int = 0,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Say what to change in ``detail``; never repeat there what the request held."""
        super().__init__(status, code)
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail or title
        self.retry_after_s = retry_after_s
        self.headers = headers


_STATUSES: Final[tuple[tuple[type[ScoreboardError], int], ...]] = (
    (Unauthenticated, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (ActionConflict, 409),
    (OperatorMistake, 409),
    (BodyTooLarge, 413),
    (UnsupportedMedia, 415),
    (Invalid, 422),
    (RateLimited, 429),
    (Malformed, 400),
    (Refused, 400),
    (Unavailable, 503),
    (Broken, 500),
    (ScoreboardError, 500),
)
"""The first class that fits gives the status; the last fits every error."""


def refusal_of(error: ScoreboardError) -> Refusal:
    """Give the HTTP answer an error means for a handshake."""
    status = next(status for kind, status in _STATUSES if isinstance(error, kind))
    headers: tuple[tuple[str, str], ...] = ()
    if isinstance(error, Unauthenticated):
        value = "Bearer" if error.reason == "missing" else 'Bearer error="invalid_token"'
        headers = (("WWW-Authenticate", value),)
    elif isinstance(error, Forbidden) and error.scope:
        value = f'Bearer error="insufficient_scope", scope="{error.scope}"'
        headers = (("WWW-Authenticate", value),)
    retry_after_s = error.retry_after_s if isinstance(error, RateLimited | Unavailable) else 0
    detail = error.title if isinstance(error, Broken) else error.detail
    return Refusal(
        status, error.code, error.title, detail, retry_after_s=retry_after_s, headers=headers
    )


_decoder: Final = msgspec.json.Decoder(Auth | Sync)


def decode(text: str) -> Auth | Sync:
    """Read a viewer's message.

    Raises Malformed, saying what is wrong without repeating it.
    """
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError:
        raise Malformed('Send {"type":"sync"} or {"type":"auth","token":"…"}') from None
    except (msgspec.DecodeError, RecursionError):
        raise Malformed("A message is one JSON object") from None
