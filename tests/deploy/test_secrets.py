"""Secrets of the containers: after a reboot, after a rotation, after an upgrade, and when lost."""

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from psycopg import sql

from cli.embedded import binaries
from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedPostgres
from scoreboard.security.key_set import read_key_set
from tests.deploy.compose import PROFILES, ROOT, SERVICES, environment, load
from tests.deploy.test_first_start import connect, psql_environment, roles_script
from tests.support.eventually import eventually
from tests.support.servers.postgres_template import copy_postgres
from tests.support.servers.rights import load_script

DOCKER = ROOT / "deploy/docker"
SECRETS = "/var/lib/scoreboard/secrets"
STORED = "/var/lib/scoreboard/"
DATABASE_SERVICES = ("api", "streamer", "flusher", "operator", "rotator")
script: Any = load_script(DOCKER / "bootstrap.py")
oauth_key: Any = load_script(DOCKER / "oauth_key.py")


def volumes(service: str) -> dict[str, str]:
    """Give the target of each volume of a service, and its mode."""
    found = {}
    for line in SERVICES[service].get("volumes", []):
        source, target, *mode = line.split(":")
        if not source.startswith("."):
            found[target] = mode[0] if mode else "rw"
    return found


def files_read(service: str) -> set[str]:
    """Give the stored files that a service reads when it starts."""
    texts = [*environment(service).values(), *SERVICES[service].get("command", [])]
    mounted = [line.split(":")[0] for line in SERVICES[service].get("volumes", [])]
    texts += [(ROOT / name).read_text() for name in mounted if name.endswith(".conf")]
    found = re.findall(rf"{STORED}[\w./-]+", "\n".join(texts))
    return {path for path in found if path not in volumes(service)}


RESTARTED = sorted(name for name, s in SERVICES.items() if s["restart"] == "unless-stopped")


# After a reboot of the host ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the volumes as the one-shot services of a first start leave them."""
    root = tmp_path_factory.mktemp("stored")
    script.bootstrap(root / "secrets", DOCKER)
    (root / "config").mkdir()
    (root / "config/kong.yml").touch()  # by kong-render
    (root / "secrets/oauth").mkdir()
    oauth_key.configure(DOCKER / "oauth.json", root / "secrets/oauth/oauth.json")
    return root


@pytest.mark.parametrize("service", RESTARTED)
def test_a_restarted_container_needs_no_one_shot_service(service: str, stored: Path) -> None:
    for path in files_read(service):
        assert any(path.startswith(f"{target}/") for target in volumes(service)), path
        assert (stored / path.removeprefix(STORED)).is_file(), path


def test_the_files_that_are_read_are_found_by_the_test_above() -> None:
    assert {name: len(files_read(name)) for name in RESTARTED} == {
        "api": 2, "admin": 4, "streamer": 2, "flusher": 2, "kong": 2, "kong-sync": 2, "seed": 0,
        "valkey": 1, "valkey-counters": 1, "postgres": 1, "oauth": 1, "moto": 0,
        "prometheus": 0, "alertmanager": 0, "grafana": 0,
        "redis-exporter": 1, "postgres-exporter": 1,
    }  # fmt: skip


@pytest.mark.parametrize("service", RESTARTED)
def test_a_restarted_container_uses_no_service_of_a_profile(service: str) -> None:
    for name, value in environment(service).items():
        if not name.startswith("AWS_"):  # used with SCOREBOARD_SECRETS=aws
            assert not [other for other in PROFILES if f"//{other}:" in value], name
    if "SCOREBOARD_SECRETS" in environment(service):
        assert environment(service)["SCOREBOARD_SECRETS"] == "file"


