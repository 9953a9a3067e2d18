"""The whole system as processes that a test can kill and restart.

`scoreboard up` ends when one of its services ends; here each service runs by itself.
"""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import redis
from redis.cluster import RedisCluster

from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedPostgres, EmbeddedValkey
from cli.running.service import Service, wait_until_ready
from cli.target import RunningSystem, write_state_file
from scoreboard.ledger import migrations
from scoreboard.security.tokens import LOCAL_ISSUER, READ, UPDATE, UPDATE_ANY, LocalIssuer
from tests.support.clients.forked import run_forked
from tests.support.eventually import eventually
from tests.support.servers.clusters import Cluster
from tests.support.servers.forked_service import ForkedService
from tests.support.servers.postgres_template import copy_postgres
from tests.support.servers.sentinels import Sentinels

NAMES = ("flusher", "streamer", "api")
CLUSTER_PARTITIONS = 6
"""Partitions of the board on a cluster: each of three primaries has some."""


class System:
    """Servers and services in one folder; ``settings`` are environment variables without prefix.

    ``environments`` are whole environment variables of single services, which take precedence.
    """

    def __init__(
        self,
        folder: Path,
        *,
        environments: Mapping[str, Mapping[str, str]] | None = None,
        has_acl_file: bool = False,
        valkey_settings: Mapping[str, str] | None = None,
        fsync: bool = False,
        make_service: type[Service] = ForkedService,
        **settings: object,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        make_valkey = make_valkey_with_acl_file if has_acl_file else make_plain_valkey
        self.valkey = make_valkey(folder, valkey_settings or {})
        self.partitions = 1
        """How many the board has."""
        self.replicated: Cluster | Sentinels | None = None
        """Servers that take the place of the only Valkey; the caller starts and stops them."""
        self.postgres = EmbeddedPostgres(copy_postgres(folder / "postgres"), fsync=fsync)
        self.issuer = LocalIssuer.create(folder / "issuer")
        self.services: dict[str, Service] = {}
        self.variables: dict[str, dict[str, str]] = {}
        """The environment of each service, once it was started."""
        self._settings = settings
        self._make_service = make_service
        self._environments = environments or {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Start; stop what was started if that fails."""
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything with an open board, and wait until it is ready."""
        if self.replicated is None:
            self._stack.callback(self.valkey.stop)
            self.valkey.start()
        self._stack.callback(self.postgres.stop)
        self.postgres.start()
        migrations.migrate(self.postgres.url)
        ports = {name: find_free_port() for name in ("api", "ws", "ws_health", "flusher_health")}
        self.api = f"http://127.0.0.1:{ports['api']}"
        self.ws = f"ws://127.0.0.1:{ports['ws']}/ws/scoreboard"
        environment = {
            **{name: text for name, text in os.environ.items() if "SCOREBOARD" not in name},
            "REDIS_URL": self.redis_url,
            "DATABASE_URL": self.postgres.url,
            "SCOREBOARD_API_PORT": str(ports["api"]),
            "SCOREBOARD_WS_PORT": str(ports["ws"]),
            "SCOREBOARD_WS_PUBLIC_URL": self.ws,
            "SCOREBOARD_ORIGINS": self.api,
            "SCOREBOARD_API_METRICS_PORT": "0",
            "SCOREBOARD_WS_METRICS_PORT": str(ports["ws_health"]),
            "SCOREBOARD_FLUSHER_METRICS_PORT": str(ports["flusher_health"]),
            "SCOREBOARD_JWKS_FILE": str(self.issuer.jwks_file),
            "SCOREBOARD_UNKNOWN_KINDS": "default",
            "SCOREBOARD_ISSUER": LOCAL_ISSUER,
            **{f"SCOREBOARD_{name.upper()}": str(value) for name, value in self._settings.items()},
        }
        # Commands use the credentials of the addresses, not the services' secrets.
        public = {
            name: text
            for name, text in environment.items()
            if name.startswith("SCOREBOARD_") and "SECRET" not in name
        }
        running = RunningSystem(
            self.api, self.ws, self.redis_url, self.postgres.url, {}, settings=public
        )
        write_state_file(self.folder, running)
        create = ("board", "create", "main", "--if-missing", "--partitions", str(self.partitions))

        def is_created() -> bool:  # on a busy machine, servers may not answer in time at first
            created = self.run(*create)
            assert created.returncode == 0, created.stderr
            return True

        eventually(is_created)
        assert self.run("reseed", "--if-uninitialised").returncode == 0
        health = {
            "flusher": ports["flusher_health"],
            "streamer": ports["ws_health"],
            "api": ports["api"],
        }
        for name in NAMES:
            self.variables[name] = environment | dict(self._environments.get(name, {}))
            service = self.services[name] = self._make_service(
                name,
                ["-m", name],
                self.variables[name],
                self.folder / f"{name}.log",
                ready_url=f"http://127.0.0.1:{health[name]}/health/ready",
                drain_s=float(str(self._settings.get("drain_s", 10))),
            )
            self._stack.callback(service.stop)
            service.start()
        self.wait_until_ready()

    @property
    def redis_url(self) -> str:
        """Return the address of Redis."""
        return (self.replicated or self.valkey).url

    @contextmanager
    def redis_client(self) -> Iterator[Any]:
        """Open a plain client of all keys: of the server, the cluster or the present primary."""
        found = self.replicated
        if isinstance(found, Cluster):
            url = f"redis:{found.url.removeprefix('redis+cluster:').split(',')[0]}"
            client: Any = RedisCluster.from_url(url, decode_responses=True)
        else:
            server = self.valkey if found is None else found.primary()
            client = redis.Redis.from_url(server.url, decode_responses=True)
        try:
            yield client
        finally:
            client.close()

    def wait_until_ready(self, *names: str) -> None:
        """Wait until the named services, or all, are ready."""
        wait_until_ready([self.services[name] for name in names or NAMES], lambda: None)

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Call something when everything is stopped, before what was started earlier."""
        self._stack.callback(callback)

    def stop(self) -> None:
        """Stop everything, services first."""
        self._stack.close()

    def token(self, sub: str = "alice", *scopes: str) -> str:
        """Return a token; without scopes, a player's."""
        return self.issuer.issue(sub, scopes or (UPDATE, READ))

    def game_server(self) -> dict[str, str]:
        """Return the headers of a game server, which is not rate-limited."""
        return {"Authorization": f"Bearer {self.token('arena', UPDATE_ANY, READ)}"}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `scoreboard` command on this system."""
        return run_command(*arguments, "--data-dir", str(self.folder))


def run_command(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a `scoreboard` command in a process, with ``settings`` in its environment."""
    environment = {
        name: text
        for name, text in os.environ.items()
        if "SCOREBOARD" not in name and name not in {"REDIS_URL", "DATABASE_URL"}
    }
    return run_forked("cli", arguments, environment | settings)


def processes_of(folder: Path) -> list[str]:
    """Return the other processes with the folder in their arguments or environment."""
    wanted = str(folder).encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue  # it has just ended
        is_ours = process.name == str(os.getpid())
        if not is_ours and words[0] and any(wanted in text for text in words):
            found.append(f"{process.name} {words[0].replace(bytes(1), b' ').decode()}")
    return found


def make_plain_valkey(folder: Path, settings: Mapping[str, str]) -> EmbeddedValkey:
    """Return a Valkey, not yet started."""
    return EmbeddedValkey(folder / "valkey", settings=settings)


def make_valkey_with_acl_file(
    folder: Path, settings: Mapping[str, str] | None = None
) -> EmbeddedValkey:
    """Return a Valkey, not yet started, that can save its users, as the deployed one can."""
    users = folder / "acl" / "users.acl"
    users.parent.mkdir(parents=True)
    users.write_text("user default on >administrator ~* &* +@all\n")
    return EmbeddedValkey(
        folder / "valkey",
        password="administrator",
        settings={**(settings or {}), "aclfile": str(users)},
    )


@pytest.fixture
def system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[System]:
    """Return a running system; with --on-cluster or --on-sentinel, on such servers."""
    made = System(tmp_path / "system")
    with ExitStack() as stack:
        if request.config.getoption("--on-cluster"):
            made.replicated = stack.enter_context(Cluster(tmp_path / "cluster"))
            made.partitions = CLUSTER_PARTITIONS
        elif request.config.getoption("--on-sentinel"):
            made.replicated = stack.enter_context(Sentinels(tmp_path / "sentinel"))
        yield stack.enter_context(made)
