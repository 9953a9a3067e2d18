"""Reads of PostgreSQL for requests, with bounds that protect the other requests.

Invariants: few reads run at once and further ones are refused, so names and probes get connections;
each read has a time limit, at which its statement is cancelled.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool

from scoreboard.errors import DatabaseUnavailable, Overloaded
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.runtime.telemetry import get_logger

READS_MAX: Final = 2
"""Maximum reads of one kind at once in a process; the pool has four connections by default."""

READ_S: Final = 2.0
"""Time limit of a read, with the wait for a connection. It bounds the work of PostgreSQL."""

_T = TypeVar("_T")
_log = get_logger(__name__)


class BoundedReads:
    """Runs reads of one kind."""

    def __init__(self, pool: AsyncConnectionPool[Connection] | None, what: str) -> None:
        """``pool`` is open, or None without a database: then every read is refused.

        ``what`` is read, in the plural, for messages.
        """
        self._pool = pool
        self._what = what
        self._running = 0

    async def run(self, read: Callable[[Connection], Awaitable[_T]]) -> _T:
        """Return or raise the result of ``read``, which gets a connection.

        Raises Overloaded, DatabaseUnavailable.
        """
        if self._pool is None:
            raise DatabaseUnavailable(f"This service has no database, which keeps the {self._what}")
        if self._running >= READS_MAX:
            raise Overloaded(f"Too many {self._what} are read at the moment")
        self._running += 1
        try:
            async with (
                asyncio.timeout(READ_S),
                translate_errors(),
                self._pool.connection() as connection,
            ):
                return await read(connection)
        except (TimeoutError, DatabaseUnavailable, psycopg.Error) as error:
            _log.warning("read_unavailable", of=self._what, error=type(error).__name__)
            raise DatabaseUnavailable(f"The {self._what} cannot be read at the moment") from error
        finally:
            self._running -= 1
