"""A PostgreSQL cluster (its files on disk): created once, checked at every start.

The caller must hold the lock of the data folder.

Invariants: a cluster is complete or does not exist, belongs to the user it runs as, and has the
major version of the programs.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from cli.embedded import child, os_user
from cli.embedded.binaries import PostgresPrograms
from cli.embedded.data_folder import DataFolder, write_private
from scoreboard.errors import EmbeddedFailed


class Cluster:
    """The cluster in a data folder; ``process_user`` runs all of PostgreSQL's programs on it.

    If that is another user, the files are in a temporary folder of that user behind a symbolic
    link, because the user may have no access to the data folder and its modes are not changed.
    """

    def __init__(self, folder: DataFolder, programs: PostgresPrograms) -> None:
        self.path = folder.path / "cluster"
        self.programs = programs
        # A cluster of another user keeps its user, even if a namespace has become possible since.
        self.process_user = os_user.choose_postgres_user(allow_namespace=not self.path.is_symlink())
        self._folder = folder

    def ensure(self, *, user: str, sync: bool, timeout_s: float) -> None:
        """Create the cluster with ``user`` as its superuser if it does not exist, and check it.

        Without ``sync`` a new cluster may be lost in a crash of the machine.

        Raises EmbeddedFailed with the message of initdb, or if these programs cannot run it.
        """
        if not self.path.exists():
            if self.path.is_symlink():
                raise EmbeddedFailed(f"{self.path} links to a folder that no longer exists")
            self._create(user=user, sync=sync, timeout_s=timeout_s)
        self._check_version()
        self._remove_stale_pid_file()

    def _create(self, *, user: str, sync: bool, timeout_s: float) -> None:
        # Created elsewhere and moved when complete, so a killed initdb leaves no partial cluster.
        other = self._other_user()
        if other is None:
            temporary = self._folder.path / "making"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(mode=0o700)
        else:
            temporary = Path(tempfile.mkdtemp(prefix="scoreboard-postgres-", dir="/var/tmp"))
            os.chown(temporary, *other)
        made = temporary / "cluster"
        try:
            self._initdb(made, user=user, sync=sync, timeout_s=timeout_s)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if other is None:
            made.rename(self.path)
            temporary.rmdir()
        else:
            self.path.symlink_to(made)

    def _initdb(self, made: Path, *, user: str, sync: bool, timeout_s: float) -> None:
        password_file = made.parent / "password"
        write_private(password_file, self._folder.password, owner=self._other_user())
        builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        process = child.spawn(
            [
                self.programs.path("initdb"),
                *("-D", str(made), "-U", user, "-E", "UTF8"),
                *("-A", "scram-sha-256", f"--pwfile={password_file}"),
                # The closest equivalent before version 17 that needs no locale of the system.
                *(builtin if self.programs.major >= 17 else ["--no-locale"]),
                *([] if sync else ["--no-sync"]),
            ],
            on_parent_death=signal.SIGKILL,
            output=self._folder.log,
            environment=server_environment(),
            prefix=self.process_user.prefix,
            user=self.process_user.user,
            group=self.process_user.group,
        )
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise EmbeddedFailed(f"initdb did not finish within {timeout_s:g} s") from error
        finally:
            child.kill(process)
            password_file.unlink(missing_ok=True)
        if process.returncode != 0:
            raise EmbeddedFailed(
                "initdb failed (set REDIS_URL and DATABASE_URL to use your own servers); "
                f"last lines of its log: {self._folder.log_tail()}",
            )

    def _check_version(self) -> None:
        try:
            made_by = (self.path / "PG_VERSION").read_text("ascii").strip()
        except OSError as error:
            raise EmbeddedFailed(f"{self.path} is not a PostgreSQL cluster") from error
        if made_by != str(self.programs.major):
            raise EmbeddedFailed(
                f"{self.path} was created by PostgreSQL {made_by}, "
                f"but this is {self.programs.major}; move the folder away, "
                "or set REDIS_URL and DATABASE_URL to use your own servers",
            )

    def _remove_stale_pid_file(self) -> None:
        # PostgreSQL ignores the pid file of a dead process, but not if another process has its id,
        # which is likely after a reboot. The folder is locked, so no server uses this cluster.
        pid_file = self.path / "postmaster.pid"
        try:
            pid = int(pid_file.read_text("ascii").split("\n", 1)[0])
            works_in = Path(f"/proc/{pid}/cwd").resolve(strict=True)
        except (OSError, ValueError):
            return
        if works_in != self.path.resolve():
            pid_file.unlink()

    def _other_user(self) -> tuple[int, int] | None:
        user, group = self.process_user.user, self.process_user.group
        return None if user is None or group is None else (user, group)


def server_environment() -> dict[str, str]:
    """Return the environment without variables that would redirect PostgreSQL's programs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    return kept | {"LC_ALL": "C", "LANG": "C"}
