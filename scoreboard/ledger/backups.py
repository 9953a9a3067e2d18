"""The record of backups, which the tools that make them write by ``scoreboard backup record``.

The caller owns the connection and its transaction. Each constant has the name of its query file; a
test compares the two sets.
"""

from datetime import datetime
from typing import Final

from msgspec import Struct

from scoreboard.errors import Invalid
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.runtime import resources

_INSERT_BACKUP: Final = resources.query("insert_backup")
_SELECT_BACKUPS: Final = resources.query("select_backups")
_SELECT_LAST_BACKUP: Final = resources.query("select_last_backup")


class Backup(Struct, frozen=True):
    """One recorded backup; ``check_method`` is None if it was not checked."""

    taken_at: datetime
    location: str
    check_method: str | None
    recorded_at: datetime
    recorded_by: str


class LastBackup(Struct, frozen=True):
    """When the newest checked backup was taken, and how long ago by PostgreSQL's clock."""

    taken_at: datetime
    age_s: float


async def insert_backup(
    connection: Connection,
    *,
    taken_at: datetime | None,
    location: str,
    check_method: str | None,
    recorded_by: str,
) -> datetime:
    """Record a backup taken at ``taken_at``, or now if it is None; return that time.

    Raises Invalid for a time in the future, DatabaseUnavailable.
    """
    parameters = {
        "taken_at": taken_at,
        "location": location,
        "check_method": check_method,
        "recorded_by": recorded_by,
    }
    async with translate_errors():
        row = await (await connection.execute(_INSERT_BACKUP, parameters)).fetchone()
    if row is None:
        raise Invalid("The time of the backup is in the future by PostgreSQL's clock")
    return row[0]


async def select_backups(connection: Connection, *, limit: int) -> list[Backup]:
    """List the backups recorded last, newest first.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_BACKUPS, {"limit": limit})).fetchall()
    return [Backup(*row) for row in rows]


async def select_last_backup(connection: Connection) -> LastBackup | None:
    """Read the newest checked backup; None if there is none.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        row = await (await connection.execute(_SELECT_LAST_BACKUP)).fetchone()
    return LastBackup(*row) if row else None
