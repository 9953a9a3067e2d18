"""The counted actions of one user, page by page from the latest.

The caller owns the connection.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Final, Self

from msgspec import Struct

from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.model import END
from scoreboard.runtime import resources

_SELECT_HISTORY: Final = resources.query("select_history")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
PLACE_PATTERN: Final = rf"^([0-9]{{1,17}})\.([0-9]{{1,16}})\.([0-9]{{1,16}}){END}"
_PLACE: Final = re.compile(PLACE_PATTERN)


class Place(Struct, frozen=True):
    """Where a row is in the order of a user's history; rows are ordered by its fields."""

    at: datetime
    epoch: int
    seq: int

    def __str__(self) -> str:
        """Return the time in microseconds since 1970, the epoch and the seq, joined by points."""
        return f"{(self.at - _EPOCH) // _MICROSECOND}.{self.epoch}.{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the form of ``__str__``.

        Raises ValueError for any other text.
        """
        found = _PLACE.fullmatch(text)
        if found is None:
            raise ValueError("a place is time.epoch.seq")
        at_us, epoch, seq = map(int, found.groups())
        return cls(_EPOCH + at_us * _MICROSECOND, epoch, seq)


class CountedAction(Struct, frozen=True):
    """A row of the ledger: what an action added, and the score after it."""

    action_id: str
    delta: int
    score_after: int
    place: Place

    @property
    def at_ms(self) -> int:
        """When the action was counted, ms since 1970."""
        return (self.place.at - _EPOCH) // (1000 * _MICROSECOND)


async def select_history(
    connection: Connection, board: str, user_id: str, *, limit: int, before: Place | None
) -> list[CountedAction]:
    """Read the latest ``limit`` actions of a user on a board, or those before a place.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        parameters = {
            "board": board,
            "user_id": user_id,
            "limit": limit,
            "at": None if before is None else before.at,
            "epoch": 0 if before is None else before.epoch,
            "seq": 0 if before is None else before.seq,
        }
        rows = await (await connection.execute(_SELECT_HISTORY, parameters)).fetchall()
    return [
        CountedAction(action_id, delta, score_after, Place(at, epoch, seq))
        for action_id, delta, score_after, at, epoch, seq in rows
    ]
