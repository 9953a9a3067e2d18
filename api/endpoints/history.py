"""Reads users' counted actions from PostgreSQL, with bounds that protect other requests.

Invariants: few reads run at once and further ones are refused, so names and probes get connections;
each read has a time limit, at which its statement is cancelled.
"""

import asyncio
from typing import Final

import msgspec
import psycopg
from msgspec import UNSET
from psycopg_pool import AsyncConnectionPool

from api.documents.schemas import HistoryReply, HistoryRow
from scoreboard.errors import DatabaseUnavailable, Invalid, Overloaded
from scoreboard.ledger.history import Place, select_history
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.runtime.telemetry import get_logger

READS_MAX: Final = 2
"""Maximum reads at once in a process; the pool has four connections by default."""

READ_S: Final = 2.0
"""Time limit of a read, with the wait for a connection. It bounds the work of PostgreSQL, which
reads all actions of the user on the board."""

_encode: Final = msgspec.json.Encoder().encode
_log = get_logger(__name__)


class HistoryReader:
    """Replies of the history of users."""

    def __init__(self, pool: AsyncConnectionPool[Connection] | None) -> None:
        """``pool`` is open, or None without a database: then every read is refused."""
        self._pool = pool
        self._running = 0

    async def read(self, board: str, user_id: str, *, limit: int, before: str | None) -> bytes:
        """Read and encode a page of a user's actions; ``before`` is ``next`` of the page before.

        Raises Invalid, Overloaded, DatabaseUnavailable.
        """
        try:
            place = None if before is None else Place.parse(before)
        except ValueError:
            raise Invalid("before: use `next` of the page before it") from None
        if self._pool is None:
            raise DatabaseUnavailable("This service has no database, which keeps the history")
        if self._running >= READS_MAX:
            raise Overloaded("Too many histories are read at the moment")
        self._running += 1
        try:
            # A row more than asked for tells whether there is another page.
            async with (
                asyncio.timeout(READ_S),
                translate_errors(),
                self._pool.connection() as connection,
            ):
                found = await select_history(
                    connection, board, user_id, limit=limit + 1, before=place
                )
        except (TimeoutError, DatabaseUnavailable, psycopg.Error) as error:
            _log.warning("history_unavailable", error=type(error).__name__)
            raise DatabaseUnavailable("The history cannot be read at the moment") from error
        finally:
            self._running -= 1
        rows = tuple(
            HistoryRow(one.action_id, one.delta, one.score_after, one.at_ms)
            for one in found[:limit]
        )
        has_more = len(found) > limit
        return _encode(
            HistoryReply(user_id, rows, str(found[limit - 1].place) if has_more else UNSET)
        )