def test_the_provider_keeps_its_key_and_takes_new_settings(tmp_path: Path) -> None:
    """It gives each key the same kid, so services would refuse the tokens of a new one."""
    template, output = tmp_path / "template.json", tmp_path / "oauth.json"
    template.write_text((DOCKER / "oauth.json").read_text())

    def key() -> str:
        return json.loads(output.read_text())["tokenProvider"]["keyProvider"]["initialKeys"]

    assert oauth_key.configure(template, output)
    first = key()
    assert json.loads(first)["kty"] == "RSA"
    assert "d" in json.loads(first)
    # What the provider publishes: it adds the kid, and removes the private members.
    private = {"d", "p", "q", "dp", "dq", "qi"}
    public = {name: value for name, value in json.loads(first).items() if name not in private}
    published = json.dumps({"keys": [public | {"kid": "scoreboard"}]})
    assert set(read_key_set(published.encode()).keys) == {"scoreboard"}
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    changed = json.loads(template.read_text()) | {"interactiveLogin": False}
    template.write_text(json.dumps(changed))
    assert not oauth_key.configure(template, output)
    assert key() == first
    assert json.loads(output.read_text())["interactiveLogin"] is False


# Who reads what ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "folders"),
    [
        ("api", {"api"}), ("admin", {"api", "operator"}), ("streamer", {"streamer"}),
        ("flusher", {"flusher"}), ("open", {"operator"}), ("kong", {"kong"}),
        ("kong-sync", {"kong"}), ("kong-render", set()),
        ("migrate", {"owner"}), ("postgres", {"postgres"}),
    ],
)  # fmt: skip
def test_a_service_mounts_its_own_secrets_read_only(service: str, folders: set[str]) -> None:
    found = {target: mode for target, mode in volumes(service).items() if SECRETS in target}
    assert found == {f"{SECRETS}/{folder}": "ro" for folder in folders}


def test_two_variables_switch_to_secrets_manager() -> None:
    services = load({"SCOREBOARD_SECRETS": "aws", "SECRETS_PREFIX": "a/b/"})["services"]
    assert services["api"]["environment"]["SCOREBOARD_SECRETS"] == "aws"
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            if variable.endswith("_SECRET") and name not in {"rotate-kong", "kong-sync"}:
                assert value.startswith("a/b/"), (name, variable)


def test_the_groups_of_the_servers_are_those_of_their_containers() -> None:
    for service, variable in (("valkey", "VALKEY_GROUP"), ("postgres", "POSTGRES_GROUP")):
        group = SERVICES[service]["user"].split(":")[1]
        assert environment("secrets")[variable] == group
        assert group in SERVICES["secrets"]["group_add"]
    assert SERVICES["valkey-counters"]["user"] == SERVICES["valkey"]["user"]


# The file of users ------------------------------------------------------------------------------


class Volumes:
    """The folders of the volumes, and processes with the users of the containers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.secrets, self.data = root / "secrets", root / "data"
        self.port = find_free_port()
        for folder in (root, self.secrets, self.data):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
        os.chown(self.secrets, 10001, 10001)
        os.chown(self.data, 999, 1000)
        # Where Python and Valkey are installed may be closed to other users.
        self._server = shutil.copy(binaries.find_valkey(), root)
        for name in ("valkey.conf", "users.acl", "counters.acl"):
            shutil.copy(DOCKER / name, root)

    def bootstrap(self) -> None:
        """Run the service `secrets` as its container does, without a capability."""
        groups = environment("secrets")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setgroups([int(group) for group in SERVICES["secrets"]["group_add"]])
                os.setgid(10001)
                os.setuid(10001)
                script.bootstrap(
                    self.secrets,
                    self.root,
                    valkey=int(groups["VALKEY_GROUP"]),
                    postgres=int(groups["POSTGRES_GROUP"]),
                )
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0

    def valkey(self, stack: ExitStack) -> None:
        """Start the board's Valkey as its container does."""
        process = subprocess.Popen(
            [
                self._server, str(self.root / "valkey.conf"), "--port", str(self.port),
                "--bind", "127.0.0.1", "--dir", str(self.data), "--logfile", str(self.data / "log"),
                "--aclfile", str(self.secrets / "valkey/users.acl"),
            ],
            user=999, group=1000, extra_groups=[], cwd=self.data,
        )  # fmt: skip
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        eventually(self._answers)

    def _answers(self) -> bool:
        try:
            return self.ping("health", "health")
        except redis.exceptions.ConnectionError:
            return False

    def ping(self, user: str, password: str) -> bool:
        with connect(self.port, username=user, password=password) as client:
            return bool(client.ping())

    def password(self, name: str) -> str:
        return json.loads((self.secrets / name).read_text())["password"]


