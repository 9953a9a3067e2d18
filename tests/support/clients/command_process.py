"""Runs `scoreboard` command lines as processes; see `command_server` for how they start."""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_SERVER = Path(__file__).with_name("command_server.py")


class _Server:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )

    def run(self, request: Mapping[str, object], timeout_s: float) -> int:
        """Run a command line and return its exit code.

        Raises TimeoutError, and then the server cannot be used again.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            self.close()
            raise TimeoutError(f"{request['arguments']} did not end within {timeout_s:g} s")
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the process and its command."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


_idle: list[_Server] = []


@atexit.register
def _close() -> None:
    while _idle:
        _idle.pop().close()


def run_process(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    folder: Path | None = None,
    timeout_s: float = 60.0,
) -> "subprocess.CompletedProcess[str]":
    """Run a command line in a folder, or the current one, with exactly this environment.

    Threads can call it at the same time; each then has a server of its own. Raises TimeoutError.
    """
    try:
        server = _idle.pop()
    except IndexError:
        server = _Server()
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        code = server.run(
            {
                "arguments": list(arguments),
                "environment": dict(environment),
                "folder": str(folder or Path.cwd()),
                "out": out.name,
                "err": err.name,
            },
            timeout_s,
        )
        _idle.append(server)
        return subprocess.CompletedProcess(
            list(arguments), code, out.read().decode(), err.read().decode()
        )
