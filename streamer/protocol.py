"""The words of subprotocol ``scoreboard.v1`` from viewers. No I/O.

Used by the whole streamer. Messages to viewers are ``scoreboard.broadcast.frames``, close codes
``scoreboard.broadcast.close_codes``, refused handshakes ``scoreboard.http.problems``.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from scoreboard.errors import Malformed
from scoreboard.security.tokens import TOKEN_BYTES_MAX

PATH: Final = "/ws/scoreboard"
SUBPROTOCOL: Final = "scoreboard.v1"
BEARER_PREFIX: Final = "bearer."


class Auth(Struct, frozen=True, tag="auth", tag_field="type"):
    """A new token for this connection, of the same issuer and subject, that ends later."""

    token: Annotated[str, Meta(min_length=1, max_length=TOKEN_BYTES_MAX)]


class Sync(Struct, frozen=True, tag="sync", tag_field="type"):
    """Send the current board, whatever was sent before."""


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
