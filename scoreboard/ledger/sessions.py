"""Tells whether a connection to PostgreSQL has a session of its own.

The flusher and operators' commands keep locks, settings and temporary tables in their sessions. A
pooler in transaction mode lends one session to many clients, statement by statement: a lock would
stay behind with nobody, and its owner would wait for it for ever.
"""

import asyncio
from typing import Final

from scoreboard.errors import DatabaseUnavailable, UnsafeDatabase
from scoreboard.ledger.pool import POOLER_HINT, SESSION, Connection, connect, translate_errors
from scoreboard.runtime import resources
from scoreboard.runtime.settings import Settings

_SELECT_BACKEND: Final = resources.query("select_backend")

ROUNDS: Final = 20
"""Times that a pooler is asked whether it keeps a session."""


async def require_session(settings: Settings, connection: Connection) -> None:
    """Refuse a connection whose session is lent to others, or lacks the settings it asked for.

    Raises UnsafeDatabase, DatabaseUnavailable.
    """
    try:
        async with asyncio.timeout(settings.database_timeout_s):
            process, lock_timeout = await _backend(connection)
    except TimeoutError as error:
        raise DatabaseUnavailable("no answer to the first statement") from error
    if lock_timeout != SESSION["lock_timeout"]:
        raise UnsafeDatabase(f"Session settings do not reach PostgreSQL: {POOLER_HINT}")
    if process == connection.info.backend_pid:
        return  # the number that the server gave at the login: nothing is between
    if not await _is_kept(settings, connection, process):
        raise UnsafeDatabase(f"A pooler lends the session to other clients: {POOLER_HINT}")


async def _is_kept(settings: Settings, connection: Connection, process: int) -> bool:
    """Tell whether a connection keeps its server process while another client is served.

    Between other clients a pooler may happen to lend the same process again: so it is asked often.
    """
    other = await connect(settings, name="pooler-check")
    asking: asyncio.Task[tuple[int, str]] | None = None
    try:
        for _ in range(ROUNDS):
            async with asyncio.timeout(settings.database_timeout_s):
                async with translate_errors(), other.transaction():
                    # A pooler that lends sessions gives this transaction the process just used.
                    borrowed, _ = await _backend(other)
                    asking = asyncio.create_task(_backend(connection))
                    # Where the only process is in use, it waits until this transaction ends.
                    done, _ = await asyncio.wait({asking}, timeout=settings.database_timeout_s / 2)
                again, _ = await asking
            if not done or again != process or borrowed == process:
                return False
    except TimeoutError as error:
        raise DatabaseUnavailable("the pooler has no free connection to PostgreSQL") from error
    finally:
        if asking is not None:
            asking.cancel()
        await other.close()
    return True


async def _backend(connection: Connection) -> tuple[int, str]:
    async with translate_errors():
        # Never prepared: another process would not know the statement.
        row = await (await connection.execute(_SELECT_BACKEND, prepare=False)).fetchone()
    return (int(row[0]), str(row[1])) if row else (0, "")
