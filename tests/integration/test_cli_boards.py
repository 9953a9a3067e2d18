"""`scoreboard board`, `db` and `reseed` on real servers."""

import io
import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import redis
from psycopg import sql

from scoreboard.runtime.settings import Settings
from tests.support.clients.commands import Run, with_database
from tests.support.data.ledger import Counted, write_history

NOW_S = time.time()


def test_a_board_is_created_once_listed_and_opened(command: Run, database_url: str) -> None:
    made = command("board", "create", "weekly", "--partitions", "3", "--private")
    assert (made.code, made.out) == (0, "")
    assert "Board weekly is created and open" in made.err

    assert command("board", "create", "weekly").code == 5
    again = command("board", "create", "weekly", "--if-missing", "--partitions", "2")
    assert "was not changed" in again.err
    line = "weekly\topen\tno\t0\tadd, highest first\t3\t43200\t64\t\n"
    assert command("board", "list").out == line
    (listed,) = json.loads(command("board", "list", "--json").out)
    assert listed["layout"]["partitions"] == 3
    assert listed["layout"]["rules"]["operator"] == "add"
    assert (listed["state"], listed["users"]) == ("open", 0)
    assert command("board", "top", "--board", "weekly").out == ""
    with psycopg.connect(database_url) as connection:
        audited = connection.execute("SELECT action FROM audit_log ORDER BY id").fetchall()
    assert [action for (action,) in audited] == ["board create", "reseed"]


def test_a_board_of_players_has_no_name_for_load_tests(command: Run, tmp_path: Path) -> None:
    """`bench clean` deletes the data of such boards; it once deleted those of players."""
    file = tmp_path / "boards.toml"
    file.write_text("[boards.bench-cup]\n")
    for words in (
        ("board", "create", "bench-cup"),
        ("board", "apply", str(file), "--dry-run"),
        ("board", "apply", str(file)),
    ):
        refused = command(*words)
        assert refused.code == 5, words
        assert "give bench-cup another name" in refused.err
    assert "bench-cup" not in command("board", "list").out


def test_the_kind_of_acts_is_not_in_the_catalogue(command: Run) -> None:
    refused = command("action", "set", "act", "5")
    assert refused.code == 2
    assert "administrators' acts" in refused.err


def test_board_top_matches_the_ranking_of_postgresql(
    command: Run, database_url: str, settings: Settings
) -> None:
    from scoreboard.ledger.scores import select_top

    history = [Counted(f"user-{n}", "a", 1 + n % 7, NOW_S + n / 1000) for n in range(40)]
    write_history(database_url, history)
    assert command("reseed").code == 0

    shown = command("board", "top", "--limit", "25").out

    ranked = with_database(settings, lambda connection: select_top(connection, "main", 25))
    assert shown.splitlines() == [
        f"{rank}\t{row.user_id}\t{row.score}" for rank, row in enumerate(ranked, 1)
    ]
    page = json.loads(command("board", "top", "--limit", "5", "--offset", "20", "--json").out)
    assert page["total"] == 40
    assert [row["rank"] for row in page["leaderboard"]] == [21, 22, 23, 24, 25]


def test_an_open_board_is_reseeded_only_with_force(command: Run, database_url: str) -> None:
    write_history(database_url, [Counted("alice", "a", 1, NOW_S)])
    assert command("reseed").code == 0

    refused = command("reseed")
    assert refused.code == 5
    assert "--force" in refused.err
    assert "nothing was done" in command("reseed", "--if-uninitialised").err
    done = command("reseed", "--force", "--yes", "--json")
    assert json.loads(done.out)["epochs"] == [3]


def test_a_forced_reseed_needs_yes_without_a_terminal(
    command: Run, database_url: str, monkeypatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    write_history(database_url, [])
    assert command("reseed").code == 0

    refused = command("reseed", "--force")

    assert refused.code == 5
    assert "--yes" in refused.err


def test_an_unknown_board_exits_3_and_an_empty_redis_69(command: Run, database_url: str) -> None:
    assert command("reseed", "--board", "nowhere").code == 3
    write_history(database_url, [])
    assert command("board", "top").code == 69


def test_an_outdated_database_is_rejected_and_migrated(
    command: Run, empty_database_url: str, monkeypatch, redis_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)

    assert command("db", "status").code == 1
    behind = command("reseed")
    assert behind.code == 1
    assert "scoreboard db migrate" in behind.err
    assert "0001_create_boards" in command("db", "migrate").out
    assert command("db", "migrate").out == ""
    status = command("db", "status", "--json")
    assert status.code == 0
    assert all(one["applied"] for one in json.loads(status.out))


def test_the_owner_s_login_can_be_a_secret(
    command: Run, empty_database_url: str, monkeypatch, tmp_path: Path
) -> None:
    password = "p@ss:/w%0rd #?\\'"
    parts = urlsplit(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS migrations_owner")
        literal = sql.Literal(password)
        connection.execute(
            sql.SQL("CREATE ROLE migrations_owner LOGIN CREATEROLE PASSWORD {}").format(literal)
        )
        name = sql.Identifier(parts.path[1:])
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO migrations_owner").format(name))
    secret = tmp_path / "database"
    secret.write_text(json.dumps({"username": "migrations_owner", "password": password}))
    monkeypatch.setenv("DATABASE_URL", f"postgresql://{parts.hostname}:{parts.port}{parts.path}")
    monkeypatch.setenv("SCOREBOARD_SECRETS", "file")
    monkeypatch.setenv("SCOREBOARD_DATABASE_SECRET", str(secret))

    assert command("db", "status").code == 1
    assert "0001_create_boards" in command("db", "migrate").out
    assert command("db", "status").code == 0
    with psycopg.connect(empty_database_url) as connection:
        owner = connection.execute("SELECT tableowner FROM pg_tables WHERE tablename = 'boards'")
        assert owner.fetchone() == ("migrations_owner",)

    other = tmp_path / "other"
    other.write_text(json.dumps({"username": "migrations_owner", "password": "wrong"}))
    monkeypatch.setenv("SCOREBOARD_DATABASE_SECRET", str(other))
    refused = command("db", "migrate")
    assert refused.code == 69
    assert "wrong" not in refused.err

    # The owner's login may be in the URL while the settings name a service's secret.
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    assert command("db", "migrate").code == 0


def test_commands_without_a_system_explain_what_to_do(command: Run, monkeypatch) -> None:
    monkeypatch.delenv("REDIS_URL")
    monkeypatch.delenv("DATABASE_URL")

    for line in (("board", "top"), ("reseed",), ("db", "status"), ("board", "watch")):
        done = command(*line)
        assert done.code == 5
        assert len(done.err.splitlines()) == 1
        assert "No scoreboard runs on .data" in done.err
    assert "There is no local issuer" in command("token", "--sub", "alice").err


def test_an_unreachable_redis_is_reported_in_one_line_with_exit_code_69(
    command: Run, monkeypatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:secret@127.0.0.1:1/0")

    done = command("board", "top")

    assert done.code == 69
    assert len(done.err.splitlines()) == 1
    assert "secret" not in done.err


def test_quiet_prints_no_messages(command: Run, redis_url: str) -> None:
    assert command("-q", "board", "create", "weekly").err == ""
    with redis.Redis.from_url(redis_url) as client:
        assert client.hget("sb:{weekly:0}:meta", "state") == b"open"
