"""No secret reaches logs, errors, reprs, tracebacks, arguments or core dumps of any process.

Every secret has a distinctive value, and everything that processes write is searched for all of
them. Not covered: what a debugger or a profiler with access to the process reads.
"""

import asyncio
import base64
import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from traceback import TracebackException

import psycopg
import pytest
from redis.exceptions import RedisError

from cli.embedded.ports import find_free_port
from cli.issuer.config import SECRET_FILE
from cli.running.service import Service
from scoreboard.errors import ScoreboardError
from scoreboard.ledger import pool as postgres
from scoreboard.model import Action
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.security.credentials import require_secrets, secret_store
from scoreboard.security.tokens import READ, UPDATE_ANY
from scoreboard.store import client as redis_client
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.durability import check_durability
from scoreboard.store.subscription import Subscription
from tests.support.clients.forked import Forked, run_forked
from tests.support.eventually import eventually
from tests.support.fakes.aws import SecretsManager
from tests.support.figures import show_figures
from tests.support.servers.rights import as_user
from tests.support.servers.rotated import USERS, Rotated, document

pytestmark = pytest.mark.slow

PASSWORD = "planted-hunter2-first"
NEXT = "planted-hunter2-second"
WRONG = "planted-hunter2-wrong"
IN_URL = "planted-hunter2-url"
CLIENT_SECRET = "planted-hunter2-client-secret-of-game-servers"
BAD_TOKEN = "planted-hunter2-token"
MARK = "hunter2"

VERBS = (
    "config show",
    "config show --json",
    "config show --changed",
    "config check",
    "config check --json",
    "db status",
    "board list",
    "board top",
    "user show alice",
    "action list",
    "verify",
    "repair --yes",
    "dead list",
    "reseed --if-uninitialised",
    "kong render",
)


class Found:
    """Everything that was written, by its source."""

    def __init__(self, secrets: list[str]) -> None:
        self._secrets = secrets
        self.texts: list[tuple[str, str]] = []

    def add(self, source: str, text: str) -> None:
        self.texts.append((source, text))

    def leaks(self) -> list[str]:
        return [
            f"{source}: …{text[max(0, at - 60) : at + 40]!r}"
            for source, text in self.texts
            for secret in self._secrets
            if (at := text.find(secret)) >= 0
        ]


