"""deploy/aws/secrets.yaml: the template, the rights it gives, and a first installation with it.

The secrets are in a fake AWS; PostgreSQL and both Valkeys are real.
"""

import asyncio
import importlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from cli.embedded import binaries
from cli.embedded.postgres_cluster import server_environment
from scoreboard.ledger import migrations, pool
from scoreboard.rotation import kinds
from scoreboard.rotation.kinds import SECRETS, Kind, kind_of
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.security import credentials, secret_backends
from scoreboard.store.client import make_client
from tests.deploy.compose import ROOT
from tests.support.fakes.aws import SecretsManager, aws_environment, secrets_manager
from tests.support.fakes.stack import KEY, REGION, TEMPLATE, Stack, load_template, start_rotation
from tests.support.servers.rights import as_user
from tests.support.servers.stores import OwnPostgres, OwnValkey

__all__ = ["aws_environment", "secrets_manager"]

AWS = ROOT / "deploy" / "aws"
DOCKER = ROOT / "deploy" / "docker"
REGIONS = (REGION, "us-east-1", "cn-north-1")
SERVICES = ("api", "streamer", "flusher", "operator", "kong")
FUNCTIONS = {"RotationFunction": (Kind.DB, Kind.REDIS), "CountersRotationFunction": (Kind.KONG,)}
STEPS = ("createSecret", "setSecret", "testSecret", "finishSecret")
NAMES = sorted(f"scoreboard/production/{name}" for names in SECRETS.values() for name in names)


def test_the_template_passes_cfn_lint() -> None:
    lint = Path(sys.executable).with_name("cfn-lint")
    done = subprocess.run(
        [lint, "--include-checks", "W", "--regions", *REGIONS, "--template", TEMPLATE],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"AWS_EC2_METADATA_DISABLED": "true"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def stack(secrets_manager: SecretsManager) -> Stack:
    return Stack(secrets_manager.client, EnableRotation="true", KmsKeyArn=KEY)


def test_the_template_has_every_secret_and_none_is_deleted_with_it(stack: Stack) -> None:
    assert sorted(stack.secrets) == NAMES
    for name, arn in stack.secrets.items():
        service, kind = name.split("/")[-2:]
        document = json.loads(stack.client.get_secret_value(SecretId=arn)["SecretString"])
        assert document["username"] == (
            f"scoreboard_{service}_a" if kind == "database" else service
        )
        assert len(document["password"]) == 43
        assert not set(document["password"]) & set("/@\"'\\ :?#%")
    for one in load_template()["Resources"].values():
        if one["Type"] == "AWS::SecretsManager::Secret":
            assert one["DeletionPolicy"] == one["UpdateReplacePolicy"] == "Retain"


def test_every_secret_rotates_by_the_function_of_its_server(stack: Stack) -> None:
    schedules = stack.of_type("AWS::SecretsManager::RotationSchedule").values()
    assert sorted(one["SecretId"] for one in schedules) == sorted(stack.secrets.values())
    for one in schedules:
        function = one["RotationLambdaARN"].rpartition(":")[2]
        assert kind_of(one["SecretId"]) in FUNCTIONS[function]
        assert one["RotationRules"] == {"ScheduleExpression": "rate(30 days)", "Duration": "2h"}


def test_nothing_rotates_before_it_is_enabled(secrets_manager: SecretsManager) -> None:
    stack = Stack(secrets_manager.client)
    assert stack.of_type("AWS::SecretsManager::RotationSchedule") == {}
    assert {rule["State"] for rule in stack.of_type("AWS::Events::Rule").values()} == {"DISABLED"}


def test_previous_versions_of_every_secret_are_retired_hourly(stack: Stack) -> None:
    retired: list[str] = []
    for rule in stack.of_type("AWS::Events::Rule").values():
        assert (rule["ScheduleExpression"], rule["State"]) == ("rate(1 hour)", "ENABLED")
        (target,) = rule["Targets"]
        event = json.loads(target["Input"])
        assert event["Step"] == "retireSecret"
        function = target["Arn"].rpartition(":")[2]
        assert {kind_of(secret) for secret in event["SecretIds"]} == set(FUNCTIONS[function])
        retired += event["SecretIds"]
    assert sorted(retired) == sorted(stack.secrets.values())


def test_only_secrets_manager_and_the_schedule_may_call_the_functions(stack: Stack) -> None:
    found = sorted(
        (one["FunctionName"].rpartition(":")[2], one["Principal"], one["SourceArn"])
        for one in stack.of_type("AWS::Lambda::Permission").values()
    )
    account = "123456789012"
    secrets = f"arn:aws:secretsmanager:{REGION}:{account}:secret:scoreboard/production/*"
    assert found == [
        (f"{name}Function", f"{service}.amazonaws.com", source)
        for name in ("CountersRotation", "Rotation")
        for service, source in (
            ("events", f"arn:aws:events:{REGION}:{account}:{name}Retirement"),
            ("secretsmanager", secrets),
        )
    ]
    for one in stack.of_type("AWS::Lambda::Permission").values():
        assert one["Action"] == "lambda:InvokeFunction"
        assert one["SourceAccount"] == account


def test_failures_are_reported_and_logs_expire(stack: Stack) -> None:
    functions = {one["FunctionName"] for one in stack.of_type("AWS::Lambda::Function").values()}
    alarms = stack.of_type("AWS::CloudWatch::Alarm").values()
    assert {one["Dimensions"][0]["Value"] for one in alarms} == functions
    logs = stack.of_type("AWS::Logs::LogGroup").values()
    assert {one["LogGroupName"] for one in logs} == {f"/aws/lambda/{name}" for name in functions}
    assert all(one["RetentionInDays"] for one in logs)
    for one in stack.of_type("AWS::Lambda::Function").values():
        module, _, name = one["Handler"].rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))
        assert one["ReservedConcurrentExecutions"] >= len(stack.secrets) - 2


