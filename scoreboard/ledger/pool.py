"""Creates PostgreSQL connections and pools: session settings, application name, time limits.

A pooler in transaction mode is not supported (scoreboard.ledger.sessions refuses it): the flusher
uses a temporary table and session locks. ``synchronous_commit`` is always on, because the stream is
trimmed right after a COMMIT. With credentials from a secret store, every new connection logs in
with the current ones.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Self

import psycopg
from psycopg import IsolationLevel, waiting
from psycopg.abc import RV, PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from scoreboard.errors import (
    DatabaseUnavailable,
    SecretsUnavailable,
    SettingInvalid,
    UnsafeDatabase,
)
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger, state_gauge
from scoreboard.security.credentials import SecretStore, forget_frames, secret_store
from scoreboard.security.secret_backends import Credentials

SESSION: Final = {
    "lock_timeout": "5s",
    "statement_timeout": "30s",
    "idle_in_transaction_session_timeout": "30s",
    "synchronous_commit": "on",
    "timezone": "UTC",
}
CANCEL_S: Final = 0.5
"""Longest time for asking the server to cancel a statement."""

POOLER_HINT: Final = (
    "DATABASE_URL points to a connection pooler such as PgBouncer in transaction mode. Connect "
    "to PostgreSQL directly, or through a pooler in session mode that passes `options` on"
)
"""Advice for a connection without a session of its own."""

CAUSE_MAX: Final = 300
"""Longest cause of a failed connection in a message, in characters."""

_POOLER_ERROR: Final = "unsupported startup parameter"
_QUOTED_HOST: Final = re.compile(r"""\b(host(?: name)?) (?:'[^']*'|"[^"]*")""")
POSTGRES_UP: Final = state_gauge(
    "postgres_up",
    "1 if PostgreSQL answered the last query that this process made to measure it",
    normal="1; NaN in an api without DATABASE_URL, and in a streamer without a login",
)
_log = get_logger(__name__)


class Connection(psycopg.AsyncConnection[TupleRow]):
    """A connection whose cancelled calls end at once.

    psycopg waits up to ten seconds for a server that does not answer, which would exceed every time
    limit. This class asks the server to cancel the statement and closes the connection.
    """

    @property
    def is_login_outdated(self) -> bool:
        """Return whether the secret has changed since this connection logged in."""
        return False

    async def wait(
        self,
        gen: PQGen[RV],
        interval: float = 0.1,
        timeout: float | None = None,  # noqa: ASYNC109 (psycopg's own)
    ) -> RV:
        """Run a step of the protocol."""
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, interval, timeout)
        except asyncio.CancelledError:
            try:
                if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                    with suppress(psycopg.Error):
                        await self.cancel_safe(timeout=CANCEL_S)
            finally:
                self.pgconn.finish()
            raise


class _StoredLogin(Connection):
    """A connection whose credentials come from a store and override those of the URL."""

    _store: SecretStore | None = None
    _used: Credentials | None = None

    @property
    def is_login_outdated(self) -> bool:
        """Return whether the secret has changed since this connection logged in."""
        if self._store is None or self._used is None:
            return False
        return self._store.is_outdated(self._used)

    @classmethod
    async def connect(  # pyright: ignore[reportIncompatibleMethodOverride] (called here only)
        cls,
        conninfo: str = "",
        *,
        store: SecretStore,
        **kwargs: Any,  # noqa: ANN401 (psycopg's own)
    ) -> Self:
        """Connect; if the login is refused, retry once with renewed credentials.

        Raises psycopg.OperationalError, as connecting alone would.
        """
        try:
            used = await store.get()
        except SecretsUnavailable as error:
            raise psycopg.OperationalError(error.detail) from error
        try:
            return await cls._log_in(conninfo, store, used, kwargs)
        except psycopg.OperationalError as error:
            # A failed login has no SQLSTATE here, and its text depends on lc_messages. It is only
            # known that a password was sent, so this also retries for a missing database.
            if error.pgconn is None or not error.pgconn.used_password:
                raise
            newer = await store.renew(used)
            if newer is None:
                raise
        return await cls._log_in(conninfo, store, newer, kwargs)

    @classmethod
    async def _log_in(
        cls, conninfo: str, store: SecretStore, login: Credentials, kwargs: dict[str, Any]
    ) -> Self:
        try:
            connection = await super().connect(conninfo, **kwargs, **login_arguments(login))
        except BaseException as error:
            forget_frames(error)
            raise
        connection._store, connection._used = store, login  # noqa: SLF001 (its own class)
        return connection


def login_arguments(credentials: Credentials) -> dict[str, Any]:
    """Return a login as arguments of psycopg; the user of the URL stays if it names none."""
    user = {"user": credentials.username} if credentials.username else {}
    return user | {"password": credentials.password.reveal()}


def arguments(settings: Settings, *, name: str, **session: str) -> dict[str, Any]:
    """Return the connection arguments; ``session`` overrides single session settings.

    Raises SettingInvalid if DATABASE_URL is not set or has a parameter that libpq does not know.
    """
    if not settings.database_url:
        raise SettingInvalid("DATABASE_URL is not set; see .env.example")
    check_parameters(settings.database_url.reveal())
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