@pytest.fixture
def as_containers() -> Iterator[Volumes]:
    if os.geteuid() != 0:
        pytest.skip("only root can start processes as the users of the containers")
    # pytest's own folders are closed to other users.
    root = Path(tempfile.mkdtemp(prefix="scoreboard-volumes-", dir="/tmp"))
    try:
        yield Volumes(root)
    finally:
        shutil.rmtree(root)


def test_a_rotated_password_survives_a_restart_of_valkey(as_containers: Volumes) -> None:
    as_containers.bootstrap()
    old, new = as_containers.password("api/redis"), "rotated"
    rotator = {"username": "rotator", "password": as_containers.password("rotator/redis")}
    with ExitStack() as stack:
        as_containers.valkey(stack)
        with connect(as_containers.port, **rotator) as client:
            rules = f"#{hashlib.sha256(new.encode()).hexdigest()}"
            client.execute_command("ACL", "SETUSER", "api", rules)
            client.execute_command("ACL", "SAVE")
    with ExitStack() as stack:
        as_containers.valkey(stack)
        assert as_containers.ping("api", old)
        assert as_containers.ping("api", new)
        with connect(as_containers.port, **rotator) as client:
            client.execute_command("ACL", "SETUSER", "api", "resetpass", rules)
            client.execute_command("ACL", "SAVE")
    with ExitStack() as stack:
        as_containers.valkey(stack)
        assert as_containers.ping("api", new)
        with pytest.raises(redis.exceptions.AuthenticationError):
            as_containers.ping("api", old)


def test_only_valkey_can_read_its_users(as_containers: Volumes) -> None:
    as_containers.bootstrap()
    path = as_containers.secrets / "valkey/users.acl"

    def can_read(user: int, group: int) -> bool:
        words = ["cat", str(path)]
        done = subprocess.run(
            words, user=user, group=group, extra_groups=[], capture_output=True, check=False
        )
        return done.returncode == 0

    assert can_read(999, 1000)
    assert not can_read(999, 999)  # PostgreSQL
    assert not can_read(65534, 65534)
    with ExitStack() as stack:
        as_containers.valkey(stack)
        password = as_containers.password("rotator/redis")
        with connect(as_containers.port, username="rotator", password=password) as client:
            client.execute_command("ACL", "SAVE")
    assert path.stat().st_uid == 999
    assert not can_read(65534, 65534)
    saved = path.read_text()
    as_containers.bootstrap()
    assert path.read_text() == saved


def test_postgresql_can_read_the_owners_password_and_no_other(as_containers: Volumes) -> None:
    as_containers.bootstrap()
    words = ["sh", "-c", f"cd {as_containers.secrets} && cat */* 2>/dev/null"]
    done = subprocess.run(
        words, user=999, group=999, extra_groups=[], capture_output=True, text=True, check=False
    )
    for path in as_containers.secrets.glob("*/*"):
        expected = str(path.relative_to(as_containers.secrets)) in {
            "postgres/owner",
            "kong/counters",  # mounted only by Kong, whose image chooses its user
        }
        assert (path.read_text() in done.stdout) is expected, path


