"""The schema: migrations run twice, the audit log is append-only, services check the version."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from scoreboard.errors import DatabaseUnavailable, OperatorMistake, SchemaMismatch
from scoreboard.ledger import migrations
from scoreboard.ledger import pool as postgres
from scoreboard.runtime import resources
from scoreboard.runtime.settings import Secret, Settings
from tests.support.eventually import eventually


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


@pytest.mark.parametrize(
    ("name", "compatible_from"),
    [("0001_of_another_program", None), ("0016_a_branch", None), ("9999_later", "")],
)
async def test_a_version_refuses_a_migration_that_names_none_of_its_own(
    database_url: str, name: str, compatible_from: str | None
) -> None:
    """The order of names does not show whether a branch or another program is compatible."""
    add_later_migration(database_url, name, compatible_from)

    connection = await postgres.connect(settings_for(database_url), name="test")
    async with connection:
        with pytest.raises(SchemaMismatch, match=name):
            await migrations.require_schema(connection)
    with pytest.raises(SchemaMismatch, match=name):
        migrations.migrate(database_url)


def test_a_foreign_migration_is_refused_before_compatibility_is_recorded(
    database_url: str,
) -> None:
    add_later_migration(database_url, "9999_of_another_program", None)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP TABLE schema_compatibility")
        connection.execute("DELETE FROM _yoyo_migration WHERE migration_id LIKE '0016%'")

    with pytest.raises(SchemaMismatch):
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


@pytest.fixture
def later_migration(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection]:
    """Add a migration that locks two tables; return a session that has locked the second one."""
    before = migrations.known()[-1]
    folder = shutil.copytree(resources.migrations_path(), tmp_path / "migrations")
    (folder / "9999_add_later.sql").write_text(
        f"-- depends: {before}\n"
        "INSERT INTO schema_compatibility (migration, compatible_from)\n"
        f"VALUES ('9999_add_later', '{before}') ON CONFLICT DO NOTHING;\n"
        "ALTER TABLE scores ADD COLUMN later INT;\nALTER TABLE users ADD COLUMN later INT;\n"
    )
    monkeypatch.setattr(resources, "migrations_path", lambda: folder)
    monkeypatch.setattr(migrations, "_SESSION", "-c lock_timeout=100ms")
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE users IN ROW EXCLUSIVE MODE")
        yield holder


def test_a_migration_that_services_hold_up_is_tried_again(
    database_url: str, later_migration: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pause(attempt: int, **_: float) -> float:
        if attempt == 1:
            later_migration.execute("SELECT 1 FROM scores")  # nothing of the attempt has remained
            later_migration.commit()
        return 0.0

    monkeypatch.setattr(migrations, "backoff_s", pause)

    assert migrations.migrate(database_url) == ["9999_add_later"]
    assert migrations.migrate(database_url) == []


def test_a_migration_that_gets_no_lock_says_so(
    database_url: str, later_migration: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "backoff_s", lambda *_, **__: 0.0)

    with pytest.raises(DatabaseUnavailable, match="hold locks that a migration needs"):
        migrations.migrate(database_url)

    later_migration.rollback()
    assert migrations.migrate(database_url) == ["9999_add_later"]


def test_no_other_migration_runs_between_two_tries(
    database_url: str, later_migration: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def try_another(*_: object, **__: object) -> float:
        with pytest.raises(OperatorMistake, match="Another migration is running"):
            migrations.migrate(database_url)
        later_migration.rollback()
        return 0.0

    monkeypatch.setattr(migrations, "backoff_s", try_another)

    assert migrations.migrate(database_url) == ["9999_add_later"]


def test_a_migration_that_deadlocks_with_a_service_is_tried_again(
    database_url: str, later_migration: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Incident: a migration of several tables deadlocked with the flusher and was reported as an
    unreachable database."""
    monkeypatch.setattr(migrations, "_SESSION", "-c lock_timeout=60s -c deadlock_timeout=100ms")
    later_migration.execute("SET deadlock_timeout = '60s'")
    blocked = threading.Thread(
        target=_lock_when_waited_for, args=(database_url, later_migration), daemon=True
    )
    blocked.start()

    assert migrations.migrate(database_url) == ["9999_add_later"]
    blocked.join(timeout=30)
    assert not blocked.is_alive()


def _lock_when_waited_for(url: str, holder: psycopg.Connection) -> None:
    """Once a session waits for the holder, let the holder wait for that session, then commit."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'users'::regclass"
    with psycopg.connect(url, autocommit=True) as watcher:
        eventually(lambda: watcher.execute(waiting).fetchone() != (0,))
    holder.execute("LOCK TABLE scores IN ROW EXCLUSIVE MODE")
    holder.commit()


def test_the_ledger_keeps_its_rows_and_rights_when_it_is_partitioned_by_board(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Services that run meanwhile have no other rights until the end of the command."""
    paths = sorted(resources.migrations_path().glob("*.sql"))
    change = next(path for path in paths if path.stem == "0022_partition_ledger_by_board")
    before = tmp_path / "before"
    before.mkdir()
    for path in paths[: paths.index(change)]:
        shutil.copy(path, before)
    with monkeypatch.context() as patch:
        patch.setattr(resources, "migrations_path", lambda: before)
        migrations.migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        connection.execute(
            "CREATE ROLE some_reader; GRANT SELECT (board, delta) ON score_events TO some_reader;"
            "CREATE ROLE some_writer; GRANT SELECT, INSERT ON score_events TO some_writer;"
            "INSERT INTO score_events (board, user_id, action_id, part, epoch, seq, delta,"
            " score_after, kind, occurred_at)"
            " VALUES ('main', gen_random_uuid(), 'win:1', 0, 1, 1, 5, 5, 'win', now())"
        )
        connection.execute(change.read_bytes())
        rights = connection.execute(
            "SELECT has_column_privilege('some_reader', 'score_events', 'delta', 'SELECT'),"
            " has_column_privilege('some_reader', 'score_events', 'user_id', 'SELECT'),"
            " has_table_privilege('some_writer', 'score_events', 'SELECT'),"
            " has_table_privilege('some_writer', 'score_events', 'INSERT'),"
            " has_table_privilege('some_writer', 'score_events', 'UPDATE')"
        )
        assert rights.fetchone() == (True, False, True, True, False)
        assert connection.execute("SELECT board, delta FROM score_events").fetchall() == [
            ("main", 5)
        ]
        with pytest.raises(psycopg.errors.RaiseException, match="append only"):
            connection.execute("DELETE FROM score_events")
        connection.rollback()  # the roles are those of the whole server


@pytest.mark.parametrize("statement", ["UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log"])
def test_the_audit_log_is_append_only(database_url: str, statement: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO audit_log (actor, action) VALUES ('me', 'test')")
        with pytest.raises(psycopg.errors.RaiseException, match="append only"):
            connection.execute(statement)
