"""The units of deploy/systemd: what they say, and that a real systemd runs them.

The second part starts a systemd of its own in namespaces (tests/support/servers/machine.py), with
the restrictions of the units in force. It needs root.
"""

import itertools
import json
import os
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from websockets.sync.client import connect as connect_viewer

from api.server import RESERVED_FILES as API_FILES
from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedPostgres, EmbeddedValkey
from scoreboard.runtime.settings import PREFIX, Settings, describe, load
from scoreboard.runtime.workers import SUPERVISOR_EXTRA_GRACE_S
from scoreboard.security.tokens import ADMIN as ADMIN_SCOPE
from scoreboard.security.tokens import LOCAL_ISSUER, READ, UPDATE, LocalIssuer
from streamer.handshake.listener import RESERVED_FILES as STREAMER_FILES
from streamer.server import grace_s as streamer_grace_s
from tests.kong.admin import fake_admin
from tests.support.eventually import eventually
from tests.support.monitoring import program
from tests.support.repository import ROOT
from tests.support.servers.machine import Machine, missing
from tests.support.servers.postgres_template import copy_postgres
from tests.support.servers.rights import make_roles, make_users
from tests.support.servers.system import make_valkey_with_acl_file

SYSTEMD = ROOT / "deploy/systemd"
UNITS = SYSTEMD / "units"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
TEMPLATES = ("api", "streamer", "flusher")
ADMIN = "scoreboard-admin.service"
EXPOSURE_MAX = 2.0
"""Of 10; systemd calls less than 2 "OK" or "SAFE"."""


# What the units say -----------------------------------------------------------------------------


def lines_of(unit: str) -> list[tuple[str, str]]:
    """Return the assignments of a unit, in order."""
    text = (UNITS / unit).read_text().replace("\\\n", " ")
    return [
        (name, value.strip())
        for line in text.splitlines()
        if line and line[0] not in "#["
        for name, _, value in [line.partition("=")]
    ]


def value_of(unit: str, name: str) -> str:
    return next(value for key, value in lines_of(unit) if key == name)


def variables_of(unit: str, instance: str = "1") -> dict[str, str]:
    """Return the environment that a unit sets itself."""
    return {
        name: value.replace("%i", instance)
        for key, line in lines_of(unit)
        if key == "Environment"
        for name, _, value in (word.partition("=") for word in line.split())
    }


def example(name: str) -> dict[str, str]:
    """Return the variables of an example file."""
    rows = (SYSTEMD / "etc" / name).read_text().splitlines()
    pairs = (row.partition("=") for row in rows if row and not row.startswith("#"))
    return {name: value for name, _, value in pairs}


def settings_of(service: str) -> Settings:
    """Return the settings of a service with the example file."""
    return load({**variables_of(f"scoreboard-{service}@.service"), **example("scoreboard.env")})


def seconds(text: str) -> float:
    return float(re.fullmatch(r"(\d+)", text)[1])  # type: ignore[index]


@pytest.mark.parametrize("unit", SERVICES)
def test_each_setting_of_a_unit_exists(unit: str) -> None:
    known = {variable for variable, _, _ in describe()}
    named = set(variables_of(unit)) | {
        name for path in (SYSTEMD / "etc").glob("*.env") for name in example(path.name)
    }
    assert {name for name in named if name.startswith(PREFIX)} <= known


@pytest.mark.parametrize("service", TEMPLATES)
def test_the_example_file_and_the_unit_are_valid_settings(service: str) -> None:
    settings = settings_of(service)
    assert settings.secrets == "file"
    assert f"/{service}/" in settings.redis_secret


def test_the_files_do_not_override_what_the_units_set() -> None:
    for service in TEMPLATES:
        assert not set(variables_of(f"scoreboard-{service}@.service")) & set(
            example("scoreboard.env")
        )


