"""Processes of `python -m MODULE` that are forked from a server with the module imported.

A `Forked` is used as a `subprocess.Popen`: it is the process itself, with its own session. What
differs from a new interpreter: /proc has the arguments and the environment of the server.
"""

import atexit
import contextlib
import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FORK_SERVER = Path(__file__).with_name("fork_server.py")
_PYTHON = Path(__file__).with_name("forked_python.py")
_START_S = 60.0


class Forked:
    """A process; the owner must wait for its end, or kill it."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        folder: Path | None = None,
        output: Any = subprocess.DEVNULL,
        errors: Any = subprocess.STDOUT,
        umask: int = -1,
        open_files: int = 0,
    ) -> None:
        """Start it with exactly this environment; ``output`` and ``errors`` are files.

        ``open_files`` is its limit of open files, unless it is 0.
        """
        self.args = ["python", "-m", module, *arguments]
        self.returncode: int | None = None
        request = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": str(folder or Path.cwd()),
            "umask": umask,
            "open_files": open_files,
        }
        self._lock = threading.Lock()
        self._connection = socket.socket(socket.AF_UNIX)
        try:
            self._connection.settimeout(_START_S)
            self._connection.connect(str(server_of(module)))
            with Path(os.devnull).open("r+b", buffering=0) as nothing:
                out = nothing if output == subprocess.DEVNULL else output
                err = {subprocess.STDOUT: out, subprocess.DEVNULL: nothing}.get(errors, errors)
                send_request(self._connection, request, [nothing, out, err])
            self._answers = self._connection.makefile("rb")
            self.pid = int(self._answers.readline())
        except BaseException:
            self._connection.close()
            raise

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; raise subprocess.TimeoutExpired."""
        waiting = select.poll()
        waiting.register(self._connection, select.POLLIN)
        if not waiting.poll(None if timeout is None else timeout * 1000):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        with self._lock:
            if self.returncode is None:
                self.returncode = int(self._answers.readline())
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __del__(self) -> None:
        """Kill a process that has no owner any more."""
        if hasattr(self, "_answers"):
            self._answers.close()
        self._connection.close()


def run_forked(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    folder: Path | None = None,
    timeout_s: float = 60.0,
) -> "subprocess.CompletedProcess[str]":
    """Run a module with exactly this environment, and return its output.

    Raises subprocess.TimeoutExpired.
    """
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        process = Forked(module, arguments, environment, folder=folder, output=out, errors=err)
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
            process.wait()
        return subprocess.CompletedProcess(
            list(arguments), code, Path(out.name).read_text(), Path(err.name).read_text()
        )


@functools.cache
def programs(*modules: str) -> Path:
    """Return a folder with `python` and `scoreboard` for PATH, which fork these modules."""
    for module in modules:
        server_of(module)
    folder = sockets() / "-".join(["bin", *modules])
    folder.mkdir()
    start = f'exec "{sys.executable}" -I -S "{_PYTHON}" "{sockets()}" "{sys.executable}"'
    for name, words in (("python", ""), ("scoreboard", "-m cli ")):
        program = folder / name
        program.write_text(f'#!/bin/sh\n{start} {words}"$@"\n')
        program.chmod(0o755)
    return folder


def send_request(
    connection: socket.socket, request: Mapping[str, object], streams: Sequence[Any]
) -> None:
    """Send a request, as `fork_server` describes it."""
    text = json.dumps(request).encode()
    descriptors = [stream if isinstance(stream, int) else stream.fileno() for stream in streams]
    socket.send_fds(connection, [len(text).to_bytes(4)], descriptors)
    connection.sendall(text)


@functools.cache
def sockets() -> Path:
    """Return the folder of this process's servers, with a socket for each module."""
    folder = Path(tempfile.mkdtemp(prefix="scoreboard-fork-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def server_of(module: str) -> Path:
    """Start the server of a module, once, and return its socket."""
    with _starting:
        return _start_server(module)


_starting = threading.Lock()


@functools.cache
def _start_server(module: str) -> Path:
    path = sockets() / module
    server = subprocess.Popen(
        [sys.executable, "-P", str(FORK_SERVER), module, str(path)],
        cwd=FORK_SERVER.parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,
    )
    atexit.register(_stop, server)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n", f"the server of {module} did not start"
    return path


def _stop(server: "subprocess.Popen[bytes]") -> None:
    assert server.stdin is not None
    server.stdin.close()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
