"""Logins rotate on real servers: PostgreSQL with two logins, Valkey with an ACL file.

Secrets are in files and in AWS Secrets Manager (moto).
"""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import redis
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from psycopg import sql

from cli.embedded.servers import EmbeddedPostgres, EmbeddedValkey
from scoreboard.errors import (
    OperatorMistake,
    RotationFailed,
    ScoreboardError,
    SecretsUnavailable,
    Unavailable,
)
from scoreboard.ledger import migrations
from scoreboard.rotation import aws_lambda, versions
from scoreboard.rotation.acl_users import RedisUser
from scoreboard.rotation.kinds import Kind, default_secrets, make_rotation, make_versions
from scoreboard.rotation.steps import Outcome, Rotation
from scoreboard.rotation.versions import AwsVersions, Stage
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.security import credentials
from tests.support.clients.forked import run_forked
from tests.support.fakes.aws import SecretsManager, make_aws_client
from tests.support.fakes.stack import start_rotation
from tests.support.servers.postgres_template import copy_postgres
from tests.support.servers.rights import DATABASE_USERS, as_user, make_roles, make_users
from tests.support.servers.system import make_valkey_with_acl_file

pytestmark = pytest.mark.slow

FIRST = "the-first-password"


class Deployment:
    """Both servers with the deployed users, and every secret in one store."""

    def __init__(
        self,
        folder: Path,
        valkey: EmbeddedValkey,
        postgres: EmbeddedPostgres,
        manager: SecretsManager | None,
    ) -> None:
        self.valkey = valkey
        self.postgres = postgres
        self.manager = manager
        self.prefix = f"{folder}/secrets/" if manager is None else f"scoreboard/{folder.name}/"
        self.admin = redis.Redis.from_url(valkey.url, decode_responses=True)
        make_users(self.admin, FIRST)
        self.admin.execute_command("ACL", "SAVE")
        self.owner = psycopg.connect(postgres.url, autocommit=True)
        for kind in (Kind.DB, Kind.REDIS):
            for name in default_secrets(kind, self.settings):
                self._create(name)

    @property
    def settings(self) -> Settings:
        """The settings of the rotator."""
        return Settings(
            redis_url=Secret(f"redis://127.0.0.1:{self.valkey.port}/0"),
            database_url=Secret(f"postgresql://127.0.0.1:{self.postgres.port}/scoreboard"),
            secrets="file" if self.manager is None else "aws",
            redis_secret=f"{self.prefix}rotator/redis",
            database_secret=f"{self.prefix}rotator/database",
        )

    def environment(self) -> dict[str, str]:
        """The variables of ``settings``."""
        settings = self.settings
        return {
            "REDIS_URL": settings.redis_url.reveal(),
            "DATABASE_URL": settings.database_url.reveal(),
            "SCOREBOARD_SECRETS": settings.secrets,
            "SCOREBOARD_REDIS_SECRET": settings.redis_secret,
            "SCOREBOARD_DATABASE_SECRET": settings.database_secret,
        }

    def rotation(self, kind: Kind, name: str, *, grace_s: float = 0.0) -> Rotation:
        return make_rotation(kind, f"{self.prefix}{name}", self.settings, grace_s=grace_s)

    def login(self, name: str, stage: Stage = Stage.CURRENT) -> tuple[str, str]:
        """Return the user and the password of a version."""
        document = make_versions(f"{self.prefix}{name}", self.settings).read(stage)
        assert document is not None
        found = json.loads(document.reveal())
        return found["username"], found["password"]

    def accepts(self, kind: Kind, login: tuple[str, str]) -> bool:
        """Return whether the server accepts a login."""
        if kind is Kind.DB:
            try:
                psycopg.connect(as_user(self.postgres.url, *login)).close()
            except psycopg.OperationalError:
                return False
            return True
        with redis.Redis.from_url(as_user(self.valkey.url, *login)) as client:
            try:
                client.ping()
            except redis.AuthenticationError:
                return False
            except redis.ResponseError:  # the user may not PING
                return True
            return True

    def _create(self, name: str) -> None:
        service, _, server = name.removeprefix(self.prefix).partition("/")
        username = f"scoreboard_{service}_a" if server == "database" else service
        document = json.dumps({"username": username, "password": FIRST, "note": "kept"})
        if self.manager is not None:
            self.manager.client.create_secret(Name=name, SecretString=document)
            return
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document)
        path.chmod(0o600)

    def close(self) -> None:
        self.admin.close()
        self.owner.close()


