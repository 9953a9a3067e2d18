"""Runs the migrations in sql/migrations with yoyo, and checks whether a schema can be used.

``scoreboard db migrate`` calls ``migrate``; services call ``require_schema`` and never migrate. A
migration of a later version names the oldest migration that a version must know to run on it
(schema_compatibility), so the previous version starts during an upgrade and after a rollback.
This module adds a session advisory lock that admits one migrator at a time (yoyo's own lock row
outlives a killed process, so it is broken under this lock), time limits, and error messages.
yoyo is imported only to migrate: the import takes longer than the check of a database.
"""

import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg

from scoreboard.errors import (
    DatabaseUnavailable,
    OperatorMistake,
    SchemaMismatch,
    UnsafeDatabase,
)
from scoreboard.ledger.pool import (
    Connection,
    check_parameters,
    connection_error,
    describe,
    login_arguments,
    translate_errors,
)
from scoreboard.runtime import resources
from scoreboard.runtime.lifecycle import backoff_s
from scoreboard.security.credentials import forget_frames
from scoreboard.security.secret_backends import Credentials

if TYPE_CHECKING:
    from yoyo.backends import DatabaseBackend
    from yoyo.migrations import MigrationList

ROLES: Final = ("scoreboard_api", "scoreboard_flusher", "scoreboard_operator")
"""Roles of the services, created by the database's owner (deploy/docker/postgres-roles.sql)."""

ATTEMPTS_MAX: Final = 10
"""Attempts of a migration that running services hold up; each waits four seconds for a lock."""

PAUSE_MOST_S: Final = 2.0
"""Longest pause between them: meanwhile the services commit what waits for them."""

_CONTENTION: Final = (psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable)

LOCK_KEY: Final = zlib.crc32(b"scoreboard:migrate")
_APPLIED: Final = b"SELECT migration_id FROM _yoyo_migration"
_COMPATIBILITY: Final = b"SELECT migration, compatible_from FROM schema_compatibility"
_SESSION: Final = "-c lock_timeout=4s -c statement_timeout=30s -c timezone=UTC"


def known() -> list[str]:
    """Return the names of the migrations of this version, in order."""
    return sorted(path.stem for path in resources.migrations_path().glob("*.sql"))


def migrate(database_url: str, login: Credentials | None = None) -> list[str]:
    """Migrate a database to this version; return the migrations that ran.

    ``login`` replaces the one of the URL. If the roles of the services exist, they are granted
    their privileges (sql/grants.sql). A newer database that this version can use is not changed:
    its privileges are those of a newer version. A migration that running services hold up, or that
    would deadlock with them, is rolled back and tried again.

    Raises DatabaseUnavailable; SettingInvalid for an invalid URL; UnsafeDatabase behind a
    connection pooler, which may lose the lock; OperatorMistake if another migration is running;
    SchemaMismatch if the database is newer and this version cannot use it.
    """
    ran: list[str] = []
    with _locked(database_url, login) as connection:
        for attempt in count(1):
            try:
                _migrate(connection, database_url, login, ran)
                break
            except _CONTENTION as error:
                if attempt == ATTEMPTS_MAX:
                    raise DatabaseUnavailable(
                        "Transactions of running services or commands hold locks that a migration "
                        f"needs; repeat the command: {describe(error)}"
                    ) from error
                time.sleep(backoff_s(attempt, most_s=PAUSE_MOST_S))
    return ran


def _migrate(
    connection: psycopg.Connection[Any],
    database_url: str,
    login: Credentials | None,
    ran: list[str],
) -> None:
    """Run the pending migrations; add the name of each to ``ran`` before it runs."""
    with _runner(database_url, login) as (backend, migrations):
        applied = _applied_names(backend)
        if not applied <= set(known()):
            rows: list[tuple[str, str]] = []
            with suppress(psycopg.errors.UndefinedTable):  # the database is behind as well
                rows = connection.execute(_COMPATIBILITY).fetchall()
            _check_usable(applied, dict(rows))
            return
        backend.break_lock()
        with backend.lock():
            pending = backend.to_apply(migrations)
            ran += [one.id for one in pending if one.id not in ran]
            backend.apply_migrations(pending)
        _grant(connection)


def status(database_url: str, login: Credentials | None = None) -> list[tuple[str, bool]]:
    """List the migrations of this version and of the database, with whether each has run.

    Only reads, so an operator's login is sufficient. ``login`` replaces the one of the URL.

    Raises DatabaseUnavailable, SettingInvalid.
    """
    with _connection(database_url, login) as connection:
        try:
            rows = connection.execute(_APPLIED).fetchall()
        except psycopg.errors.UndefinedTable:
            rows = []
    applied = {str(row[0]) for row in rows}
    return [(name, name in applied) for name in sorted(applied | set(known()))]