def test_a_new_version_of_the_users_keeps_passwords(tmp_path: Path) -> None:
    template = (DOCKER / "users.acl").read_text()
    names = [name for name, kinds in script.LOGINS.items() if "redis" in kinds]
    passwords = dict.fromkeys(names, "first")
    assert script.write_acl(tmp_path, template, passwords, -1)
    path = tmp_path / "users.acl"
    rotated = script.hash_of("second")
    path.write_text(
        path.read_text().replace("user api on ", f"user api on sanitize-payload {rotated} ")
        + "user guest on nopass -@all +ping\n"
    )
    assert not script.write_acl(tmp_path, template, passwords, -1)

    assert script.write_acl(tmp_path, template.replace("+incr", "+incr +decr"), passwords, -1)

    users = script.users_in(path.read_text())
    assert script.passwords_in(users["api"]) == [rotated, script.hash_of("first")]
    assert " +incr +decr " in users["api"]
    assert users["guest"] == "user guest on nopass -@all +ping"


def test_a_lost_secret_is_accepted_by_valkey_again(tmp_path: Path) -> None:
    script.bootstrap(tmp_path, DOCKER)
    (tmp_path / "api/redis").unlink()

    assert script.bootstrap(tmp_path, DOCKER) == ["api/redis", "valkey/users.acl"]

    password = json.loads((tmp_path / "api/redis").read_text())["password"]
    users = script.users_in((tmp_path / "valkey/users.acl").read_text())
    assert script.hash_of(password) in script.passwords_in(users["api"])


def test_a_lost_secret_of_the_exporter_is_replaced_in_its_file_too(tmp_path: Path) -> None:
    script.bootstrap(tmp_path, DOCKER)
    (tmp_path / "monitor/redis").unlink()

    written = script.bootstrap(tmp_path, DOCKER)

    assert written == ["monitor/redis", "monitor/redis.json", "valkey/users.acl"]
    password = json.loads((tmp_path / "monitor/redis").read_text())["password"]
    found = json.loads((tmp_path / "monitor/redis.json").read_text())
    assert set(found.values()) == {password}


def test_a_bootstrap_that_was_killed_is_completed(tmp_path: Path) -> None:
    names = script.bootstrap(tmp_path / "whole", DOCKER)
    for count in range(len(names)):
        root = tmp_path / str(count)
        script.bootstrap(root, DOCKER)
        kept = {name: (root / name).read_text() for name in names[:count]}
        for name in names[count:]:
            (root / name).unlink()

        assert script.bootstrap(root, DOCKER)[-1] == names[-1]

        for name, text in kept.items():
            assert (root / name).read_text() == text, name
        pgpass = (root / "owner/pgpass").read_text().strip()
        assert pgpass.endswith(":" + (root / "postgres/owner").read_text())


# PostgreSQL's volume ----------------------------------------------------------------------------

OLD_ROLES = """
CREATE ROLE scoreboard_api NOLOGIN;
CREATE ROLE scoreboard_flusher NOLOGIN;
CREATE ROLE scoreboard_operator NOLOGIN;
CREATE ROLE scoreboard_api_a LOGIN PASSWORD 'old-api' IN ROLE scoreboard_api;
CREATE ROLE scoreboard_api_b LOGIN IN ROLE scoreboard_api;
CREATE ROLE scoreboard_flusher_a LOGIN PASSWORD 'old-flusher' IN ROLE scoreboard_flusher;
CREATE ROLE scoreboard_flusher_b LOGIN IN ROLE scoreboard_flusher;
CREATE ROLE scoreboard_operator_a LOGIN PASSWORD 'old-operator' IN ROLE scoreboard_operator;
CREATE ROLE scoreboard_operator_b LOGIN IN ROLE scoreboard_operator;
"""


