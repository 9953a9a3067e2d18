"""The action catalogue in PostgreSQL: what each kind of action earns, and who may send it.

The caller owns the connection and its transaction. Each constant has the name of its query file; a
test compares the two sets.
"""

from datetime import datetime
from typing import Any, Final

from msgspec import Struct

from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.model import ActionKind
from scoreboard.runtime import resources

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
    scope: str
    boards: tuple[str, ...]
    needs_proof: bool

    @property
    def counted(self) -> ActionKind:
        """The kind as updates need it: without points if it is disabled."""
        points = self.points if self.enabled else 0
        return ActionKind(points, self.scope, self.boards, self.needs_proof)


class KindChange(Struct, frozen=True):
    """What to set of a kind; None leaves it as it is, or at the default of a new kind."""

    points: int
    scope: str | None = None
    boards: tuple[str, ...] | None = None
    needs_proof: bool | None = None


async def select_actions(connection: Connection) -> list[Kind]:
    """List all kinds, including disabled ones.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_ACTIONS)).fetchall()
    return [_kind(row) for row in rows]


async def upsert_action(connection: Connection, kind: str, change: KindChange) -> Kind:
    """Set the properties of a kind; a disabled kind is enabled again. Return the kind as it is now.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        rows = await connection.execute(_UPSERT_ACTION, _parameters(kind, change))
        return _kind(await anext(rows))


async def insert_action(connection: Connection, kind: str, change: KindChange) -> Kind | None:
    """Add a kind and return it; None if the catalogue has it.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        rows = await connection.execute(_INSERT_ACTION, _parameters(kind, change))
        row = await rows.fetchone()
    return None if row is None else _kind(row)


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


def _kind(row: tuple[Any, ...]) -> Kind:
    kind, points, enabled, updated_at, scope, boards, needs_proof = row
    return Kind(kind, points, enabled, updated_at, scope, tuple(boards), needs_proof)


def _parameters(kind: str, change: KindChange) -> dict[str, Any]:
    boards = None if change.boards is None else list(change.boards)
    return {
        "kind": kind,
        "points": change.points,
        "scope": change.scope,
        "boards": boards,
        "needs_proof": change.needs_proof,
    }
