"""`scoreboard bench` with a system of its own: it leaves no process and no folder."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from cli.bench.system.own_system import own_system
from cli.signals import stop_on_signals
from tests.support.eventually import eventually
from tests.support.servers.system import processes_of

ROOT = Path(__file__).parents[2]


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = {
        name: text
        for name, text in os.environ.items()
        if "SCOREBOARD" not in name and name not in {"REDIS_URL", "DATABASE_URL"}
    }
    return subprocess.Popen(
        [sys.executable, "-m", "cli", "bench", *arguments],
        cwd=folder,
        env=environment | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_running(folder: Path) -> bool:
    return any(folder.glob("scoreboard-bench-*/data/running.json"))


def test_all_loads_run_on_a_system_that_is_removed(tmp_path: Path) -> None:
    process = start(tmp_path, "all", "--duration", "1", "--warm-up", "0.5", "--json", "-")
    out, errors = process.communicate(timeout=170)
    assert process.returncode == 0, errors
    found = json.loads(out)
    assert [one["kind"] for one in found] == ["lua", "http", "read", "ws", "flush"]
    assert all(one["operations"] > 100 for one in found)
    assert all(set(one["outcomes"]) <= {"applied", "ok"} for one in found)
    for one, part in zip(found, ("redis", "api", "api", "streamer", "flusher"), strict=True):
        assert one["cpu_us"][part] > 0
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_during_the_start_removes_everything(tmp_path: Path, stop: signal.Signals) -> None:
    process = start(tmp_path, "http")
    try:
        eventually(lambda: any(tmp_path.glob("scoreboard-bench-*/up.log")), within_s=60)
        process.send_signal(stop)
        _, errors = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("is_early", [True, False])
def test_a_stop_while_the_system_is_started_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_early: bool
) -> None:
    """The signal comes just before or after the process of the system is made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    start_process = subprocess.Popen
    with stop_on_signals() as stop:

        def interrupt() -> None:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            stop.wait(10)

        def start_and_signal(*arguments: Any, **options: Any) -> "subprocess.Popen[bytes]":
            if is_early:
                interrupt()
            process = start_process(*arguments, **options)
            if not is_early:
                interrupt()
            return process

        monkeypatch.setattr(subprocess, "Popen", start_and_signal)
        with pytest.raises(KeyboardInterrupt), own_system("bench-own", stop):
            pytest.fail("the system was started all the same")
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_killed_run_is_removed_by_clean(tmp_path: Path) -> None:
    other = tmp_path / "scoreboard-bench-of-somebody-else"
    other.mkdir()
    process = start(tmp_path, "http", "--duration", "600")
    try:
        eventually(lambda: is_running(tmp_path), within_s=90)
        cleaning = start(tmp_path, "clean")
        out, _ = cleaning.communicate(timeout=60)
        assert "in use by a running load test" in out
    finally:
        process.kill()
        process.communicate()
    eventually(lambda: not processes_of(tmp_path), within_s=60)
    out, errors = start(tmp_path, "clean").communicate(timeout=60)
    assert ": removed" in out, errors
    assert list(tmp_path.iterdir()) == [other]
