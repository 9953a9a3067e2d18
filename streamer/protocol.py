"""The words of subprotocol ``scoreboard.v1`` from viewers, and how a handshake is refused.

Used by the whole streamer; no I/O. Messages to viewers are ``scoreboard.frames``, close codes
``scoreboard.endings``. This is the only place that maps the tree of errors to a handshake's status.
"""

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