def check_parameters(database_url: str) -> None:
    """Check that libpq can parse a URL; its own message would quote parts of it.

    Raises SettingInvalid.
    """
    try:
        conninfo_to_dict(database_url)
    except psycopg.ProgrammingError:
        raise SettingInvalid(
            "DATABASE_URL is not a URL of PostgreSQL: libpq does not know a parameter of it"
        ) from None


def user_of(database_url: str) -> str:
    """Return the user that a URL names, or an empty string.

    Raises SettingInvalid if libpq does not know a parameter of the URL.
    """
    check_parameters(database_url)
    return str(conninfo_to_dict(database_url).get("user") or "")


async def connect(
    settings: Settings, *, name: str, autocommit: bool = True, **session: str
) -> Connection:
    """Open one connection.

    Raises DatabaseUnavailable with its cause, without the password; UnsafeDatabase behind a pooler
    that refuses session settings.
    """
    kwargs = arguments(settings, name=name, **session)
    store = secret_store(settings, "database")
    try:
        if store is not None:
            return await _StoredLogin.connect(store=store, autocommit=autocommit, **kwargs)
        return await Connection.connect(autocommit=autocommit, **kwargs)
    except psycopg.OperationalError as error:
        forget_frames(error)
        raise connection_error(error) from error


async def connect_as(settings: Settings, login: Credentials, *, name: str) -> Connection:
    """Open one connection with another login than that of the settings.

    Raises as ``connect`` does.
    """
    kwargs = arguments(settings, name=name) | login_arguments(login)
    try:
        return await Connection.connect(autocommit=True, **kwargs)
    except psycopg.OperationalError as error:
        raise connection_error(error) from error


def make_pool(settings: Settings, *, name: str) -> AsyncConnectionPool[Connection]:
    """Create a pool, not yet opened; the settings limit the wait for a connection.

    Raises SettingInvalid if DATABASE_URL is not set or its secret is not named.
    """
    kwargs = arguments(settings, name=name)
    conninfo = kwargs.pop("conninfo")
    store = secret_store(settings, "database")
    pool = AsyncConnectionPool(
        conninfo,
        connection_class=Connection if store is None else _StoredLogin,
        kwargs={"autocommit": True, **kwargs, **({} if store is None else {"store": store})},
        min_size=1,
        max_size=settings.database_pool,
        timeout=settings.database_timeout_s,
        max_lifetime=3600,
        open=False,
        name=name,
        check=_check_connection,
        reconnect_failed=_note_reconnect_failed,
    )
    if store is not None:
        store.on_change(pool.drain)
    return pool


async def _check_connection(connection: Connection) -> None:
    # A connection that was being opened when the secret changed may have an older login.
    if connection.is_login_outdated:
        await connection.close()
        raise psycopg.OperationalError("the secret has changed since the login")
    await AsyncConnectionPool.check_connection(connection)


def _note_reconnect_failed(pool: AsyncConnectionPool[Connection]) -> None:
    # The pool stopped reconnecting; the next request for a connection starts it again.
    _log.error("database_reconnect_failed", pool=pool.name)


def connection_error(error: psycopg.Error) -> DatabaseUnavailable | UnsafeDatabase:
    """Return the error to raise for a failed connection, with the cause."""
    if _POOLER_ERROR in str(error):
        return UnsafeDatabase(f"The session settings are refused: {POOLER_HINT}")
    return DatabaseUnavailable(describe(error))


def describe(error: psycopg.Error) -> str:
    """Return the cause of an error in one line.

    It omits the detail of a server error, which quotes rows, and the name of a host that was not
    found, which may be part of a password.
    """
    if error.sqlstate is None and error.diag.message_primary is None:
        text = str(error).strip().partition("\n")[0].removeprefix("connection failed: ")
        return _QUOTED_HOST.sub(r"\1", text)[:CAUSE_MAX] or type(error).__name__
    text = error.diag.message_primary or type(error).__name__
    return " ".join(filter(None, [error.sqlstate, error.diag.constraint_name, text]))


@asynccontextmanager
async def translate_errors() -> AsyncIterator[None]:
    """Raise DatabaseUnavailable for a lost or refused connection; other errors pass."""
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseUnavailable(describe(error)) from error


async def limit_statements(connection: Connection, limit_s: float) -> None:
    """Limit how long each further statement of a session may take, waits for locks included.

    ``connection`` is in autocommit. Raises DatabaseUnavailable.
    """
    async with translate_errors():
        await connection.execute(
            "SELECT set_config('statement_timeout', %s, false)", [f"{round(limit_s * 1000)}ms"]
        )


@asynccontextmanager
async def snapshot(connection: Connection) -> AsyncIterator[None]:
    """Run the block in one snapshot (REPEATABLE READ), without blocking other sessions.

    ``connection`` is in autocommit. Raises DatabaseUnavailable.
    """
    await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    try:
        async with translate_errors(), connection.transaction():
            yield
    finally:
        if not connection.closed:
            await connection.set_isolation_level(None)


async def pages(
    connection: Connection, query: bytes, parameters: dict[str, Any], page: int
) -> AsyncIterator[list[Any]]:
    """Read the rows of a query, ``page`` at a time, within the caller's transaction.

    A server-side cursor keeps one snapshot and at most one page in memory.

    Raises DatabaseUnavailable.
    """
    async with translate_errors(), connection.cursor(name="pages") as cursor:
        await cursor.execute(query, parameters)
        while rows := await cursor.fetchmany(page):
            yield rows
