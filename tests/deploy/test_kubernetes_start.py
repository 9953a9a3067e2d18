"""A first start of the overlay `dev`, without containers.

The commands, environments, Secrets and ConfigMaps are those of the rendered manifests, on Valkey
and PostgreSQL from wheels. Secrets are files behind links, as the kubelet writes them. Only
addresses, ports and folders differ.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psycopg
import pytest
import redis
from psycopg import sql

from cli.embedded import binaries
from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedPostgres
from tests.deploy.test_first_start import connect
from tests.kong.admin import fake_admin
from tests.support.eventually import eventually
from tests.support.fakes.tokens import ISSUER, MakeToken
from tests.support.manifests import Container, Installation, copy_manifests, render
from tests.support.repository import ROOT
from tests.support.servers.postgres_template import copy_postgres

LIBRARY = "/var/lib/scoreboard"
PORTS = ("API_PORT", "API_METRICS_PORT", "WS_PORT", "WS_METRICS_PORT", "FLUSHER_METRICS_PORT")


FOLDERS = re.compile(r"(?<![\w/])/(?:var/lib/scoreboard|usr/local/share/scoreboard|tmp)\b")


def here_in(root: Path, text: str) -> str:
    """Replace the folders of a container."""
    return FOLDERS.sub(lambda found: f"{root}{found[0]}", text)


def mount(volume: dict[str, str], folder: Path) -> None:
    """Write the files of a Secret or ConfigMap as the kubelet does: links to links."""
    folder.mkdir(parents=True)
    data = folder / "..2026_01_01"
    data.mkdir()
    (folder / "..data").symlink_to(data.name)
    for name, text in volume.items():
        (data / name).write_text(text)
        (data / name).chmod(0o440)
        (folder / name).symlink_to(Path("..data") / name)


class Node:
    """Runs containers of the overlay as processes, each with the files that it mounts only."""

    def __init__(self, folder: Path, found: Installation) -> None:
        self.folder = folder
        self.found = found
        self.ports = {f"SCOREBOARD_{name}": str(find_free_port()) for name in PORTS}
        self.addresses: dict[str, str] = {}
        self.paths: dict[str, str] = {}

    def data(self, kind: str, name: str) -> dict[str, str]:
        """Return the data of a Secret or ConfigMap, by the name before its hash."""
        (one,) = [
            one
            for one in self.found.of(kind)
            if one["metadata"]["name"].rpartition("-")[0] == name or one["metadata"]["name"] == name
        ]
        if kind == "ConfigMap":
            return one["data"]
        return {key: base64.b64decode(text).decode() for key, text in one["data"].items()}

    def root(self, container: Container) -> Path:
        """Return the folder that stands for the root of a container, with its volumes."""
        root = self.folder / f"{container.workload['metadata']['name']}-{container.name}"
        if root.exists():
            return root
        root.mkdir()
        for path, volume in container.mounts().items():
            here = root / path.lstrip("/")
            if "secret" in volume:
                mount(self.data("Secret", volume["secret"]["secretName"].rpartition("-")[0]), here)
            elif "configMap" in volume:
                mount(self.data("ConfigMap", volume["configMap"]["name"].rpartition("-")[0]), here)
            elif "projected" in volume:
                files = {
                    item["path"]: self.data("Secret", source["secret"]["name"].rpartition("-")[0])[
                        item["key"]
                    ]
                    for source in volume["projected"]["sources"]
                    for item in source["secret"]["items"]
                }
                for name, text in files.items():
                    (here / name).parent.mkdir(parents=True, exist_ok=True)
                    (here / name).write_text(text)
                    (here / name).chmod(0o440)
            else:
                here.mkdir(parents=True, exist_ok=True)
        return root

    def environment(self, container: Container, **changes: str) -> dict[str, str]:
        """Return the environment of a container with this machine's addresses and folders."""
        root = self.root(container)
        here = Path(sys.executable).parent
        given = {name: here_in(root, value) for name, value in container.environment.items()}
        kept = {name: value for name, value in self.addresses.items() if name in given}
        path = f"{here}:{binaries.find_postgres().folder}:{os.environ['PATH']}"
        return {"PATH": path, **given, **self.ports, **kept, **changes}

    def command(self, container: Container) -> list[str]:
        """Return the command of a container with this machine's folders."""
        root = self.root(container)
        return [here_in(root, word) for word in container.command]

    def run(self, container: Container, **changes: str) -> None:
        """Run a container until it ends."""
        done = subprocess.run(
            self.command(container),
            env=self.environment(container, **changes),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr

    @contextmanager
    def running(self, container: Container, *more: str, **changes: str) -> Iterator[None]:
        """Run a container until the block ends."""
        with (self.folder / f"{container.name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*self.command(container), *more],
                env=self.environment(container, **changes),
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            finally:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, jwks: dict[str, Any]) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    found = Installation(render(copy_manifests(folder) / "dev"))
    node = Node(folder, found)
    with ExitStack() as stack:
        issuer = stack.enter_context(fake_admin())
        issuer.jwks = json.dumps(jwks).encode()
        valkey_port = start_valkey(stack, node)
        postgres = stack.enter_context(
            EmbeddedPostgres(copy_postgres(folder / "postgres"), fsync=False)
        )
        owner = node.data("Secret", "scoreboard-postgres")["owner"]
        with psycopg.connect(postgres.url_of("postgres"), autocommit=True) as connection:
            role = "CREATE ROLE scoreboard_owner SUPERUSER LOGIN PASSWORD {}"
            connection.execute(sql.SQL(role).format(owner))
            connection.execute("DROP DATABASE IF EXISTS scoreboard")
            connection.execute("CREATE DATABASE scoreboard OWNER scoreboard_owner")
        node.addresses = {
            "REDIS_URL": f"redis://127.0.0.1:{valkey_port}/0",
            "DATABASE_URL": f"postgresql://127.0.0.1:{postgres.port}/scoreboard",
            "SCOREBOARD_JWKS_URL": issuer.jwks_url,
            "SCOREBOARD_ISSUER": ISSUER,
            "SCOREBOARD_METRICS_HOST": "127.0.0.1",
            "SCOREBOARD_API_HOST": "127.0.0.1",
            "SCOREBOARD_WS_HOST": "127.0.0.1",
            "PGHOST": "127.0.0.1",
        }
        roles = found.container("migrate", "roles")
        script = node.root(roles) / "usr/local/share/scoreboard/postgres-roles.sh"
        adapt(script, node.root(roles))
        node.run(roles, PGPORT=str(postgres.port))
        node.run(found.container("migrate"))
        node.run(found.container("open"))
        yield node


def start_valkey(stack: ExitStack, node: Node) -> int:
    container = node.found.container("valkey")
    root = node.root(container)
    program, settings = container.command
    assert program == "valkey-server"
    port = find_free_port()
    users = root / f"{LIBRARY[1:]}/secrets/valkey/users.acl"
    process = subprocess.Popen(
        [
            str(binaries.find_valkey()), f"{root}{settings}", "--port", str(port),
            "--bind", "127.0.0.1", "--dir", f"{root}/data", "--aclfile", str(users),
            "--logfile", f"{root}/log",
        ]
    )  # fmt: skip
    stack.callback(process.wait)
    stack.callback(process.terminate)
    assert container.spec["startupProbe"]["exec"]["command"][-5:] == [
        "--user", "health", "--pass", "health", "ping"
    ]  # fmt: skip
    eventually(lambda: is_up(port))
    return port


def is_up(port: int) -> bool:
    with suppress(redis.exceptions.ConnectionError):
        return bool(connect(port, username="health", password="health").ping())
    return False


def adapt(script: Path, root: Path) -> None:
    """Replace the folders of a container in a script."""
    text = here_in(root, script.read_text() + "\n")
    script.unlink()
    script.write_text(text)


def answer(url: str, **options: Any) -> tuple[int, dict[str, Any]]:
    try:
        with urlopen(Request(url, **options), timeout=10) as response:
            return response.status, json.loads(response.read())
    except HTTPError as error:
        with error:
            return error.code, json.loads(error.read())
    except OSError:
        return 0, {}


def probe(node: Node, container: Container, kind: str) -> int:
    """Ask what a probe asks; return the status."""
    found = container.spec[kind]["httpGet"]
    service = {"api": "API", "streamer": "WS", "flusher": "FLUSHER"}[container.name]
    port = node.ports[f"SCOREBOARD_{service}_METRICS_PORT"]
    assert found["port"] == "metrics"
    return answer(f"http://127.0.0.1:{port}{found['path']}")[0]


def test_an_update_reaches_postgresql_through_the_pods(node: Node, make_token: MakeToken) -> None:
    services = [node.found.container(name) for name in ("api", "streamer", "flusher")]
    with ExitStack() as stack:
        for service in services:
            stack.enter_context(node.running(service))
        for service in services:
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                eventually(lambda s=service, k=kind: probe(node, s, k) == 200)
        status, found = answer(
            f"http://127.0.0.1:{node.ports['SCOREBOARD_API_PORT']}/api/scores/update",
            data=json.dumps({"userId": "alice", "actionId": "win:1"}).encode(),
            headers={
                "Authorization": f"Bearer {make_token('alice')}",
                "Content-Type": "application/json",
            },
            method="POST",
        )
        assert (status, found.get("newScore")) == (200, 10)
        owner = json.loads(node.data("Secret", "scoreboard-owner")["database"])
        with psycopg.connect(
            node.addresses["DATABASE_URL"], user=owner["username"], password=owner["password"],
            autocommit=True,
        ) as connection:  # fmt: skip
            eventually(lambda: connection.execute("SELECT score FROM scores").fetchall() == [(10,)])


def test_jobs_can_be_repeated(node: Node) -> None:
    node.run(node.found.container("migrate"))
    node.run(node.found.container("open"))


def test_each_board_of_the_settings_is_created(node: Node) -> None:
    """`reseed` of a board that does not exist fails, and with it the Job."""
    node.run(node.found.container("open"), SCOREBOARD_BOARDS="main,weekly")


def test_the_sidecar_writes_what_kong_needs_before_kong_runs(node: Node) -> None:
    sync = node.found.container("kong", "sync")
    root = node.root(sync)
    probe_command = sync.spec["startupProbe"]["exec"]["command"]
    test, *words = [here_in(root, word) for word in probe_command]
    program = str(shutil.which(test))
    assert subprocess.run([program, *words], check=False).returncode == 1
    port = str(find_free_port())
    with node.running(
        sync,
        *("--probe-port", port, "--admin", f"http://127.0.0.1:{find_free_port()}"),
        REDIS_URL="redis://kong@127.0.0.1:1/0",
    ):
        eventually(lambda: subprocess.run([program, *words], check=False).returncode == 0)
        assert answer(f"http://127.0.0.1:{port}/health/live")[0] == 200
    kong = {one["name"]: one["value"] for one in node.found.container("kong").spec["env"]}
    password = Path(f"{root}{kong['REDIS_PASSWORD_FILE']}")
    secret = json.loads(node.data("Secret", "scoreboard-kong")["counters"])
    assert password.read_text() == secret["password"]
    # Both containers have the same user.
    assert password.stat().st_mode & 0o777 == 0o600
    assert secret["password"] not in Path(f"{root}{kong['KONG_DECLARATIVE_CONFIG']}").read_text()
