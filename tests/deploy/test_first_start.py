"""The steps of the first `docker compose up`, without containers.

The same scripts, the same valkey.conf, ACL, roles, secrets and commands, on Valkey, PostgreSQL and
moto from wheels: an update through the api reaches PostgreSQL with no more rights than compose
gives. Only addresses and folders differ.
"""

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import httpx
import psycopg
import pytest
import redis
from psycopg import sql
from redis.backoff import NoBackoff
from redis.retry import Retry

from cli.embedded import binaries
from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedPostgres
from tests.deploy.compose import ROOT, SERVICES, environment, load
from tests.kong.admin import fake_admin
from tests.support.eventually import eventually
from tests.support.fakes.tokens import ISSUER, MakeToken
from tests.support.monitoring import program
from tests.support.servers.postgres_template import copy_postgres
from tests.support.servers.rights import load_script

DOCKER = ROOT / "deploy/docker"
REDIS_USERS = ("api", "streamer", "flusher", "operator", "rotator", "monitor", "replica", "cluster")
SECRETS = "/var/lib/scoreboard/secrets/"
AWS = {"SCOREBOARD_SECRETS": "aws", "SECRETS_PREFIX": "scoreboard/development/"}
KEY = "ratelimit:route:service:alice:60000:minute"


@dataclass
class Installation:
    """The servers of a first start, and the files that its scripts have written."""

    secrets: Path
    redis_port: int
    counters_port: int
    database_url: str
    environ: dict[str, str]

    def counters(self, user: str, password: str) -> redis.Redis:
        """Connect to the server of the counters."""
        return connect(self.counters_port, username=user, password=password)

    def redis(self, user: str) -> redis.Redis:
        """Connect as a user of the board's server; `kong` is a user of the counters' server."""
        password = "health"
        if user == "kong":
            return self.counters("kong", self.document("kong/counters")["password"])
        if user != "health":
            password = self.document(f"{user}/redis")["password"]
        return connect(self.redis_port, username=user, password=password)

    def document(self, name: str) -> dict[str, str]:
        """Return a secret."""
        return json.loads((self.secrets / name).read_text())

    def environment(self, service: str, **changes: str) -> dict[str, str]:
        """Return a service's environment of the compose file, with this machine's addresses."""
        given = {
            name: value.replace(SECRETS, f"{self.secrets}/")
            for name, value in environment(service).items()
        }
        return {**self.environ, **given, **self.addresses(), **changes}

    def aws_environment(self, service: str) -> dict[str, str]:
        """Return the environment of the profile `moto`: two variables of the caller differ."""
        given = load(AWS)["services"][service]["environment"]
        return {**self.environ, **given, **self.addresses()}

    def addresses(self) -> dict[str, str]:
        """Return the variables that differ from the compose file."""
        return {name: self.environ[name] for name in _ADDRESSES if name in self.environ}


_ADDRESSES = (
    "REDIS_URL",
    "DATABASE_URL",
    "AWS_ENDPOINT_URL_SECRETS_MANAGER",
    "SCOREBOARD_JWKS_URL",
    "SCOREBOARD_ISSUER",
    "SCOREBOARD_METRICS_HOST",
)


def connect(port: int, **options: Any) -> redis.Redis:
    """Connect without redis-py's ten retries."""
    return redis.Redis(port=port, retry=Retry(NoBackoff(), 0), **options)


