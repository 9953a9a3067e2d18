"""Messages to viewers: tagged JSON, the same over WebSocket and server-sent events.

docs/asyncapi.yaml and docs/reference/websocket.md describe them; tests compare. Viewers ignore
unknown fields, so fields may be added but never removed or changed.
"""

import time
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from scoreboard.model import PAGE_MAX, WATCHED_TOP, BoardName, KnownName, Row, SeasonId, UserId

WS_PATH: Final = "/ws/scoreboard"
SUBPROTOCOL: Final = "scoreboard.v1"
"""The WebSocket subprotocol: the version of these messages and of those from viewers."""

COMPACT: Final = "scoreboard.v1.delta"
"""The same messages, with ``delta`` in place of most ``leaderboard`` messages."""

OFFSET_MAX: Final = 1_000_000
"""Greatest offset of a window."""

Epoch = Annotated[
    int, Meta(ge=1, description="Increases when the board is reloaded. Accept any other epoch.")
]
Seq = Annotated[int, Meta(ge=0, description="Increases with every change; gaps are normal.")]
AtMs = Annotated[
    int,
    Meta(ge=0, description="Time at which the message was built, in milliseconds since 1970 UTC."),
]
EndsAtMs = Annotated[
    int,
    Meta(
        ge=0,
        description="When the season ends, in milliseconds since 1970 UTC. If it is past, the "
        "next season has not begun yet.",
    ),
]
ExpiryS = Annotated[
    int, Meta(ge=0, description="Time at which the token expires, in seconds since 1970 UTC.")
]
DelayMs = Annotated[int, Meta(ge=0, description="Milliseconds.")]
Offset = Annotated[
    int,
    Meta(ge=0, le=OFFSET_MAX, description="Rows above the window. Absent for the top 10."),
]
WindowRows = Annotated[
    int,
    Meta(
        ge=WATCHED_TOP,
        le=PAGE_MAX,
        description="Rows of the window, of which a short board has fewer. Absent for the top 10.",
    ),
]
Viewers = Annotated[
    int,
    Meta(ge=0, description="Viewers of the board over all processes, about 15 seconds old."),
]
Distance = Annotated[int, Meta(ge=0, description="Difference of two scores.")]
PartitionNumber = Annotated[int, Meta(ge=0, description="Number of a partition of the board.")]

StaleReason = Literal["unreachable", "uninitialised", "rewound"]
"""Why the board may be outdated: Redis is unreachable, was emptied, or lost recent changes."""


class Message(Struct, frozen=True, tag_field="type", rename="camel"):
    """Any message to a viewer."""


class Leaderboard(Message, frozen=True, tag="leaderboard"):
    """The top 10 of a board, or a window: sent after the handshake and at every change."""

    board: BoardName
    epoch: Epoch
    seq: Seq
    at: AtMs
    leaderboard: tuple[Row, ...]
    season: SeasonId | UnsetType = UNSET
    """The season that is shown; only on a board with seasons."""
    ends_at: EndsAtMs | UnsetType = UNSET
    offset: Offset | UnsetType = UNSET
    rows: WindowRows | UnsetType = UNSET
    viewers: Viewers | UnsetType = UNSET


class Delta(Message, frozen=True, tag="delta"):
    """What differs from the board with the same epoch and the seq ``base``, which was sent last."""

    board: BoardName
    epoch: Epoch
    base: Seq
    seq: Seq
    at: AtMs
    count: Annotated[int, Meta(ge=0, description="Number of rows now.")]
    changes: tuple[Row, ...]
    """The rows that differ, or are new, by rank."""
    offset: Offset | UnsetType = UNSET
    rows: WindowRows | UnsetType = UNSET


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    """The connection is alive and the board unchanged; ``exp`` confirms a renewed token."""

    board: BoardName
    epoch: Epoch
    seq: Seq
    at: AtMs
    exp: ExpiryS | UnsetType = UNSET
    viewers: Viewers | UnsetType = UNSET


class Place(Message, frozen=True, kw_only=True, tag="place"):
    """A watched user's place, when it changed; null and no rows for one without a score."""

    board: BoardName
    epoch: Epoch
    seq: Seq
    at: AtMs
    user_id: UserId
    name: KnownName | UnsetType = UNSET
    rank: Annotated[int, Meta(ge=1)] | None
    score: int | None
    total: Annotated[int, Meta(ge=0, description="Users of the board.")]
    to_next: Distance | UnsetType = UNSET
    """Points to the row directly ahead; absent at rank 1."""
    to_top: Distance | UnsetType = UNSET
    """Points to rank 10; absent within the top 10."""
    above: tuple[Row, ...]
    """Up to two rows directly ahead, best first."""
    below: tuple[Row, ...]
    """Up to two rows directly behind, best first."""


class Status(Message, frozen=True, tag="status"):
    """The board may be outdated from now on (``stale``), or is current again (``live``)."""

    state: Literal["stale", "live"]
    reason: StaleReason | UnsetType = UNSET
    partitions: tuple[PartitionNumber, ...] | UnsetType = UNSET
    """The partitions that cannot be reached; absent if it is all of them, or not known."""
    board: BoardName | UnsetType = UNSET


class AuthExpiring(Message, frozen=True, tag="auth_expiring", rename=None):
    """The token expires soon: send ``auth`` with a new one before ``exp`` plus ``grace_ms``."""

    exp: ExpiryS
    grace_ms: DelayMs


class Problem(Message, frozen=True, tag="error"):
    """The viewer's last message was rejected, or a subscription ended. The connection stays."""

    code: str
    detail: str
    board: BoardName | UnsetType = UNSET
    """The board that the message or the subscription is for."""


class Bye(Message, frozen=True, tag="bye", rename=None):
    """The server closes the connection next; ``delay_ms`` limits the wait before a reconnect."""

    code: int
    reason: str
    reconnect: bool
    delay_ms: tuple[DelayMs, DelayMs]


def difference(base: Leaderboard, new: Leaderboard) -> Delta | None:
    """Return the delta from one board of a window to the next; None if not only rows differ.

    A delta has no number of viewers: a board with another one than before is sent whole.
    """
    same = (base.epoch, base.season, base.ends_at, base.viewers)
    if same != (new.epoch, new.season, new.ends_at, new.viewers):
        return None
    old = base.leaderboard
    changes = tuple(
        row for at, row in enumerate(new.leaderboard) if at >= len(old) or row != old[at]
    )
    return Delta(
        new.board,
        new.epoch,
        base.seq,
        new.seq,
        new.at,
        len(new.leaderboard),
        changes,
        new.offset,
        new.rows,
    )


_encoder: Final = msgspec.json.Encoder()


def now_ms() -> int:
    """Return the time for ``at``: milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


def encode(message: Message) -> bytes:
    """Return a message as JSON."""
    return _encoder.encode(message)
