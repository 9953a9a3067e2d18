"""Reads users' counted actions from PostgreSQL, few at once and with a time limit.

A read is not cheap: PostgreSQL reads all actions of the user on the board.
"""

from typing import Final

import msgspec
from msgspec import UNSET
from psycopg_pool import AsyncConnectionPool

from api.documents.schemas import HistoryReply, HistoryRow
from api.endpoints.bounded_reads import BoundedReads
from scoreboard.errors import Invalid, NotFound
from scoreboard.ledger.history import CountedAction, Place, select_history
from scoreboard.ledger.pool import Connection
from scoreboard.ledger.retention import is_detached

_encode: Final = msgspec.json.Encoder().encode


class HistoryReader:
    """Replies of the history of users."""

    def __init__(self, pool: AsyncConnectionPool[Connection] | None) -> None:
        """``pool`` is open, or None without a database."""
        self._reads = BoundedReads(pool, "histories")

    async def read(self, board: str, user_id: str, *, limit: int, before: str | None) -> bytes:
        """Read and encode a page of a user's actions; ``before`` is ``next`` of the page before.

        Raises Invalid, NotFound (the board's ledger is detached), Overloaded, DatabaseUnavailable.
        """
        try:
            place = None if before is None else Place.parse(before)
        except ValueError:
            raise Invalid("before: use `next` of the page before it") from None
        # A row more than asked for tells whether there is another page.
        found = await self._reads.run(
            lambda connection: _select(connection, board, user_id, limit + 1, place)
        )
        rows = tuple(
            HistoryRow(one.action_id, one.delta, one.score_after, one.at_ms)
            for one in found[:limit]
        )
        has_more = len(found) > limit
        return _encode(
            HistoryReply(user_id, rows, str(found[limit - 1].place) if has_more else UNSET)
        )


async def _select(
    connection: Connection, board: str, user_id: str, limit: int, before: Place | None
) -> list[CountedAction]:
    found = await select_history(connection, board, user_id, limit=limit, before=before)
    if not found and await is_detached(connection, board):
        raise NotFound(
            f"The actions of board {board} are detached and cannot be read; its scores can"
        )
    return found
