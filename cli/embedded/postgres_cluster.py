"""PostgreSQL's files on disk (its "cluster"): made once, checked at every start.

Called by `cli.embedded.servers`, which holds the lock of the folder around it. What stays true: a
cluster is there whole or not at all, belongs to the identity it runs as, and is of the programs'
version.
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
    """The cluster in a data folder; ``identity`` is as whom all of PostgreSQL's programs run on it.

    Where that is another user, the files lie in a temporary folder of that user's, behind a link:
    the data folder may be out of that user's reach, and nobody's modes are changed for it.
    """

    def __init__(self, folder: DataFolder, programs: PostgresPrograms) -> None:
        self.path = folder.path / "cluster"
        self.programs = programs
        # What another user's identity made stays that user's, whatever has become possible since.
        self.process_user = os_user.choose_postgres_user(allow_namespace=not self.path.is_symlink())
        self._folder = folder

    def ensure(self, *, user: str, sync: bool, timeout_s: float) -> None:
        """Make the cluster unless it is there, with ``user`` as its superuser, and check it.

        Without ``sync`` a new cluster may not survive a lost machine.

        Raises EmbeddedFailed: initdb's own words, or a cluster that these programs cannot run.
        """
        if not self.path.exists():
            if self.path.is_symlink():
                raise EmbeddedFailed(f"{self.path} leads to a folder that is no longer there")
            self._make(user=user, sync=sync, timeout_s=timeout_s)
        self._check_version()
        self._drop_stale_pid_file()

    def _make(self, *, user: str, sync: bool, timeout_s: float) -> None:
        # Made beside its place and moved there when complete: a killed initdb leaves no half.
        other = self._other_user()
        if other is None:
            workshop = self._folder.path / "making"
            shutil.rmtree(workshop, ignore_errors=True)
            workshop.mkdir(mode=0o700)
        else:
            workshop = Path(tempfile.mkdtemp(prefix="scoreboard-postgres-", dir="/var/tmp"))
            os.chown(workshop, *other)
        made = workshop / "cluster"
        try:
            self._initdb(made, user=user, sync=sync, timeout_s=timeout_s)
        except BaseException:
            shutil.rmtree(workshop, ignore_errors=True)
            raise
        if other is None:
            made.rename(self.path)
            workshop.rmdir()
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
                # Before version 17 the nearest thing that needs no locale of the system's.
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
                "initdb failed (REDIS_URL and DATABASE_URL may name servers of yours instead); "
                f"its log ends: {self._folder.log_tail()}",
            )

    def _check_version(self) -> None:
        try:
            made_by = (self.path / "PG_VERSION").read_text("ascii").strip()
        except OSError as error:
            raise EmbeddedFailed(f"{self.path} is not a PostgreSQL cluster") from error
        if made_by != str(self.programs.major):
            raise EmbeddedFailed(
                f"{self.path} was made by PostgreSQL {made_by} and this is {self.programs.major}: "
                "move the folder away, or set REDIS_URL and DATABASE_URL to servers of yours",
            )

    def _drop_stale_pid_file(self) -> None:
        # PostgreSQL ignores the file of a dead process, but not when another process has got its
        # number since, which after a reboot is likely. We hold the folder's lock, so none is ours.
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
    """Give our environment without what would lead PostgreSQL's programs elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    return kept | {"LC_ALL": "C", "LANG": "C"}