class Site:
    """The running set, and what it wrote."""

    def __init__(self, rotated: Rotated, folder: Path) -> None:
        self.rotated = rotated
        self.folder = folder
        system = rotated.system
        key = (system.issuer.jwks_file.parent / "issuer-key.pem").read_text()
        body = "".join(line for line in key.splitlines() if "-----" not in line)
        self.token = system.token("alice", UPDATE_ANY, READ)
        self.found = Found(
            [
                MARK,
                base64.b64encode(PASSWORD.encode()).decode(),
                *(body[at : at + 24] for at in range(0, len(body) - 24, 24)),
                self.token.rpartition(".")[2],
            ]
        )

    def keep(self, ended: "subprocess.CompletedProcess[str]") -> None:
        self.found.add(" ".join(ended.args[1:]), ended.stdout + ended.stderr)

    def operator(self, verb: str, more: Mapping[str, str]) -> None:
        environment = {
            **self.rotated.system.variables["api"],
            **self.rotated.secret_variables("operator"),
            **more,
        }
        self.keep(run_forked("cli", ["--debug", *verb.split()], environment))

    def environment(self, service: str, **more: str) -> dict[str, str]:
        ports = {
            "SCOREBOARD_API_PORT": str(find_free_port()),
            "SCOREBOARD_WS_PORT": str(find_free_port()),
            "SCOREBOARD_WS_METRICS_PORT": "0",
            "SCOREBOARD_FLUSHER_METRICS_PORT": "0",
            "SCOREBOARD_API_METRICS_PORT": "0",
            "SCOREBOARD_LOG_LEVEL": "debug",
            "SCOREBOARD_DRAIN_S": "1",
        }
        return self.rotated.system.variables[service] | ports | more

    def start_and_stop(self, service: str, after_s: float, **more: str) -> None:
        """Run a service until ``after_s`` after its first line; keep what it wrote."""
        log = self.folder / f"{service}-{'-'.join(sorted(more))}-{after_s}.log"
        with log.open("w") as output:
            process = Forked(service, [], self.environment(service, **more), output=output)
        try:
            eventually(lambda: process.poll() is not None or log.stat().st_size > 0)
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            self.check_process(service, process.pid)
            process.terminate()
            process.wait(60)
        finally:
            process.kill()
            process.wait()
        assert log.read_text(), f"{service} wrote nothing with {more}"

    def fail_in_every_way(self, name: str) -> None:
        """Run a service with logins that are refused, of the wrong shape, or never answered."""
        system = self.rotated.system
        refused, wrong = f"scoreboard/test/{name}/refused", f"scoreboard/test/{name}/wrong"
        self.rotated.write(refused, document(name, WRONG))
        self.rotated.write(wrong, f'{{"username": "{name}", "pass": "{WRONG}"}}')
        in_url = {
            "SCOREBOARD_SECRETS": "env",
            "SCOREBOARD_REDIS_SECRET": "",
            "SCOREBOARD_DATABASE_SECRET": "",
        }
        self.start_and_stop(name, 1, SCOREBOARD_REDIS_SECRET=refused)
        self.start_and_stop(name, 1, SCOREBOARD_REDIS_SECRET=wrong)
        self.start_and_stop(
            name,
            1,
            REDIS_URL=f"redis://{name}:{IN_URL}@127.0.0.1:1/0",
            DATABASE_URL=f"postgresql://{name}:{IN_URL}@127.0.0.1:1/scoreboard",
            **in_url,
        )
        self.start_and_stop(
            name,
            1,
            REDIS_URL=as_user(system.valkey.url, name, IN_URL),
            DATABASE_URL=as_user(system.postgres.url, f"scoreboard_{name}_a", IN_URL),
            **in_url,
        )
        with socket.create_server(("127.0.0.1", 0)) as silent:  # SIGTERM comes during a login
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            self.start_and_stop(name, 1, REDIS_URL=f"redis://{address}/0")
            if name == "streamer":
                return
            self.start_and_stop(name, 1, DATABASE_URL=f"postgresql://{address}/scoreboard")
        self.start_and_stop(name, 1, SCOREBOARD_DATABASE_SECRET=refused)

    def check_process(self, name: str, pid: int) -> None:
        """Keep the arguments of a process; check that it writes no core dumps."""
        process = Path("/proc") / str(pid)
        self.found.add(f"cmdline of {name}", (process / "cmdline").read_bytes().decode())
        limits = (process / "limits").read_text().splitlines()
        core = next(line.split() for line in limits if line.startswith("Max core file size"))
        assert core[4:6] == ["0", "0"], f"{name} may write core dumps: {core}"

    def ask(self, method: str, path: str, token: str, body: str = "") -> int:
        host = self.rotated.system.api.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=30)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        connection.request(method, path, body or None, headers)
        response = connection.getresponse()
        self.found.add(f"{method} {path}", f"{response.headers}{response.read().decode()}")
        connection.close()
        return response.status


@pytest.fixture
def site(tmp_path: Path, secrets_manager: SecretsManager) -> Iterator[Site]:
    rotated = Rotated(
        tmp_path,
        aws=secrets_manager.client,
        password=PASSWORD,
        secrets_refresh_s=1,
        log_level="debug",
        api_metrics_port=find_free_port(),
        make_service=Service,  # with the arguments of a process in /proc
    )
    try:
        rotated.start()
        yield Site(rotated, tmp_path)
    finally:
        rotated.close()


