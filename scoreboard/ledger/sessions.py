"""Checks that a connection to PostgreSQL has a session of its own.

The flusher and the operator commands keep locks, settings and temporary tables in their sessions. A
pooler in transaction mode shares a session among clients, transaction by transaction: a session
lock would stay with the server process, and its owner would wait for it forever.
"""

import asyncio
from typing import Final

from scoreboard.errors import DatabaseUnavailable, UnsafeDatabase
from scoreboard.ledger.pool import POOLER_HINT, SESSION, Connection, connect, translate_errors
from scoreboard.runtime import resources
from scoreboard.runtime.settings import Settings

_CAN_ADMINISTER: Final = resources.query("can_administer")
_SELECT_BACKEND: Final = resources.query("select_backend")

ROUNDS: Final = 20
"""Number of checks whether a pooler keeps the session."""


async def require_session(settings: Settings, connection: Connection) -> None:
    """Check that a connection has its own session, with the requested settings.

    Raises UnsafeDatabase, DatabaseUnavailable.
    """
    try:
        async with asyncio.timeout(settings.database_timeout_s):
            process, lock_timeout = await _backend(connection)
    except TimeoutError as error:
        raise DatabaseUnavailable("no answer to the first statement") from error
    if lock_timeout != SESSION["lock_timeout"]:
        raise UnsafeDatabase(f"PostgreSQL did not get the session settings: {POOLER_HINT}")
    if process == connection.info.backend_pid:
        return  # the process that accepted the login: there is no pooler
    if not await _is_kept(settings, connection, process):
        raise UnsafeDatabase(f"A pooler shares the session with other clients: {POOLER_HINT}")


async def require_operator(connection: Connection) -> None:
    """Check that a connection has the login of the operator, before anything is begun.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        row = await (await connection.execute(_CAN_ADMINISTER)).fetchone()
    if row is None or not row[0]:
        raise DatabaseUnavailable(
            "The login of PostgreSQL has no permission to administer: "
            "SCOREBOARD_ADMIN_DATABASE_SECRET must name that of the operator"
        )


async def _is_kept(settings: Settings, connection: Connection, process: int) -> bool:
    """Return whether a connection keeps its server process while another client is served.

    A pooler may assign the same process again by chance, so this is checked ``ROUNDS`` times.
    """
    other = await connect(settings, name="pooler-check")
    asking: asyncio.Task[tuple[int, str]] | None = None
    try:
        for _ in range(ROUNDS):
            async with asyncio.timeout(settings.database_timeout_s):
                async with translate_errors(), other.transaction():
                    # A pooler in transaction mode assigns the process used last.
                    shared, _ = await _backend(other)
                    asking = asyncio.create_task(_backend(connection))
                    # If it has one process only, it waits until this transaction ends.
                    done, _ = await asyncio.wait({asking}, timeout=settings.database_timeout_s / 2)
                again, _ = await asking
            if not done or again != process or shared == process:
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
        # Not prepared: another process would not have the statement.
        row = await (await connection.execute(_SELECT_BACKEND, prepare=False)).fetchone()
    return (int(row[0]), str(row[1])) if row else (0, "")
