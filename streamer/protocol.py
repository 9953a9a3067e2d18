"""Messages from viewers in the subprotocol ``scoreboard.v1``, and the form of tokens. No I/O.

Messages to viewers are in ``scoreboard.broadcast.messages``, close codes in
``scoreboard.broadcast.close_codes``, rejected handshakes in ``scoreboard.http.problems``.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from scoreboard.errors import Malformed
from scoreboard.model import UserId
from scoreboard.security.tokens import TOKEN_BYTES_MAX

BEARER_PREFIX: Final = "bearer."
"""A subprotocol with this prefix is a token: browsers cannot set the header Authorization."""


WATCHED_MAX: Final = 5
"""Maximum users that one viewer watches."""

_FORMS: Final = (
    'Send {"type":"sync"}, {"type":"auth","token":"…"} or {"type":"watch","userIds":["…"]}'
)


class Auth(Struct, frozen=True, tag="auth", tag_field="type"):
    """A new token for this connection: same issuer and subject, later expiry."""

    token: Annotated[str, Meta(min_length=1, max_length=TOKEN_BYTES_MAX)]


class Sync(Struct, frozen=True, tag="sync", tag_field="type"):
    """Request the current board, even if it was already sent."""


class Watch(Struct, frozen=True, tag="watch", tag_field="type", rename="camel"):
    """Request the places of these users from now on, in place of those before."""

    user_ids: Annotated[tuple[UserId, ...], Meta(max_length=WATCHED_MAX)]


Received = Auth | Sync | Watch
_decoder: Final = msgspec.json.Decoder(Received)


def decode(text: str) -> Received:
    """Parse a viewer's message.

    Raises Malformed; its detail does not repeat the message.
    """
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError:
        raise Malformed(_FORMS) from None
    except (msgspec.DecodeError, RecursionError):
        raise Malformed("A message must be one JSON object") from None
