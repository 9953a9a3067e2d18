"""A system of its own for a load test: `scoreboard up` in a temporary folder that is removed.

The folder is locked by this process and by `up`, so that `scoreboard bench clean` finds the folders
of killed runs, and only these.
"""

import fcntl
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cli.embedded import child
from cli.embedded.log_tail import read_last_lines
from cli.signals import StopFlag
from cli.target import STORE_URLS, RunningSystem, read_state_file
from scoreboard.errors import EmbeddedFailed
from scoreboard.runtime.telemetry import redact

FOLDER_PREFIX: Final = "scoreboard-bench-"
LOCK_FILE: Final = "bench.lock"
START_S: Final = 120.0
STOP_S: Final = 60.0

DEFAULTS: Final = {
    # The limits of a deployment would refuse a load from one address.
    "SCOREBOARD_RATE_LIMIT": "gateway",
    "SCOREBOARD_CONNECTIONS_PER_ADDRESS": "4096",
    "SCOREBOARD_VIEWERS_PER_ADDRESS": "20000",
    "SCOREBOARD_NEW_VIEWERS_PER_SECOND": "2000",
    "SCOREBOARD_NEW_VIEWERS_BURST": "2000",
    "SCOREBOARD_STREAM_CAP": "5000000",
    "SCOREBOARD_LOG_LEVEL": "warning",
}
"""Settings of the system, unless the environment has others."""

_POLL_S: Final = 0.05


@contextmanager
def own_system(board: str, stop: StopFlag) -> Iterator[tuple[Path, RunningSystem]]:
    """Run a system that serves a board; yield its data folder and addresses; remove it at the end.

    Raises EmbeddedFailed if it does not start, KeyboardInterrupt if ``stop`` is set meanwhile.
    """
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        data, log = folder / "data", folder / "up.log"
        process = child.spawn(
            [
                *(sys.executable, "-m", "cli", "up", "--data-dir", str(data)),
                *("--api-port", "0", "--ws-port", "0"),
            ],
            on_parent_death=signal.SIGTERM,
            output=log,
            environment=_environment(board),
            pass_fds=[lock],
        )
        try:
            yield data, _wait_until_running(process, data, log, stop)
        finally:
            child.terminate(process, signal.SIGTERM, within_s=STOP_S)
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def remove_left_folders() -> list[str]:
    """Remove the folders of killed runs; return a line for each.

    A folder is recognised by its name, its lock file and its owner, and that no process holds the
    lock.
    """
    lines: list[str] = []
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*")):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lines.append(f"{folder}: in use by a running load test")
        else:
            shutil.rmtree(folder, ignore_errors=True)
            lines.append(f"{folder}: removed")
        finally:
            os.close(lock)
    return lines


def _environment(board: str) -> dict[str, str]:
    given = {name: text for name, text in os.environ.items() if name not in STORE_URLS}
    entries = given.get("PYTHONPATH", "").split(os.pathsep)
    return {
        **DEFAULTS,
        **given,
        "SCOREBOARD_BOARDS": board,
        # Nothing is imported from the operator's current folder.
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(filter(os.path.isabs, entries)),
    }


def _wait_until_running(
    process: child.Process, data: Path, log: Path, stop: StopFlag
) -> RunningSystem:
    until_s = time.monotonic() + START_S
    while not stop.is_set():
        running = read_state_file(data)
        if running is not None:
            return running
        if process.poll() is not None or time.monotonic() > until_s:
            tail = redact(" | ".join(read_last_lines(log, 3)))
            raise EmbeddedFailed(f"The system for the load test did not start: {tail}")
        stop.wait(_POLL_S)
    raise KeyboardInterrupt