def statements(stack: Stack) -> Iterator[dict[str, Any]]:
    for one in stack.of_type("AWS::IAM::ManagedPolicy").values():
        yield from one["PolicyDocument"]["Statement"]
    for one in stack.of_type("AWS::IAM::Role").values():
        for policy in one["Policies"]:
            yield from policy["PolicyDocument"]["Statement"]


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_no_policy_allows_more_than_named_actions_on_named_resources(stack: Stack) -> None:
    wide: set[str] = set()
    for one in statements(stack):
        if one["Effect"] == "Deny":
            continue
        actions, resources = as_list(one["Action"]), as_list(one["Resource"])
        assert not [action for action in actions if "*" in action]
        if "*" in resources:
            wide |= set(actions)
        for action, resource in itertools.product(actions, resources):
            if action.startswith("secretsmanager:"):
                assert resource in stack.secrets.values()
            if action.startswith("kms:"):
                assert resource == KEY
                assert one["Condition"]["StringEquals"]["kms:ViaService"] == (
                    f"secretsmanager.{REGION}.amazonaws.com"
                )
    # AWS has no resource for these actions of EC2, which Lambda needs for a function in a VPC.
    assert wide == {"ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets"}


def test_the_functions_own_code_may_not_use_the_network_rights(stack: Stack) -> None:
    for name in ("Rotation", "CountersRotation"):
        (policy,) = [
            one for one in stack.properties(f"{name}Role")["Policies"]
            if one["PolicyName"] == "network"
        ]  # fmt: skip
        (deny,) = [one for one in policy["PolicyDocument"]["Statement"] if one["Effect"] == "Deny"]
        source = deny["Condition"]["ArnEquals"]["lambda:SourceFunctionArn"]
        function = stack.properties(f"{name}Function")["FunctionName"]
        assert source.rpartition(":")[2] == function
        assert deny["Action"] == "ec2:*"


@pytest.mark.parametrize("policy", ["ApiPolicy", "RotationPolicy", "CountersRotationPolicy"])
def test_a_key_is_usable_for_the_secrets_of_the_policy_only(policy: str, stack: Stack) -> None:
    own, key = stack.policy(policy)
    context = key["Condition"]["StringEquals"]["kms:EncryptionContext:SecretARN"]
    assert context == own["Resource"]
    rotates = "secretsmanager:PutSecretValue" in own["Action"]
    assert key["Action"] == ["kms:Decrypt"] + ["kms:GenerateDataKey"] * rotates


