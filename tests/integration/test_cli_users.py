"""`scoreboard user`: shown from both stores, set, and imported atomically."""

import csv
import io
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psycopg
import pytest

from scoreboard.model import user_uuid
from tests.support.clients.commands import Run
from tests.support.data.ledger import Counted, write_history

pytestmark = pytest.mark.slow


def test_a_user_is_shown_from_redis_and_postgresql(command: Run, database_url: str) -> None:
    history = [
        Counted("alice", "a", 5, time.time()),
        Counted("bob", "a", 9, time.time()),
    ]
    write_history(database_url, history)
    assert command("reseed").code == 0
    assert command("user", "set", "alice", "--name", "Alice", "--email", "a@b.org").code == 0

    shown = json.loads(command("user", "show", "alice", "--json").out)

    assert shown["rank"] == 2
    assert (shown["score"], shown["committedScore"], shown["actions"]) == (5, 5, 1)
    assert (shown["name"], shown["email"]) == ("Alice", "a@b.org")
    assert "name\tAlice" in command("user", "show", "alice").out
    assert command("user", "show", "unknown").code == 3


def test_user_set_keeps_fields_that_are_not_given(command: Run, database_url: str) -> None:
    command("user", "set", "alice", "--name", "Alice")

    assert command("user", "set", "alice", "--email", "a@b.org").code == 0

    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT id, external_id, name, email FROM users").fetchone()
        notes = connection.execute("SELECT detail::text FROM audit_log").fetchall()
    assert row == (user_uuid("alice"), "alice", "Alice", "a@b.org")
    assert len(notes) == 2
    assert not any("a@b.org" in note or "Alice" in note for (note,) in notes)


def test_user_set_without_a_field_is_a_usage_error(command: Run, database_url: str) -> None:
    """Incident: the command created a user without a name and printed nothing."""
    done = command("user", "set", "alice")

    assert done.code == 2
    assert "Give --name, --email or --metadata" in done.err
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (0,)


def test_user_set_reports_the_fields_it_set(command: Run) -> None:
    done = command("user", "set", "alice", "--name", "Alice", "--email", "a@b.org")

    assert done.err.splitlines()[-1] == "User alice: name and email set"


def test_invalid_ids_and_emails_are_rejected(command: Run) -> None:
    for wrong in ("a b", "[/b]", "\x1b[31m", "\udcff", "", "a" * 129):
        assert command("user", "show", wrong).code == 5
    assert command("user", "set", "a b", "--name", "x").code == 5
    assert command("user", "set", "alice", "--email", "unknown").code == 5


def test_metadata_is_a_small_object_and_is_set_compactly(command: Run, database_url: str) -> None:
    write_history(database_url, [Counted("alice", "a", 5, time.time())])
    assert command("reseed").code == 0
    given = '{ "team": "red", "level": 1e300, "team": "blue", "flag": "\\u0000ü" }'
    assert command("user", "set", "alice", "--metadata", given).err.endswith("metadata set\n")
    compact = '{"team":"blue","level":1e300,"flag":"\\u0000ü"}'
    assert metadata_of(database_url, "alice") == compact
    assert json.loads(command("user", "show", "alice", "--json").out)["metadata"] == compact
    assert command("user", "set", "alice", "--name", "Alice").code == 0
    assert metadata_of(database_url, "alice") == compact, "a field that is not given stays"
    longest = json.dumps({"x": "ü" * 508}, ensure_ascii=False, separators=(",", ":"))
    assert len(longest.encode()) == 1024
    assert command("user", "set", "alice", "--metadata", longest).code == 0
    for wrong in (
        *("[]", "1", "null", '"x"', "{", "{'a': 1}", '{"a": NaN}'),
        longest.replace("}", ' ,"y":1}'),
        '{"x": "\u2028"}',
    ):
        assert command("user", "set", "alice", "--metadata", wrong).code == 5, wrong
    assert metadata_of(database_url, "alice") == longest
    assert command("user", "set", "alice", "--metadata", "{}").code == 0
    assert metadata_of(database_url, "alice") == "{}"


def metadata_of(database_url: str, user: str) -> str | None:
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT metadata FROM users WHERE external_id = %s", [user])
        [(found,)] = row.fetchall()
    return found