def run(words: list[str], environ: dict[str, str]) -> str:
    """Run a command; return its stderr."""
    done = subprocess.run(
        words, env=environ, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def bootstrap(root: Path, environ: dict[str, str]) -> str:
    """Run the service `secrets`."""
    script = [sys.executable, str(DOCKER / "bootstrap.py")]
    return run(script, {**environ, "SECRETS_ROOT": str(root)})


def start_valkey(stack: ExitStack, conf: str, acl: Path, data: Path) -> int:
    """Start a server with a configuration of the compose file; return its port."""
    port = find_free_port()
    valkey = subprocess.Popen(
        [
            str(binaries.find_valkey()), str(DOCKER / conf), "--port", str(port),
            "--bind", "127.0.0.1", "--dir", str(data),
            "--aclfile", str(acl), "--logfile", str(data / "log"),
        ]
    )  # fmt: skip
    stack.callback(valkey.wait)
    stack.callback(valkey.terminate)
    return port


def roles_script(folder: Path, secrets: Path) -> Path:
    """Return the script of `roles` with this machine's paths in place of the containers'."""
    text = (DOCKER / "postgres-roles.sh").read_text()
    for container, local in (
        ("/var/lib/scoreboard/secrets", secrets),
        ("/usr/local/share/scoreboard/postgres-roles.sql", DOCKER / "postgres-roles.sql"),
    ):
        assert container in text
        text = text.replace(container, str(local))
    script = folder / "postgres-roles.sh"
    script.write_text(text)
    return script


def psql_environment(login: dict[str, str]) -> dict[str, str]:
    """Return the environment of the service `roles` with this machine's addresses."""
    parts = urlsplit(login["DATABASE_URL"])
    return {
        "PATH": f"{binaries.find_postgres().folder}:{os.environ['PATH']}",
        "PGHOST": str(parts.hostname),
        "PGPORT": str(parts.port),
        "PGPASSFILE": login["PGPASSFILE"],
        "PGUSER": environment("roles")["PGUSER"],
        "PGDATABASE": environment("roles")["PGDATABASE"],
    }


@pytest.fixture(scope="module")
def installation(
    tmp_path_factory: pytest.TempPathFactory, jwks: dict[str, Any]
) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("first-start")
    secrets, data = folder / "secrets", folder / "valkey"
    data.mkdir()
    here = Path(sys.executable).parent
    plain = {
        "PATH": f"{here}:{os.environ['PATH']}",
        "HOME": str(folder),
        "SECRETS_ROOT": str(secrets),
    }
    with ExitStack() as stack:
        assert bootstrap(secrets, plain).startswith("written: ")

        port = start_valkey(stack, "valkey.conf", secrets / "valkey/users.acl", data)
        counters = folder / "counters"
        counters.mkdir()
        counters_port = start_valkey(
            stack, "valkey-counters.conf", secrets / "counters/users.acl", counters
        )

        postgres = stack.enter_context(
            EmbeddedPostgres(copy_postgres(folder / "postgres"), fsync=False)
        )
        owner = (secrets / "postgres/owner").read_text()
        with psycopg.connect(postgres.url_of("postgres"), autocommit=True) as connection:
            role = "CREATE ROLE scoreboard_owner SUPERUSER LOGIN PASSWORD {}"
            connection.execute(sql.SQL(role).format(owner))
            connection.execute("DROP DATABASE IF EXISTS scoreboard")
            connection.execute("CREATE DATABASE scoreboard OWNER scoreboard_owner")
        address = f"127.0.0.1:{postgres.port}/scoreboard"
        login = {
            "DATABASE_URL": f"postgresql://scoreboard_owner@{address}",
            "PGPASSFILE": str(secrets / "owner/pgpass"),
        }
        run(["sh", str(roles_script(folder, secrets))], {**plain, **psql_environment(login)})

        from moto.server import ThreadedMotoServer  # the import takes half a second

        moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        moto.start()
        stack.callback(moto.stop)
        host, moto_port = moto.get_host_and_port()

        issuer = stack.enter_context(fake_admin())
        issuer.jwks = json.dumps(jwks).encode()
        found = Installation(
            secrets=secrets,
            redis_port=port,
            counters_port=counters_port,
            database_url=f"postgresql://scoreboard_owner:{owner}@{address}",
            environ={
                **plain,
                "REDIS_URL": f"redis://127.0.0.1:{port}/0",
                "DATABASE_URL": f"postgresql://{address}",
                "AWS_ENDPOINT_URL_SECRETS_MANAGER": f"http://{host}:{moto_port}",
                "SCOREBOARD_JWKS_URL": issuer.jwks_url,
                "SCOREBOARD_ISSUER": ISSUER,
                "SCOREBOARD_METRICS_HOST": "127.0.0.1",
            },
        )
        seed = [sys.executable, str(DOCKER / "seed_secrets.py")]
        process = subprocess.Popen(seed, env=found.aws_environment("seed"))
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        eventually(lambda: is_seeded(found))
        eventually(lambda: found.redis("health").execute_command("PING"))
        eventually(lambda: found.counters("health", "health").execute_command("PING"))
        migrate = {**plain, **environment("migrate"), **login}
        run(SERVICES["migrate"]["command"], migrate)
        run(SERVICES["open"]["command"], found.environment("open"))
        yield found


# Secrets ----------------------------------------------------------------------------------------


def test_a_second_start_keeps_every_password(installation: Installation) -> None:
    before = {path: path.read_bytes() for path in installation.secrets.rglob("*") if path.is_file()}
    assert bootstrap(installation.secrets, installation.environ) == "nothing to write\n"
    assert before == {
        path: path.read_bytes() for path in installation.secrets.rglob("*") if path.is_file()
    }


def is_seeded(installation: Installation) -> bool:
    """Run the health check of the service `seed`."""
    program, _, option = SERVICES["seed"]["healthcheck"]["test"][1:]
    assert program == "python"
    words = [sys.executable, str(DOCKER / "seed_secrets.py"), option]
    environ = installation.aws_environment("seed")
    return subprocess.run(words, env=environ, timeout=30, check=False).returncode == 0


def test_an_emptied_secrets_manager_is_filled_again(installation: Installation) -> None:
    """moto is empty after each restart of its container, thus after a reboot."""
    moto = installation.environ["AWS_ENDPOINT_URL_SECRETS_MANAGER"]
    httpx.post(f"{moto}/moto-api/reset", timeout=10, trust_env=False).raise_for_status()
    eventually(lambda: is_seeded(installation))


def test_seeding_changes_no_secret(installation: Installation) -> None:
    """A value that was rotated is newer than the file."""
    client: Any = boto3.client(
        "secretsmanager",
        endpoint_url=installation.environ["AWS_ENDPOINT_URL_SECRETS_MANAGER"],
        region_name="eu-central-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
    )
    script = load_script(DOCKER / "seed_secrets.py")
    name = "scoreboard/development/streamer/redis"
    before = client.get_secret_value(SecretId=name)["SecretString"]
    assert script.seed(client, {name: "another"}) == []
    assert client.get_secret_value(SecretId=name)["SecretString"] == before


def test_an_operator_can_read_the_logins_of_the_profile_moto(installation: Installation) -> None:
    environ = installation.aws_environment("open")
    assert environ["SCOREBOARD_DATABASE_SECRET"] == "scoreboard/development/operator/database"
    run(SERVICES["open"]["command"], environ)


def test_two_installations_have_different_passwords(
    installation: Installation, tmp_path: Path
) -> None:
    bootstrap(tmp_path, installation.environ)
    names = [
        path.relative_to(tmp_path)
        for path in tmp_path.glob("*/*")
        if "." not in path.name or path.suffix == ".json"
    ]
    assert len(names) == 20
    for name in names:
        assert (tmp_path / name).read_text() != (installation.secrets / name).read_text(), name


def test_secrets_are_closed_to_others(installation: Installation) -> None:
    for path in installation.secrets.glob("*/*"):
        reached = path.parent.stat().st_mode & path.stat().st_mode
        # Which user runs Kong is its image's choice.
        assert stat.S_IMODE(reached) & 0o007 == (0o4 if path.parent.name == "kong" else 0), path


def test_acl_files_contain_no_password(installation: Installation) -> None:
    acls = [
        (installation.secrets / name / "users.acl").read_text() for name in ("valkey", "counters")
    ]
    for path in [*installation.secrets.glob("*/redis"), *installation.secrets.glob("*/counters")]:
        password = json.loads(path.read_text())["password"]
        assert not any(password in text for text in acls), path


# Exporters --------------------------------------------------------------------------------------


@contextmanager
def exporter(name: str, words: list[str], environ: dict[str, str]) -> Iterator[None]:
    """Run an exporter of Debian, which can be older than that of the compose file."""
    path = program(name)
    found = {"PATH": os.environ["PATH"], **environ}
    process = subprocess.Popen([path, *words], env=found, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def exported(port: int, metric: str) -> str:
    """Return the value of a metric without labels, or an empty string."""
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
    except httpx.HTTPError:
        return ""
    return "".join(re.findall(rf"^{metric} (\S+)$", answer.text, re.MULTILINE))


def test_the_exporter_of_redis_reads_figures_with_its_login(installation: Installation) -> None:
    port = find_free_port()
    ours = f"127.0.0.1:{installation.redis_port}"
    given = environment("redis-exporter")
    passwords = installation.secrets / "monitor/redis.json"
    here = installation.secrets.parent / "redis.json"
    here.write_text(passwords.read_text().replace("valkey:6379", ours))
    environ = given | {
        "REDIS_ADDR": given["REDIS_ADDR"].replace("valkey:6379", ours),
        "REDIS_PASSWORD_FILE": given["REDIS_PASSWORD_FILE"].replace(
            f"{SECRETS}monitor/redis.json", str(here)
        ),
        "REDIS_EXPORTER_WEB_LISTEN_ADDRESS": f"127.0.0.1:{port}",
    }
    with exporter("prometheus-redis-exporter", [], environ):
        eventually(lambda: exported(port, "redis_up") == "1", within_s=10)
        assert float(exported(port, "redis_memory_max_bytes")) == 512 * 1024 * 1024
        assert exported(port, "redis_evicted_keys_total") == "0"


@pytest.mark.parametrize("words", ["GET sb:{main:0}:meta", "CONFIG GET *", "ACL LIST", "KEYS *"])
def test_the_login_of_the_exporter_reads_no_data(installation: Installation, words: str) -> None:
    with pytest.raises(redis.exceptions.ResponseError, match=r"NOPERM|permission|ACL"):
        installation.redis("monitor").execute_command(*words.split())


def test_the_exporter_of_postgresql_reads_statistics_and_no_table(
    installation: Installation,
) -> None:
    port = find_free_port()
    address = installation.environ["DATABASE_URL"].removeprefix("postgresql://")
    password = installation.secrets / "monitor/database-password"
    given = environment("postgres-exporter")
    environ = given | {
        "DATA_SOURCE_URI": given["DATA_SOURCE_URI"].replace("postgres:5432/scoreboard", address),
        "DATA_SOURCE_PASS_FILE": given["DATA_SOURCE_PASS_FILE"].replace(
            SECRETS, f"{installation.secrets}/"
        ),
    }
    # Debian's version has the statistics that PostgreSQL 17 moved in another collector.
    words = [f"--web.listen-address=127.0.0.1:{port}", "--no-collector.bgwriter"]
    with exporter("prometheus-postgres-exporter", words, environ):
        eventually(lambda: exported(port, "pg_up") == "1", within_s=10)
    login = f"postgresql://{given['DATA_SOURCE_USER']}:{password.read_text()}@{address}"
    with psycopg.connect(login, autocommit=True) as connection:
        connection.execute("SELECT count(*) FROM pg_stat_activity")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM scores")


# Rights -----------------------------------------------------------------------------------------


COUNT = """
    local value = redis.call('INCR', KEYS[1])
    if value == 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
    return value - 1
"""


def test_kong_can_increment_its_counters(installation: Installation) -> None:
    kong = installation.redis("kong")
    assert [kong.eval(COUNT, 1, KEY, 60) for _ in range(3)] == [0, 1, 2]


def test_counters_write_no_files(installation: Installation) -> None:
    kong = installation.redis("kong")
    before = kong.eval(COUNT, 1, f"{KEY}:disk", 60)
    folder = installation.secrets.parent / "counters"
    assert before == 0
    assert [path.name for path in folder.iterdir()] == ["log"]


def test_kong_has_no_login_at_the_board(installation: Installation) -> None:
    password = installation.document("kong/counters")["password"]
    with pytest.raises(redis.exceptions.AuthenticationError):
        connect(installation.redis_port, username="kong", password=password).ping()
    board = installation.document("api/redis")
    with pytest.raises(redis.exceptions.AuthenticationError):
        installation.counters(board["username"], board["password"]).ping()


@pytest.mark.parametrize(
    "words",
    [
        ("GET", KEY),
        ("DEL", KEY),
        ("KEYS", "*"),
        ("FLUSHALL",),
        ("INCR", "sb:{main:0}:meta"),
        ("EVAL", "return redis.call('INCR', KEYS[1])", "1", "sb:{main:0}:meta"),
        ("EVAL", "return redis.call('GET', KEYS[1])", "1", KEY),
        ("PUBLISH", "sb:{main:0}:changes", "9:9"),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
    ],
    ids=" ".join,
)
def test_kong_has_no_other_rights(installation: Installation, words: tuple[str, ...]) -> None:
    with pytest.raises(redis.exceptions.ResponseError, match=r"NOPERM|permission|ACL"):
        installation.redis("kong").execute_command(*words)


@pytest.mark.parametrize("user", ["api", "flusher", "operator"])
def test_config_get_returns_no_secret(installation: Installation, user: str) -> None:
    """CONFIG GET cannot be limited to names; passwords are only in the ACL file."""
    with installation.redis(user) as client:
        found = client.execute_command("CONFIG", "GET", "*")
    texts = [word.decode() for word in (found if isinstance(found, list) else
             [word for pair in found.items() for word in pair])]  # fmt: skip
    settings = dict(zip(texts[::2], texts[1::2], strict=True))
    secrets_of_others = [
        (installation.secrets / "postgres/owner").read_text(),
        *(installation.document(f"{name}/redis")["password"] for name in REDIS_USERS),
        installation.document("kong/counters")["password"],
    ]
    assert settings["appendfsync"] == "always"
    for name, value in settings.items():
        assert not any(secret in value for secret in secrets_of_others), name
        if name.endswith(("pass", "auth")):
            assert value == "", name


def test_other_logins_are_refused(installation: Installation) -> None:
    with pytest.raises(redis.exceptions.AuthenticationError):
        connect(installation.redis_port).ping()
    with pytest.raises(redis.exceptions.ResponseError):
        installation.redis("health").get("sb:{main:0}:meta")


# The whole system -------------------------------------------------------------------------------


def test_an_update_reaches_postgresql_with_the_rights_of_compose(
    installation: Installation, make_token: MakeToken
) -> None:
    port, viewers, metrics = (
        find_free_port(),
        find_free_port(),
        [find_free_port(), find_free_port()],
    )
    ours = {"SCOREBOARD_API_HOST": "127.0.0.1", "SCOREBOARD_API_PORT": str(port)}
    api = installation.environment("api", SCOREBOARD_API_METRICS_PORT="0", **ours)
    flusher = installation.environment("flusher", SCOREBOARD_FLUSHER_METRICS_PORT=str(metrics[0]))
    streamer = installation.environment(
        "streamer",
        SCOREBOARD_WS_HOST="127.0.0.1",
        SCOREBOARD_WS_PORT=str(viewers),
        SCOREBOARD_WS_METRICS_PORT=str(metrics[1]),
    )
    with ExitStack() as stack:
        for service, environ in (("api", api), ("flusher", flusher), ("streamer", streamer)):
            words = [sys.executable, *SERVICES[service]["command"][1:]]
            process = subprocess.Popen(words, env=environ, cwd=ROOT, stderr=subprocess.DEVNULL)
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
        client = stack.enter_context(
            httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)
        )

        def is_ready(address: str) -> bool:
            try:
                return client.get(address).status_code == 200
            except httpx.HTTPError:
                return False

        for address in ("", *(f"http://127.0.0.1:{number}" for number in metrics)):
            eventually(lambda address=address: is_ready(f"{address}/health/ready"))

        answer = client.post(
            "/api/scores/update",
            json={"userId": "alice", "actionId": "win:first-start"},
            headers={"Authorization": f"Bearer {make_token('alice')}"},
        )

        assert answer.status_code == 200, answer.text
        score = answer.json()["newScore"]
        with psycopg.connect(installation.database_url, autocommit=True) as connection:
            eventually(
                lambda: connection.execute("SELECT score FROM scores").fetchall() == [(score,)],
            )
