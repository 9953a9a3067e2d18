"""The action catalogue in PostgreSQL: the points of each kind.

The caller owns the connection and its transaction. Each constant has the name of its query file; a
test compares the two sets.
"""

from datetime import datetime
from typing import Final

from msgspec import Struct

from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.runtime import resources

_SELECT_POINTS: Final = resources.query("select_points")
_SELECT_ACTIONS: Final = resources.query("select_actions")
_UPSERT_ACTION: Final = resources.query("upsert_action")
_INSERT_ACTION: Final = resources.query("insert_action")
_DISABLE_ACTION: Final = resources.query("disable_action")
_LOCK_CATALOGUE: Final = resources.query("lock_catalogue")
CATALOGUE_LOCK: Final = 0x5B0C
"""Class of the advisory lock that serialises copies of the catalogue."""


class Kind(Struct, frozen=True):
    """A kind of action in the catalogue."""

    kind: str
    points: int
    enabled: bool
    updated_at: datetime


async def select_points(connection: Connection) -> dict[str, int]:
    """Read the points of each kind, 0 where the kind is disabled.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_POINTS)).fetchall()
    return {str(kind): int(points) for kind, points in rows}


async def select_actions(connection: Connection) -> list[Kind]:
    """List all kinds, including disabled ones.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_ACTIONS)).fetchall()
    return [Kind(*row) for row in rows]


async def upsert_action(connection: Connection, kind: str, points: int) -> None:
    """Set the points of a kind; a disabled kind is enabled again.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        await connection.execute(_UPSERT_ACTION, {"kind": kind, "points": points})


async def insert_action(connection: Connection, kind: str, points: int) -> bool:
    """Add a kind unless the catalogue has it; return whether it was added.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        done = await connection.execute(_INSERT_ACTION, {"kind": kind, "points": points})
    return done.rowcount == 1


async def disable_action(connection: Connection, kind: str) -> bool:
    """Disable a kind; return whether it exists.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        done = await connection.execute(_DISABLE_ACTION, {"kind": kind})
    return done.rowcount == 1


async def lock_catalogue(connection: Connection) -> None:
    """Lock the catalogue against other copies until the transaction ends.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        await connection.execute(_LOCK_CATALOGUE, {"class": CATALOGUE_LOCK})