def test_the_unit_of_administrators_differs_by_user_logins_and_ports() -> None:
    api, admin = dict(lines_of("scoreboard-api@.service")), dict(lines_of(ADMIN))
    differs = {"Description", "User", "Group", "Environment", "EnvironmentFile", "PrivateUsers"}
    assert {name for name in api if admin.get(name) != api[name]} == differs
    own, public = variables_of(ADMIN), variables_of("scoreboard-api@.service")
    assert {name: value for name, value in own.items() if public.get(name) != value} == {
        "SCOREBOARD_API_PORT": "8301",
        "SCOREBOARD_API_METRICS_PORT": "9141",
        "SCOREBOARD_ADMIN_API": "true",
        "SCOREBOARD_ADMIN_REDIS_SECRET": "/var/lib/scoreboard/secrets/operator/redis",
        "SCOREBOARD_ADMIN_DATABASE_SECRET": "/var/lib/scoreboard/secrets/operator/database",
    }
    assert load({**own, **example("scoreboard.env")}).admin_api
    assert not set(own) & set(example("scoreboard.env"))
    groups = re.findall(
        r"^m scoreboard-admin (\S+)$",
        (SYSTEMD / "scoreboard.sysusers").read_text(),
        re.MULTILINE,
    )
    assert groups == ["scoreboard-api", "scoreboard-operator"]


def test_no_two_processes_of_a_host_have_one_port() -> None:
    ports = [
        value
        for service in TEMPLATES
        for instance in "123456789"
        for name, value in variables_of(f"scoreboard-{service}@.service", instance).items()
        if name.endswith("_PORT")
    ]
    ports += [value for name, value in variables_of(ADMIN).items() if name.endswith("_PORT")]
    assert len(ports) == len(set(ports)) == 5 * 9 + 2
    assert not any(port.startswith("9103") for port in ports)  # kong sync


def test_a_process_has_time_to_stop_and_files_for_its_clients() -> None:
    needed_s = {
        "api": settings_of("api").drain_s + SUPERVISOR_EXTRA_GRACE_S,
        "streamer": streamer_grace_s(settings_of("streamer")) + SUPERVISOR_EXTRA_GRACE_S,
        "flusher": settings_of("flusher").drain_s,
    }
    for service, longest_s in needed_s.items():
        stop_s = seconds(value_of(f"scoreboard-{service}@.service", "TimeoutStopSec"))
        assert stop_s > longest_s + 2, service
    files = int(value_of("scoreboard-api@.service", "LimitNOFILE"))
    assert files >= settings_of("api").connections + API_FILES
    files = int(value_of("scoreboard-streamer@.service", "LimitNOFILE"))
    viewers = settings_of("streamer")
    assert files >= viewers.viewers + viewers.handshakes + STREAMER_FILES


def test_the_limits_are_those_of_the_capacity_page() -> None:
    page = (ROOT / "docs/how-to/capacity.md").read_text()
    for service, name in (
        ("api@", "api"),
        ("streamer@", "streamer with `SCOREBOARD_VIEWERS=5000`"),
        ("flusher@", "flusher"),
        ("kong-sync", "`kong sync`"),
        ("migrate", "`db migrate`, `secrets rotate`"),
        ("rotate@", "`db migrate`, `secrets rotate`"),
    ):
        limit = value_of(f"scoreboard-{service}.service", "MemoryMax").removesuffix("M")
        assert f"\n| {name} | {limit} MiB |" in page, service


