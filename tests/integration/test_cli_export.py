"""`scoreboard export`: complete, exact and private files, from one snapshot, in little memory."""

import csv
import io
import json
import stat
import subprocess
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pyarrow import parquet

from cli import export_file
from scoreboard.model import Board
from tests.support.clients.commands import Run
from tests.support.data.ledger import Counted, write_history

pytestmark = pytest.mark.slow

MOMENT_S = 1_780_000_000.000_001
HISTORY = [
    Counted("alice", "win:1", 5, MOMENT_S),
    Counted("-bob", "win:1", 9, MOMENT_S + 1),
    Counted("alice", "win:2", 4, MOMENT_S + 2),
    Counted("carol", "1", 2**31 - 1, MOMENT_S + 3),
]


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def played(database_url: str) -> None:
    write_history(database_url, HISTORY)


@pytest.mark.usefixtures("played")
def test_standings_are_in_ranking_order(command: Run) -> None:
    done = command("export", "board", "main")

    assert done.code == 0
    assert [(row["rank"], row["userId"], row["score"]) for row in table(done.out)] == [
        ("1", "carol", str(2**31 - 1)),
        ("2", "'-bob", "9"),  # reached before alice
        ("3", "alice", "9"),
    ]
    assert table(done.out)[2]["reachedAt"] == "2026-05-28T20:26:42.000001Z"
    assert done.err.splitlines()[-1] == "3 rows exported to stdout"


def test_the_lowest_score_is_first_where_the_rules_say_so(command: Run, database_url: str) -> None:
    write_history(database_url, HISTORY)
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE boards SET score_order = 'lowest'")

    rows = table(command("export", "board", "main").out)

    assert [row["userId"] for row in rows] == ["'-bob", "alice", "carol"]


