"""`scoreboard backup`: backups are recorded, audited and listed; the newest checked one counts."""

import datetime as dt
import json
from pathlib import Path

import psycopg
import pytest

from scoreboard.ledger import backups
from scoreboard.runtime.settings import Settings
from tests.support.clients.commands import Run, with_database

TAKEN = "2026-05-03T06:00:00+02:00"


def test_a_backup_is_recorded_with_its_row_in_the_audit_log(
    command: Run, database_url: str, settings: Settings
) -> None:
    location = "s3://backups/8.dump"

    done = command("backup", "record", location, "--taken-at", TAKEN, "--check", "restored")

    assert done.code == 0, done.err
    assert "recorded (checked)" in done.err
    (listed,) = json.loads(command("backup", "list", "--json").out)
    assert (listed["location"], listed["check_method"]) == (location, "restored")
    assert dt.datetime.fromisoformat(listed["taken_at"]) == dt.datetime.fromisoformat(TAKEN)
    with psycopg.connect(database_url) as connection:
        ((actor, action, detail),) = connection.execute(
            "SELECT actor, action, detail FROM audit_log"
        ).fetchall()
    assert (action, actor) == ("backup record", listed["recorded_by"])
    assert (detail["location"], detail["check"]) == (location, "restored")
    last = with_database(settings, backups.select_last_backup)
    assert last.taken_at == dt.datetime.fromisoformat(TAKEN)
    expected_s = (dt.datetime.now(dt.UTC) - last.taken_at).total_seconds()
    assert last.age_s == pytest.approx(expected_s, abs=60)


def test_an_unchecked_or_older_backup_is_not_the_last_one(command: Run, settings: Settings) -> None:
    assert with_database(settings, backups.select_last_backup) is None
    command("backup", "record", "/new.dump", "--taken-at", TAKEN, "--check", "restored")
    command("backup", "record", "/old.dump", "--taken-at", "2026-05-01T00:00Z", "--check", "yes")

    assert "not checked" in command("backup", "record", "/unchecked.dump").err

    last = with_database(settings, backups.select_last_backup)
    assert last.taken_at == dt.datetime.fromisoformat(TAKEN)
    lines = command("backup", "list").out.splitlines()
    assert [line.split("\t")[1] for line in lines] == ["/unchecked.dump", "/old.dump", "/new.dump"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["/b", "--taken-at", "2999-01-01T00:00:00Z"], 5, "in the future"),
        (["/b", "--taken-at", "yesterday"], 2, "is not a time"),
        (["sftp://me:hidden@host/b"], 2, "contains a password"),
        ([" "], 2, "1 to 500 characters"),
        (["/b", "--check", "x\ny"], 2, "U+000A"),
    ],
)
def test_a_wrong_record_is_refused_and_nothing_is_written(
    arguments: list[str], code: int, said: str, command: Run
) -> None:
    done = command("backup", "record", *arguments)

    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert "hidden" not in done.err
    assert json.loads(command("backup", "list", "--json").out) == []


def test_recording_needs_no_redis(
    command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("REDIS_URL")

    assert command("backup", "record", str(tmp_path)).code == 0
