"""Valkey and PostgreSQL as child processes of this one, for `scoreboard up` and the tests.

What stays true: they listen on loopback alone and want a password; they keep their data in a folder
of their own and start again on it after any death; they end with this process, however it ends.
Their settings are those a production server needs, unless the caller says otherwise.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import quote

from cli import binaries, child, identity
from cli.data_folder import DataFolder, write_private
from scoreboard.errors import EmbeddedFailed

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0
"""Long enough to replay a large append-only file or write-ahead log."""
STOP_TIMEOUT_S = 15.0
_POLL_S = 0.02
_MAXMEMORY_BYTES = 1 << 30


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

    def start(self) -> None:
        """Start the server and return when it answers a client that has the password.

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
            self._await_answer()
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

    def _await_answer(self) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while True:
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


class EmbeddedValkey(EmbeddedServer):
    """Valkey, or a Redis of this system: durable to every answered write, never evicting."""

    title = "Valkey"
    kind = "valkey"
    stop_signal = signal.SIGTERM

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        *,
        password: str | None = None,
        maxmemory_bytes: int = _MAXMEMORY_BYTES,
        settings: Mapping[str, str] | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """Take ``settings`` as lines of valkey.conf, a value as it would stand there."""
        super().__init__(
            data_dir,
            port,
            password=password,
            settings=settings,
            start_timeout_s=start_timeout_s,
        )
        self._maxmemory_bytes = maxmemory_bytes

    @property
    def url(self) -> str:
        """A `redis://` address of database 0."""
        return f"redis://:{quote(self.password, safe='')}@{HOST}:{self.port}/0"

    def _launch(self, lock: int) -> child.Process:
        program = binaries.find_valkey()
        config = self.folder.path / "valkey.conf"
        write_private(config, self._config())
        return child.spawn(
            [str(program), str(config)],
            on_parent_death=self.stop_signal,
            output=self.folder.log,
            pass_fds=[lock],
        )

    def _config(self) -> str:
        lines = {
            "bind": HOST,
            "port": str(self.port),
            "protected-mode": "yes",
            "daemonize": "no",
            "dir": _quoted(str(self.folder.path)),
            "requirepass": _quoted(self.password),
            # An answer means that the write is on disk; nothing is ever thrown away for room.
            "appendonly": "yes",
            "appendfsync": "always",
            "no-appendfsync-on-rewrite": "no",
            "save": '""',
            "maxmemory": str(self._maxmemory_bytes),
            "maxmemory-policy": "noeviction",
            # Seen hashes of up to 512 digests stay compact: a third of the memory.
            "hash-max-listpack-entries": "512",
        }
        return "".join(f"{name} {value}\n" for name, value in (lines | self.settings).items())

    def _answers(self) -> bool:
        password = self.password.encode()
        request = b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%b\r\n*1\r\n$4\r\nPING\r\n" % (
            len(password),
            password,
        )
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as connection:
                connection.sendall(request)
                with connection.makefile("rb") as replies:
                    return (replies.readline(), replies.readline()) == (b"+OK\r\n", b"+PONG\r\n")
        except OSError:
            return False


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL with the superuser and the database `scoreboard`."""

    title = "PostgreSQL"
    kind = "postgres"
    stop_signal = signal.SIGINT  # "fast": ends sessions, writes a checkpoint
    user: ClassVar[str] = "scoreboard"
    database: ClassVar[str] = "scoreboard"

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        *,
        password: str | None = None,
        fsync: bool = True,
        settings: Mapping[str, str] | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """Take ``fsync=False`` in tests alone: a lost machine then loses the database."""
        super().__init__(
            data_dir,
            port,
            password=password,
            settings=settings,
            start_timeout_s=start_timeout_s,
        )
        self._fsync = fsync
        self._cluster = self.folder.path / "cluster"
        self._programs: binaries.PostgresPrograms | None = None

    @property
    def url(self) -> str:
        """A `postgresql://` address of the database `scoreboard`."""
        return self.url_of(self.database)

    def url_of(self, database: str) -> str:
        """Give the address of another database of this server."""
        password = quote(self.password, safe="")
        return f"postgresql://{self.user}:{password}@{HOST}:{self.port}/{database}"

    def _launch(self, lock: int) -> child.Process:
        programs = self._programs = binaries.find_postgres()
        # A cluster behind a link was made by another user: see _make_cluster.
        runs_as = identity.for_postgres(allow_namespace=not self._cluster.is_symlink())
        if not self._cluster.exists():
            self._make_cluster(programs, runs_as)
        self._check_version(programs)
        self._drop_stale_pid_file()
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "fsync": "on" if self._fsync else "off",
        } | self.settings
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return child.spawn(
            [programs.path("postgres"), "-D", str(self._cluster.resolve()), *options],
            on_parent_death=self.stop_signal,
            output=self.folder.log,
            environment=_plain_environment(),
            prefix=runs_as.prefix,
            user=runs_as.user,
            group=runs_as.group,
            pass_fds=[lock],
        )

    def _make_cluster(
        self,
        programs: binaries.PostgresPrograms,
        runs_as: identity.Identity,
    ) -> None:
        if self._cluster.is_symlink():
            raise EmbeddedFailed(f"{self._cluster} leads to a folder that is no longer there")
        # Made beside its place and moved there when complete: a killed initdb leaves no half.
        if runs_as.user is None:
            workshop = self.folder.path / "making"
            shutil.rmtree(workshop, ignore_errors=True)
            workshop.mkdir(mode=0o700)
        else:
            workshop = Path(tempfile.mkdtemp(prefix="scoreboard-postgres-", dir="/var/tmp"))
            os.chown(workshop, runs_as.user, runs_as.group or runs_as.user)
        self._initdb(programs, runs_as, workshop)
        if runs_as.user is None:
            (workshop / "cluster").rename(self._cluster)
            workshop.rmdir()
        else:
            self._cluster.symlink_to(workshop / "cluster")

    def _initdb(
        self,
        programs: binaries.PostgresPrograms,
        runs_as: identity.Identity,
        workshop: Path,
    ) -> None:
        password_file = workshop / "password"
        owner = None if runs_as.user is None else (runs_as.user, runs_as.group or runs_as.user)
        write_private(password_file, self.password, owner=owner)
        builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        process = child.spawn(
            [
                programs.path("initdb"),
                *("-D", str(workshop / "cluster"), "-U", self.user, "-E", "UTF8", "--no-sync"),
                *("-A", "scram-sha-256", f"--pwfile={password_file}"),
                # Before version 17 the nearest thing that needs no locale of the system's.
                *(builtin if programs.major >= 17 else ["--no-locale"]),
            ],
            on_parent_death=signal.SIGKILL,
            output=self.folder.log,
            environment=_plain_environment(),
            prefix=runs_as.prefix,
            user=runs_as.user,
            group=runs_as.group,
        )
        try:
            process.wait(self._start_timeout_s)
        except subprocess.TimeoutExpired as error:
            raise self._failure("initdb took too long") from error
        finally:
            child.kill(process)
            password_file.unlink(missing_ok=True)
        if process.returncode != 0:
            if runs_as.user is not None:
                shutil.rmtree(workshop, ignore_errors=True)
            raise self._failure("initdb failed (DATABASE_URL may name a server of yours instead)")

    def _check_version(self, programs: binaries.PostgresPrograms) -> None:
        try:
            made_by = (self._cluster / "PG_VERSION").read_text("ascii").strip()
        except OSError as error:
            raise self._failure(f"{self._cluster} is not a PostgreSQL cluster") from error
        if made_by != str(programs.major):
            raise EmbeddedFailed(
                f"{self._cluster} was made by PostgreSQL {made_by} and this is {programs.major}: "
                "move the folder away, or set DATABASE_URL to a server of that version",
            )

    def _drop_stale_pid_file(self) -> None:
        # PostgreSQL ignores the file of a dead process, but not when another process has got its
        # number since, which after a reboot is likely. We hold the folder's lock, so none is ours.
        pid_file = self._cluster / "postmaster.pid"
        try:
            pid = int(pid_file.read_text("ascii").split("\n", 1)[0])
            works_in = Path(f"/proc/{pid}/cwd").resolve(strict=True)
        except (OSError, ValueError):
            return
        if works_in != self._cluster.resolve():
            pid_file.unlink()

    def _answers(self) -> bool:
        asked = self._psql("SELECT 1", "postgres")
        if "password authentication failed" in asked.stderr:
            raise self._failure("its password is not the one in our folder")
        return asked.returncode == 0

    def _prepare(self) -> None:
        exists = self._psql(
            f"SELECT 1 FROM pg_database WHERE datname = '{self.database}'",  # noqa: S608 - a constant
            "postgres",
        )
        if not exists.stdout.strip():
            made = self._psql(f"CREATE DATABASE {self.database}", "postgres")
            if made.returncode != 0:
                raise self._failure(f"its database was not made: {' '.join(made.stderr.split())}")

    def _psql(self, statement: str, database: str) -> subprocess.CompletedProcess[str]:
        # psql, not a driver: the driver belongs to the modules that hold queries.
        if self._programs is None:
            self._programs = binaries.find_postgres()
        access = {"PGPASSWORD": self.password, "PGCONNECT_TIMEOUT": "5"}
        command = [
            self._programs.path("psql"),
            *("-h", HOST, "-p", str(self.port), "-U", self.user, "-d", database),
            *("-X", "-w", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement),
        ]
        try:
            return subprocess.run(  # noqa: S603 - a fixed program, no shell
                command,
                env=_plain_environment() | access,
                capture_output=True,
                check=False,
                text=True,
                timeout=self._start_timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise self._failure("it took a connection and gave no answer") from error


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


def _plain_environment() -> dict[str, str]:
    """Give our environment without what would lead PostgreSQL's programs elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    return kept | {"LC_ALL": "C", "LANG": "C"}


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
