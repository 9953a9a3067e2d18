"""A service that cannot start logs the reason in one line, without password or traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOWHERE = "redis://127.0.0.1:1/0"


def run(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", **settings},
    )


@pytest.mark.parametrize(
    ("service", "variable", "value"),
    [
        ("api", "DATABASE_URL", "postgresql+psycopg://scott:s3cretTiger@127.0.0.1:1/db"),
        ("streamer", "REDIS_URL", "redis://:s3cretTiger/b@127.0.0.1:1/0"),
        ("flusher", "SCOREBOARD_API_PRT", "8000"),
    ],
)
def test_an_invalid_setting_is_reported_in_one_line_without_its_password(
    service: str, variable: str, value: str, tmp_path: Path
) -> None:
    done = run(tmp_path, "-m", service, **{"REDIS_URL": NOWHERE, variable: value})

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"scoreboard: {variable} is not a")
    assert "s3cret" not in done.stderr


STARTED = """
import sys
from scoreboard.runtime.startup import start
sys.exit(start("api", lambda settings: 7 if settings.api_port == 8000 else 8))
"""
FAILING = """
import sys
from scoreboard.runtime.startup import start
def run(settings):
    raise OSError("cannot use " + settings.redis_url.reveal())
sys.exit(start("api", run))
"""


def test_service_links_are_ignored_and_logged(tmp_path: Path) -> None:
    links = {
        "SCOREBOARD_API_SERVICE_HOST": "10.0.0.1",
        "SCOREBOARD_API_PORT": "tcp://10.0.0.1:9999",
    }

    done = run(tmp_path, "-c", STARTED, REDIS_URL=NOWHERE, **links)

    assert done.returncode == 7, done.stderr
    (line,) = map(json.loads, done.stderr.splitlines())
    assert (line["log.level"], line["message"]) == ("info", "service_links_ignored")
    assert line["scoreboard.variables"] == sorted(links)
    assert run(tmp_path, "-c", STARTED, REDIS_URL=NOWHERE).stderr == ""


def test_a_deprecated_setting_is_accepted_with_a_warning(tmp_path: Path) -> None:
    listed = "{'SCOREBOARD_DRAIN_S': 'use SCOREBOARD_STOP_S'}"
    program = f"from scoreboard.runtime import settings; settings.DEPRECATED = {listed}\n{STARTED}"

    done = run(tmp_path, "-c", program, REDIS_URL=NOWHERE, SCOREBOARD_DRAIN_S="5")

    assert done.returncode == 7, done.stderr
    (line,) = map(json.loads, done.stderr.splitlines())
    assert (line["log.level"], line["message"]) == ("warning", "setting_deprecated")
    assert line["scoreboard.settings"] == ["SCOREBOARD_DRAIN_S"]
    assert line["event.reason"] == "use SCOREBOARD_STOP_S"
    assert run(tmp_path, "-c", program, REDIS_URL=NOWHERE).stderr == ""


def test_an_unexpected_error_is_logged_in_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "-c", FAILING, REDIS_URL="redis://:s3cretTiger@127.0.0.1:1/0")

    assert done.returncode == 1
    (line,) = map(json.loads, done.stderr.splitlines())
    assert line["message"] == "process_crashed"
    assert "s3cret" not in done.stderr