@pytest.mark.timeout(400)
def test_nothing_that_processes_write_contains_a_secret(site: Site) -> None:
    rotated, system, found = site.rotated, site.rotated.system, site.found
    issuer_port = start_issuer(site)
    for name, service in system.services.items():
        assert service.pid is not None
        site.check_process(name, service.pid)

    # Requests that succeed, and requests that fail.
    update = json.dumps({"userId": "alice", "actionId": "win:1", "points": 5})
    assert site.ask("POST", "/api/scores/update", site.token, update) == 200
    assert site.ask("POST", "/api/scores/update", BAD_TOKEN, update) == 401
    assert site.ask("POST", "/api/scores/update", site.token + "x", update) == 401
    assert site.ask("POST", "/api/scores/update", site.token, f'{{"{BAD_TOKEN}"') in {400, 422}
    assert site.ask("GET", "/openapi.json", site.token) == 200
    for name in ("API", "FLUSHER", "WS"):
        port = int(system.variables["api"][f"SCOREBOARD_{name}_METRICS_PORT"])
        found.add(f"metrics of {name}", scrape(port))

    # Every command, with good logins, wrong ones, and unreachable servers.
    in_url = {
        "REDIS_URL": f"redis://operator:{IN_URL}@127.0.0.1:1/0",
        "DATABASE_URL": f"postgresql://operator:{IN_URL}@127.0.0.1:1/scoreboard",
        "SCOREBOARD_SECRETS": "env",
        "SCOREBOARD_REDIS_SECRET": "",
        "SCOREBOARD_DATABASE_SECRET": "",
    }
    ways = ({}, {"SCOREBOARD_DATABASE_SECRET": "none"}, in_url)
    with ThreadPoolExecutor(3) as executor:
        list(executor.map(lambda way: [site.operator(verb, way) for verb in VERBS], ways))

    # Services whose logins are refused, unreachable, of the wrong shape, or never answered.
    with ThreadPoolExecutor(3) as executor:
        list(executor.map(site.fail_in_every_way, system.services))
    site.keep(
        subprocess.run(
            [sys.executable, "-c", CRASH],
            env=site.environment("api", CLIENT=CLIENT_SECRET),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    )

    # A change, and a document of the wrong shape, while the services run.
    rotated.rotate(NEXT, "b")
    eventually(lambda: all(count_changes(site, name) >= 2 for name in system.services))
    for user in USERS:
        rotated.write(rotated.secrets[user, "redis"], f'["{WRONG}"]')
    eventually(lambda: "secret_invalid" in system.services["api"].log.read_text())
    found.add("issuer", ask_issuer(issuer_port))

    system.stop()
    logs = [path for path in site.folder.rglob("*.log*") if path.is_file()]
    assert len(logs) >= 4
    for path in logs:
        found.add(path.name, path.read_text(errors="replace"))
    size = sum(len(text) for _, text in found.texts)
    show_figures(f"{len(found.texts)} texts, {size} characters")
    assert not found.leaks()


async def test_no_error_shows_a_secret_in_the_local_variables_of_its_frames(
    site: Site, secrets_manager: SecretsManager
) -> None:
    rotated, found = site.rotated, site.found
    # The variables of the test's own frames are not of interest.
    cases = {
        "refused": (rotated.system.valkey.url, rotated.system.postgres.url, document("api", WRONG)),
        "unreachable": (
            "redis://127.0.0.1:1",
            "postgresql://127.0.0.1:1/x",
            document("api", WRONG),
        ),
        "wrong shape": (rotated.system.valkey.url, rotated.system.postgres.url, f'["{WRONG}"]'),
    }
    for name, (redis_url, database_url, text) in cases.items():
        secret = f"scoreboard/test/{name.replace(' ', '-')}"
        await asyncio.to_thread(rotated.write, secret, text)
        settings = Settings(
            redis_url=Secret(redis_url),
            database_url=Secret(database_url),
            secrets="aws",
            redis_secret=secret,
            database_secret=secret,
            database_timeout_s=1.0,
        )
        await keep_errors(found, name, settings)
    in_url = Settings(
        redis_url=Secret(as_user(rotated.system.valkey.url, "api", IN_URL)),
        database_url=Secret(as_user(rotated.system.postgres.url, "scoreboard_api_a", IN_URL)),
        database_timeout_s=1.0,
    )
    await keep_errors(found, "in the URL", in_url)

    assert len(found.texts) > 20
    assert not found.leaks()


async def keep_errors(found: Found, name: str, settings: Settings) -> None:
    """Use each client with settings that fail; keep errors, tracebacks and reprs."""
    client = redis_client.make_client(settings, name="test")
    dispatcher = Dispatcher(settings)
    running = asyncio.create_task(dispatcher.run())
    pool = postgres.make_pool(settings, name="test")
    lost: list[str] = []
    subscription = Subscription(
        settings,
        ["x"],
        name="test",
        on_change=lambda _: None,
        on_up=lambda: None,
        on_down=lambda: lost.append("x"),
    )
    calls = {
        "redis": client.ping(),
        "durability": check_durability(client),
        "update": dispatcher.submit("main", Action("alice", "win:1", 1)),
        "database": postgres.connect(settings, name="test"),
        "pool": use_pool(pool),
        "secrets": require_secrets(settings, "redis", "database"),
    }
    for what, call in calls.items():
        try:
            await call
        except (ScoreboardError, psycopg.Error, RedisError) as error:
            if error.__traceback__ is not None:  # without the frame of this test
                error.__traceback__ = error.__traceback__.tb_next
            shown = TracebackException.from_exception(error, capture_locals=True)
            found.add(f"{name}: {what}", "".join(shown.format()) + repr(error) + str(error))
        else:
            assert what == "secrets", f"{name}: {what} did not fail"
    stores = [secret_store(settings, owner) for owner in ("redis", "database")]
    objects = [settings, client, client.connection_pool, pool, dispatcher, subscription, *stores]
    found.add(f"{name}: reprs", "".join(map(repr, objects)) + "".join(map(str, objects)))
    found.add(f"{name}: pool", repr(pool.kwargs))
    dispatcher.close()
    await running
    await pool.close()
    await client.aclose()


async def use_pool(pool: "postgres.AsyncConnectionPool[postgres.Connection]") -> None:
    await pool.open(wait=False)
    async with pool.connection(timeout=1.0):
        pass


CRASH = """
import os, sys
from scoreboard.runtime.startup import start

def run(settings):
    password = os.environ["CLIENT"]
    raise RuntimeError("something unforeseen")

sys.exit(start("api", run))
"""


def count_changes(site: Site, name: str) -> int:
    return site.rotated.system.services[name].log.read_text().count('"message": "secret_changed"')


def scrape(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    assert "scoreboard_secret_age_seconds" in text
    return text


def start_issuer(site: Site) -> int:
    """Start the development issuer with a planted client secret; it ends with the system."""
    folder = site.rotated.system.issuer.jwks_file.parent
    secret = folder / SECRET_FILE
    secret.write_text(CLIENT_SECRET)
    secret.chmod(0o600)
    port = find_free_port()
    log = (site.folder / "issuer.log").open("w")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "cli.issuer", "--folder", str(folder)),
            *("--port", str(port), "--redirect-uri", "http://127.0.0.1:8000/"),
        ],
        env={name: text for name, text in os.environ.items() if "SCOREBOARD" not in name},
        stdout=log,
        stderr=log,
    )
    site.rotated.system.on_stop(process.wait)
    site.rotated.system.on_stop(process.terminate)
    site.rotated.system.on_stop(log.close)

    def is_up() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    eventually(is_up)
    site.check_process("issuer", process.pid)
    return port


def ask_issuer(port: int) -> str:
    """Ask for a token with a wrong secret and with none; return what was answered."""
    answers = ""
    for secret in (WRONG, ""):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        body = f"grant_type=client_credentials&client_id=game-server&client_secret={secret}"
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", "/token", body, headers)
        answers += connection.getresponse().read().decode()
        connection.close()
    return answers