def test_metadata_is_imported_exported_and_erased(
    command: Run, database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "users.csv"
    file.write_text('userId,metadata\nalice,"{""team"": ""red""}"\nbob,\ncarol,{}\n')
    assert command("user", "import", str(file)).code == 0
    assert metadata_of(database_url, "alice") == '{"team":"red"}'
    assert metadata_of(database_url, "bob") is None
    file.write_text("userId,name,metadata\nalice,Alice,\n")
    assert command("user", "import", str(file)).code == 0
    assert metadata_of(database_url, "alice") == '{"team":"red"}', "an empty field changes nothing"
    file.write_text("userId,metadata\nalice,[]\n")
    refused = command("user", "import", str(file))
    assert (refused.code, "line 2: the metadata is not a JSON object" in refused.err) == (5, True)

    archive = tmp_path / "alice.zip"
    assert command("export", "user", "alice", "--output", str(archive)).code == 0
    with zipfile.ZipFile(archive) as opened:
        [row] = csv.DictReader(io.TextIOWrapper(opened.open("profile.csv"), newline=""))
    assert row["metadata"] == '{"team":"red"}'

    erased = json.loads(command("user", "erase", "alice", "--yes", "--json").out)
    assert erased["erased"] == ["name", "metadata"]
    assert metadata_of(database_url, "alice") is None
    assert json.loads(command("user", "erase", "carol", "--yes", "--json").out)["erased"] == []
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT audit_log::TEXT FROM audit_log").fetchall()
    assert not any("red" in text for (text,) in rows)
    file.write_text('userId,metadata\nalice,"{""team"": ""red""}"\n')
    assert "1 users were left out" in command("user", "import", str(file)).err


def test_metadata_that_is_no_object_is_refused_by_the_database(database_url: str) -> None:
    """Replies contain it as it is stored."""
    insert = "INSERT INTO users (id, external_id, metadata) VALUES (gen_random_uuid(), 'a', %s)"
    for wrong in ("[]", "{", "1", '{"x": "' + "x" * 1024 + '"}'):
        with psycopg.connect(database_url) as connection, pytest.raises(psycopg.Error):
            connection.execute(insert, [wrong])


def test_an_import_keeps_values_for_which_the_file_is_empty(
    command: Run, database_url: str, tmp_path: Path
) -> None:
    command("user", "set", "user-1", "--name", "Before")
    file = tmp_path / "users.csv"
    rows = [f"user-{number},,u{number}@b.org" for number in range(3000)]
    file.write_text("\n".join(["userId,name,email", *rows]))

    done = command("user", "import", str(file))

    assert done.code == 0
    assert done.err.splitlines()[-1] == "3000 users imported"
    with psycopg.connect(database_url) as connection:
        count = connection.execute("SELECT count(*) FROM users").fetchone()
        one = connection.execute(
            "SELECT name, email FROM users WHERE external_id = 'user-1'"
        ).fetchone()
    assert count == (3000,)
    assert one == ("Before", "u1@b.org")


def test_an_invalid_line_stops_the_import(command: Run, database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "users.csv"
    file.write_text("userId,name\nalice,Alice\nb b,Bob\n")

    done = command("user", "import", str(file))

    assert done.code == 5
    assert "line 3" in done.err
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (0,)


MEASURE = """
import resource, sys
from pathlib import Path
from cli.user_csv import open_user_file
from scoreboard.recovery.reseed import report_nothing
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_user_file(Path(sys.argv[1]), report_nothing) as users:
    total = users.count(report_nothing)
    for _ in users.users(total, report_nothing): pass
print(total, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_million_users_take_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "users.csv"
    with file.open("w") as lines:
        lines.write("userId,name,email\n")
        for number in range(1_000_000):
            lines.write(f"018f6d0e-5f2c-7c3a-9f57-{number:012},Name of {number},u{number}@b.org\n")

    done = subprocess.run(
        [sys.executable, "-c", MEASURE, file], capture_output=True, text=True, check=True
    )

    total, grown_mb = map(int, done.stdout.split())
    assert total == 1_000_000
    assert grown_mb < 120


def test_a_pipe_can_be_imported(
    command: Run, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    # Incident: the pipe was opened a second time, without a writer.
    text = "userId,name\n" + "".join(f"user-{number},N\n" for number in range(5000))
    environ = {"PATH": "/usr/bin:/bin", "REDIS_URL": redis_url, "DATABASE_URL": database_url}

    for source in ("-", "/dev/stdin"):
        done = subprocess.run(
            [Path(sys.executable).with_name("scoreboard"), "user", "import", source],
            input=text,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=environ,
        )

        assert done.returncode == 0, done.stderr
        assert done.stderr.endswith("5000 users imported\n")
        assert f"Reading users from {'stdin' if source == '-' else source}" in done.stderr
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (5000,)


def test_a_file_with_a_repeated_column_is_not_imported(
    command: Run, database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "users.csv"
    file.write_text("userId,userId,name\nalice,bob,Alice\n")

    done = command("user", "import", str(file))

    assert done.code == 5
    assert 'contains "userId" twice' in done.err
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (0,)


# Erasure ----------------------------------------------------------------------------------------


def held(database_url: str) -> list[tuple[str | None, str | None]]:
    with psycopg.connect(database_url) as connection:
        return connection.execute("SELECT name, email FROM users ORDER BY external_id").fetchall()


def test_an_erasure_removes_name_and_email_and_keeps_the_score(
    command: Run, database_url: str
) -> None:
    write_history(database_url, [Counted("alice", "a", 5, time.time())])
    assert command("reseed").code == 0
    command("user", "set", "alice", "--name", "Alice", "--email", "a@b.org")
    command("user", "set", "bob", "--name", "Bob")

    done = command("user", "erase", "alice", "--yes")

    assert done.code == 0
    assert "User alice: name and e-mail address erased" in done.err
    assert "backups" in done.err
    assert held(database_url) == [(None, None), ("Bob", None)]
    shown = json.loads(command("user", "show", "alice", "--json").out)
    assert (shown["score"], shown["committedScore"], shown["rank"]) == (5, 5, 1)
    assert command("verify", "--full").code == 0
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT audit_log::TEXT FROM audit_log").fetchall()
    assert not any("a@b.org" in text or "Alice" in text for (text,) in rows)


def test_a_dry_run_erases_nothing(command: Run, database_url: str) -> None:
    command("user", "set", "alice", "--name", "Alice")

    done = command("user", "erase", "alice", "--dry-run", "--json")

    shown = json.loads(done.out)
    assert (shown["erased"], shown["isDryRun"], shown["erasedAt"]) == (["name"], True, None)
    assert held(database_url) == [("Alice", None)]
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM audit_log").fetchone() == (1,)


def test_an_erasure_can_be_repeated(command: Run, database_url: str) -> None:
    command("user", "set", "alice", "--name", "Alice")
    first = json.loads(command("user", "erase", "alice", "--yes", "--json").out)

    again = json.loads(command("user", "erase", "alice", "--yes", "--json").out)

    assert first["erased"] == ["name"]
    assert (again["erased"], again["erasedAt"]) == ([], first["erasedAt"])
    assert "has no name" in command("user", "erase", "alice", "--yes").err
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM audit_log").fetchone() == (2,)


def test_an_erasure_needs_a_known_user_and_a_confirmation(command: Run) -> None:
    assert command("user", "erase", "alice", "--yes").code == 3
    command("user", "set", "alice", "--name", "Alice")
    assert command("user", "erase", "alice").code == 5


def test_an_erasure_warns_of_a_user_id_that_may_be_an_email_address(command: Run) -> None:
    command("user", "set", "a@b.org", "--name", "Alice")

    assert "cannot be erased" in command("user", "erase", "a@b.org", "--yes").err


def test_an_import_leaves_erased_users_out_until_they_are_set(
    command: Run, database_url: str, tmp_path: Path
) -> None:
    """A file of before an erasure must not bring the name back."""
    file = tmp_path / "users.csv"
    file.write_text("userId,name\nalice,Alice\nbob,Bob\n")
    assert command("user", "import", str(file)).code == 0
    assert command("user", "erase", "alice", "--yes").code == 0

    done = command("user", "import", str(file))

    assert done.code == 0
    assert "1 users imported" in done.err
    assert "1 users were left out because they were erased" in done.err
    assert held(database_url) == [(None, None), ("Bob", None)]
    assert command("user", "set", "alice", "--name", "Alice").code == 0
    assert "2 users imported" in command("user", "import", str(file)).err
    assert command("user", "erase", "alice", "--yes").code == 0
    assert held(database_url) == [(None, None), ("Bob", None)]