def write_old_layout(root: Path) -> None:
    """Write the files of the version before secrets were files of services."""
    for name in ("valkey", "counters", "postgres", "owner", "kong", "seed"):
        (root / name).mkdir(parents=True)
    for name in ("api", "flusher", "operator", "owner"):
        (root / "postgres" / name).write_text(f"old-{name}")
    (root / "owner/pgpass").write_text("*:*:scoreboard:scoreboard_owner:old-owner\n")
    (root / "owner/pgpass").chmod(0o600)
    (root / "kong/redis-password").write_text("old-kong")
    prefix = "scoreboard/development"
    documents = {
        f"{prefix}/redis-{name}": {"username": name, "password": f"old-{name}"}
        for name in ("api", "streamer", "flusher", "operator")
    } | {
        f"{prefix}/database-{name}": {
            "username": f"scoreboard_{name}_a",
            "password": f"old-{name}",
        }
        for name in ("api", "flusher", "operator")
    }
    (root / "seed/secrets.json").write_text(json.dumps(documents))
    users = "".join(
        f"user {name} on >old-{name} ~sb:* -@all +ping\n"
        for name in ("api", "streamer", "flusher", "operator")
    )
    (root / "valkey/users.acl").write_text("user default off\n" + users)
    (root / "counters/users.acl").write_text("user kong on >old-kong -@all +ping\n")


NEW = {"rotator", "monitor", "replica", "cluster", "streamer/database"}
"""What that version did not have."""


def test_an_upgrade_takes_passwords_over(tmp_path: Path) -> None:
    write_old_layout(tmp_path)
    environ = {"SECRETS_ROOT": str(tmp_path), "PATH": os.environ["PATH"]}
    words = [sys.executable, str(DOCKER / "bootstrap.py")]

    first = subprocess.run(words, env=environ, capture_output=True, text=True, check=True)

    def password(name: str) -> str:
        return json.loads((tmp_path / name).read_text())["password"]

    for service, kinds in script.LOGINS.items():
        for kind in kinds:
            found = password(f"{service}/{kind}")
            is_new = bool(NEW & {service, f"{service}/{kind}"})
            assert (found == f"old-{service}") is not is_new, service
    for folder, kind in (("valkey", "redis"), ("counters", "counters")):
        for name, line in script.users_in((tmp_path / folder / "users.acl").read_text()).items():
            if name not in {"default", "health"}:
                assert script.passwords_in(line) == [script.hash_of(password(f"{name}/{kind}"))]
    assert (tmp_path / "postgres/owner").read_text() == "old-owner"
    assert "seed/secrets.json" in first.stderr
    assert (tmp_path / "seed/secrets.json").exists()

    subprocess.run([*words, "--remove-old"], env=environ, capture_output=True, check=True)

    assert not [name for name in script.OLD_FILES if (tmp_path / name).exists()]
    again = subprocess.run(words, env=environ, capture_output=True, text=True, check=True)
    assert again.stderr == "nothing to write\n"
    assert stat.S_IMODE((tmp_path / "api/redis").stat().st_mode) == 0o600


