"""The data folder of an embedded server: owner, lock, password and log.

Invariants: one server at a time uses a folder (the server's processes inherit the lock and hold it
until the last of them ends, even if this process ends first); the password is in a file that only
the owner can read and in no argument list; a folder with foreign files is not changed.
"""

import fcntl
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from cli.embedded.log_tail import read_last_lines
from scoreboard.errors import EmbeddedFailed

LOCK_WAIT_S = 5.0
"""How long a server that is stopping may still hold the lock."""
_LOG_TAIL_LINES = 5


class DataFolder:
    """A folder for ``kind`` (`valkey` or `postgres`); nothing is changed before `lock`."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path.absolute()
        self.log = self.path / "server.log"
        self._kind = kind
        self._password_file = self.path / f"{kind}-password"
        self._draft = self._password_file.with_suffix(".new")
        self._lock_file = self.path / "lock"

    def lock(self, password: str | None = None) -> int:
        """Create the folder if needed and lock it; return the lock's descriptor for the server.

        The first start saves ``password``, or a random password without one.

        Raises EmbeddedFailed for a foreign folder, without permission, or if a server uses it.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_owner()
            lock = self._acquire_lock()
            try:
                if not self._password_file.exists():
                    self._write_password(password or secrets.token_urlsafe(24))
                self._start_log()
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            raise EmbeddedFailed(
                f"Cannot use the data folder {self.path}: {error.strerror}"
            ) from error
        return lock

    def write_pid(self, lock: int, pid: int) -> None:
        """Write the server's process id to the lock file, for error messages."""
        with suppress(OSError):  # the lock works without it, for example on a full disk
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(pid).encode("ascii"), 0)

    @property
    def password(self) -> str:
        """The server's password; it exists after the first `lock`."""
        return self._password_file.read_text("ascii")

    def log_tail(self) -> str:
        """Return the last lines of the server's log as one line, without the password."""
        lines = read_last_lines(self.log, _LOG_TAIL_LINES)
        text = " | ".join(" ".join(line.split()) for line in lines)
        return text.replace(self.password, "***") if text else ""

    def wait_until_free(self, within_s: float) -> bool:
        """Wait until no process holds the lock; return whether that happened in time."""
        try:
            lock = os.open(self._lock_file, os.O_RDWR)
        except FileNotFoundError:
            return True
        try:
            return _lock_within(lock, within_s)
        finally:
            os.close(lock)

    def _check_owner(self) -> None:
        owner = self.path.stat().st_uid
        if owner != os.geteuid():
            raise EmbeddedFailed(
                f"{self.path} belongs to user id {owner}, but this is user id {os.geteuid()}; "
                "run as its owner or use another folder",
            )
        known = {self._lock_file.name, self._draft.name}
        foreign = sorted({entry.name for entry in self.path.iterdir()} - known)
        if foreign and not self._password_file.exists():
            raise EmbeddedFailed(
                f"{self.path} contains files that are not of a {self._kind} server of scoreboard "
                f"({', '.join(foreign[:3])}); use another folder",
            )

    def _acquire_lock(self) -> int:
        lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        if not _lock_within(lock, LOCK_WAIT_S):
            holder = os.pread(lock, 20, 0).decode("ascii", "replace")
            os.close(lock)
            raise EmbeddedFailed(
                f"A running {self._kind} server already uses {self.path} (process {holder or '?'})",
            )
        return lock

    def _write_password(self, password: str) -> None:
        write_private(self._draft, password)
        self._draft.rename(self._password_file)

    def _start_log(self) -> None:
        if self.log.exists():
            self.log.replace(self.log.with_name("server.log.1"))


def write_private(path: Path, text: str, *, owner: tuple[int, int] | None = None) -> None:
    """Write a file that only its owner can read; ``owner`` is a user and a group id."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        if owner is not None:
            os.fchown(file.fileno(), *owner)
        file.write(text)


def _lock_within(lock: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        else:
            return True
