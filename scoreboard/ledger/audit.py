"""The audit log: one row per administrative change.

The caller owns the connection and its transaction. Each constant has the name of its query file; a
test compares the two sets.
"""

from typing import Any, Final

from psycopg.types.json import Jsonb

from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.runtime import resources

_INSERT_AUDIT: Final = resources.query("insert_audit")


async def insert_audit(
    connection: Connection, *, actor: str, action: str, board: str | None, detail: dict[str, Any]
) -> None:
    """Record an administrative change; run it in the transaction of the change.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        await connection.execute(
            _INSERT_AUDIT,
            {"actor": actor, "action": action, "board": board, "detail": Jsonb(detail)},
        )
