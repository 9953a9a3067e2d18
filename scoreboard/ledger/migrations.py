"""Drives the migration runner (yoyo) over sql/migrations; tells whether a database is current.

``scoreboard db migrate`` calls ``migrate``; services call ``require_current`` and never migrate.
We add what the runner lacks: one migrator at a time by a session advisory lock (yoyo's own lock
row outlives a killed process, so under ours it may be broken), time limits, a plain error.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
from yoyo import get_backend, read_migrations
from yoyo.backends import DatabaseBackend
from yoyo.migrations import MigrationList

from scoreboard.errors import DatabaseUnavailable, OperatorMistake, SchemaMismatch, UnsafeDatabase
from scoreboard.ledger.pool import Connection, check_parameters, connection_error, describe
from scoreboard.runtime import resources

ROLES: Final = ("scoreboard_api", "scoreboard_flusher", "scoreboard_operator")
"""Roles of the services, made by whoever owns the database (deploy/docker/postgres-roles.sql)."""

LOCK_KEY: Final = zlib.crc32(b"scoreboard:migrate")
_APPLIED: Final = b"SELECT migration_id FROM _yoyo_migration"
_SESSION: Final = "-c lock_timeout=4s -c statement_timeout=30s -c timezone=UTC"


def known() -> list[str]:
    """Name the migrations of this version, in order."""
    return sorted(path.stem for path in resources.migrations_path().glob("*.sql"))


def migrate(database_url: str) -> list[str]:
    """Bring a database up to this version; give the migrations that ran.

    Where the services have roles of their own, these get their rights (sql/grants.sql).

    Raises DatabaseUnavailable; SettingInvalid for an address that libpq cannot read;
    UnsafeDatabase behind a connection pooler, which may lose the lock;
    OperatorMistake if another migrator is at work;
    SchemaMismatch if the database is ahead of this version.
    """
    with (
        _locked(database_url) as connection,
        _runner(database_url) as (backend, migrations),
    ):
        ahead = _applied_names(backend) - set(known())
        if ahead:
            raise SchemaMismatch(f"The database is ahead of this version: {min(ahead)}")
        backend.break_lock()
        with backend.lock():
            pending = backend.to_apply(migrations)
            names = [migration.id for migration in pending]
            backend.apply_migrations(pending)
        _grant(connection)
    return names


def status(database_url: str) -> list[tuple[str, bool]]:
    """List every migration of this version or of the database, with whether it has run.

    Only reads, so that an operator's login is enough.

    Raises DatabaseUnavailable, SettingInvalid.
    """
    with _connection(database_url) as connection:
        try:
            rows = connection.execute(_APPLIED).fetchall()
        except psycopg.errors.UndefinedTable:
            rows = []
    applied = {str(row[0]) for row in rows}
    return [(name, name in applied) for name in sorted(applied | set(known()))]


async def require_current(connection: Connection) -> None:
    """Refuse a database that is behind or ahead of this version.

    Raises SchemaMismatch, saying what to do; DatabaseUnavailable.
    """
    try:
        rows = await (await connection.execute(_APPLIED)).fetchall()
    except psycopg.errors.UndefinedTable:
        rows = []
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(describe(error)) from error
    applied = {str(row[0]) for row in rows}
    behind, ahead = set(known()) - applied, applied - set(known())
    if behind:
        raise SchemaMismatch(f"The database lacks {min(behind)}: run scoreboard db migrate")
    if ahead:
        raise SchemaMismatch(f"The database has {min(ahead)}, unknown here: update this service")


def _applied_names(backend: DatabaseBackend) -> set[str]:
    backend.ensure_internal_schema_updated()
    by_hash = backend.get_applied_migration_hashes()
    rows: Any = backend.execute("SELECT migration_hash, migration_id FROM _yoyo_migration")
    return {str(name) for digest, name in rows.fetchall() if digest in by_hash}


def _grant(connection: psycopg.Connection[Any]) -> None:
    """Give the services' roles their rights; a database without all of the roles stays as it is."""
    found = connection.execute(
        "SELECT count(*) FROM pg_roles WHERE rolname = ANY(%s)", (list(ROLES),)
    ).fetchone()
    if found == (len(ROLES),):
        with connection.transaction():
            connection.execute(resources.grants())


@contextmanager
def _locked(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with _connection(database_url) as connection:
        backend = connection.execute("SELECT pg_backend_pid()").fetchone()
        if backend != (connection.info.backend_pid,):
            raise UnsafeDatabase(
                "DATABASE_URL leads through a connection pooler such as PgBouncer: "
                "migrate by a direct connection"
            )
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", (LOCK_KEY,)).fetchone()
        if row is None or not row[0]:
            raise OperatorMistake("Another migration is running; wait for it")
        yield connection


@contextmanager
def _connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    check_parameters(database_url)
    try:
        connection = psycopg.connect(database_url, autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as error:
        raise connection_error(error) from error
    with connection:
        yield connection


@contextmanager
def _runner(database_url: str) -> Iterator[tuple[DatabaseBackend, MigrationList]]:
    parts = urlsplit(database_url)
    query = "&".join(filter(None, [parts.query, "options=" + quote(_SESSION)]))
    uri = urlunsplit(("postgresql+psycopg", parts.netloc, parts.path, query, ""))
    try:
        backend = get_backend(uri)
    except psycopg.OperationalError as error:
        raise connection_error(error) from error
    try:
        yield backend, read_migrations(str(resources.migrations_path()))
    finally:
        backend.connection.close()