@pytest.fixture(scope="module")
def migrated_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server of this module's own, because logins belong to the whole server."""
    folder = copy_postgres(tmp_path_factory.mktemp("rotation") / "postgres")
    with EmbeddedPostgres(folder, fsync=False) as server:
        make_roles(server.url, FIRST)
        migrations.migrate(server.url)
        yield server


@pytest.fixture
def postgres(migrated_postgres: EmbeddedPostgres) -> EmbeddedPostgres:
    """Return the server with new logins and its own settings."""
    with psycopg.connect(migrated_postgres.url, autocommit=True) as owner:
        for name in itertools.product(DATABASE_USERS, "ab"):
            login = sql.Identifier(f"scoreboard_{'_'.join(name)}")
            owner.execute(sql.SQL("DROP OWNED BY {}").format(login))
            owner.execute(sql.SQL("DROP ROLE {}").format(login))
        owner.execute("ALTER SYSTEM RESET ALL")
        owner.execute("SELECT pg_reload_conf()")
    make_roles(migrated_postgres.url, FIRST)
    return migrated_postgres


@pytest.fixture(params=["file", "aws"])
def deployment(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    postgres: EmbeddedPostgres,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Deployment]:
    manager = request.getfixturevalue("secrets_manager") if request.param == "aws" else None
    monkeypatch.setattr(credentials, "_stores", {})
    with make_valkey_with_acl_file(tmp_path) as valkey:
        made = Deployment(tmp_path, valkey, postgres, manager)
        try:
            yield made
        finally:
            made.close()


SECRETS = [(Kind.DB, "api/database"), (Kind.REDIS, "api/redis")]


@pytest.mark.parametrize(("kind", "name"), SECRETS)
async def test_a_rotation_leaves_both_versions_valid_until_it_is_retired(
    kind: Kind, name: str, deployment: Deployment
) -> None:
    rotation = deployment.rotation(kind, name)
    passwords = {FIRST}
    for _ in range(5):
        before = deployment.login(name)
        await rotation.rotate()
        after = deployment.login(name)

        assert after[1] not in passwords
        passwords.add(after[1])
        assert deployment.accepts(kind, before)
        assert deployment.accepts(kind, after)
        assert await rotation.retire() is Outcome.RETIRED
        assert not deployment.accepts(kind, before)
        assert deployment.accepts(kind, after)
        assert await rotation.retire() is Outcome.NOTHING

    stored = make_versions(rotation.name, deployment.settings)
    current = stored.read(Stage.CURRENT)
    assert current is not None
    assert json.loads(current.reveal())["note"] == "kept"


@pytest.mark.parametrize("kind", [Kind.DB, Kind.REDIS])
async def test_all_secrets_of_a_kind_rotate_the_rotators_own_last(
    kind: Kind, deployment: Deployment
) -> None:
    names = default_secrets(kind, deployment.settings)
    before = {name: deployment.login(name.removeprefix(deployment.prefix)) for name in names}

    for name in names:
        await make_rotation(kind, name, deployment.settings, grace_s=0.0).rotate()
    for name in names:
        rotation = make_rotation(kind, name, deployment.settings, grace_s=0.0)
        assert await rotation.retire() is Outcome.RETIRED

    assert "rotator" in names[-1]
    for name, login in before.items():
        assert not deployment.accepts(kind, login), name
        assert deployment.accepts(kind, deployment.login(name.removeprefix(deployment.prefix)))


async def test_users_survive_a_restart_of_redis(deployment: Deployment) -> None:
    await deployment.rotation(Kind.REDIS, "api/redis").rotate()

    deployment.valkey.stop()
    deployment.valkey.start()

    assert deployment.accepts(Kind.REDIS, deployment.login("api/redis"))
    assert deployment.accepts(Kind.REDIS, ("api", FIRST))


