"""A forked process has its own output, folder, environment, signals and end."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.embedded.ports import find_free_port
from tests.support.clients.forked import Forked, programs, run_forked
from tests.support.eventually import eventually
from tests.support.repository import ROOT

CLIENT = """
import sys
from tests.support.clients.forked import Forked
print(Forked("cli.issuer", sys.argv[1:], {}).pid, flush=True)
input()
"""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Return the arguments of an issuer, which serves until it is stopped."""
    address = ["--port", str(find_free_port()), "--redirect-uri", "http://127.0.0.1:8000/"]
    return ["--folder", str(tmp_path / "identity"), *address]


def has_ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_forked_command_has_only_the_given_environment_and_folder(tmp_path: Path) -> None:
    refused = run_forked("cli", ["config", "show"], {"SCOREBOARD_NO": "1"}, folder=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "SCOREBOARD_NO" in refused.stderr
    nothing_runs = run_forked("cli", ["verify"], {}, folder=tmp_path)
    assert nothing_runs.returncode == 5
    assert "No scoreboard runs on .data" in nothing_runs.stderr


def test_the_exit_code_of_a_signal_is_negative(words: list[str]) -> None:
    process = Forked("cli.issuer", words, {})
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    assert process.poll() == -signal.SIGKILL
    process.kill()  # no effect


def test_a_time_limit_ends_the_command(words: list[str]) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_forked("cli.issuer", words, {}, timeout_s=0.2)
    again = Forked("cli.issuer", words, {})  # the port is free
    with pytest.raises(subprocess.TimeoutExpired):
        again.wait(1)
    again.kill()
    again.wait(20)


def test_a_process_ends_with_its_owner(words: list[str]) -> None:
    pid = Forked("cli.issuer", words, {}).pid  # no reference is kept
    eventually(lambda: has_ended(pid))


def test_a_process_ends_when_the_process_that_started_it_is_killed(words: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, *words],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as client:
        assert client.stdout is not None
        pid = int(client.stdout.readline())
        assert not has_ended(pid)
        client.kill()
    eventually(lambda: has_ended(pid))


def test_the_limit_of_open_files_and_the_session_are_its_own(words: list[str]) -> None:
    process = Forked("cli.issuer", words, {}, open_files=123)
    eventually(lambda: resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (123, 123))
    assert os.getsid(process.pid) == process.pid
    process.kill()
    process.wait(20)


def test_a_shell_uses_forked_programs_as_the_real_ones(words: list[str], tmp_path: Path) -> None:
    path = f"{programs('cli', 'cli.issuer')}:/usr/bin:/bin"
    script = """
    scoreboard verify; echo "code $?"
    python -c 'print("real")'
    python -m cli.issuer "$@" & pid=$!
    until (: >/dev/tcp/127.0.0.1/$4) 2>/dev/null; do sleep 0.1; done
    kill $pid; wait $pid; echo "stopped $?"
    python -m cli.issuer "$@" & pid=$!
    kill -9 $pid; wait $pid; echo "killed $?"
    """
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words],
        cwd=tmp_path,
        env={"PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split("\n") == ["code 5", "real", "stopped 0", "killed 137", ""], done.stderr
    assert "No scoreboard runs on .data" in done.stderr
