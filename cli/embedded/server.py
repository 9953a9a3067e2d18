"""The base class of the embedded servers: start, readiness and stop of one process.

Invariants: `start` returns when a client with the password gets an answer, or leaves nothing
running and raises the reason in one line.
"""

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Self

from cli.embedded import child
from cli.embedded.data_folder import DataFolder
from cli.embedded.ports import HOST, find_free_port, try_bind
from scoreboard.errors import EmbeddedFailed

START_TIMEOUT_S = 60.0
"""Allows the replay of a large append-only file or write-ahead log."""
STOP_TIMEOUT_S = 15.0
_POLL_S = 0.02


class EmbeddedServer(ABC):
    """One server. `start`, `stop` and `kill` may be repeated in any order, from any thread."""

    title: ClassVar[str]
    kind: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        *,
        password: str | None = None,
        settings: Mapping[str, str] | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """Use a free port if ``port`` is 0; ``settings`` override the server's defaults."""
        self.port = port or find_free_port()
        self.folder = DataFolder(data_dir, self.kind)
        self.settings: dict[str, str] = dict(settings or {})
        self._given_password = password
        self._start_timeout_s = start_timeout_s
        self._process: child.Process | None = None

    def start(self, check: Callable[[], None] = lambda: None) -> None:
        """Start the server and wait until it answers a client with the password.

        ``check`` is called repeatedly during the wait; if it raises, the server is killed.

        Raises EmbeddedFailed with the last lines of the server's log.
        """
        if self.is_running:
            return
        self._check_port()
        lock = self.folder.lock(self._given_password)
        try:
            self._process = self._launch(lock)
            self.folder.write_pid(lock, self._process.pid)
        except OSError as error:
            raise self._failure(f"{error.filename or 'system'}: {error.strerror}") from error
        finally:
            os.close(lock)
        try:
            self._wait_until_ready(check)
            self._initialize()
        except BaseException:
            self.kill()
            raise

    def stop(self, *, within_s: float = STOP_TIMEOUT_S) -> bool:
        """Stop the server, with SIGKILL after the deadline; return whether it was in time."""
        if self._process is None:
            return True
        in_time = child.terminate(self._process, self.stop_signal, within_s=within_s)
        self._process = None
        return self.folder.wait_until_free(within_s) and in_time

    def kill(self) -> None:
        """Kill the server with SIGKILL, as after a crash of the machine."""
        if self._process is not None:
            child.kill(self._process)
            self._process = None
            self.folder.wait_until_free(STOP_TIMEOUT_S)

    @property
    def is_running(self) -> bool:
        """Whether the server process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The server's process id; None if it is not running."""
        return self._process.pid if self._process is not None and self.is_running else None

    @property
    @abstractmethod
    def url(self) -> str:
        """The address with the password; it must not be logged or passed as an argument."""

    @property
    def password(self) -> str:
        """The password; it exists after the first start."""
        return self.folder.password

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @abstractmethod
    def _launch(self, lock: int) -> child.Process:
        """Start the process; it inherits ``lock``, which keeps the folder locked while it runs."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Connect once as a client; return whether the server answers."""

    def _initialize(self) -> None:  # noqa: B027 - optional
        """Create what the running server must contain."""

    def _wait_until_ready(self, check: Callable[[], None]) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while True:
            check()
            if not self.is_running:
                raise self._failure("the process ended")
            if self._is_ready():
                return
            if time.monotonic() > deadline:
                raise self._failure(f"no answer within {self._start_timeout_s:g} s")
            time.sleep(_POLL_S)

    def _check_port(self) -> None:
        try:
            try_bind(HOST, self.port)
        except OSError as error:
            raise self._failure(f"cannot listen on the port: {error.strerror}") from error

    def _failure(self, reason: str) -> EmbeddedFailed:
        tail = self.folder.log_tail()
        log = f"; last lines of its log: {tail}" if tail else ""
        return EmbeddedFailed(f"{self.title} did not start on {HOST}:{self.port}: {reason}{log}")
