"""`up` restarts an embedded server that ends, and no acknowledged action is lost.

Incident: a full disk ended Valkey or PostgreSQL, and `up` stopped the whole system.
"""

import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from tests.e2e.test_up import StartUp, Up, start_up  # noqa: F401 (a fixture)
from tests.support.eventually import eventually
from tests.support.servers.system import run_command

PLAYERS = ("ada", "grace", "hedy")
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


class Load:
    """Players who submit actions continuously, and repeat each until it is acknowledged."""

    def __init__(self, api: str, token: str) -> None:
        self.counted = dict.fromkeys(PLAYERS, 0)
        self.statuses: set[int] = set()
        self._api = api
        self._token = token
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._play, args=(name,)) for name in PLAYERS]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    @property
    def total(self) -> int:
        return sum(self.counted.values())

    def wait_for_more(self, count: int = 30, within_s: float = 30.0) -> None:
        """Wait until this number of further actions is acknowledged."""
        goal = self.total + count
        eventually(lambda: self.total >= goal, within_s=within_s)

    def _play(self, name: str) -> None:
        with httpx.Client(trust_env=False, timeout=30) as client:
            number = 0
            while not self._stop.is_set() or number > self.counted[name]:
                number = self.counted[name] + 1
                try:
                    answer = client.post(
                        f"{self._api}/api/scores/update",
                        json={"userId": name, "actionId": f"win:{number}"},
                        headers={"Authorization": f"Bearer {self._token}"},
                    )
                except httpx.HTTPError:
                    continue
                self.statuses.add(answer.status_code)
                if answer.status_code == 200:
                    self.counted[name] = number
                else:
                    self._stop.wait(0.02)


@contextmanager
def playing(up: Up, running: dict[str, Any]) -> Iterator[Load]:
    words = ("token", "--sub", "arena", "--scope", "update:score:any")
    token = run_command(*words, "--data-dir", str(up.folder)).stdout.strip()
    with Load(running["api"], token) as load:
        load.wait_for_more()
        yield load


def check_counted_once(up: Up, running: dict[str, Any], load: Load) -> None:
    for name, count in load.counted.items():
        answer = httpx.get(f"{running['api']}/api/scores/users/{name}", trust_env=False, timeout=30)
        assert answer.json()["score"] == 10 * count

    def is_sound() -> bool:
        done = run_command("verify", "--full", "--data-dir", str(up.folder))
        assert done.returncode == 0, done.stdout + done.stderr
        return True

    eventually(is_sound, every_s=0.5)
    assert load.statuses <= {200, 503}


def errors_of(up: Up) -> str:
    return up.errors.read_text()


@pytest.mark.parametrize(("server", "title"), [("redis", "Valkey"), ("postgres", "PostgreSQL")])
def test_a_killed_server_is_restarted_under_load(
    server: str,
    title: str,
    start_up: StartUp,  # noqa: F811
) -> None:
    up = start_up()
    running = up.wait_until_running()
    with playing(up, running) as load:
        os.kill(running["pids"][server], signal.SIGKILL)

        eventually(lambda: f"{title} is running again" in errors_of(up))

        load.wait_for_more()
    check_counted_once(up, running, load)
    assert up.process.poll() is None
    assert Path(f"/proc/{running['pids']['api']}").exists(), "the services were not restarted"
    assert up.wait_for_exit(signal.SIGTERM) == 0


def limit_files(pid: int, size: int) -> None:
    """Limit the size of files for a process and its future children."""
    limits = UNLIMITED if size < 0 else (size, resource.RLIM_INFINITY)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def children_of(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize(("server", "title"), [("redis", "Valkey"), ("postgres", "PostgreSQL")])
def test_a_server_with_a_full_disk_is_restarted_until_there_is_space(
    server: str,
    title: str,
    start_up: StartUp,  # noqa: F811
) -> None:
    # A file size limit in place of a full disk: the same write fails, with EFBIG.
    up = start_up()
    running = up.wait_until_running()
    with playing(up, running) as load:
        pid = running["pids"][server]
        limit_files(up.process.pid, 2048)
        for one in (pid, *children_of(pid)):
            limit_files(one, 2048)
        eventually(lambda: f"{title} ended; " in errors_of(up))
        eventually(lambda: 503 in load.statuses or server == "postgres")
        assert up.process.poll() is None

        limit_files(up.process.pid, -1)
        for one in children_of(up.process.pid):
            limit_files(one, -1)  # a server that was started with the limit

        eventually(
            lambda: errors_of(up).rstrip().endswith(f"{title} is running again"), within_s=60
        )
        load.wait_for_more(within_s=60)
    check_counted_once(up, running, load)
    assert Path(f"/proc/{running['pids']['api']}").exists(), "the services were not restarted"
    assert up.wait_for_exit(signal.SIGTERM) == 0


def test_a_stop_does_not_wait_for_a_server_that_cannot_start(
    start_up: StartUp,  # noqa: F811
) -> None:
    up = start_up()
    running = up.wait_until_running()
    (up.folder / "valkey" / "appendonlydir").rename(up.folder / "aside")
    (up.folder / "valkey" / "appendonlydir").write_text("not a folder")
    os.kill(running["pids"]["redis"], signal.SIGKILL)
    eventually(lambda: "Valkey ended" in errors_of(up))

    assert up.wait_for_exit(signal.SIGTERM) == 0
