"""Messages from viewers in the subprotocol ``scoreboard.v1``, and the form of tokens. No I/O.

Messages to viewers are in ``scoreboard.broadcast.messages``, close codes in
``scoreboard.broadcast.close_codes``, rejected handshakes in ``scoreboard.http.problems``.
"""

from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from scoreboard.broadcast.messages import OFFSET_MAX
from scoreboard.errors import Malformed
from scoreboard.model import PAGE_MAX, WATCHED_TOP, BoardName, SeasonId, UserId
from scoreboard.security.tokens import TOKEN_BYTES_MAX

BEARER_PREFIX: Final = "bearer."
"""A subprotocol with this prefix is a token: browsers cannot set the header Authorization."""


WATCHED_MAX: Final = 5
"""Maximum users that one viewer watches."""


class Auth(Struct, frozen=True, tag="auth", tag_field="type"):
    """A new token for this connection: same issuer and subject, later expiry."""

    token: Annotated[str, Meta(min_length=1, max_length=TOKEN_BYTES_MAX)]


class Sync(Struct, frozen=True, tag="sync", tag_field="type"):
    """Request the current board, even if it was already sent; all boards without ``board``."""

    board: BoardName | UnsetType = UNSET


class Subscribe(Struct, frozen=True, tag="subscribe", tag_field="type"):
    """Request a further board, or another window of a board that is already sent."""

    board: BoardName
    rows: Annotated[int, Meta(ge=WATCHED_TOP, le=PAGE_MAX)] = WATCHED_TOP
    offset: Annotated[int, Meta(ge=0, le=OFFSET_MAX)] = 0
    season: SeasonId | UnsetType = UNSET
    """The season that is expected; another one than the current season is refused."""


class Unsubscribe(Struct, frozen=True, tag="unsubscribe", tag_field="type"):
    """End a subscription."""

    board: BoardName


class Watch(Struct, frozen=True, tag="watch", tag_field="type", rename="camel"):
    """Request the places of these users from now on, in place of those before."""

    user_ids: Annotated[tuple[UserId, ...], Meta(max_length=WATCHED_MAX)]


Inbound = Auth | Sync | Subscribe | Unsubscribe | Watch

_decoder: Final = msgspec.json.Decoder(Inbound)


def decode(text: str) -> Inbound:
    """Parse a viewer's message.

    Raises Malformed; its detail does not repeat the message.
    """
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError:
        raise Malformed(
            "Send a sync, auth, subscribe, unsubscribe or watch message with valid values"
        ) from None
    except (msgspec.DecodeError, RecursionError):
        raise Malformed("A message must be one JSON object") from None
