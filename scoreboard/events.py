"""Stream records: the meaning of each one-letter field, and their decoder.

``q`` seq · ``u`` user · ``a`` action · ``d`` delta · ``s`` score after · ``e`` epoch ·
``k`` kind of event (absent: an action; ``c``: a correction; ``h``: an action that is held; ``s``: a
season began) · ``l`` which limit a held action exceeds: ``action`` or ``window`` ·
``t`` request id (absent: none) ·
``v`` the action stated the score, and which value stays: ``last``, ``highest`` or ``lowest``
(absent: it stated a difference) ·
``p`` season, as id:start:end (absent: the board has none; a record of kind ``s`` has the new one,
and neither user nor action) ·
``w`` traceparent (absent: the update is not traced; scoreboard.trace_context reads it).

lua/submit.lua writes them, the flusher reads them. An invalid record becomes a ``BadRecord`` with
its reason, never an exception, which would stop the stream.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, get_args

from msgspec import Struct

from scoreboard.model import SCORE_MAX, LimitKind, is_identifier
from scoreboard.seasons import Season

FIELDS: Final = {
    "q": "seq",
    "u": "user",
    "a": "action",
    "d": "delta",
    "s": "score after",
    "e": "epoch",
    "k": "kind of event",
    "l": "limit exceeded",
    "t": "request id",
    "v": "value that stays",
    "p": "season",
    "w": "traceparent",
}
CORRECTION: Final = "c"
HELD: Final = "h"
LIMITS: Final = frozenset(get_args(LimitKind))
TURN: Final = "s"
_TURN_BYTES: Final = TURN.encode()
VALUES: Final = frozenset({"", "last", "highest", "lowest"})

BIGINT_MAX: Final = 2**63 - 1
"""Greatest seq and epoch that PostgreSQL stores."""

MOMENT_MAX_MS: Final = 253_402_300_799_999
"""Last millisecond of the year 9999, the greatest that Python's datetime can hold."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def event_time(stream_id: str) -> datetime:
    """Return the time of a stream id, at most the last one that a datetime can hold."""
    milliseconds = int(stream_id.partition("-")[0])
    return _EPOCH + timedelta(milliseconds=min(milliseconds, MOMENT_MAX_MS))


def stream_id_key(stream_id: str) -> tuple[int, int]:
    """Return the numbers by which Redis orders a stream id: as text, 9-0 would follow 10-0."""
    milliseconds, _, number = stream_id.partition("-")
    return int(milliseconds), int(number or 0)


class Event(Struct, frozen=True):
    """One applied change in the stream. ``stream_id`` is Redis's ``ms-n``."""

    stream_id: str
    seq: int
    user_id: str
    action_id: str
    delta: int
    score_after: int
    epoch: int
    kind: str = ""
    request_id: str = ""
    keeps: str = ""
    """Which value stays if the action stated the score: ``last``, ``highest`` or ``lowest``."""
    limit: str = ""
    """Which limit a held action exceeds; ``delta`` is then what it would have changed."""
    season: str = ""
    """The season in which Redis applied it, as id:start:end; empty for a board without seasons."""

    @property
    def is_action(self) -> bool:
        """Whether it changed the score by ``delta``: it is of no other kind."""
        return not self.kind

    @property
    def occurred_at_ms(self) -> int:
        """When Redis applied it, ms since 1970: the stream id's time, which never decreases."""
        return int(self.stream_id.partition("-")[0])

    def applied_to(self, score: int | None) -> int:
        """Return the score after this change; None for no score.

        A value replaces the score: ``delta`` is its difference from the score in Redis, which a
        late duplicate or a loss of data may have made wrong.
        """
        match self.keeps:
            case "":
                return (score or 0) + self.delta
            case "highest" if score is not None:
                return max(score, self.score_after)
            case "lowest" if score is not None:
                return min(score, self.score_after)
            case _:
                return self.score_after


class BadRecord(Struct, frozen=True):
    """A stream record that cannot be decoded: the reason, and its fields as received."""

    stream_id: str
    reason: str
    fields: dict[bytes, bytes]


def season_id_of(season: str) -> str:
    """Return the id of a season in the form of a record; empty for none."""
    return season.partition(":")[0]


@lru_cache(maxsize=1024)
def _is_season(text: str) -> bool:
    try:
        Season.parse(text)
    except ValueError:
        return False
    return True


def _decode_turn(position: str, fields: Mapping[bytes, bytes]) -> Event | BadRecord:
    """Decode a record that says that a season began: it has no user."""
    try:
        event = Event(
            stream_id=position,
            seq=int(fields[b"q"]),
            user_id="",
            action_id="",
            delta=0,
            score_after=0,
            epoch=int(fields[b"e"]),
            kind=TURN,
            season=fields[b"p"].decode("ascii"),
        )
    except (KeyError, ValueError) as error:
        return BadRecord(position, f"the season cannot be read: {error}", dict(fields))
    if not _is_season(event.season) or event.seq < 1 or event.epoch < 1:
        return BadRecord(position, "the season, seq or epoch is invalid", dict(fields))
    return event


def decode(  # noqa: C901, PLR0911, PLR0912 (one return per rule)
    stream_id: bytes, fields: Mapping[bytes, bytes]
) -> Event | BadRecord:
    """Decode one stream record."""
    position = stream_id.decode("ascii", "replace")

    def bad(reason: str) -> BadRecord:
        return BadRecord(position, reason, dict(fields))

    if fields.get(b"k") == _TURN_BYTES:
        return _decode_turn(position, fields)
    try:
        event = Event(
            stream_id=position,
            seq=int(fields[b"q"]),
            user_id=fields[b"u"].decode("ascii"),
            action_id=fields[b"a"].decode("ascii"),
            delta=int(fields[b"d"]),
            score_after=int(fields[b"s"]),
            epoch=int(fields[b"e"]),
            kind=fields.get(b"k", b"").decode("ascii"),
            request_id=fields.get(b"t", b"").decode("ascii"),
            keeps=fields.get(b"v", b"").decode("ascii"),
            limit=fields.get(b"l", b"").decode("ascii"),
            season=fields.get(b"p", b"").decode("ascii"),
        )
    except KeyError as error:
        name = error.args[0].decode()
        return bad(f"field {name} ({FIELDS[name]}) is missing")
    except ValueError as error:
        return bad(f"a field cannot be parsed: {error}")
    if not is_identifier(event.user_id):
        return bad("the user is not an identifier")
    if not is_identifier(event.action_id):
        return bad("the action is not an identifier")
    if event.keeps not in VALUES:
        return bad("it is unknown which value stays")
    if event.season and not _is_season(event.season):
        return bad("the season cannot be read")
    if event.kind not in {"", CORRECTION, HELD}:
        return bad("unknown kind of event")
    if event.kind == HELD and event.limit not in LIMITS:
        return bad("it is unknown which limit the action exceeds")
    if event.delta == 0 or abs(event.delta) > SCORE_MAX:
        return bad("the delta is zero or exceeds an INT")
    if not 0 <= event.score_after <= SCORE_MAX:
        return bad("the score exceeds an INT")
    if event.seq < 1 or event.epoch < 1:
        return bad("seq and epoch start at 1")
    if len(event.request_id) > 128 or not event.request_id.isprintable():
        return bad("the request id is too long or unprintable")
    return event
