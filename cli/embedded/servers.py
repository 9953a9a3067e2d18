"""Embedded Valkey and PostgreSQL servers, for `scoreboard up` and the tests.

Invariants: a server listens on loopback only and requires a password; it keeps its data in its own
folder and can be restarted on it after any end; it ends with this process, however this process
ends. The settings are those of a production server unless the caller overrides them.
"""

import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from cli.embedded import binaries, child
from cli.embedded.data_folder import write_private
from cli.embedded.postgres_cluster import Cluster, server_environment
from cli.embedded.server import HOST, START_TIMEOUT_S, EmbeddedServer

__all__ = ["EmbeddedPostgres", "EmbeddedServer", "EmbeddedValkey"]

_MAXMEMORY_BYTES = 1 << 30


class EmbeddedValkey(EmbeddedServer):
    """Valkey, or Redis: every answered write is durable, and no key is evicted."""

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
        environment: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """Take ``settings`` as lines of valkey.conf, each value as it is written there.

        ``environment`` replaces this process's environment.
        """
        super().__init__(
            data_dir,
            port,
            password=password,
            settings=settings,
            start_timeout_s=start_timeout_s,
        )
        self.environment = environment
        self._maxmemory_bytes = maxmemory_bytes

    @property
    def url(self) -> str:
        """A `redis://` address of database 0."""
        return f"redis://:{quote(self.password, safe='')}@{HOST}:{self.port}/0"

    def _launch(self, lock: int) -> child.Process:
        program = self._find_program()
        config = self.folder.path / "valkey.conf"
        write_private(config, self._config())
        return child.spawn(
            [str(program), str(config)],
            on_parent_death=self.stop_signal,
            output=self.folder.log,
            environment=self.environment,
            pass_fds=[lock],
        )

    def _find_program(self) -> Path:
        return binaries.find_valkey()

    def _config(self) -> str:
        lines = {
            "bind": HOST,
            "port": str(self.port),
            "protected-mode": "yes",
            "daemonize": "no",
            "dir": _quoted(str(self.folder.path)),
            "requirepass": _quoted(self.password),
            # An answered write is on disk, and no key is evicted.
            "appendonly": "yes",
            "appendfsync": "always",
            "no-appendfsync-on-rewrite": "no",
            "save": '""',
            "maxmemory": str(self._maxmemory_bytes),
            "maxmemory-policy": "noeviction",
            # Seen hashes of up to 512 digests stay in the compact encoding: a third of the memory.
            "hash-max-listpack-entries": "512",
        }
        return "".join(f"{name} {value}\n" for name, value in (lines | self.settings).items())

    def _is_ready(self) -> bool:
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
    stop_signal = signal.SIGINT  # "fast" shutdown: ends sessions, writes a checkpoint
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
        """Set ``fsync=False`` in tests only: a crash of the machine then loses the database."""
        super().__init__(
            data_dir,
            port,
            password=password,
            settings=settings,
            start_timeout_s=start_timeout_s,
        )
        self._fsync = fsync
        self._psql_program = ""

    @property
    def url(self) -> str:
        """A `postgresql://` address of the database `scoreboard`."""
        return self.url_of(self.database)

    def url_of(self, database: str) -> str:
        """Return the address of another database of this server."""
        password = quote(self.password, safe="")
        return f"postgresql://{self.user}:{password}@{HOST}:{self.port}/{database}"

    def _launch(self, lock: int) -> child.Process:
        cluster = Cluster(self.folder, binaries.find_postgres())
        cluster.ensure(user=self.user, sync=self._fsync, timeout_s=self._start_timeout_s)
        self._psql_program = cluster.programs.path("psql")
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
            [cluster.programs.path("postgres"), "-D", str(cluster.path.resolve()), *options],
            on_parent_death=self.stop_signal,
            output=self.folder.log,
            environment=server_environment(),
            prefix=cluster.process_user.prefix,
            user=cluster.process_user.user,
            group=cluster.process_user.group,
            pass_fds=[lock],
        )

    def _is_ready(self) -> bool:
        asked = self._psql("SELECT 1", "postgres")
        if "password authentication failed" in asked.stderr:
            raise self._failure("its password differs from the one in the data folder")
        return asked.returncode == 0

    def _initialize(self) -> None:
        exists = self._psql(
            f"SELECT 1 FROM pg_database WHERE datname = '{self.database}'",  # noqa: S608 - a constant
            "postgres",
        )
        if not exists.stdout.strip():
            made = self._psql(f"CREATE DATABASE {self.database}", "postgres")
            if made.returncode != 0:
                raise self._failure(
                    f"its database was not created: {' '.join(made.stderr.split())}"
                )

    def _psql(self, statement: str, database: str) -> subprocess.CompletedProcess[str]:
        # psql instead of a driver: only scoreboard.ledger uses the driver.
        access = {"PGPASSWORD": self.password, "PGCONNECT_TIMEOUT": "5"}
        command = [
            self._psql_program,
            *("-h", HOST, "-p", str(self.port), "-U", self.user, "-d", database),
            *("-X", "-w", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement),
        ]
        try:
            return subprocess.run(  # noqa: S603 - a fixed program, no shell
                command,
                env=server_environment() | access,
                capture_output=True,
                check=False,
                text=True,
                timeout=self._start_timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise self._failure("it accepted a connection and did not answer") from error


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