class Calls:
    """The calls of AWS by this process: pairs of action and ARN."""

    def __init__(self, stack: Stack, patch: pytest.MonkeyPatch) -> None:
        self._stack = stack
        self.made: set[tuple[str, str]] = set()
        patch.setattr(credentials, "FETCH_WAIT_S", 60.0)  # the fake is slow on a busy machine
        secret_backends.aws_client().meta.events.register("before-call.*", self._record)

    def _record(self, model: Any, params: dict[str, Any], **_: object) -> None:
        service = model.service_model.signing_name
        secret = json.loads(params["body"])["SecretId"]
        self.made.add((f"{service}:{model.name}", self._stack.secrets.get(secret, secret)))


def allowed(stack: Stack, policy: str) -> set[tuple[str, str]]:
    statement = stack.policy(policy)[0]
    return set(itertools.product(as_list(statement["Action"]), as_list(statement["Resource"])))


def read(client: Any, secret: str) -> str:
    answer = client.get_secret_value(SecretId=secret, VersionStage="AWSCURRENT")
    return answer["SecretString"]


class Installation:
    """New servers, installed in the order of deploy/aws/README.md."""

    def __init__(
        self, folder: Path, manager: SecretsManager, valkey: OwnValkey, postgres: OwnPostgres
    ) -> None:
        # 1. The stack creates the secrets; no server knows their passwords.
        self.stack = Stack(manager.client)
        # 2. The servers: users and logins without passwords, except the rotators'.
        self.valkey = self._start(folder / "store", "users.acl", "rotator/redis", valkey)
        self.counters = self._start(folder / "counters", "counters.acl", "rotator/counters", valkey)
        self.postgres = postgres()
        documents = {f"{name}_DATABASE": "{}" for name in ("API", "FLUSHER", "OPERATOR")}
        documents["ROTATOR_DATABASE"] = self.document("rotator/database")
        subprocess.run(
            [
                binaries.find_postgres().path("psql"),
                *("-q", "-v", "ON_ERROR_STOP=1", "-f", str(DOCKER / "postgres-roles.sql")),
                self.postgres.url,
            ],
            env=server_environment() | documents,
            check=True,
            timeout=30,
        )
        migrations.migrate(self.postgres.url)
        # 3. The stack's rotation is enabled.
        self.stack = Stack(
            _Existing(manager.client, self.stack),
            EnableRotation="true",
            DatabaseUrl=f"postgresql://127.0.0.1:{self.postgres.port}/scoreboard",
            RedisUrl=f"redis://127.0.0.1:{self.valkey.port}/0",
            CountersUrl=f"redis://127.0.0.1:{self.counters.port}/0",
        )

    def document(self, name: str) -> str:
        secret = f"scoreboard/production/{name}"
        return read(self.stack.client, secret)

    def login(self, secret: str) -> tuple[str, str]:
        found = json.loads(read(self.stack.client, secret))
        return found["username"], found["password"]

    @contextmanager
    def function(self, name: str) -> Iterator[Any]:
        """Yield the handler of a function, with the environment that the template gives it."""
        function = self.stack.function(name)
        module, _, handler = function["Handler"].rpartition(".")
        with pytest.MonkeyPatch.context() as patch:
            for variable, text in function["Environment"]["Variables"].items():
                patch.setenv(variable, text)
            patch.setattr(credentials, "_stores", {})
            yield getattr(importlib.import_module(module), handler)

    def rotate_all(self) -> None:
        """Let Secrets Manager rotate every secret by its function."""
        for name in FUNCTIONS:
            with self.function(name) as handler:
                for secret in self.secrets_of(name):
                    event = start_rotation(self.stack.client, secret)
                    for step in STEPS:
                        handler(event | {"Step": step})

    def retire_all(self) -> None:
        for rule in self.stack.of_type("AWS::Events::Rule").values():
            (target,) = rule["Targets"]
            with self.function(target["Arn"].rpartition(":")[2]) as handler:
                outcomes = handler(json.loads(target["Input"]))
            assert set(outcomes.values()) == {"retired"}

    def secrets_of(self, function: str) -> list[str]:
        return [
            one["SecretId"]
            for one in self.stack.of_type("AWS::SecretsManager::RotationSchedule").values()
            if one["RotationLambdaARN"].endswith(f":{function}")
        ]

    def accepts(self, secret: str, login: tuple[str, str]) -> bool:
        kind = kind_of(secret)
        if kind is Kind.DB:
            try:
                psycopg.connect(as_user(self.postgres.url, *login)).close()
            except psycopg.OperationalError:
                return False
            return True
        server = self.counters if kind is Kind.KONG else self.valkey
        with redis.Redis.from_url(as_user(server.url, *login)) as client:
            try:
                client.ping()
            except redis.AuthenticationError:
                return False
            return True

    def _start(self, folder: Path, template: str, rotator: str, valkey: OwnValkey) -> Any:
        users = folder / "users.acl"
        folder.mkdir()
        text = self._render(template, rotator)
        # The test's own access.
        users.write_text(text.replace("default off", "default on >administrator ~* &* +@all"))
        return valkey(folder / "data", password="administrator", settings={"aclfile": str(users)})

    def _render(self, template: str, rotator: str) -> str:
        done = subprocess.run(
            [sys.executable, AWS / "acl.py", DOCKER / template],
            input=self.document(rotator),
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout


class _Existing:
    """A client for an update of a stack, which keeps its secrets."""

    def __init__(self, client: Any, stack: Stack) -> None:
        self._client, self._stack = client, stack

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def delete_secret(self, **_: object) -> None:
        pass

    def create_secret(self, *, Name: str, SecretString: str) -> dict[str, str]:  # noqa: N803
        return {"ARN": self._stack.secrets[Name]}


@pytest.fixture
def installation(
    tmp_path: Path,
    secrets_manager: SecretsManager,
    own_valkey: OwnValkey,
    own_postgres: OwnPostgres,
) -> Installation:
    return Installation(tmp_path, secrets_manager, own_valkey, own_postgres)


def test_a_first_installation_gets_its_passwords_from_the_first_rotation(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = installation.stack.secrets.values()
    generated = {secret: installation.login(secret) for secret in secrets}
    for secret, login in generated.items():
        assert installation.accepts(secret, login) == ("/rotator/" in secret), secret

    installation.rotate_all()

    for secret, login in generated.items():
        assert installation.login(secret) != login
        assert installation.accepts(secret, installation.login(secret)), secret
    monkeypatch.setattr(kinds, "GRACE_TIMES", 0.0)
    monkeypatch.setattr(kinds, "READ_S", 0.0)
    installation.retire_all()
    for secret, login in generated.items():
        assert installation.accepts(secret, installation.login(secret)), secret
        assert not installation.accepts(secret, login), secret

    first = {secret: installation.login(secret) for secret in secrets}
    installation.rotate_all()
    for secret, login in first.items():
        assert installation.login(secret) != login
        assert installation.accepts(secret, login)
        assert installation.accepts(secret, installation.login(secret)), secret


def test_the_policies_allow_exactly_what_rotations_and_services_call(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = installation.stack
    calls = Calls(stack, monkeypatch)
    monkeypatch.setattr(kinds, "GRACE_TIMES", 0.0)
    monkeypatch.setattr(kinds, "READ_S", 0.0)
    installation.rotate_all()
    installation.retire_all()
    expected = allowed(stack, "RotationPolicy") | allowed(stack, "CountersRotationPolicy")
    assert calls.made == expected
    assert not allowed(stack, "RotationPolicy") & allowed(stack, "CountersRotationPolicy")

    for service in SERVICES[:-1]:  # Kong's secret is read by what starts it
        calls.made.clear()
        monkeypatch.setattr(credentials, "_stores", {})
        asyncio.run(connect(installation, service))
        assert calls.made == allowed(stack, f"{service.capitalize()}Policy"), service
    assert allowed(stack, "KongPolicy") == {
        ("secretsmanager:GetSecretValue", stack.secrets["scoreboard/production/kong/counters"])
    }


async def connect(installation: Installation, service: str) -> None:
    """Connect to the servers as a service does, with its settings."""
    prefix = f"scoreboard/production/{service}"
    variables = installation.stack.function("RotationFunction")["Environment"]["Variables"]
    settings = Settings(
        secrets="aws",
        redis_url=Secret(variables["REDIS_URL"]),
        database_url=Secret(variables["DATABASE_URL"]),
        redis_secret=f"{prefix}/redis",
        database_secret=f"{prefix}/database",
    )
    client = make_client(settings, name=service)
    try:
        assert await client.ping()
    finally:
        await client.aclose()
    connection = await pool.connect(settings, name=service)
    await connection.close()