@pytest.mark.parametrize(("kind", "name"), SECRETS)
async def test_within_the_grace_nothing_is_retired_or_created(
    kind: Kind, name: str, deployment: Deployment
) -> None:
    first = await deployment.rotation(kind, name).rotate()
    patient = deployment.rotation(kind, name, grace_s=60.0)

    assert await patient.retire() is Outcome.TOO_EARLY
    assert await patient.rotate() == first
    with pytest.raises(OperatorMistake, match="previous version"):
        await patient.create()

    assert deployment.accepts(kind, deployment.login(name, Stage.PREVIOUS))


@pytest.mark.parametrize(("kind", "name"), SECRETS)
async def test_a_version_that_the_server_refuses_does_not_become_current(
    kind: Kind, name: str, deployment: Deployment
) -> None:
    rotation = deployment.rotation(kind, name)
    before = deployment.login(name)
    token = await rotation.create()
    await rotation.set(token)
    pending, _ = deployment.login(name, Stage.PENDING)
    if kind is Kind.DB:
        deployment.owner.execute(f"ALTER ROLE {pending} PASSWORD NULL")
    else:
        deployment.admin.execute_command("ACL", "SETUSER", "api", "resetpass", f">{FIRST}")

    with pytest.raises(RotationFailed, match="stays in use"):
        await rotation.test(token)
    with pytest.raises(RotationFailed):
        await rotation.finish(token)

    assert deployment.login(name) == before
    assert deployment.accepts(kind, before)
    await rotation.rotate()  # sets it again
    assert deployment.login(name) != before
    assert deployment.accepts(kind, deployment.login(name))


async def test_a_login_without_the_rights_of_its_role_does_not_become_current(
    deployment: Deployment,
) -> None:
    deployment.owner.execute("GRANT CONNECT ON DATABASE scoreboard TO scoreboard_api_b")
    deployment.owner.execute("REVOKE scoreboard_api FROM scoreboard_api_b")

    with pytest.raises(RotationFailed, match="does not have the rights of scoreboard_api"):
        await deployment.rotation(Kind.DB, "api/database").rotate()

    assert deployment.login("api/database")[0] == "scoreboard_api_a"


async def test_a_missing_user_is_not_created(deployment: Deployment) -> None:
    deployment.admin.execute_command("ACL", "DELUSER", "api")

    with pytest.raises(OperatorMistake, match="no ACL user api"):
        await deployment.rotation(Kind.REDIS, "api/redis").rotate()

    assert deployment.admin.execute_command("ACL", "GETUSER", "api") is None


