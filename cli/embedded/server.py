"""What both embedded servers have in common: the way to a started process, and to its end.

`cli.embedded.servers` adds how each is launched and asked. What stays true: `start` returns when a
client with the password gets an answer, or leaves nothing running and says why in one line.
"""

import os
import random
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Self

from cli.embedded import child
from cli.embedded.data_folder import DataFolder
from cli.embedded.ports import HOST
from scoreboard.errors import EmbeddedFailed

START_TIMEOUT_S = 60.0
"""Long enough to replay a large append-only file or write-ahead log."""
STOP_TIMEOUT_S = 15.0
_POLL_S = 0.02


class EmbeddedServer(ABC):
    """One server: `start`, `stop` and `kill` may be repeated in any order, from any thread."""

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
        """Take a free port for ``port`` 0; ``settings`` go to the server last, so they win."""
        self.port = port or free_port()
        self.folder = DataFolder(data_dir, self.kind)
        self.settings: dict[str, str] = dict(settings or {})
        self._given_password = password
        self._start_timeout_s = start_timeout_s
        self._process: child.Process | None = None

    def start(self, check: Callable[[], None] = lambda: None) -> None:
        """Start the server and return when it answers a client that has the password.

        ``check`` is called again and again meanwhile; what it raises ends the server.

        Raises EmbeddedFailed with the end of the server's log.
        """
        if self.is_running:
            return
        self._refuse_taken_port()
        lock = self.folder.claim(self._given_password)
        try:
            self._process = self._launch(lock)
            self.folder.note_holder(lock, self._process.pid)
        except OSError as error:
            raise self._failure(f"{error.filename or 'system'}: {error.strerror}") from error
        finally:
            os.close(lock)
        try:
            self._await_answer(check)
            self._prepare()
        except BaseException:
            self.kill()
            raise

    def stop(self, *, within_s: float = STOP_TIMEOUT_S) -> bool:
        """Stop the server in its orderly way, by force past the deadline; say which it was."""
        if self._process is None:
            return True
        in_time = child.end(self._process, self.stop_signal, within_s=within_s)
        self._process = None
        return self.folder.wait_until_free(within_s) and in_time

    def kill(self) -> None:
        """Kill the server with SIGKILL, as a lost machine would."""
        if self._process is not None:
            child.kill(self._process)
            self._process = None
            self.folder.wait_until_free(STOP_TIMEOUT_S)

    @property
    def is_running(self) -> bool:
        """Whether the process that `start` made is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The server's own process id; None where it does not run."""
        return self._process.pid if self._process is not None and self.is_running else None

    @property
    @abstractmethod
    def url(self) -> str:
        """The address with its password: for clients, never for a log or an argument."""

    @property
    def password(self) -> str:
        """The password; it exists from the first start on."""
        return self.folder.password

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @abstractmethod
    def _launch(self, lock: int) -> child.Process:
        """Start the process; it inherits ``lock``, and so holds the folder while it lives."""

    @abstractmethod
    def _answers(self) -> bool:
        """Ask once, as a client; say whether the server is ready."""

    def _prepare(self) -> None:  # noqa: B027 - most servers need nothing
        """Make in the running server what must be there."""

    def _await_answer(self, check: Callable[[], None]) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while True:
            check()
            if not self.is_running:
                raise self._failure("it ended")
            if self._answers():
                return
            if time.monotonic() > deadline:
                raise self._failure(f"no answer within {self._start_timeout_s:g} s")
            time.sleep(_POLL_S)

    def _refuse_taken_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, self.port))
            except OSError as error:
                raise self._failure(f"the port cannot be used: {error.strerror}") from error

    def _failure(self, why: str) -> EmbeddedFailed:
        tail = self.folder.log_tail()
        ending = f"; its log ends: {tail}" if tail else ""
        return EmbeddedFailed(f"{self.title} did not start on {HOST}:{self.port}: {why}{ending}")


def free_port() -> int:
    """Give a loopback port that nobody listens on.

    It lies below the ports the kernel hands to outgoing connections, so that none of those takes it
    before the server does, or while the server is away.
    """
    for _ in range(200):
        port = random.randint(15_000, 32_000)  # noqa: S311 - not a secret
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise EmbeddedFailed("no free port between 15000 and 32000")
