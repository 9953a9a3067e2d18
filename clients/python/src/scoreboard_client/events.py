"""What a live board delivers: boards, places, the state of the connection, refused messages."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import UNSET, DecodeError, Meta, Struct, UnsetType, convert, field, json
from msgspec.structs import replace

State = Literal["connecting", "live", "stale", "reconnecting", "stopped"]


class Row(Struct, frozen=True, kw_only=True, rename="camel"):
    """A row of a board. Names and ids are untrusted text."""

    rank: int
    user_id: str
    score: int
    name: str | None = None


class Board(Struct, frozen=True, kw_only=True, rename="camel"):
    """The rows of a board's window, best first; each one replaces the one before.

    An equal `seq` within an `epoch` is the same board, with newer names. `rows` is the size of a
    window that was asked for; `at` and `ends_at` are ms since 1970.
    """

    board: str
    epoch: int
    seq: int
    leaderboard: tuple[Row, ...]
    at: int = 0
    offset: int = 0
    rows: int | None = None
    viewers: int | None = None
    season: str | None = None
    ends_at: int | None = None


class Delta(Struct, frozen=True, kw_only=True):
    """The rows in which a board differs from the one at `base`. It is delivered as a Board.

    `count` is the number of rows that the board has.
    """

    board: str
    epoch: int
    base: int
    seq: int
    count: Annotated[int, Meta(ge=0)]
    changes: tuple[Row, ...]
    at: int = 0
    offset: int = 0
    rows: int | None = None

    def applied_to(self, base: Board) -> Board | None:
        """Return the board that this makes of the one it is based on; None if it does not fit."""
        of = (self.board, self.epoch, self.base, self.offset, self.rows)
        if (base.board, base.epoch, base.seq, base.offset, base.rows) != of:
            return None
        rows = {row.rank: row for row in (*base.leaderboard[: self.count], *self.changes)}
        best_first = tuple(rows[rank] for rank in sorted(rows))
        ranks = range(self.offset + 1, self.offset + self.count + 1)
        if [row.rank for row in best_first] != list(ranks):
            return None
        return replace(base, seq=self.seq, at=self.at, leaderboard=best_first)


class Place(Struct, frozen=True, kw_only=True, rename="camel"):
    """Where a watched user stands. `rank` and `score` are None if it has no score.

    `to_next` is the distance in points to the row ahead (None at rank 1), `to_top` that to rank 10
    (None within the top 10); `above` and `below` are up to two rows each, best first.
    """

    board: str
    epoch: int
    seq: int
    user_id: str
    rank: int | None
    score: int | None
    total: int = 0
    at: int = 0
    name: str | None = None
    to_next: int | None = None
    to_top: int | None = None
    above: tuple[Row, ...] = ()
    below: tuple[Row, ...] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the connection.

    `stale` names the boards that may be outdated, because the server has lost its source; with one,
    the state is `stale`. `attempt` counts failures in a row, and `retry_in_s` is the wait before
    the next try.
    """

    state: State
    reason: str | None = None
    code: int | None = None
    attempt: int = 0
    retry_in_s: float | None = None
    stale: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Viewers:
    """How many watch a board now, over all processes of the service; None: it is not known."""

    board: str
    viewers: int | None


@dataclass(frozen=True, slots=True)
class Refused:
    """Something failed that does not end the connection, such as a message that was refused."""

    code: str
    detail: str = ""
    board: str | None = None


Event = Board | Place | Status | Viewers | Refused


class Heartbeat(Struct, frozen=True):
    """The server's current position on a board. It is not delivered."""

    epoch: int
    seq: int
    board: str | None = None
    viewers: int | None = None
    exp: float | None = None


class SourceStatus(Struct, frozen=True):
    """Whether the server has its source. It is not delivered."""

    state: str
    board: str | None = None


class AuthExpiring(Struct, frozen=True):
    """The token expires soon. It is not delivered."""


class ServerError(Struct, frozen=True):
    """A message of this client was refused. It is delivered as Refused."""

    code: str
    detail: str = ""
    board: str | None = None


class Bye(Struct, frozen=True):
    """The server closes next. It is not delivered."""

    reconnect: bool = True
    delay_ms: tuple[float, float] | UnsetType = field(default=UNSET)


Message = Board | Delta | Place | Heartbeat | SourceStatus | AuthExpiring | ServerError | Bye

_TYPES: dict[object, type[Message]] = {
    "leaderboard": Board,
    "delta": Delta,
    "place": Place,
    "heartbeat": Heartbeat,
    "status": SourceStatus,
    "auth_expiring": AuthExpiring,
    "error": ServerError,
    "bye": Bye,
}


def parse(text: str | bytes) -> Message | None:
    """Return a message; None for a type that is not known, which a later version may send.

    Raises ValueError if it cannot be read.
    """
    try:
        members = json.decode(text)
        kind = _TYPES.get(members["type"])
        return None if kind is None else convert(members, kind)
    except (DecodeError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