class Database:
    """PostgreSQL with a data volume, and the service `roles`."""

    def __init__(self, folder: Path, postgres: EmbeddedPostgres) -> None:
        self.folder, self.secrets, self.postgres = folder, folder / "secrets", postgres

    def create_owner(self, password: str, roles: str = "") -> None:
        """Do what PostgreSQL's image does on an empty volume."""
        with psycopg.connect(self.postgres.url_of("postgres"), autocommit=True) as connection:
            role = "CREATE ROLE scoreboard_owner SUPERUSER LOGIN PASSWORD {}"
            connection.execute(sql.SQL(role).format(password))
            connection.execute("DROP DATABASE IF EXISTS scoreboard")
            connection.execute("CREATE DATABASE scoreboard OWNER scoreboard_owner")
            connection.execute(roles.encode() or b"SELECT")

    def roles(self) -> subprocess.CompletedProcess[str]:
        """Run the service `roles`."""
        login = {
            "DATABASE_URL": f"postgresql://scoreboard_owner@127.0.0.1:{self.postgres.port}/scoreboard",
            "PGPASSFILE": str(self.secrets / "owner/pgpass"),
        }
        return subprocess.run(
            ["sh", str(roles_script(self.folder, self.secrets))],
            env=psql_environment(login), capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def verifiers(self) -> dict[str, str | None]:
        """Give what PostgreSQL has stored of each password."""
        with psycopg.connect(self.postgres.url_of("postgres")) as connection:
            query = (
                "SELECT rolname, rolpassword FROM pg_authid WHERE rolname ~ '^scoreboard_.*_[ab]$'"
            )
            return dict(connection.execute(query.encode()).fetchall())

    def can_log_in(self, name: str) -> bool:
        """Tell whether a secret is a login."""
        login = json.loads((self.secrets / name).read_text())
        try:
            psycopg.connect(
                host="127.0.0.1", port=self.postgres.port, dbname="scoreboard",
                user=login["username"], password=login["password"],
            ).close()  # fmt: skip
        except psycopg.OperationalError:
            return False
        return True


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with EmbeddedPostgres(copy_postgres(tmp_path / "postgres"), fsync=False) as postgres:
        yield Database(tmp_path, postgres)


def test_an_upgrade_adds_what_postgresql_lacks_and_changes_no_password(database: Database) -> None:
    write_old_layout(database.secrets)
    database.create_owner("old-owner", OLD_ROLES)
    before = database.verifiers()
    script.bootstrap(database.secrets, DOCKER)

    done = database.roles()

    assert done.returncode == 0, done.stderr
    after = database.verifiers()
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        f"scoreboard_{role}_{letter}" for role in ("rotator", "streamer") for letter in "ab"
    }
    for service in DATABASE_SERVICES:
        assert database.can_log_in(f"{service}/database"), service
    assert database.roles().returncode == 0
    assert database.verifiers() == after


def test_a_new_database_takes_the_logins_that_are_in_use(database: Database) -> None:
    script.bootstrap(database.secrets, DOCKER)
    rotated = {"username": "scoreboard_api_b", "password": "rotated"}
    (database.secrets / "api/database").write_text(json.dumps(rotated))
    database.create_owner((database.secrets / "postgres/owner").read_text())

    assert database.roles().returncode == 0

    assert database.can_log_in("api/database")
    assert database.verifiers()["scoreboard_api_a"] is None


def test_a_login_without_a_password_gets_that_of_a_later_secret(database: Database) -> None:
    script.bootstrap(database.secrets, DOCKER)
    database.create_owner((database.secrets / "postgres/owner").read_text())
    document = (database.secrets / "streamer/database").read_text()
    (database.secrets / "streamer/database").write_text("{}")
    database.roles()
    before = database.verifiers()
    assert before["scoreboard_streamer_a"] is None

    (database.secrets / "streamer/database").write_text(document)

    assert database.roles().returncode == 0
    assert database.can_log_in("streamer/database")
    after = database.verifiers()
    assert {name for name in after if after[name] != before[name]} == {"scoreboard_streamer_a"}


def test_lost_secrets_of_an_existing_database_are_reported(database: Database) -> None:
    database.create_owner("of the lost volume", OLD_ROLES)
    before = database.verifiers()
    script.bootstrap(database.secrets, DOCKER)

    done = database.roles()

    assert done.returncode == 1
    assert "PostgreSQL refuses scoreboard_owner" in done.stderr
    assert database.verifiers() == before


def test_a_lost_secret_of_a_service_is_reported(database: Database) -> None:
    script.bootstrap(database.secrets, DOCKER)
    database.create_owner((database.secrets / "postgres/owner").read_text())
    assert database.roles().returncode == 0
    (database.secrets / "flusher/database").unlink()
    script.bootstrap(database.secrets, DOCKER)
    before = database.verifiers()

    done = database.roles()

    assert done.returncode == 1
    assert "refuses scoreboard_flusher_a with the password of the volume secrets-flusher" in (
        done.stderr
    )
    assert "secrets-api" not in done.stderr
    assert database.verifiers() == before
    password = json.loads((database.secrets / "flusher/database").read_text())["password"]
    assert password not in done.stdout + done.stderr