@pytest.mark.usefixtures("played")
def test_the_ledger_of_a_deleted_board_can_be_exported(command: Run, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE boards SET state = 'deleted'")

    assert len(table(command("export", "ledger", "--board", "main").out)) == 4
    assert len(table(command("export", "board", "main").out)) == 3


@pytest.mark.usefixtures("played")
def test_banned_users_are_not_in_the_standings(command: Run, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(ACTS)
        connection.execute("DELETE FROM bans WHERE act_id <> '-bobban'")

    rows = table(command("export", "board", "main").out)

    assert [(row["rank"], row["userId"]) for row in rows] == [("1", "carol"), ("2", "alice")]


@pytest.mark.usefixtures("played")
def test_an_empty_board_gives_a_header(command: Run, tmp_path: Path) -> None:
    assert command("board", "create", "weekly").code == 0

    assert command("export", "board", "weekly").out == "rank,userId,score,reachedAt\n"
    for form in ("csv", "parquet"):
        file = tmp_path / f"weekly.{form}"
        done = command(
            *("export", "ledger", "--board", "weekly", "--format", form, "--output", str(file))
        )
        assert done.code == 0, done.err
    assert parquet.read_table(tmp_path / "weekly.parquet").num_rows == 0
    assert command("export", "board", "unknown").code == 3


@pytest.mark.usefixtures("played")
def test_the_ledger_is_filtered_by_user_and_time(command: Run) -> None:
    def found(*options: str) -> list[tuple[str, str]]:
        done = command("export", "ledger", *options)
        assert done.code == 0, done.err
        return sorted((row["userId"], row["actionId"]) for row in table(done.out))

    third = datetime.fromtimestamp(MOMENT_S + 2, UTC).isoformat()
    assert len(found()) == 4
    assert found("--user", "alice") == [("alice", "win:1"), ("alice", "win:2")]
    assert found("--since", third) == [("alice", "win:2"), ("carol", "1")]
    assert found("--until", third, "--user", "alice") == [("alice", "win:1")]
    assert found("--user", "unknown") == []
    assert command("export", "ledger", "--since", third, "--until", third).code == 2


@pytest.mark.usefixtures("played")
def test_parquet_has_exact_types(command: Run, tmp_path: Path) -> None:
    file = tmp_path / "ledger.parquet"

    done = command("export", "ledger", "--format", "parquet", "--output", str(file))

    assert done.code == 0, done.err
    found = parquet.read_table(file)
    assert {field.name: str(field.type) for field in found.schema} == {
        "board": "string",
        "userId": "string",
        "actionId": "string",
        "kind": "string",
        "delta": "int32",
        "scoreAfter": "int32",
        "occurredAt": "timestamp[us, tz=UTC]",
        "partition": "int32",
        "epoch": "int64",
        "seq": "int64",
        "requestId": "string",
        "season": "string",
    }
    rows = sorted(found.to_pylist(), key=lambda row: row["seq"])
    assert [row["userId"] for row in rows] == ["alice", "-bob", "alice", "carol"]
    assert rows[3]["delta"] == 2**31 - 1
    assert rows[0]["occurredAt"] == datetime.fromtimestamp(MOMENT_S, UTC)
    assert rows[0]["requestId"] is None


@pytest.mark.usefixtures("played")
def test_a_file_is_private_and_replaced_as_a_whole(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "standings.csv"
    file.write_text("before")
    file.chmod(0o644)

    def fail(*_: Any) -> None:
        assert file.read_text() == "before"
        [draft] = tmp_path.glob(".standings.csv.*.part")
        assert mode_of(draft) == 0o600
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(export_file.CsvRows, "write", fail)
        assert command("export", "board", "main", "--output", str(file)).code == 74
    assert names_in(tmp_path) == ["standings.csv"]
    assert file.read_text() == "before"

    assert command("export", "board", "main", "--output", str(file)).code == 0

    assert mode_of(file) == 0o600
    assert len(table(file.read_text())) == 3
    assert names_in(tmp_path) == ["standings.csv"]


@pytest.mark.usefixtures("played")
def test_a_missing_folder_is_reported_before_anything_is_read(
    command: Run, tmp_path: Path, database_url: str
) -> None:
    done = command("export", "board", "main", "--output", str(tmp_path / "missing/file.csv"))

    assert done.code == 5
    assert f"The folder {tmp_path}/missing does not exist" in done.err
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM audit_log").fetchone() == (0,)


@pytest.mark.usefixtures("played")
def test_a_device_is_written_and_not_replaced(command: Run) -> None:
    assert command("export", "board", "main", "--output", "/dev/null").code == 0

    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.usefixtures("played")
def test_an_export_has_a_row_in_the_audit_log(command: Run) -> None:
    command("export", "ledger", "--user", "alice", "--since", "2026-01-01")

    [row] = map(json.loads, command("audit", "list", "--json").out.splitlines())

    assert (row["action"], row["board"]) == ("export", "main")
    assert row["detail"] == {
        "of": "ledger",
        "format": "csv",
        "user": "alice",
        "since": "2026-01-01T00:00:00+00:00",
    }


def test_without_pyarrow_parquet_is_refused_with_the_command_that_installs_it(
    command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    done = command("export", "board", "main", "--format", "parquet", "--output", "x.parquet")

    assert done.code == 5
    assert "pip install --require-hashes -r requirements/parquet.txt" in done.err
    assert (Path(__file__).parents[2] / "requirements/parquet.txt").exists()


# The data of a user -----------------------------------------------------------------------------

ACTS = """
WITH done AS (
    INSERT INTO acts (id, board, user_id, kind, delta, actor, reason)
    SELECT external_id || kind, 'main', id, kind, 0, 'root', 'of ' || external_id
    FROM users, (VALUES ('ban'), ('void')) AS kinds (kind)
    RETURNING id, board, user_id, kind
), voided AS (
    INSERT INTO act_actions (board, user_id, action_id, act_id)
    SELECT board, user_id, 'win:1', id FROM done WHERE kind = 'void'
)
INSERT INTO bans (board, user_id, act_id) SELECT board, user_id, id FROM done WHERE kind = 'ban'
"""
DEAD = b'{"a":"win:9","d":"many","u":"alice"}'
OTHERS = [b'{"a":"alice","u":"alice2"}', b'{"a":"\\"u\\":\\"alice\\"","u":"bob"}']


@pytest.fixture
def known(command: Run, played: None, database_url: str) -> None:
    """Store something about alice in every table."""
    write_history(
        database_url, [Counted("alice", "win:1", 7, MOMENT_S)], Board(name="weekly"), epoch=2
    )
    assert command("user", "set", "alice", "--name", "=Alice", "--email", "a@b.org").code == 0
    assert command("user", "set", "-bob", "--name", "Bob").code == 2, "an option, not a user"
    assert command("user", "set", "--name", "Bob", "--", "-bob").code == 0
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO rejected_events (board, user_id, action_id, epoch, seq, part, delta,"
            " score_after, reason, occurred_at)"
            " SELECT 'main', id, 'win:1', 1, 7, 0, 5, 14, 'late_duplicate', now() FROM users"
        )
        connection.execute(ACTS)
        connection.execute(
            "INSERT INTO held_actions (board, user_id, action_id, epoch, seq, part, delta, score,"
            " limit_kind, occurred_at)"
            " SELECT 'main', id, 'win:3', 1, 8, 0, 500, 9, 'action', now() FROM users"
        )
        connection.execute(
            "INSERT INTO ledger_partitions VALUES ('cup');"
            "INSERT INTO score_sums (board, season, user_id, delta, actions)"
            " SELECT 'cup', '', id, length(external_id), 2 FROM users"
        )
        for number, raw in enumerate([DEAD, *OTHERS, b"\xff"]):
            connection.execute(
                "INSERT INTO dead_events (board, part, stream_id, raw_hash, raw, reason)"
                " VALUES ('main', 0, %s, %s, %s, 'unreadable')",
                (f"{number}-0", raw, raw),
            )


@pytest.mark.usefixtures("known")
def test_everything_about_a_user_and_nothing_about_others_is_exported(
    command: Run, tmp_path: Path
) -> None:
    file = tmp_path / "alice.zip"

    done = command("export", "user", "alice", "--output", str(file))

    assert done.code == 0, done.err
    assert mode_of(file) == 0o600
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o100600}
        found = {name: table(archive.read(name).decode()) for name in archive.namelist()}
    assert list(found) == [
        f"{name}.csv"
        for name in (
            *("profile", "scores", "standings", "ledger", "kept-sums", "rejected", "dead-letters"),
            *("acts", "voided", "held", "bans", "audit"),
        )
    ]
    [profile] = found["profile.csv"]
    assert (profile["userId"], profile["name"]) == ("alice", "'=Alice")
    assert profile["email"] == "a@b.org"
    assert [(row["board"], row["score"]) for row in found["scores.csv"]] == [
        ("main", "9"),
        ("weekly", "7"),
    ]
    assert [(row["board"], row["actionId"], row["delta"]) for row in found["ledger.csv"]] == [
        ("main", "win:1", "5"),
        ("main", "win:2", "4"),
        ("weekly", "win:1", "7"),
    ]
    [kept] = found["kept-sums.csv"]
    assert (kept["board"], kept["season"], kept["delta"], kept["actions"]) == ("cup", "", "5", "2")
    [rejected] = found["rejected.csv"]
    assert (rejected["actionId"], rejected["delta"]) == ("win:1", "5")
    [dead] = found["dead-letters.csv"]
    assert dead["raw"] == DEAD.decode()
    assert [(row["kind"], row["reason"]) for row in found["acts.csv"]] == [
        ("ban", "of alice"),
        ("void", "of alice"),
    ]
    [voided] = found["voided.csv"]
    assert (voided["actionId"], voided["actId"]) == ("win:1", "alicevoid")
    [held] = found["held.csv"]
    assert (held["actionId"], held["delta"], held["limit"]) == ("win:3", "500", "action")
    [ban] = found["bans.csv"]
    assert (ban["board"], ban["actId"]) == ("main", "aliceban")
    assert [row["action"] for row in found["audit.csv"]] == ["user set", "export"]


@pytest.mark.usefixtures("known")
def test_the_data_of_a_user_can_be_parquet_and_go_to_a_pipe(
    redis_url: str, database_url: str
) -> None:
    done = subprocess.run(
        [
            Path(sys.executable).with_name("scoreboard"),
            *("export", "user", "alice", "--format", "parquet"),
        ],
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "REDIS_URL": redis_url, "DATABASE_URL": database_url},
    )

    with zipfile.ZipFile(io.BytesIO(done.stdout)) as archive:
        assert archive.testzip() is None
        ledger = parquet.read_table(io.BytesIO(archive.read("ledger.parquet"))).to_pylist()
        dead = parquet.read_table(io.BytesIO(archive.read("dead-letters.parquet"))).to_pylist()
    assert [row["delta"] for row in ledger] == [5, 4, 7]
    assert dead[0]["raw"] == DEAD.decode()


@pytest.mark.usefixtures("known")
def test_an_unknown_user_leaves_no_file(command: Run, tmp_path: Path) -> None:
    done = command("export", "user", "zoe", "--output", str(tmp_path / "zoe.zip"))

    assert done.code == 3
    assert names_in(tmp_path) == []


# Size -------------------------------------------------------------------------------------------

ROWS = 200_000
FILL = f"""
INSERT INTO score_events (board, user_id, action_id, part, epoch, seq, delta, score_after, kind,
    occurred_at)
SELECT 'main', id, 'filled:' || number, 0, 2, number, 1, 1, 'filled', now()
FROM users, generate_series(1, {ROWS}) AS number WHERE external_id = 'alice'
"""
MEASURE = """
import resource, sys
from cli.main import run
import cli.commands.export, cli.parquet_rows
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = run(sys.argv[1:])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
sys.exit(code)
"""


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_many_rows_take_little_memory(
    redis_url: str, database_url: str, tmp_path: Path, form: str
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(FILL)
    arguments = ["export", "ledger", "--format", form, "--output", str(tmp_path / "ledger")]

    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "REDIS_URL": redis_url, "DATABASE_URL": database_url},
    )

    assert f"{ROWS + 4} rows exported" in done.stderr
    assert int(done.stdout) < 80


@pytest.mark.usefixtures("played")
def test_rows_that_are_written_meanwhile_are_not_exported(
    command: Run, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All reads of an export are of one moment, also those of different tables."""
    from cli.commands import export as module

    copy = module._copy

    async def copy_and_play(*arguments: Any, **options: Any) -> int:
        done = await copy(*arguments, **options)
        with psycopg.connect(database_url) as connection:
            connection.execute(FILL.replace(str(ROWS), "3").replace("filled:", options["step"]))
        return done

    monkeypatch.setattr(module, "_copy", copy_and_play)
    file = Path("alice.zip")

    assert command("export", "user", "alice", "--output", str(file)).code == 0

    with zipfile.ZipFile(file) as archive:
        assert len(table(archive.read("ledger.csv").decode())) == 2