async def require_schema(connection: Connection) -> str:
    """Check that this version can use the schema of a database; return the newest migration.

    The database has all migrations of this version. Those of a later version must be compatible.

    Raises SchemaMismatch with what to do, DatabaseUnavailable.
    """
    applied: set[str] = set()
    needed: dict[str, str] = {}
    with suppress(psycopg.errors.UndefinedTable):  # the database is behind
        async with translate_errors():
            rows = await (await connection.execute(_APPLIED)).fetchall()
            applied = {str(name) for (name,) in rows}
            needed = dict(await (await connection.execute(_COMPATIBILITY)).fetchall())
    _check_usable(applied, needed)
    return max(applied)


def _check_usable(applied: Iterable[str], compatible_from: Mapping[str, str]) -> None:
    """Raise SchemaMismatch unless this version can use a schema.

    ``compatible_from`` are the rows of schema_compatibility. A row without its migration belongs
    to one that has started. A migration without a row is that of a branch or of another program:
    the order of the names says nothing about it.
    """
    ours = known()
    behind = set(ours) - set(applied)
    if behind:
        raise SchemaMismatch(f"The database lacks {min(behind)}: run scoreboard db migrate")
    for name in sorted({*applied, *compatible_from} - set(ours)):
        needed = compatible_from.get(name, name)
        if needed not in ours:
            raise SchemaMismatch(
                f"The database has the unknown migration {name}, which only versions with {needed} "
                "can use: update this service"
            )


def _applied_names(backend: "DatabaseBackend") -> set[str]:
    backend.ensure_internal_schema_updated()
    by_hash = backend.get_applied_migration_hashes()
    rows: Any = backend.execute("SELECT migration_hash, migration_id FROM _yoyo_migration")
    return {str(name) for digest, name in rows.fetchall() if digest in by_hash}


def _grant(connection: psycopg.Connection[Any]) -> None:
    """Grant the services' roles their privileges; do nothing unless all of the roles exist."""
    found = connection.execute(
        "SELECT count(*) FROM pg_roles WHERE rolname = ANY(%s)", (list(ROLES),)
    ).fetchone()
    if found == (len(ROLES),):
        with connection.transaction():
            connection.execute(resources.grants())


@contextmanager
def _locked(database_url: str, login: Credentials | None) -> Iterator[psycopg.Connection[Any]]:
    with _connection(database_url, login) as connection:
        backend = connection.execute("SELECT pg_backend_pid()").fetchone()
        if backend != (connection.info.backend_pid,):
            raise UnsafeDatabase(
                "DATABASE_URL points to a connection pooler such as PgBouncer: "
                "run migrations through a direct connection"
            )
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", (LOCK_KEY,)).fetchone()
        if row is None or not row[0]:
            raise OperatorMistake("Another migration is running; wait until it ends")
        try:
            yield connection
        finally:
            # PostgreSQL notices a closed connection later, and a second command would be refused.
            with suppress(psycopg.Error):
                connection.execute("SELECT pg_advisory_unlock(%s)", (LOCK_KEY,))


@contextmanager
def _connection(database_url: str, login: Credentials | None) -> Iterator[psycopg.Connection[Any]]:
    check_parameters(database_url)
    stored = {} if login is None else login_arguments(login)
    try:
        connection = psycopg.connect(database_url, autocommit=True, connect_timeout=5, **stored)
    except psycopg.OperationalError as error:
        forget_frames(error)
        raise connection_error(error) from error
    with connection:
        yield connection


@contextmanager
def _runner(
    database_url: str, login: Credentials | None
) -> Iterator[tuple["DatabaseBackend", "MigrationList"]]:
    from yoyo import get_backend, read_migrations  # noqa: PLC0415

    parts = urlsplit(database_url)
    query = "&".join(filter(None, [parts.query, "options=" + quote(_SESSION)]))
    netloc = parts.netloc
    if login is not None:
        # yoyo takes a login from the URL only.
        user, password = (
            quote(text, safe="") for text in (login.username, login.password.reveal())
        )
        netloc = f"{user}:{password}@{netloc.rpartition('@')[2]}"
    uri = urlunsplit(("postgresql+psycopg", netloc, parts.path, query, ""))
    try:
        backend = get_backend(uri)
    except psycopg.OperationalError as error:
        forget_frames(error)
        raise connection_error(error) from error
    try:
        yield backend, read_migrations(str(resources.migrations_path()))
    finally:
        backend.connection.close()
