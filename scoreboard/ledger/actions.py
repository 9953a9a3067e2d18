"""The catalogue of actions in PostgreSQL: what each kind is worth.

Callers bring a connection and own its transaction. A query's file name is its constant here; a
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
"""Class of the advisory lock that orders copies of the catalogue."""


class Kind(Struct, frozen=True):
    """A kind of action in the catalogue."""

    kind: str
    points: int
    enabled: bool
    updated_at: datetime


async def select_points(connection: Connection) -> dict[str, int]:
    """Read the catalogue as Redis mirrors it: points per kind, 0 where the kind is disabled.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_POINTS)).fetchall()
    return {str(kind): int(points) for kind, points in rows}


async def select_actions(connection: Connection) -> list[Kind]:
    """List the catalogue with what is disabled.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_ACTIONS)).fetchall()
    return [Kind(*row) for row in rows]


async def upsert_action(connection: Connection, kind: str, points: int) -> None:
    """Set what a kind of action is worth; a disabled kind counts again.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        await connection.execute(_UPSERT_ACTION, {"kind": kind, "points": points})


async def insert_action(connection: Connection, kind: str, points: int) -> bool:
    """Set what a kind of action is worth unless the catalogue has it; tell whether it is new.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        done = await connection.execute(_INSERT_ACTION, {"kind": kind, "points": points})
    return done.rowcount == 1


async def disable_action(connection: Connection, kind: str) -> bool:
    """Let a kind of action earn nothing any more; tell whether there is such a kind.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        done = await connection.execute(_DISABLE_ACTION, {"kind": kind})
    return done.rowcount == 1


async def lock_catalogue(connection: Connection) -> None:
    """Wait until nobody else copies the catalogue; held until the transaction ends.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        await connection.execute(_LOCK_CATALOGUE, {"class": CATALOGUE_LOCK})
