"""What the server tells viewers, as tagged messages: JSON text, the same over WebSocket and SSE.

The relay builds them, the streamer and the api send them; docs/asyncapi.yaml and docs/protocol.md
describe them (tests compare). Viewers ignore fields they do not know: fields are only ever added.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from scoreboard.model import BoardName, Row

Epoch = Annotated[int, Meta(ge=1, description="The board's life; take a frame of any other one.")]
Seq = Annotated[int, Meta(ge=0, description="Rises with every change; gaps are normal.")]
AtMs = Annotated[int, Meta(ge=0, description="When the frame was built, milliseconds UTC.")]
ExpiryS = Annotated[int, Meta(ge=0, description="When the token ends, seconds UTC.")]
DelayMs = Annotated[int, Meta(ge=0, description="Milliseconds.")]

StaleReason = Literal["unreachable", "uninitialised", "rewound"]
"""Why the board may be old: the live store is away, was emptied, or came back older."""


class Message(Struct, frozen=True, tag_field="type", rename="camel"):
    """Any message to a viewer."""


class Leaderboard(Message, frozen=True, tag="leaderboard"):
    """The whole top of a board: first thing after the handshake, and at every change."""

    board: BoardName
    epoch: Epoch
    seq: Seq
    at: AtMs
    leaderboard: tuple[Row, ...]


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    """Nothing changed, the connection lives; ``exp`` answers a renewed token."""

    board: BoardName
    epoch: Epoch
    seq: Seq
    at: AtMs
    exp: ExpiryS | UnsetType = UNSET


class Status(Message, frozen=True, tag="status"):
    """The board may be old from here on (``stale``), or follows the store again (``live``)."""

    state: Literal["stale", "live"]
    reason: StaleReason | UnsetType = UNSET


class AuthExpiring(Message, frozen=True, tag="auth_expiring", rename=None):
    """The token ends soon: send ``auth`` with a new one before ``exp`` plus ``grace_ms``."""

    exp: ExpiryS
    grace_ms: DelayMs


class Problem(Message, frozen=True, tag="error"):
    """The viewer's last message was refused; the connection goes on."""

    code: str
    detail: str


class Bye(Message, frozen=True, tag="bye", rename=None):
    """The server closes next, with ``code``; ``delay_ms`` is the range to reconnect in."""

    code: int
    reason: str
    reconnect: bool
    delay_ms: tuple[DelayMs, DelayMs]


_encoder: Final = msgspec.json.Encoder()


def encode(message: Message) -> bytes:
    """Give the JSON text of a message."""
    return _encoder.encode(message)
