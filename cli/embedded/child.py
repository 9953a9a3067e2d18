"""Child processes that end when this process ends.

Invariants: a child runs in its own session, so Ctrl-C on the terminal reaches only this process,
which stops the children in order; if this process is killed, the kernel ends each child (on Linux,
see `launch`).
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from cli.embedded.launch import KEEP_IDENTITY

Process = subprocess.Popen[bytes]


def spawn(
    command: Sequence[str],
    *,
    on_parent_death: signal.Signals,
    output: Path | None = None,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    user: int | None = None,
    group: int | None = None,
    pass_fds: Sequence[int] = (),
) -> Process:
    """Start ``command`` (its first word an absolute path) and return at once.

    stdout and stderr are appended to the file ``output``, which only the owner can read, or are
    inherited without one. ``prefix`` is a program that runs the rest, such as `unshare`; ``user``
    and ``group`` are the ids of the child.

    Raises OSError if the program cannot be started.
    """
    identity = (KEEP_IDENTITY, KEEP_IDENTITY) if user is None else (user, group or user)
    launcher = str(Path(__file__).with_name("launch.py"))
    words = (os.getpid(), int(on_parent_death), *identity)
    full = [*prefix, sys.executable, "-I", "-S", launcher, *map(str, words), *command]

    def start() -> Process:
        stream = None
        if output is not None:
            stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return subprocess.Popen(  # noqa: S603 - the caller's program, no shell
                full,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT if stream is not None else None,
                env=None if environment is None else dict(environment),
                start_new_session=True,
                umask=0o077,
                pass_fds=tuple(pass_fds),
            )
        finally:
            if stream is not None:
                os.close(stream)

    return _spawner().submit(start).result()


@cache
def _spawner() -> ThreadPoolExecutor:
    # The kernel sends the signal when the *thread* that forked the child ends. This thread lives as
    # long as the process, so a server started in a short-lived thread does not end with it.
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


def terminate(process: Process, stop_signal: signal.Signals, *, within_s: float) -> bool:
    """Send a signal and wait; kill the session after the deadline.

    Return whether the process ended in time.
    """
    if process.poll() is None:
        process.send_signal(stop_signal)
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            kill(process)
            return False
    return True


def kill(process: Process) -> None:
    """Kill the process and its session with SIGKILL and wait for its end."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
