"""The schema: migrations run twice, the audit log is append-only, services check the version."""

import psycopg
import pytest

from scoreboard.errors import DatabaseUnavailable, SchemaMismatch
from scoreboard.ledger import migrations
from scoreboard.ledger import pool as postgres
from scoreboard.runtime import resources
from scoreboard.runtime.settings import Secret, Settings


def settings_for(url: str) -> Settings:
    return Settings(redis_url=Secret("redis://unused"), database_url=Secret(url))


def test_an_empty_database_is_migrated_once(empty_database_url: str) -> None:
    assert migrations.migrate(empty_database_url) == migrations.known()
    assert migrations.migrate(empty_database_url) == []
    assert migrations.status(empty_database_url) == [(name, True) for name in migrations.known()]


def test_every_migration_can_run_twice(database_url: str) -> None:
    """The runner commits a file and its record separately, so a killed run repeats the file."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        for path in sorted(resources.migrations_path().glob("*.sql")):
            connection.execute(path.read_bytes())


async def test_a_service_refuses_a_database_that_is_behind(empty_database_url: str) -> None:
    connection = await postgres.connect(settings_for(empty_database_url), name="test")
    async with connection:
        with pytest.raises(SchemaMismatch, match="scoreboard db migrate"):
            await migrations.require_current(connection)


async def test_a_service_refuses_a_database_that_is_ahead(database_url: str) -> None:
    connection = await postgres.connect(settings_for(database_url), name="test")
    async with connection:
        await connection.execute(
            "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc) "
            "VALUES ('x', '9999_from_the_future', now())"
        )
        with pytest.raises(SchemaMismatch, match="9999_from_the_future"):
            await migrations.require_current(connection)


def test_an_unreachable_database_raises_database_unavailable(postgres_server: object) -> None:
    with pytest.raises(DatabaseUnavailable):
        migrations.migrate("postgresql://user:wrong@127.0.0.1:1/none")


def test_a_killed_migrator_leaves_no_lock(empty_database_url: str) -> None:
    migrations.migrate(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 999999)")

    assert migrations.migrate(empty_database_url) == []


@pytest.mark.parametrize("statement", ["UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log"])
def test_the_audit_log_is_append_only(database_url: str, statement: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO audit_log (actor, action) VALUES ('me', 'test')")
        with pytest.raises(psycopg.errors.RaiseException, match="append only"):
            connection.execute(statement)
