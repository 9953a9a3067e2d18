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
            await migrations.require_schema(connection)


def add_later_migration(url: str, name: str, compatible_from: str | None) -> None:
    """Record what a migration of a later version records."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc) "
            "VALUES (%(name)s, %(name)s, now())",
            {"name": name},
        )
        if compatible_from is not None:
            connection.execute(
                "INSERT INTO schema_compatibility VALUES (%s, %s)", (name, compatible_from)
            )


@pytest.mark.parametrize("compatible_from", [None, "9998_change", "9999_from_the_future"])
async def test_a_version_refuses_a_later_migration_that_it_cannot_use(
    database_url: str, compatible_from: str | None
) -> None:
    add_later_migration(database_url, "9999_from_the_future", compatible_from)

    connection = await postgres.connect(settings_for(database_url), name="test")
    async with connection:
        with pytest.raises(SchemaMismatch, match=r"9999_from_the_future.*update this service"):
            await migrations.require_schema(connection)
    with pytest.raises(SchemaMismatch, match="9999_from_the_future"):
        migrations.migrate(database_url)


async def test_a_version_uses_later_migrations_that_are_compatible_with_it(
    database_url: str,
) -> None:
    add_later_migration(database_url, "9998_expand", "0016_create_schema_compatibility")
    add_later_migration(database_url, "9999_expand_more", migrations.known()[-1])

    connection = await postgres.connect(settings_for(database_url), name="test")
    async with connection:
        assert await migrations.require_schema(connection) == "9999_expand_more"
    assert migrations.migrate(database_url) == []
    assert migrations.status(database_url)[-1] == ("9999_expand_more", True)


def test_an_older_version_does_not_replace_the_rights_of_a_newer_one(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rights of the older version would take those of the newer services away."""
    add_later_migration(database_url, "9999_expand", migrations.known()[-1])
    monkeypatch.setattr(migrations, "ROLES", ())  # none is missing, so rights would be granted
    granted: list[object] = []
    monkeypatch.setattr(resources, "grants", lambda: granted.append(1) or b"SELECT 1")

    migrations.migrate(database_url)

    assert granted == []


async def test_a_migration_that_has_started_counts(database_url: str) -> None:
    """The runner commits a file and its record separately."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO schema_compatibility VALUES ('9999_drop', '9998_move')")

    connection = await postgres.connect(settings_for(database_url), name="test")
    async with connection:
        with pytest.raises(SchemaMismatch, match="9999_drop"):
            await migrations.require_schema(connection)


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
