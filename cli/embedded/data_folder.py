"""The folder of one embedded server: whose it is, who uses it, the password, the log.

Called by `cli.embedded.servers`. What stays true: one server at a time uses a folder (by a lock
that the server itself holds, down to its last process, so it outlives us if the server does); the
password is in a file for us alone and in no argument list; a folder that is not ours is left
untouched.
"""

import fcntl
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from scoreboard.errors import EmbeddedFailed

LOCK_WAIT_S = 5.0
"""How long a server that is just going away may still hold its folder."""
_LOG_TAIL_LINES = 5
_LOG_TAIL_BYTES = 4096


class DataFolder:
    """A folder for ``kind`` (`valkey` or `postgres`); nothing is touched before `claim`."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path.absolute()
        self.log = self.path / "server.log"
        self._kind = kind
        self._password_file = self.path / f"{kind}-password"
        self._draft = self._password_file.with_suffix(".new")
        self._lock_file = self.path / "lock"

    def claim(self, password: str | None = None) -> int:
        """Make the folder if need be and lock it; give the locked file, for the server to inherit.

        ``password`` is kept at the first start; without one, one is made.

        Raises EmbeddedFailed: another's folder, no permission, or a server runs on it.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_ours()
            lock = self._lock()
            try:
                if not self._password_file.exists():
                    self._write_password(password or secrets.token_urlsafe(24))
                self._start_log()
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            raise EmbeddedFailed(f"{self.path} cannot hold data: {error.strerror}") from error
        return lock

    def note_holder(self, lock: int, pid: int) -> None:
        """Leave the process id of the server in the locked file, for whoever finds it locked."""
        with suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(pid).encode("ascii"), 0)

    @property
    def password(self) -> str:
        """The server's password; there is one as soon as the folder was claimed once."""
        return self._password_file.read_text("ascii")

    def log_tail(self) -> str:
        """Give the last lines of the server's log as one line, without the password."""
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _LOG_TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        text = text.replace(self.password, "***")
        lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
        return " | ".join(lines[-_LOG_TAIL_LINES:])

    def wait_until_free(self, within_s: float) -> bool:
        """Wait until no process holds the folder any more; say whether that happened in time."""
        try:
            lock = os.open(self._lock_file, os.O_RDWR)
        except FileNotFoundError:
            return True
        try:
            return _lock_within(lock, within_s)
        finally:
            os.close(lock)

    def _check_ours(self) -> None:
        owner = self.path.stat().st_uid
        if owner != os.geteuid():
            raise EmbeddedFailed(
                f"{self.path} belongs to user id {owner} and this is user id {os.geteuid()}: "
                "run as its owner, or choose another folder",
            )
        known = {self._lock_file.name, self._draft.name}
        strangers = sorted({entry.name for entry in self.path.iterdir()} - known)
        if strangers and not self._password_file.exists():
            raise EmbeddedFailed(
                f"{self.path} holds files that are not of our {self._kind} "
                f"({', '.join(strangers[:3])}): choose another folder",
            )

    def _lock(self) -> int:
        lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        if not _lock_within(lock, LOCK_WAIT_S):
            holder = os.pread(lock, 20, 0).decode("ascii", "replace")
            os.close(lock)
            raise EmbeddedFailed(
                f"a running {self._kind} server already uses {self.path} (process {holder or '?'})",
            )
        return lock

    def _write_password(self, password: str) -> None:
        write_private(self._draft, password)
        self._draft.rename(self._password_file)

    def _start_log(self) -> None:
        if self.log.exists():
            self.log.replace(self.log.with_name("server.log.1"))


def write_private(path: Path, text: str, *, owner: tuple[int, int] | None = None) -> None:
    """Write a file that only its owner (user and group id; us, if not told) can read."""
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