@pytest.mark.parametrize(("kind", "name"), SECRETS)
async def test_servers_get_no_password_in_plain_text(
    kind: Kind, name: str, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    rotation = deployment.rotation(kind, name)
    if kind is Kind.DB:
        deployment.owner.execute("ALTER SYSTEM SET log_statement = 'all'")
        deployment.owner.execute("SELECT pg_reload_conf()")
    else:
        deployment.admin.config_set("slowlog-log-slower-than", 0)

    await rotation.rotate()
    await rotation.retire()

    _, password = deployment.login(name)
    log = (
        deployment.postgres.folder.log.read_text()
        if kind is Kind.DB
        else repr(deployment.admin.slowlog_get(128))
    )
    assert "set_login_password" in log or "SETUSER" in log
    assert password not in log
    assert password not in caplog.text


@pytest.mark.parametrize(("kind", "name"), SECRETS)
async def test_sessions_of_the_previous_login_are_ended_on_request(
    kind: Kind, name: str, deployment: Deployment
) -> None:
    before = deployment.login(name)
    await deployment.rotation(kind, name).rotate()
    if kind is Kind.DB:
        with psycopg.connect(as_user(deployment.postgres.url, *before)) as session:
            await deployment.rotation(kind, name).retire(disconnect=True)
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
        return
    with redis.Redis.from_url(as_user(deployment.valkey.url, *before)) as client:
        client.ping()
        await deployment.rotation(kind, name).retire(disconnect=True)
        with pytest.raises(redis.AuthenticationError):
            client.ping()


@pytest.mark.parametrize(("kind", "name"), SECRETS)
@pytest.mark.parametrize("deployment", ["file"], indirect=True)
async def test_a_version_that_is_not_a_login_is_named(
    kind: Kind, name: str, deployment: Deployment
) -> None:
    rotation = deployment.rotation(kind, name)
    await rotation.create()
    before = deployment.login(name)
    spoil(rotation, "pending")

    with pytest.raises(OperatorMistake, match=r"The pending version .* is not JSON") as caught:
        await rotation.rotate()

    assert "planted" not in str(caught.value)
    await rotation.discard_pending()
    await rotation.rotate()
    spoil(rotation, "previous")
    if kind is Kind.DB:
        with pytest.raises(OperatorMistake, match=r"The previous version .* is not JSON"):
            await rotation.retire()
    else:
        assert await rotation.retire() is Outcome.RETIRED
    assert deployment.accepts(kind, deployment.login(name))
    assert deployment.login(name) != before


@pytest.mark.parametrize("kind", [Kind.DB, Kind.REDIS])
@pytest.mark.parametrize("deployment", ["file"], indirect=True)
def test_a_secret_that_cannot_be_rotated_does_not_keep_the_others_valid(
    kind: Kind, deployment: Deployment
) -> None:
    names = [
        name.removeprefix(deployment.prefix) for name in default_secrets(kind, deployment.settings)
    ]
    broken = next(name for name in names if name.startswith("flusher"))
    before = {name: deployment.login(name) for name in names if name != broken}
    Path(f"{deployment.prefix}{broken}").write_text("planted")

    done = run_forked(
        "cli",
        ["secrets", "rotate", kind.value, "--grace", "0"],
        os.environ | deployment.environment(),
    )

    assert done.returncode == 5, done.stderr
    assert f"{broken}: failed: The current version" in done.stderr
    assert "planted" not in done.stderr
    for name, login in before.items():
        assert name in done.stdout
        assert not deployment.accepts(kind, login), name
        assert deployment.accepts(kind, deployment.login(name)), name


def spoil(rotation: Rotation, stage: str) -> None:
    Path(f"{rotation.name}.{stage}").write_text('{"username": "x", "password": "planted"')


async def test_sessions_of_an_earlier_previous_login_are_ended_too(deployment: Deployment) -> None:
    """A login has leaked that another rotation has replaced, but not retired, a moment ago."""
    name = "api/database"
    leaked = deployment.login(name)
    await deployment.rotation(Kind.DB, name).rotate()

    with psycopg.connect(as_user(deployment.postgres.url, *leaked)) as session:
        rotation = deployment.rotation(Kind.DB, name)
        await rotation.rotate(disconnect=True)
        await rotation.retire(disconnect=True)

        assert deployment.login(name)[0] == leaked[0]
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")


KILLED = """
import itertools, os, sys
from scoreboard.rotation import acl_users, database_logins, steps, versions
from cli.commands import secrets
from cli.main import run

calls = itertools.count()
def killing(function):
    def wrapper(*arguments, **options):
        if next(calls) == last:
            os._exit(9)
        return function(*arguments, **options)
    return wrapper

for owner, names in (
    (versions.AwsVersions, ("_call",)),
    (versions.FileVersions, ("describe", "read", "put_pending", "promote", "discard")),
    (os, ("rename", "replace", "link", "fsync")),
    (database_logins, ("_alter",)),
    (acl_users, ("_run",)),
    (steps.Rotation, ("_set", "_test", "_finish", "_retire")),
):
    for name in names:
        setattr(owner, name, killing(getattr(owner, name)))
if os.environ["SCOREBOARD_SECRETS"] == "aws":
    versions.aws_client()  # once, as it takes half a second
for line in sys.stdin:
    last = int(line)
    child = os.fork()
    if not child:
        os._exit(run(sys.argv[1:]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@contextmanager
def killable_command(
    deployment: Deployment, kind: Kind, name: str
) -> Iterator[Callable[[int], int]]:
    """Yield a function that runs the command, ends it at a call and returns its exit code.

    The commands are forked from one process, which saves the imports.
    """
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, "secrets", "rotate", kind.value,
         f"{deployment.prefix}{name}", "--grace", "0"],
        env=os.environ | deployment.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        orders, answers = process.stdin, process.stdout

        def run_until(call: int) -> int:
            print(call, file=orders, flush=True)
            for line in answers:
                if line.strip() in {"0", "9"}:
                    return int(line)
            raise AssertionError("the command failed")

        try:
            yield run_until
        finally:
            process.kill()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("deployment", "kind", "name"),
    [("file", *SECRETS[0]), ("file", *SECRETS[1]), ("aws", *SECRETS[0])],
    indirect=["deployment"],
)
async def test_a_rotation_that_was_killed_anywhere_is_completed(
    kind: Kind, name: str, deployment: Deployment
) -> None:
    rotation = deployment.rotation(kind, name)
    with killable_command(deployment, kind, name) as run_until:
        for call in range(200):
            before = deployment.login(name)
            code = run_until(call)
            assert deployment.accepts(kind, deployment.login(name)), call
            if code == 0:
                break

            await rotation.rotate()
            await rotation.retire()

            found = await rotation.describe()
            assert (found.pending, found.previous) == (None, None), call
            assert deployment.login(name) != before, call
            assert deployment.accepts(kind, deployment.login(name)), call
            assert not deployment.accepts(kind, before), call
        else:
            pytest.fail("the command was killed at every call")
    assert call > 10


@pytest.fixture
def lambda_environment(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, text in deployment.environment().items():
        monkeypatch.setenv(variable, text)


def start_step_events(deployment: Deployment, name: str) -> dict[str, str]:
    """Let Secrets Manager start a rotation; return the event for the function."""
    assert deployment.manager is not None
    return start_rotation(deployment.manager.client, f"{deployment.prefix}{name}")


STEPS = ("createSecret", "setSecret", "testSecret", "finishSecret")


@pytest.mark.usefixtures("lambda_environment")
@pytest.mark.parametrize("deployment", ["aws"], indirect=True)
@pytest.mark.parametrize(("kind", "name"), SECRETS)
def test_the_lambda_function_may_repeat_every_step(
    kind: Kind, name: str, deployment: Deployment
) -> None:
    for _ in range(3):
        before = deployment.login(name)
        event = start_step_events(deployment, name)
        for step in STEPS:
            aws_lambda.handler(event | {"Step": step})
            aws_lambda.handler(event | {"Step": step})

        assert deployment.login(name) != before
        assert deployment.accepts(kind, deployment.login(name))
        assert deployment.accepts(kind, before)
        retire = {"Step": aws_lambda.RETIRE, "SecretIds": [event["SecretId"]]}
        assert aws_lambda.handler(retire) == {event["SecretId"]: "too early"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("scoreboard.rotation.kinds.GRACE_TIMES", 0.0)
            patch.setattr("scoreboard.rotation.kinds.READ_S", 0.0)
            assert aws_lambda.handler(retire) == {event["SecretId"]: "retired"}
        assert not deployment.accepts(kind, before)


@pytest.mark.usefixtures("lambda_environment")
@pytest.mark.parametrize("deployment", ["aws"], indirect=True)
def test_the_lambda_function_refuses_a_foreign_token(
    deployment: Deployment, capfd: pytest.CaptureFixture[str]
) -> None:
    event = start_step_events(deployment, "api/redis")
    token = "5f7c8b1e-0d5a-4f6e-9a45-000000000001"

    for step in STEPS:
        with pytest.raises(OperatorMistake, match="not the pending version"):
            aws_lambda.handler(event | {"Step": step, "ClientRequestToken": token})
    with pytest.raises(OperatorMistake, match="Unknown step"):
        aws_lambda.handler(event | {"Step": "deleteSecret"})
    log = capfd.readouterr().err.splitlines()
    lines = [json.loads(line) for line in log if "secret_rotation_failed" in line]
    assert [line["scoreboard.step"] for line in lines] == [*STEPS, "deleteSecret"]
    assert {line["scoreboard.secret_name"] for line in lines} == {event["SecretId"]}

    assert deployment.login("api/redis") == ("api", FIRST)


on_aws = pytest.mark.parametrize("deployment", ["aws"], indirect=True)


@on_aws
async def test_a_clock_that_is_ahead_does_not_shorten_the_grace(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = f"{deployment.prefix}api/redis"
    before = deployment.login("api/redis")
    await deployment.rotation(Kind.REDIS, "api/redis").rotate()

    def ahead_s() -> float:
        return time.time() + 600

    monkeypatch.setattr(versions, "time", SimpleNamespace(time=ahead_s))
    target = RedisUser(deployment.settings)
    rotation = Rotation(AwsVersions(secret), target, grace_s=300, clock=ahead_s)

    assert await rotation.retire() is Outcome.TOO_EARLY
    assert deployment.accepts(Kind.REDIS, before)
    rotation = Rotation(AwsVersions(secret), target, grace_s=0, clock=ahead_s)
    assert await rotation.retire() is Outcome.RETIRED


@on_aws
@pytest.mark.parametrize(("kind", "name"), SECRETS)
async def test_a_rotation_during_a_retirement_keeps_its_previous_version(
    kind: Kind, name: str, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Secrets Manager rotates while the hourly schedule retires."""
    rotation = deployment.rotation(kind, name)
    await rotation.rotate()
    current = deployment.login(name)
    read, between = AwsVersions.read, [lambda: asyncio.run(rotation.rotate())]

    def read_slowly(self: AwsVersions, stage: Stage) -> Secret | None:
        if between:
            between.pop()()
        return read(self, stage)

    monkeypatch.setattr(AwsVersions, "read", read_slowly)

    await rotation.retire()

    assert deployment.login(name, Stage.PREVIOUS) == current
    assert deployment.accepts(kind, current)
    assert deployment.accepts(kind, deployment.login(name))


@on_aws
@pytest.mark.parametrize(("kind", "name"), SECRETS)
async def test_two_rotations_at_once_leave_a_current_version_that_works(
    kind: Kind, name: str, deployment: Deployment
) -> None:
    for _ in range(3):
        outcomes = await asyncio.gather(
            deployment.rotation(kind, name).rotate(),
            deployment.rotation(kind, name).rotate(),
            return_exceptions=True,
        )
        assert any(isinstance(one, str) for one in outcomes), outcomes
        assert all(isinstance(one, str | ScoreboardError) for one in outcomes), outcomes
        assert deployment.accepts(kind, deployment.login(name))

    await deployment.rotation(kind, name).rotate()
    assert deployment.accepts(kind, deployment.login(name))


@pytest.mark.parametrize("deployment", ["file"], indirect=True)
async def test_a_password_can_be_set_by_two_rotators_at_once(deployment: Deployment) -> None:
    """Incident: PostgreSQL refuses concurrent changes of one role."""
    url = as_user(deployment.postgres.url, *deployment.login("rotator/database"))
    verifier = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$c3RvcmVk:c2VydmVy"

    async def set_often() -> None:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            for _ in range(50):
                await connection.execute(
                    "SELECT set_login_password('scoreboard_api_b', %s)", (verifier,)
                )

    await asyncio.gather(*(set_often() for _ in range(4)))


@on_aws
@pytest.mark.usefixtures("lambda_environment")
def test_the_lambda_function_changes_every_node_of_redis(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        make_valkey_with_acl_file(tmp_path / "replica") as replica,
        redis.Redis.from_url(replica.url, decode_responses=True) as admin,
    ):
        make_users(admin, FIRST)
        event = start_step_events(deployment, "api/redis")
        monkeypatch.setenv("REDIS_REPLICAS", f"redis://127.0.0.1:1/0 {address(replica)}")
        aws_lambda.handler(event | {"Step": "createSecret"})
        with pytest.raises(Unavailable):
            aws_lambda.handler(event | {"Step": "setSecret"})
        assert not deployment.accepts(Kind.REDIS, deployment.login("api/redis", Stage.PENDING))

        monkeypatch.setenv("REDIS_REPLICAS", address(replica))
        for step in STEPS[1:]:
            aws_lambda.handler(event | {"Step": step})

        login = deployment.login("api/redis")
        assert deployment.accepts(Kind.REDIS, login)
        with redis.Redis.from_url(as_user(replica.url, *login)) as client:
            assert client.ping()


def address(server: EmbeddedValkey) -> str:
    return f"redis://127.0.0.1:{server.port}/0"


@on_aws
@pytest.mark.usefixtures("lambda_environment")
def test_a_secret_that_is_to_be_deleted_does_not_stop_the_retirement_of_others(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert deployment.manager is not None
    before = deployment.login("flusher/redis")
    for name in ("api/redis", "flusher/redis"):
        asyncio.run(deployment.rotation(Kind.REDIS, name).rotate())
    monkeypatch.setattr("scoreboard.rotation.kinds.GRACE_TIMES", 0.0)
    monkeypatch.setattr("scoreboard.rotation.kinds.READ_S", 0.0)
    names = [f"{deployment.prefix}{name}" for name in ("api/redis", "flusher/redis")]
    deployment.manager.client.delete_secret(SecretId=names[0], RecoveryWindowInDays=7)

    with pytest.raises(SecretsUnavailable, match="InvalidRequestException"):
        aws_lambda.handler({"Step": aws_lambda.RETIRE, "SecretIds": names})

    assert not deployment.accepts(Kind.REDIS, before)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "retire_failed" in line]
    assert names[0] in line
    assert "InvalidRequestException" in line


@on_aws
@pytest.mark.usefixtures("lambda_environment")
@pytest.mark.parametrize("kind", [Kind.DB, Kind.REDIS])
def test_a_warm_lambda_function_that_retired_its_own_login_continues(
    kind: Kind, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process still holds the login that it has just retired."""
    monkeypatch.setattr("scoreboard.rotation.kinds.GRACE_TIMES", 0.0)
    monkeypatch.setattr("scoreboard.rotation.kinds.READ_S", 0.0)
    server = "database" if kind is Kind.DB else "redis"
    for name in (f"api/{server}", f"rotator/{server}", f"flusher/{server}"):
        before = deployment.login(name)
        event = start_step_events(deployment, name)
        for step in STEPS:
            aws_lambda.handler(event | {"Step": step})
        aws_lambda.handler({"Step": aws_lambda.RETIRE, "SecretIds": [event["SecretId"]]})

        assert not deployment.accepts(kind, before)
        assert deployment.accepts(kind, deployment.login(name))


@on_aws
@pytest.mark.usefixtures("lambda_environment")
@pytest.mark.parametrize("code", ["ThrottlingException", "AccessDeniedException"])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_aws_refuses_changes_nothing_and_can_be_repeated(
    code: str, step: str, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = start_step_events(deployment, "api/redis")
    before = deployment.login("api/redis")
    for earlier in STEPS[: STEPS.index(step)]:
        aws_lambda.handler(event | {"Step": earlier})
    with monkeypatch.context() as patch:
        patch.setattr(versions, "aws_client", lambda: refusing_client(code))
        with pytest.raises(SecretsUnavailable, match=code):
            aws_lambda.handler(event | {"Step": step})

    assert deployment.login("api/redis") == before
    assert deployment.accepts(Kind.REDIS, before)
    for later in STEPS[STEPS.index(step) :]:
        aws_lambda.handler(event | {"Step": later})
    assert deployment.accepts(Kind.REDIS, deployment.login("api/redis"))


def refusing_client(code: str) -> Any:
    """Return a client whose calls are refused, except those that describe a secret."""

    def refuse(request: AWSPreparedRequest, **_: object) -> AWSResponse | None:
        if request.headers["X-Amz-Target"].endswith(b".DescribeSecret"):
            return None
        body = json.dumps({"__type": code, "message": "refused"}).encode()
        answer = AWSResponse(request.url, 400, {}, BytesIO(body))
        answer._content = body
        return answer

    client = make_aws_client()
    client.meta.events.register("before-send.secretsmanager", refuse)
    return client


@on_aws
async def test_a_password_that_redis_cannot_save_does_not_become_current(
    deployment: Deployment, tmp_path: Path
) -> None:
    before = deployment.login("api/redis")
    hidden = (tmp_path / "acl").rename(tmp_path / "elsewhere")

    with pytest.raises(OperatorMistake, match="ACL SAVE was refused"):
        await deployment.rotation(Kind.REDIS, "api/redis").rotate()

    assert deployment.login("api/redis") == before
    assert deployment.accepts(Kind.REDIS, before)
    hidden.rename(tmp_path / "acl")
    await deployment.rotation(Kind.REDIS, "api/redis").rotate()
    assert deployment.accepts(Kind.REDIS, deployment.login("api/redis"))
