"""Makes PostgreSQL connections and pools: session settings, application name, time limits.

Direct connections only, no transaction pooler: the flusher keeps a temporary table and session
locks. ``synchronous_commit`` is forced on, as the stream is trimmed right behind a COMMIT.
"""

from typing import Any, Final

import psycopg
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from scoreboard.errors import DatabaseUnavailable, SettingInvalid
from scoreboard.settings import Settings

SESSION: Final = {
    "lock_timeout": "5s",
    "statement_timeout": "30s",
    "idle_in_transaction_session_timeout": "30s",
    "synchronous_commit": "on",
    "timezone": "UTC",
}
Connection = psycopg.AsyncConnection[TupleRow]


def arguments(settings: Settings, *, name: str, **session: str) -> dict[str, Any]:
    """Give what every connection is made with; ``session`` overrides single session settings.

    Raises SettingInvalid if no database is set.
    """
    if not settings.database_url:
        raise SettingInvalid("DATABASE_URL is not set; see .env.example")
    options = " ".join(f"-c {key}={value}" for key, value in {**SESSION, **session}.items())
    return {
        "conninfo": settings.database_url.reveal(),
        "application_name": f"scoreboard-{name}",
        "options": options,
        "connect_timeout": max(2, round(settings.database_timeout_s)),
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
    }


async def connect(
    settings: Settings, *, name: str, autocommit: bool = True, **session: str
) -> Connection:
    """Open one connection.

    Raises DatabaseUnavailable, without the address or the password.
    """
    kwargs = arguments(settings, name=name, **session)
    conninfo = kwargs.pop("conninfo")
    try:
        return await psycopg.AsyncConnection.connect(conninfo, autocommit=autocommit, **kwargs)
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable from error


def make_pool(settings: Settings, *, name: str) -> AsyncConnectionPool[Connection]:
    """Make a pool, not yet opened; waiting for a connection is limited by the settings."""
    kwargs = arguments(settings, name=name)
    conninfo = kwargs.pop("conninfo")
    return AsyncConnectionPool(
        conninfo,
        kwargs={"autocommit": True, **kwargs},
        min_size=1,
        max_size=settings.database_pool,
        timeout=settings.database_timeout_s,
        max_lifetime=3600,
        open=False,
        name=name,
        check=AsyncConnectionPool.check_connection,
    )
