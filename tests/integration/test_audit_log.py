"""The audit log: its chain of hashes, and `scoreboard audit`."""

import csv
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
import structlog

from scoreboard.runtime import audit, resources
from tests.support.clients.commands import Run
from tests.support.clients.forked import run_forked
from tests.support.servers.api import UPDATE_PATH, StartApi
from tests.support.servers.api_process import clean_environ

INSERT = "INSERT INTO audit_log (actor, action, board, detail) VALUES ('eve', 'reseed', 'x', '{}')"


@pytest.fixture
def acts(command: Run) -> None:
    """Make five rows: a new board is created and opened."""
    assert command("board", "create", "weekly").code == 0
    for number in range(1, 4):
        assert command("action", "set", f"kind{number}", str(number)).code == 0


def listed(command: Run, *options: str) -> list[dict[str, Any]]:
    done = command("audit", "list", "--json", *options)
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


@contextmanager
def tampering(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """Connect as the owner, who can disable the trigger."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE audit_log DISABLE TRIGGER ALL")
        yield connection
        connection.execute("ALTER TABLE audit_log ENABLE TRIGGER ALL")


@pytest.mark.usefixtures("acts")
def test_rows_are_listed_newest_first_and_filtered(command: Run) -> None:
    rows = listed(command)

    assert [row["seq"] for row in rows] == [5, 4, 3, 2, 1]
    assert rows[0]["action"] == "action set"
    assert rows[0]["detail"] == {"kind": "kind3", "points": 3}
    assert rows[-1]["board"] == "weekly"

    def found(*options: str) -> list[int]:
        return [row["seq"] for row in listed(command, *options)]

    assert found("--board", "weekly") == [2, 1]
    assert found("--action", "board create") == found("--action", "board") == [1]
    assert found("--actor", "someone else") == []
    assert found("--actor", rows[0]["actor"], "--limit", "2") == [5, 4]
    assert found("--since", rows[1]["at"]) == [5, 4]
    assert found("--until", rows[1]["at"]) == [3, 2, 1]
    assert found("--since", "2999-01-01") == []
    assert command("audit", "list", "--since", "yesterday").code == 2
    assert "weekly" in command("audit", "list").out


def test_rows_are_filtered_by_the_user_whom_they_name(command: Run) -> None:
    command("user", "set", "alice", "--name", "Alice")
    command("user", "set", "alice2", "--name", "Alice")

    assert [row["seq"] for row in listed(command, "--user", "alice")] == [1]
    [line] = command("audit", "list", "--user", "alice").out.splitlines()
    cells = line.split("\t")
    assert cells[0] == "1"
    assert cells[3:] == ["user set", "", "alice", "", 'fields=["name"]']


@pytest.mark.usefixtures("acts")
def test_a_misspelt_action_is_refused_with_the_known_ones(command: Run) -> None:
    """It matched no row, which looked as if nothing had happened."""
    done = command("audit", "list", "--action", "board created")

    assert done.code == 2
    assert "board create" in done.err


@pytest.mark.usefixtures("acts")
def test_the_list_says_how_to_continue(command: Run) -> None:
    done = command("audit", "list", "--limit", "2")

    assert [line.split("\t")[0] for line in done.out.splitlines()] == ["5", "4"]
    assert "add --before 4, or --all" in done.err
    rest = command("audit", "list", "--limit", "3", "--before", "4")
    assert [line.split("\t")[0] for line in rest.out.splitlines()] == ["3", "2", "1"]
    assert "--before" not in rest.err
    assert len(command("audit", "list", "--all").out.splitlines()) == 5


def test_more_rows_than_a_page_are_listed_once_each(command: Run, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(INSERT.replace("VALUES", "SELECT").replace("('eve'", "'eve'").replace(
            "'{}')", "'{}' FROM generate_series(1, 2001)"))  # fmt: skip
    expected = list(range(2001, 0, -1))

    assert [row["seq"] for row in listed(command, "--all")] == expected
    assert [row["seq"] for row in listed(command, "--limit", "2000")] == expected[:2000]
    done = command("audit", "list", "--csv", "--limit", "1001")
    assert [row["number"] for row in csv.DictReader(io.StringIO(done.out))] == [
        str(number) for number in expected[:1001]
    ]
    assert "--before 1001" in done.err


def test_csv_has_a_header_and_cells_that_are_not_evaluated(command: Run, database_url: str) -> None:
    assert command("audit", "list", "--csv").out == (
        "number,time,actor,action,board,user,reason,detail,hash\n"
    )
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO audit_log (actor, action, detail) VALUES ('=cmd()', 'dead discard',"
            """ '{"user": "-1", "reason": "@SUM(A1)", "id": 3}')"""
        )

    [row] = csv.DictReader(io.StringIO(command("audit", "list", "--csv").out))

    assert (row["actor"], row["user"], row["reason"]) == ("'=cmd()", "'-1", "'@SUM(A1)")
    assert row["detail"] == '{"id":3}'
    assert len(row["hash"]) == 64
    assert command("audit", "list", "--csv", "--json").code == 2


@pytest.mark.usefixtures("acts")
def test_an_unchanged_log_is_intact_and_has_a_head(command: Run) -> None:
    done = command("audit", "verify")

    assert done.code == 0
    number, digest = done.out.strip().split(":")
    assert number == "5"
    assert len(digest) == 64
    command("action", "set", "kind9", "9")
    assert command("audit", "verify", "--head", done.out).code == 0
    assert json.loads(command("audit", "verify", "--json").out)["head"]["seq"] == 6


@pytest.mark.usefixtures("acts")
@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE audit_log SET actor = 'eve' WHERE seq = 3", "row 3 was changed"),
        ("UPDATE audit_log SET at = at - interval '1 us' WHERE seq = 3", "row 3 was changed"),
        ("UPDATE audit_log SET board = 'x' WHERE seq = 3", "row 3 was changed"),
        ("UPDATE audit_log SET detail = '{}' WHERE seq = 3", "row 3 was changed"),
        ("DELETE FROM audit_log WHERE seq = 3", "rows 3 to 3 are missing"),
        ("UPDATE audit_log SET previous = hash WHERE seq = 3", "row 3 does not follow row 2"),
    ],
)
def test_a_change_of_a_row_is_found(
    command: Run, database_url: str, statement: str, problem: str
) -> None:
    with tampering(database_url) as connection:
        connection.execute(statement)

    done = command("audit", "verify")

    assert done.code == 1
    assert problem in done.err


@pytest.mark.usefixtures("acts")
def test_a_removed_end_and_a_new_chain_are_found_with_an_earlier_head(
    command: Run, database_url: str
) -> None:
    head = command("audit", "verify").out
    with tampering(database_url) as connection:
        connection.execute("DELETE FROM audit_log WHERE seq = 5")

    assert command("audit", "verify").code == 0, "nothing after row 5 tells that it is missing"
    done = command("audit", "verify", "--head", head)
    assert done.code == 1
    assert "the rows after 4 are missing" in done.err

    command("action", "set", "kind5", "5")
    done = command("audit", "verify", "--head", head)
    assert done.code == 1
    assert "row 5 had another hash before" in done.err


def test_concurrent_transactions_make_one_chain(command: Run, database_url: str) -> None:
    def insert(_: int) -> None:
        with psycopg.connect(database_url) as connection:
            for _ in range(5):
                connection.execute(INSERT)
                connection.commit()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(insert, range(6)))

    assert json.loads(command("audit", "verify", "--json").out)["head"]["seq"] == 30


def test_number_time_and_hash_cannot_be_given(command: Run, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO audit_log (actor, action, at, seq, previous, hash) "
            "VALUES ('eve', 'reseed', '2001-01-01', 77, 'x', 'y')"
        )

    (row,) = listed(command)
    assert row["seq"] == 1
    assert datetime.fromisoformat(row["at"]).year >= datetime.now(UTC).year
    assert command("audit", "verify").code == 0


def test_rows_of_before_the_chain_are_chained_by_the_migration(
    command: Run, database_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP TRIGGER audit_log_chained ON audit_log")
        for column in ("seq", "previous", "hash"):
            connection.execute(f"ALTER TABLE audit_log DROP COLUMN {column} CASCADE")
        for _ in range(3):
            connection.execute(INSERT)
        (path,) = resources.migrations_path().glob("0015_*.sql")
        connection.execute(path.read_bytes())
        connection.execute(INSERT)
        connection.execute(path.read_bytes())

    assert json.loads(command("audit", "verify", "--json").out)["head"]["seq"] == 4


def run_with_log_lines(redis_url: str, database_url: str, *arguments: str) -> Any:
    """Run a command as in a container."""
    stores = {"REDIS_URL": redis_url, "DATABASE_URL": database_url}
    environment = clean_environ() | stores | {"SCOREBOARD_LOG_FORMAT": "json"}
    return run_forked("cli", arguments, environment)


def test_a_command_in_a_container_writes_log_lines_only(redis_url: str, database_url: str) -> None:
    arguments = (redis_url, database_url, "board", "create", "weekly")
    created = run_with_log_lines(*arguments)
    failed = run_with_log_lines(*arguments)

    lines = [json.loads(line) for line in created.stderr.splitlines()]
    audited = [line for line in lines if line["event.dataset"] == "scoreboard.audit"]
    assert [line["event.action"] for line in audited] == ["board create", "fence", "reseed"]
    audit = audited[0]
    assert audit["user.name"]
    assert audit["scoreboard.board"] == "weekly"
    assert audit["scoreboard.audit.seq"] == 1
    assert len(audit["scoreboard.audit.hash"]) == 64
    assert any("created" in line.get("scoreboard.text", "") for line in lines)
    assert failed.returncode == 5
    [error] = [json.loads(line) for line in failed.stderr.splitlines() if "command_failed" in line]
    assert error["log.level"] == "error"
    assert "already exists" in error["event.reason"]


def test_a_rolled_back_change_has_no_line(redis_url: str, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE audit_log ADD CONSTRAINT broken CHECK (actor = '')")

    done = run_with_log_lines(redis_url, database_url, "board", "create", "weekly")

    assert done.returncode != 0
    assert "command_failed" in done.stderr
    assert '"event.dataset": "scoreboard.audit"' not in done.stderr


@pytest.mark.parametrize("is_fast", [True, False])
async def test_both_implementations_of_an_update_have_the_same_audit_lines(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch, is_fast: bool
) -> None:
    lines: list[tuple[object, ...]] = []

    def record(action: str, outcome: str, fields: dict[str, Any]) -> None:
        if fields.get("route") == UPDATE_PATH:
            who = (fields.get("user_id"), fields.get("target_id"))
            lines.append((action, outcome, fields.get("code"), *who))

    monkeypatch.setattr(structlog, "is_configured", lambda: True)
    monkeypatch.setattr(audit, "_write", record)
    client = await start_api(
        direct=is_fast, audit_updates=True, rate_limit="app", updates_per_minute=2
    )
    alice = client.bearer("alice")
    await client.update("alice", "win:1", headers=alice)
    await client.update("bob", "win:2", headers=alice)
    await client.update("alice", "not an id", headers=alice)
    await client.update("alice", "win:3", headers=alice)
    await client.update("alice", "win:4", headers=alice)
    await client.update("alice", "win:5", headers={"Authorization": "Bearer nonsense"})

    assert lines == [
        ("update", "success", None, "alice", "alice"),
        ("update", "failure", "forbidden", "alice", "bob"),
        ("update", "failure", "invalid", "alice", None),
        ("update", "success", None, "alice", "alice"),
        ("update", "failure", "rate-limited", "alice", "alice"),
        ("authenticate", "failure", "unauthenticated", None, None),
    ]
