"""`scoreboard up`: it starts the whole system and stops all of its processes."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis

from cli.embedded.ports import find_free_port
from cli.running.default_actions import EXAMPLE_POINTS, SIMULATED_POINTS
from cli.running.log_rotation import LOG_BYTES
from scoreboard.model import Partition
from scoreboard.store.keys import PartitionKeys
from tests.support.eventually import eventually
from tests.support.servers.postgres_template import copy_postgres
from tests.support.servers.system import processes_of, run_command

STOP_TIMEOUT_S = 60


class Up:
    """A process of `scoreboard up` with its output."""

    def __init__(self, folder: Path, *arguments: str, **settings: str) -> None:
        self.folder = folder
        self.errors = folder.with_suffix(".err")
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "cli", "up", "--json", "--data-dir", str(folder)),
                    *("--api-port", "0", "--ws-port", "0", *arguments),
                ],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={name: text for name, text in os.environ.items() if "SCOREBOARD" not in name}
                | settings,
            )

    def wait_until_running(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.errors.read_text()
        return json.loads(line)

    def wait_for_exit(self, sent: signal.Signals | None = None) -> int:
        if sent is not None:
            self.process.send_signal(sent)
        return self.process.wait(STOP_TIMEOUT_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


StartUp = Callable[..., Up]


@pytest.fixture
def start_up(tmp_path: Path) -> Iterator[StartUp]:
    started: list[Up] = []

    def start(*arguments: str, initdb: bool = False, **settings: str) -> Up:
        if not initdb and "DATABASE_URL" not in settings:
            copy_postgres(tmp_path / "data" / "postgres")
        started.append(Up(tmp_path / "data", *arguments, **settings))
        return started[-1]

    yield start
    for up in started:
        up.close()
    try:
        eventually(lambda: not processes_of(tmp_path), within_s=STOP_TIMEOUT_S)
    finally:
        for left in processes_of(tmp_path):
            os.kill(int(left.split()[0]), signal.SIGKILL)


def raise_score(api: str, folder: Path, action: str) -> dict[str, Any]:
    token = run_command("token", "--sub", "alice", "--data-dir", str(folder)).stdout.strip()
    reply = httpx.post(
        f"{api}/api/scores/update",
        json={"userId": "alice", "actionId": action},
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
    )
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_up_runs_the_system_and_scores_persist(start_up: StartUp) -> None:
    up = start_up("--simulate", "3", initdb=True)
    running = up.wait_until_running()
    assert set(running) >= {"api", "ws", "redis", "database", "pids"}
    assert set(running["pids"]) >= {"redis", "postgres", "api", "streamer", "flusher"}
    assert all(Path(f"/proc/{pid}").exists() for pid in running["pids"].values())

    page = httpx.get(f"{running['api']}/", timeout=30)
    assert page.status_code == 200
    assert raise_score(running["api"], up.folder, "win:1")["newScore"] == 10
    listed = run_command("action", "list", "--data-dir", str(up.folder)).stdout
    points = SIMULATED_POINTS | EXAMPLE_POINTS
    assert listed.splitlines() == [f"{kind}\t{points[kind]}\tyes" for kind in sorted(points)]
    watched = run_command("board", "watch", "--count", "1", "--json", "--data-dir", str(up.folder))
    assert json.loads(watched.stdout)["board"] == "main"

    checked = run_command("config", "check", "--data-dir", str(up.folder))
    assert checked.returncode == 0, checked.stdout

    second = run_command("up", "--data-dir", str(up.folder), "--api-port", "0", "--ws-port", "0")
    assert second.returncode == 5
    assert len(second.stderr.splitlines()) == 1
    assert "Another `scoreboard up` runs" in second.stderr

    # The simulation has started: it reports at its end.
    leaderboard = f"{running['api']}/api/scores/leaderboard"
    eventually(lambda: len(httpx.get(leaderboard, timeout=30).json()["leaderboard"]) > 1)
    assert up.wait_for_exit(signal.SIGINT) == 0
    played = (up.folder / "logs" / "simulation.log").read_text()
    assert re.match(r"3 players: \d+ actions counted, \d+ replayed, 0 refused", played)
    assert processes_of(up.folder) == []
    assert not (up.folder / "running.json").exists()

    # The files of Redis are lost: the board is restored from PostgreSQL.
    shutil.rmtree(up.folder / "valkey")
    again = start_up()
    running = again.wait_until_running()
    assert raise_score(running["api"], up.folder, "win:1") == {
        "success": True,
        "newScore": 10,
        "replayed": True,
    }
    assert raise_score(running["api"], up.folder, "win:2")["newScore"] == 20

    os.kill(running["pids"]["flusher"], signal.SIGKILL)
    assert again.wait_for_exit() == 1
    assert "The flusher was killed by SIGKILL" in again.errors.read_text().splitlines()[-1]
    assert processes_of(up.folder) == []


def test_all_processes_end_with_a_killed_up(start_up: StartUp) -> None:
    up = start_up("--private")
    running = up.wait_until_running()
    board = httpx.get(f"{running['api']}/api/scores/leaderboard", timeout=30)
    assert board.status_code == 401
    with psycopg.connect(running["database"]) as connection:
        assert connection.execute("SELECT is_public FROM boards").fetchone() == (False,)
    log = up.folder / "logs" / "api.log"
    with log.open("ab") as file:
        file.write(b"x" * (LOG_BYTES + 1))
    eventually(lambda: log.stat().st_size < LOG_BYTES)
    assert log.with_name("api.log.1").stat().st_size > LOG_BYTES

    up.wait_for_exit(signal.SIGKILL)

    eventually(lambda: not processes_of(up.folder))


def test_external_servers_are_used_and_an_older_redis_is_reseeded(
    start_up: StartUp, redis_url: str, database_url: str
) -> None:
    up = start_up(REDIS_URL=redis_url, DATABASE_URL=database_url)
    running = up.wait_until_running()
    assert (running["redis"], running["database"]) == (redis_url, database_url)
    assert (running["pids"]["redis"], running["pids"]["postgres"]) == (None, None)
    for number in range(3):
        raise_score(running["api"], up.folder, f"win:{number}")
    assert up.wait_for_exit(signal.SIGTERM) == 0

    meta = PartitionKeys(Partition("main")).meta
    with redis.Redis.from_url(redis_url) as client:
        assert client.hget(meta, "seq") == b"3"
        client.hset(meta, "seq", 1)
    again = start_up("--private", REDIS_URL=redis_url, DATABASE_URL=database_url)
    running = again.wait_until_running()

    board = httpx.get(f"{running['api']}/api/scores/leaderboard", timeout=30)
    assert board.status_code == 401
    assert raise_score(running["api"], up.folder, "win:1")["replayed"]
    shown = run_command("board", "top", "--json", "--data-dir", str(up.folder))
    assert json.loads(shown.stdout)["leaderboard"] == [{"rank": 1, "userId": "alice", "score": 30}]


def up_in(folder: Path) -> tuple[str, ...]:
    """Return the command that runs a system in a folder, on any free ports."""
    ports = ("--api-port", "0", "--ws-port", "0", "--issuer-port", "0")
    return ("up", "--data-dir", str(folder / "data"), *ports)


def test_a_port_in_use_is_reported_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        done = run_command(*up_in(tmp_path), "--api-port", str(port))

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"Cannot listen on port {port} (SCOREBOARD_API_PORT)" in done.stderr


def test_a_port_that_is_given_twice_is_reported(tmp_path: Path) -> None:
    port = str(find_free_port())

    done = run_command(*up_in(tmp_path), "--api-port", port, "--ws-port", port)

    assert done.returncode == 5
    assert f"Port {port} (SCOREBOARD_WS_PORT) is used by another part" in done.stderr


def test_a_file_instead_of_the_data_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a folder")

    done = run_command(*up_in(tmp_path))

    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("scoreboard: The system did not start")


def test_an_invalid_setting_is_reported_in_one_line(tmp_path: Path) -> None:
    done = run_command(*up_in(tmp_path), SCOREBOARD_STREAM_CAP="none")

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "SCOREBOARD_STREAM_CAP" in done.stderr