@pytest.mark.parametrize("unit", SERVICES)
def test_a_unit_is_hardened(unit: str) -> None:
    done = subprocess.run(
        [
            *(program("systemd-analyze"), "security", "--offline=yes", "--no-pager"),
            *(f"--threshold={EXPOSURE_MAX * 10:.0f}", str(UNITS / unit)),
        ],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{UNITS}:"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-400:] + done.stderr


# A real systemd ---------------------------------------------------------------------------------

PASSWORD = "first"
GROUPS = {"api": 2, "streamer": 2, "flusher": 2, "operator": 2, "rotator": 2}
"""Owners of secrets, and how many they have: of Redis, and of PostgreSQL."""


class Host:
    """A host with the units installed; Valkey and PostgreSQL run outside."""

    def __init__(self, folder: Path) -> None:
        self.valkey: EmbeddedValkey = make_valkey_with_acl_file(folder)
        self.postgres = EmbeddedPostgres(copy_postgres(folder / "postgres"), fsync=False)
        self.issuer = LocalIssuer.create(folder / "issuer")
        self.seed = folder / "seed"
        self.machine = Machine(self.seed)
        self.ports = {
            (name, instance): find_free_port()
            for name in ("api", "streamer", "flusher")
            for instance in "12"
        }
        self.probes = {key: find_free_port() for key in self.ports}
        self.admin_port = 0

    def start(self) -> None:
        self.valkey.start()
        self.postgres.start()
        with redis.Redis.from_url(self.valkey.url) as admin:
            make_users(admin, PASSWORD)
            admin.execute_command("ACL", "SAVE")
        make_roles(self.postgres.url, PASSWORD)
        self._write_files()
        self.machine.start()
        self.must("/opt/source/deploy/systemd/install.sh")
        self.start_unit("scoreboard-migrate.service")
        self.operate("scoreboard board create main --if-missing")
        self.operate("scoreboard reseed --if-uninitialised")
        units = [f"scoreboard-{name}@{number}.service" for name, number in self.ports]
        self.must("systemctl", "enable", "--quiet", *units)
        self.must("systemctl", "start", "scoreboard.target")
        for key in self.probes:
            eventually(lambda key=key: self.is_ready(*key), within_s=60)

    def stop(self) -> None:
        self.machine.stop()
        self.valkey.stop()
        self.postgres.stop()

    def start_administration(self) -> None:
        """Enable and start the unit of administrators, on free ports."""
        self.admin_port, self.probes["admin", ""] = find_free_port(), find_free_port()
        lines = (
            f"SCOREBOARD_API_PORT={self.admin_port}\n"
            f"SCOREBOARD_API_METRICS_PORT={self.probes['admin', '']}\n"
        )
        self.must("sh", "-c", f"umask 027 && printf '{lines}' > /etc/scoreboard/admin.env")
        self.must("systemctl", "enable", "--quiet", ADMIN)
        self.start_unit(ADMIN)
        eventually(lambda: self.is_ready("admin", ""), within_s=60)

    def must(self, *words: str) -> str:
        done = self.machine.run(*words)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def start_unit(self, unit: str) -> None:
        done = self.machine.systemctl("start", unit)
        assert done.returncode == 0, self.machine.journal(unit)

    def operate(self, command: str) -> str:
        """Run a function of operate.sh."""
        return self.must("sh", "-c", f". /opt/source/deploy/systemd/operate.sh && {command}")

    def is_ready(self, service: str, instance: str) -> bool:
        port = self.probes[service, instance]
        try:
            address = f"http://127.0.0.1:{port}/health/ready"
            with urllib.request.urlopen(address, timeout=5) as response:
                return response.status == 200
        except OSError:
            return False

    def update(
        self, user: str, action: str, instance: str = "1", *, address: str = ""
    ) -> dict[str, Any]:
        address = address or f"127.0.0.1:{self.ports['api', instance]}"
        request = urllib.request.Request(
            f"http://{address}/api/scores/update",
            json.dumps({"userId": user, "actionId": action}).encode(),
            {
                "Content-Type": "application/json",
                "Authorization": f"Bearer {self.issuer.issue(user, (UPDATE, READ))}",
            },
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def counted(self) -> int:
        with psycopg.connect(self.postgres.url) as connection:
            row = connection.execute("SELECT count(*) FROM score_events").fetchone()
        assert row is not None
        return row[0]

    def _write_files(self) -> None:
        etc = self.seed / "etc"
        (etc / "scoreboard").mkdir(parents=True)
        server = self.postgres
        database = f"127.0.0.1:{server.port}/{server.database}"
        common = example("scoreboard.env") | {
            "REDIS_URL": f"redis://127.0.0.1:{self.valkey.port}/0",
            # Two parameters: `&` has a meaning in a shell, and none in the file.
            "DATABASE_URL": f"postgresql://{database}?connect_timeout=9&keepalives=1",
            "SCOREBOARD_ENVIRONMENT": "development",
            "SCOREBOARD_ISSUER": LOCAL_ISSUER,
            "SCOREBOARD_JWKS_URL": "",
            "SCOREBOARD_JWKS_FILE": "/var/lib/scoreboard/jwks.json",
            "SCOREBOARD_UNKNOWN_KINDS": "default",
            "SCOREBOARD_SECRETS_REFRESH_S": "1",
            "ROTATE_OPTIONS": "--grace 3",
        }
        self._write_env("scoreboard.env", common)
        self._write_env("migrate.env", {"DATABASE_URL": f"postgresql://{server.user}@{database}"})
        pgpass = f"127.0.0.1:{server.port}:{server.database}:{server.user}:{server.password}\n"
        (etc / "scoreboard/owner.pgpass").write_text(pgpass)
        (etc / "scoreboard/owner.pgpass").chmod(0o600)
        # The units' ports may be in use on this machine.
        names = {"api": "API", "streamer": "WS", "flusher": "FLUSHER"}
        for (service, instance), port in self.ports.items():
            ports = {f"SCOREBOARD_{names[service]}_METRICS_PORT": self.probes[service, instance]}
            if service != "flusher":
                ports[f"SCOREBOARD_{names[service]}_PORT"] = port
            folder = etc / f"systemd/system/scoreboard-{service}@{instance}.service.d"
            folder.mkdir(parents=True)
            (folder / "test.conf").write_text(
                f"[Service]\nEnvironmentFile=/etc/scoreboard/{service}-{instance}.env\n"
            )
            self._write_env(f"{service}-{instance}.env", ports)
        state = self.seed / "var/lib/scoreboard"
        state.mkdir(parents=True)
        shutil.copy(self.issuer.jwks_file, state / "jwks.json")
        (state / "jwks.json").chmod(0o644)
        path = state / "secrets/kong/counters"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"username": "kong", "password": PASSWORD}))
        for owner, kinds in GROUPS.items():
            for kind in ("redis", "database")[:kinds]:
                name = owner if kind == "redis" else f"scoreboard_{owner}_a"
                path = state / "secrets" / owner / kind
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"username": name, "password": PASSWORD}))
                path.chmod(0o600)

    def _write_env(self, name: str, variables: dict[str, Any]) -> None:
        path = self.seed / "etc/scoreboard" / name
        path.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        path.chmod(0o640)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    program("systemd-analyze")
    if reason := missing():
        pytest.skip(f"NOT RUN: {reason}")
    made = Host(tmp_path_factory.mktemp("host"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


def main_processes(host: Host) -> dict[str, str]:
    units = {name: f"scoreboard-{name}@1.service" for name in TEMPLATES}
    return {name: host.machine.show(unit, "MainPID") for name, unit in units.items()}


def test_systemd_finds_nothing_wrong_with_the_units(host: Host) -> None:
    folder = "/etc/systemd/system"
    files = [path.name for path in UNITS.iterdir() if path.is_file()]
    names = [name.replace("@.", "@1.") for name in files]
    done = host.machine.run(
        *("systemd-analyze", "verify", "--man=no", "--recursive-errors=no"),
        *(f"{folder}/{name}" for name in sorted(names)),
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_an_update_reaches_viewers_and_the_ledger(host: Host) -> None:
    before = host.counted()
    headers = {"Authorization": f"Bearer {host.issuer.issue('viewer', (READ,))}"}
    address = f"ws://127.0.0.1:{host.ports['streamer', '2']}/ws/scoreboard"
    with connect_viewer(address, additional_headers=headers) as viewer:
        assert host.update("alice", "win:1", "1")["replayed"] is False
        assert host.update("alice", "win:1", "2")["replayed"] is True
        eventually(lambda: "alice" in str(viewer.recv(timeout=30)), within_s=30)
    eventually(lambda: host.counted() == before + 1)
    host.operate("scoreboard verify --full")


@pytest.mark.parametrize("service", TEMPLATES)
def test_a_process_is_confined(host: Host, service: str) -> None:
    unit = f"scoreboard-{service}@1.service"
    pid = host.machine.show(unit, "MainPID")
    status = host.must("cat", f"/proc/{pid}/status")
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert (facts["NoNewPrivs"], facts["Seccomp"], facts["CapBnd"]) == ("1", "2", "0" * 16)
    assert facts["Uid"].split()[0] != "0"
    limits = host.must("cat", f"/proc/{pid}/limits")
    assert re.search(r"Max core file size +0 +0 ", limits)
    files = value_of(f"scoreboard-{service}@.service", "LimitNOFILE")
    assert re.search(rf"Max open files +{files} +{files} ", limits)
    inside = ("nsenter", "--target", pid, "-m", "--", "test", "-r")
    assert host.machine.run(*inside, "/etc/scoreboard/scoreboard.env").returncode != 0
    assert host.machine.run(*inside, "/root/.profile").returncode != 0
    other = "streamer" if service == "api" else "api"
    secret = f"/var/lib/scoreboard/secrets/{other}/redis"
    as_user = ("runuser", "-u", f"scoreboard-{service}", "--", "cat", secret)
    assert host.machine.run(*as_user).returncode != 0
    assert "password" not in host.machine.journal(unit)


def test_a_repeated_installation_changes_no_file_outside_of_the_secrets(host: Host) -> None:
    """The rotation owns the folders, so it could let root change any file by a link."""
    secret, link = "/var/lib/scoreboard/secrets/api/redis", "/var/lib/scoreboard/secrets/api/link"
    host.must("install", "-m", "600", "/dev/null", "/etc/private")
    host.must("runuser", "-u", "scoreboard-rotator", "--", "ln", "-s", "/etc/private", link)
    host.must("chown", "root:root", secret)
    try:
        host.must("/opt/source/deploy/systemd/install.sh")
    finally:
        host.must("rm", link)
    assert host.must("stat", "-c", "%U:%G %a", "/etc/private") == "root:root 600\n"
    assert host.must("stat", "-c", "%U:%G %a", secret) == "scoreboard-rotator:scoreboard-api 640\n"


@pytest.fixture(scope="module")
def administration(host: Host) -> Host:
    """Return the host with an api for administrators."""
    host.start_administration()
    return host


def test_only_the_unit_of_administrators_serves_them(administration: Host, balancer: str) -> None:
    host = administration
    token = host.issuer.issue("anna", (ADMIN_SCOPE,))
    act = {
        "kind": "correct",
        "board": "main",
        "userId": "alice",
        "delta": 5,
        "reason": "test",
        "id": "0123456789abcdef",
    }

    def ask(address: str) -> int:
        request = urllib.request.Request(
            f"http://{address}/api/admin/acts",
            json.dumps(act).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert ask(f"127.0.0.1:{host.ports['api', '1']}") == 404
    assert ask(balancer) == 200
    assert "sub:anna" in host.operate("scoreboard audit list --json")
    for name, expected in (("operator", 0), ("api", 0), ("flusher", 1), ("rotator", 1)):
        secret = f"/var/lib/scoreboard/secrets/{name}/redis"
        done = host.machine.run("runuser", "-u", "scoreboard-admin", "--", "cat", secret)
        assert done.returncode == expected, name
    for service in TEMPLATES:
        secret = "/var/lib/scoreboard/secrets/operator/redis"
        done = host.machine.run("runuser", "-u", f"scoreboard-{service}", "--", "cat", secret)
        assert done.returncode != 0, service
    # The page has its files at once; who asks on and on is refused, and players are not.
    assert all(answers(f"http://{balancer}/admin", 200) for _ in range(30))
    assert any(answers(f"http://{balancer}/admin", 429) for _ in range(500))
    assert answers(f"http://{balancer}/api/scores/leaderboard", 200)
    assert "password" not in host.machine.journal(ADMIN)
    host.operate("restart admin")


@pytest.fixture
def balancer(host: Host, tmp_path: Path) -> Iterator[str]:
    """Run nginx with the example configuration, without TLS; return its address."""
    port = find_free_port()
    text = (SYSTEMD / "nginx.conf").read_text()
    if host.admin_port:
        lines = r"^    # (location ~|    proxy_|    limit_|\})"
        text = re.sub(lines, r"    \1", text, flags=re.MULTILINE)
        text = text.replace("127.0.0.1:8301;", f"127.0.0.1:{host.admin_port};")
    for line in ("ssl_certificate ", "ssl_certificate_key "):
        text = re.sub(rf"\n *{line}.*", "", text)
    text = text.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    for service, unit_port in (("api", "810"), ("streamer", "820")):
        for instance in "12":
            text = text.replace(
                f"127.0.0.1:{unit_port}{instance} ", f"127.0.0.1:{host.ports[service, instance]} "
            )
    assert not re.search(r":8[12]0\d", text)
    temporary = "".join(
        f"{name}_temp_path {tmp_path}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log;"
        f"events {{}} http {{ {temporary}\n{text}\n}}"
    )
    command = [program("nginx"), "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    with subprocess.Popen(command) as nginx:
        try:
            eventually(lambda: answers(f"http://127.0.0.1:{port}/health/live", 404))
            yield f"127.0.0.1:{port}"
        finally:
            nginx.terminate()


def answers(address: str, status: int) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return response.status == status
    except urllib.error.HTTPError as error:
        with error:
            return error.code == status
    except OSError:
        return False


def test_no_request_fails_while_each_process_is_restarted(host: Host, balancer: str) -> None:
    before = main_processes(host)
    stop = threading.Event()
    failed: list[str] = []
    sent = itertools.count()

    def play() -> None:
        while not stop.is_set():
            number = next(sent)
            try:
                host.update(f"player-{number}", "win:1", address=balancer)
            except OSError as error:
                failed.append(repr(error))

    with ThreadPoolExecutor(3) as threads:
        players = [threads.submit(play) for _ in range(3)]
        try:
            host.operate("restart api")
            host.operate("restart flusher")
        finally:
            stop.set()
        for player in players:
            player.result(60)
    assert failed == []
    count = next(sent)
    assert count > 10
    after = main_processes(host)
    assert after["api"] != before["api"]
    assert after["flusher"] != before["flusher"]
    for instance in "12":
        unit = f"scoreboard-api@{instance}.service"
        assert host.machine.show(unit, "NRestarts") == "0"
        assert host.machine.show(unit, "Result") == "success"
        assert '"http.response.status_code": 500' not in host.machine.journal(unit)
    host.operate("scoreboard verify --full")


def test_viewers_connect_through_the_balancer(host: Host, balancer: str) -> None:
    headers = {"Authorization": f"Bearer {host.issuer.issue('viewer', (READ,))}"}
    with connect_viewer(f"ws://{balancer}/ws/scoreboard", additional_headers=headers) as viewer:
        assert "leaderboard" in str(viewer.recv(timeout=30))


def test_the_functions_for_operators_work(host: Host) -> None:
    assert "scoreboard-api@1.service" in host.operate("state")
    assert host.operate("health streamer").count('"status":"ready"') == 2
    assert host.operate("ready flusher").count('"status":"ready"') == 2
    assert "scoreboard_redis_durable 1.0" in host.operate("metrics api redis_durable")
    assert "api_listening" in host.operate("logs api 200")
    warnings = host.operate("warnings flusher")
    assert "database_fsync_off" in warnings
    assert "Starting" not in warnings
    assert "api/redis" in host.operate("secrets status redis")


def test_commands_read_the_settings_of_their_own_login(host: Host) -> None:
    """With AWS Secrets Manager these are the names of the secrets."""
    file = "/etc/scoreboard/operator.env"
    host.must("sh", "-c", f"echo 'SCOREBOARD_REDIS_SECRET=\"/missing/redis\"' > {file}")
    try:
        operate = ". /opt/source/deploy/systemd/operate.sh && scoreboard status"
        done = host.machine.run("sh", "-c", operate)
    finally:
        host.must("rm", file)
    assert done.returncode != 0
    assert "/missing/redis" in done.stdout + done.stderr


def wait_for_another_process(host: Host, unit: str, before: str) -> None:
    eventually(
        lambda: (
            host.machine.show(unit, "MainPID") not in {before, "0"}
            and host.machine.show(unit, "ActiveState") == "active"
        ),
        within_s=60,
    )


@pytest.mark.parametrize("service", TEMPLATES)
def test_a_killed_process_is_restarted(host: Host, service: str) -> None:
    unit = f"scoreboard-{service}@1.service"
    before = host.machine.show(unit, "MainPID")
    host.must("systemctl", "kill", "--signal=KILL", unit)
    wait_for_another_process(host, unit, before)
    assert host.machine.show(unit, "NRestarts") == "1"
    eventually(lambda: host.is_ready(service, "1"), within_s=60)


def test_a_process_that_hangs_is_restarted_by_the_watchdog(host: Host) -> None:
    unit = "scoreboard-streamer@2.service"
    folder = f"/run/systemd/system/{unit}.d"
    host.must("mkdir", "-p", folder)
    host.must("sh", "-c", f"printf '[Service]\\nWatchdogSec=2\\n' > {folder}/watchdog.conf")
    host.must("systemctl", "daemon-reload")
    host.must("systemctl", "restart", unit)
    before = host.machine.show(unit, "MainPID")
    host.must("systemctl", "kill", "--signal=STOP", unit)
    wait_for_another_process(host, unit, before)
    assert "atchdog" in host.must("journalctl", "--no-pager", "--unit", unit)


def test_secrets_are_rotated_without_a_restart(host: Host) -> None:
    secret = "/var/lib/scoreboard/secrets/flusher/database"
    pids = main_processes(host)
    for kind in ("db", "redis"):
        host.start_unit(f"scoreboard-rotate@{kind}.service")
    assert json.loads(host.must("cat", secret))["username"] == "scoreboard_flusher_b"
    facts = host.must("stat", "--format", "%U %G %a", secret).strip()
    assert facts == "scoreboard-rotator scoreboard-flusher 640"
    before = host.counted()
    assert host.update("carol", "win:1")["success"] is True
    eventually(lambda: host.counted() == before + 1, within_s=60)
    assert main_processes(host) == pids


def test_several_workers_of_one_process_are_one_unit(host: Host) -> None:
    unit = "scoreboard-api@1.service"
    host.must("sh", "-c", "echo SCOREBOARD_API_WORKERS=2 > /etc/scoreboard/api.env")
    try:
        host.must("systemctl", "restart", unit)
        eventually(lambda: host.is_ready("api", "1"), within_s=60)
        log = host.machine.journal(unit)
        assert "workers_stopped" not in log.rpartition("Starting")[2]
        assert log.count('"message": "worker_started"') == 2
        host.must("systemctl", "restart", unit)
    finally:
        host.must("rm", "/etc/scoreboard/api.env")
        host.must("systemctl", "restart", unit)
    log = host.machine.journal(unit)
    assert "reception only permitted for main PID" not in log
    assert host.machine.show(unit, "Result") == "success"
    eventually(lambda: host.is_ready("api", "1"), within_s=60)


def test_the_keys_of_kong_are_kept_up_to_date(host: Host) -> None:
    unit = "scoreboard-kong-sync.service"
    with fake_admin() as admin:
        options = f"--admin {admin.url} --probe-port {find_free_port()}"
        lines = f"REDIS_URL=redis://kong@127.0.0.1:6380/0\nKONG_SYNC_OPTIONS={options}\n"
        host.must("sh", "-c", f"printf '{lines}' > /etc/scoreboard/kong.env")
        host.start_unit(unit)
        try:
            eventually(lambda: bool(admin.posted), within_s=60)
            # Written once Kong has accepted it
            owner = ("stat", "--format", "%U", "/var/lib/scoreboard/kong/kong.yml")
            eventually(lambda: host.machine.run(*owner).stdout.strip() == "scoreboard-kong")
            secret = "/var/lib/scoreboard/kong/redis-password"
            eventually(lambda: host.machine.run("cat", secret).stdout.strip() == PASSWORD)
        finally:
            host.must("systemctl", "stop", unit)
        assert host.machine.show(unit, "Result") == "success"


def test_an_invalid_setting_is_named_in_the_log(host: Host) -> None:
    unit = "scoreboard-flusher@3.service"
    host.must("sh", "-c", "echo SCOREBOARD_FLUSH_BACH=1 > /etc/scoreboard/flusher.env")
    try:
        assert host.machine.systemctl("start", unit).returncode != 0
        log = host.machine.journal(unit)
        assert "did you mean SCOREBOARD_FLUSH_BATCH?" in log
        assert "Traceback" not in log
    finally:
        host.must("rm", "/etc/scoreboard/flusher.env")
        host.must("systemctl", "stop", unit)


def test_the_timers_are_valid(host: Host) -> None:
    host.must("systemctl", "start", "scoreboard-rotate@db.timer")
    assert host.machine.show("scoreboard-rotate@db.timer", "NextElapseUSecRealtime")


def test_the_target_stops_everything_in_time(host: Host) -> None:
    host.must("systemctl", "stop", "scoreboard.target")
    for service, instance in host.ports:
        unit = f"scoreboard-{service}@{instance}.service"
        # The command returns when the target has stopped, before its services have.
        eventually(
            lambda unit=unit: host.machine.show(unit, "ActiveState") == "inactive", within_s=100
        )
        assert host.machine.show(unit, "Result") == "success"
    host.must("systemctl", "start", "scoreboard.target")
    for key in host.probes:
        eventually(lambda key=key: host.is_ready(*key), within_s=60)
