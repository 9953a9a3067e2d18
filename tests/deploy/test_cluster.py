"""The cluster of deploy/docker/cluster.yml: its files, and its nodes as processes.

The settings, users and the program that forms the cluster are those of the containers; only
addresses and folders differ. tests/proofs/compose runs the file itself.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest
import redis
import yaml
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_viewer
from websockets.typing import Subprotocol

from cli.embedded import binaries
from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedValkey
from scoreboard.ledger import migrations
from scoreboard.model import Partition
from scoreboard.runtime.connection_urls import parse_cluster_url
from scoreboard.runtime.settings import load as load_settings
from scoreboard.store.durability import REQUIRED_SETTINGS
from scoreboard.store.keys import GROUP, PartitionKeys
from tests.deploy.compose import ROOT, SERVICES, Entity, resolve
from tests.support.eventually import eventually
from tests.support.servers.rights import as_user, load_script, make_roles
from tests.support.servers.system import System, run_command

DOCKER = ROOT / "deploy/docker"
FILE: Entity = yaml.load(resolve((DOCKER / "cluster.yml").read_text(), {}), yaml.CSafeLoader)
NODES = [name for name in FILE["services"] if name.startswith("valkey")]
SECRETS = "/var/lib/scoreboard/secrets"
KEYS = PartitionKeys(Partition("main"))
KEY = KEYS.meta
NODE_TIMEOUT_MS = 1500
PASSWORD = "deployed"
script = load_script(DOCKER / "cluster/form_cluster.py")


# The file ---------------------------------------------------------------------------------------


def test_the_file_matches_the_compose_specification() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    schema = ["--builtin-schema", "vendor.compose-spec", "deploy/docker/cluster.yml"]
    subprocess.run([checker, *schema], cwd=ROOT, check=True)


@pytest.mark.parametrize("service", ["api", "admin", "streamer", "flusher", "open", "rotate"])
def test_every_service_of_the_board_uses_the_cluster(service: str) -> None:
    given = FILE["services"][service]
    assert given["depends_on"] == {"cluster": {"condition": "service_healthy"}}
    environ = {**SERVICES[service]["environment"], **given["environment"]}
    settings = load_settings({name: str(value) for name, value in environ.items()})
    assert (settings.acknowledge, settings.replicas) == ("replicated", 1)
    address = parse_cluster_url(settings.redis_url.reveal())
    assert address is not None
    assert address.hosts == tuple((name, 6379) for name in NODES)


def test_what_is_of_kong_is_not_changed() -> None:
    changed = set(FILE["services"]) & set(SERVICES)
    assert changed == {
        *("open", "api", "admin", "streamer", "flusher", "rotate", "valkey", "prometheus")
    }


def test_every_node_has_its_own_name_address_and_data_and_the_settings() -> None:
    assert len(NODES) == 6
    seen: set[str] = set()
    for name in NODES:
        node = FILE["services"][name]
        program, conf, option, announced = node["command"]
        assert (program, option, announced) == (
            "valkey-server",
            "--cluster-announce-hostname",
            name,
        )
        volumes = dict(reversed(one.split(":")[:2]) for one in node["volumes"])
        if name == "valkey":  # the files of the one server are merged with those
            volumes = (
                dict(reversed(one.split(":")[:2]) for one in SERVICES[name]["volumes"]) | volumes
            )
        else:
            for key in ("restart", "read_only", "user", "cap_drop", "security_opt", "logging"):
                assert node[key] == SERVICES["valkey"][key], (name, key)
            assert node["healthcheck"]["test"] == SERVICES["valkey"]["healthcheck"]["test"]
            assert node["image"] == SERVICES["valkey"]["image"]
            assert node["deploy"] == SERVICES["valkey"]["deploy"]
        assert conf in volumes
        assert "/usr/local/etc/valkey/valkey.conf" in volumes
        assert volumes[f"{SECRETS}/valkey"] == "secrets-valkey"
        assert volumes["/data"] in FILE["volumes"]
        # Not in the range from which other containers get addresses, and not Kong's.
        number = int(node["networks"]["inside"]["ipv4_address"].rpartition(".")[2])
        assert 2 < number < 64
        seen |= {volumes["/data"], str(number)}
    assert len(seen) == 2 * len(NODES)


def test_the_program_forms_a_cluster_of_these_nodes() -> None:
    cluster = FILE["services"]["cluster"]
    assert [
        word.partition(":")[0] for word in cluster["command"] if word.endswith(":6379")
    ] == NODES
    assert set(cluster["depends_on"]) == set(NODES)
    assert f"--state={cluster['healthcheck']['test'][-1]}" in cluster["command"]


def test_the_exporter_reads_each_node_and_has_its_password() -> None:
    listed = yaml.safe_load((ROOT / "deploy/prometheus/redis-cluster.yml").read_text())
    targets = {one["labels"]["__param_target"] for one in listed}
    own = SERVICES["redis-exporter"]["environment"]["REDIS_ADDR"]
    assert targets | {own} == {f"redis://{name}:6379" for name in NODES}
    assert targets <= set(load_script(DOCKER / "bootstrap.py").REDIS_ADDRESSES)
    (mounted,) = FILE["services"]["prometheus"]["volumes"]
    source, target, _ = mounted.split(":")
    assert (ROOT / source).exists()
    jobs = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (files,) = [
        job["file_sd_configs"] for job in jobs["scrape_configs"] if job["job_name"] == "redis"
    ]
    pattern = f"/etc/prometheus/{files[0]['files'][0]}"
    assert Path(target).match(pattern)


def conf_lines() -> dict[str, str]:
    lines = (DOCKER / "cluster/valkey.conf").read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines if line and line[0] != "#")


def test_the_settings_of_a_node_are_those_of_the_guide() -> None:
    page = (ROOT / "docs/how-to/cluster.md").read_text()
    block = re.findall(r"```text\n(cluster-enabled.*?)```", page, re.DOTALL)[0]
    shown = dict(line.split(" ", 1) for line in block.splitlines())
    given = conf_lines()
    # The guide has the name and the login, too.
    own = {"cluster-announce-hostname", "masteruser", "masterauth", "appendonly", "appendfsync"}
    own |= {"maxmemory-policy", "no-appendfsync-on-rewrite"}
    assert shown.keys() - own == given.keys() - {"include", "cluster-config-file"}
    assert {name: shown[name] for name in given.keys() & shown.keys()} == {
        name: given[name] for name in given.keys() & shown.keys()
    }
    assert {name: shown[name] for name in REQUIRED_SETTINGS} == REQUIRED_SETTINGS


# Nodes as processes -----------------------------------------------------------------------------


class Nodes:
    """Six servers with the deployed settings and users, each with files of its own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.secrets = folder / "secrets"
        self.environ = {"PATH": os.environ["PATH"], "SECRETS_ROOT": str(self.secrets)}
        words = [sys.executable, str(DOCKER / "bootstrap.py")]
        subprocess.run(words, env=self.environ, check=True, capture_output=True, timeout=60)
        self.ports = [find_free_port() for _ in NODES]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        for port in self.ports:
            self._write(port)

    def _write(self, port: int) -> None:
        folder = self.folder / str(port)
        folder.mkdir()
        users = (self.secrets / "valkey/users.acl").read_text()
        (folder / "users.acl").write_text(f"{users}user admin on >admin ~* &* +@all\n")
        shutil.copy(self.secrets / "valkey/replication.conf", folder)
        for source, name in (("valkey.conf", "valkey.conf"), ("cluster/valkey.conf", "node.conf")):
            text = (DOCKER / source).read_text()
            text = text.replace("/usr/local/etc/valkey/", f"{folder}/")
            (folder / name).write_text(text.replace(f"{SECRETS}/valkey", str(folder)))
        with (folder / "node.conf").open("a") as file:
            file.write(
                f"port {port}\nbind 127.0.0.1\ndir {folder}\nlogfile {folder}/log\n"
                f"cluster-port {find_free_port()}\ncluster-node-timeout {NODE_TIMEOUT_MS}\n"
                "cluster-announce-hostname localhost\n"
            )

    def add(self, count: int) -> list[int]:
        """Add nodes, not yet started; return their ports."""
        added = [find_free_port() for _ in range(count)]
        for port in added:
            self._write(port)
        self.ports += added
        return added

    def start(self, *ports: int) -> None:
        """Start nodes, all of them without arguments, and wait until they answer."""
        for port in ports or self.ports:
            conf = self.folder / str(port) / "node.conf"
            process = subprocess.Popen([str(binaries.find_valkey()), str(conf)])
            self.stack.callback(process.wait)
            self.stack.callback(process.kill)
            self.processes[port] = process
        for port in ports or self.ports:
            eventually(lambda port=port: self.answers(port))

    def answers(self, port: int) -> bool:
        """Return whether a node answers the probe of its container."""
        with self.as_user("health", port) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

    def end(self, port: int, how: signal.Signals) -> None:
        """End a node and wait for it."""
        self.processes[port].send_signal(how)
        assert self.processes[port].wait(20) is not None

    def empty(self, port: int) -> None:
        """Remove the data of a node that has ended."""
        for path in (self.folder / str(port)).iterdir():
            if path.name.startswith(("nodes.conf", "appendonly")):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def login(self, user: str) -> dict[str, str]:
        """Return user and password."""
        if user in {"health", "admin", "maintenance"}:
            return {"username": user, "password": user}
        return json.loads((self.secrets / user / "redis").read_text())

    def as_user(self, user: str, port: int) -> redis.Redis:
        """Connect without redis-py's retries."""
        return redis.Redis(
            port=port, decode_responses=True, retry=Retry(NoBackoff(), 0), socket_timeout=5,
            **self.login(user),
        )  # fmt: skip

    def run(self, user: str, port: int, *words: str | int) -> Any:
        """Run one command."""
        with self.as_user(user, port) as client:
            return client.execute_command(*words)

    def url(self, user: str = "") -> str:
        """Return the address of the cluster for a user, or without a login."""
        hosts = ",".join(f"localhost:{port}" for port in self.ports)
        login = f"{user}:{self.login(user)['password']}@" if user else ""
        return f"redis+cluster://{login}{hosts}"

    def refused(self) -> list[str]:
        """Return the commands that nodes have refused since the last call."""
        found = []
        for port in self.ports:
            found += self.run("admin", port, "ACL", "LOG")
            self.run("admin", port, "ACL", "LOG", "RESET")
        # redis-py names itself, also as the probe's user.
        return [
            f"{one['username']}: {one['object']}" for one in found if one["username"] != "health"
        ]

    def form(self, *options: str) -> "subprocess.CompletedProcess[str]":
        """Run the program that forms the cluster."""
        words = [sys.executable, str(DOCKER / "cluster/form_cluster.py"), *options]
        words += [f"localhost:{port}" for port in self.ports]
        environ = {**self.environ, "SCOREBOARD_REDIS_SECRET": str(self.secrets / "cluster/redis")}
        return subprocess.run(
            words, env=environ, capture_output=True, text=True, check=False, timeout=150
        )

    def nodes(self, port: int) -> dict[int, Any]:
        """Return what a node knows of each node that has not failed, by port."""
        found = {}
        for line in str(self.run("cluster", port, "CLUSTER", "NODES")).splitlines():
            known = script.read_line(line)
            if not known.flags & {"fail", "noaddr"}:
                found[int(line.split()[1].partition("@")[0].rpartition(":")[2])] = known
        return found

    def owner(self, key: str = KEY) -> int:
        """Return the port of the primary that owns a key, as the last node says; 0 without one."""
        alive = [port for port in self.ports if self.processes[port].poll() is None]
        slot = key_slot(key.encode())
        for port, known in self.nodes(alive[-1]).items():
            if slot in known.slots and port in alive:
                return port
        return 0

    def is_replicated(self) -> bool:
        """Return whether each primary has a replica that is up to date."""
        primaries = [port for port, one in self.nodes(self.ports[0]).items() if one.slots]
        return all(
            [len(found[2]) for found in [self.run("cluster", port, "ROLE")]] == [1]
            for port in primaries
        )


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with ExitStack() as stack:
        made = Nodes(tmp_path, stack)
        made.start()
        yield made


@pytest.fixture
def formed(nodes: Nodes) -> Nodes:
    done = nodes.form()
    assert done.returncode == 0, done.stderr
    return nodes


def test_a_cluster_is_formed_once(nodes: Nodes) -> None:
    first = nodes.form()
    assert (first.returncode, first.stderr.splitlines()[-1]) == (0, "the cluster is complete")
    before = nodes.nodes(nodes.ports[0])
    primaries = [port for port in nodes.ports if before[port].slots]
    assert primaries == nodes.ports[:3]
    assert sum(len(one.slots) for one in before.values()) == 16_384
    replicated = {before[port].primary for port in nodes.ports[3:]}
    assert replicated == {before[port].id for port in primaries}

    again = nodes.form()
    assert (again.returncode, again.stderr) == (0, "the cluster is complete\n")
    assert nodes.nodes(nodes.ports[0]) == before


def test_forming_that_was_interrupted_is_continued(nodes: Nodes) -> None:
    """At each step: slots of one primary, two nodes that met, a replica."""
    first, second, third, fourth, *_ = nodes.ports
    nodes.run("cluster", first, "CLUSTER", "SET-CONFIG-EPOCH", 1)
    nodes.run("cluster", first, "CLUSTER", "ADDSLOTS", *range(5461))
    bus = nodes.nodes(fourth)[fourth].bus_port
    nodes.run("cluster", first, "CLUSTER", "MEET", "127.0.0.1", fourth, bus)
    eventually(lambda: first in nodes.nodes(fourth) and nodes.nodes(fourth)[first].is_linked)
    own = nodes.nodes(first)[first].id
    nodes.run("cluster", fourth, "CLUSTER", "REPLICATE", own)

    done = nodes.form()

    assert done.returncode == 0, done.stderr
    found = nodes.nodes(first)
    assert {port for port, one in found.items() if one.slots} == {first, second, third}
    assert found[fourth].primary == own
    assert nodes.is_replicated()


def test_the_command_of_the_guide_shows_every_node(formed: Nodes) -> None:
    page = (ROOT / "docs/how-to/cluster.md").read_text()
    (words,) = re.findall(r"cluster python - (.+) <deploy/docker/redis_command.py", page)

    def nodes() -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, str(DOCKER / "redis_command.py"), *words.split()],
            env={
                "REDIS_URL": f"redis://localhost:{formed.ports[0]}",
                "SCOREBOARD_REDIS_SECRET": str(formed.secrets / "cluster/redis"),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        return [node for shard in json.loads(done.stdout) for node in shard["nodes"]]

    assert sorted(node["port"] for node in nodes()) == sorted(formed.ports)
    # A replica is loading until its first copy is complete.
    eventually(lambda: {node["health"] for node in nodes()} == {"online"})


def test_slots_that_were_moved_stay(formed: Nodes) -> None:
    first, second, *_ = formed.ports
    target = formed.nodes(first)[second].id
    slot = key_slot(KEY.encode())
    source = formed.owner()
    words = ("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target)
    let_maintain(formed)
    before = formed.run("admin", first, "ACL", "LIST")
    set_rights_of_replicas(formed, may_write=True)
    formed.run("operator", source, "HSET", KEY, "epoch", 1)
    # Every kind of key that a partition has, with an entry that a flusher has not acknowledged.
    formed.run("operator", source, "ZADD", KEYS.board, 1, "alice")
    formed.run("operator", source, "XADD", KEYS.events, "*", "k", "1")
    formed.run("operator", source, "XGROUP", "CREATE", KEYS.events, GROUP, "0")
    read = ("XREADGROUP", "GROUP", GROUP, "one", "STREAMS", KEYS.events, ">")
    formed.run("flusher", source, *read)
    formed.run("api", source, "HSET", "sb:{main:0}:seen:0", "a", "1")
    formed.run("api", source, "EXPIRE", "sb:{main:0}:seen:0", 1000)
    formed.run("maintenance", source, *words)
    eventually(lambda: formed.owner() == second)
    assert formed.form().stderr == "the cluster is complete\n"
    assert formed.owner() == second
    assert formed.run("operator", second, "HGET", KEY, "epoch") == "1"
    assert formed.run("operator", second, "ZSCORE", KEYS.board, "alice") == 1
    assert formed.run("flusher", second, "XPENDING", KEYS.events, GROUP)["pending"] == 1
    assert 0 < formed.run("admin", second, "TTL", "sb:{main:0}:seen:0") <= 1000
    assert formed.run("admin", first, "ACL", "LIST") != before
    set_rights_of_replicas(formed, may_write=False)
    assert formed.run("admin", first, "ACL", "LIST") == before


def set_rights_of_replicas(nodes: Nodes, *, may_write: bool) -> None:
    """Change the login of replicas as the guide says, before and after slots are moved."""
    page = (ROOT / "docs/how-to/cluster.md").read_text()
    first, last = re.findall(r"ACL SETUSER replica ((?:\+|~|-).+?)(?:`|$)", page, re.MULTILINE)
    for port in nodes.ports:
        rules = (first if may_write else last).split()
        nodes.run("rotator", port, "ACL", "SETUSER", "replica", *rules)


def let_maintain(nodes: Nodes) -> None:
    """Make the login for commands by hand on every node, as the guide says."""
    page = (ROOT / "docs/how-to/cluster.md").read_text()
    (rules,) = re.findall(r"^ACL SETUSER maintenance (reset .+)$", page, re.MULTILINE)
    for port in nodes.ports:
        words = rules.replace("PASSWORD", nodes.login("maintenance")["password"]).split()
        nodes.run("rotator", port, "ACL", "SETUSER", "maintenance", *words)


def test_the_login_for_commands_by_hand_is_ended(formed: Nodes) -> None:
    first, *_, last = formed.ports
    let_maintain(formed)
    formed.run("maintenance", last, "CLUSTER", "FAILOVER")
    eventually(lambda: formed.run("cluster", last, "ROLE")[0] == "master")
    formed.run("rotator", first, "ACL", "SETUSER", "maintenance", "reset")
    with pytest.raises(redis.exceptions.AuthenticationError):
        formed.run("maintenance", first, "PING")


def test_who_has_the_login_of_replicas_can_confirm_what_no_replica_has(formed: Nodes) -> None:
    """A limit that decision 0183 states."""
    source = formed.owner()
    primary = formed.nodes(source)[source].id
    (replica,) = (port for port, one in formed.nodes(source).items() if one.primary == primary)
    login = formed.login("replica")
    formed.end(replica, signal.SIGKILL)
    eventually(lambda: formed.run("cluster", source, "ROLE")[2] == [])
    with socket.create_connection(("127.0.0.1", source)) as forger:
        forger.sendall(f"AUTH {login['username']} {login['password']}\r\n".encode())
        assert forger.recv(100) == b"+OK\r\n"
        forger.sendall(b"PSYNC ? -1\r\n")

        def is_confirmed() -> bool:
            forger.sendall(b"REPLCONF ACK 99999999999\r\n")
            with formed.as_user("api", source) as client:
                try:
                    client.execute_command("HSET", KEY, "epoch", 1)
                except redis.ResponseError as error:  # until the forged replica counts
                    if "NOREPLICAS" not in str(error):
                        raise
                    return False
                return client.execute_command("WAIT", 1, 100) == 1

        eventually(is_confirmed)


def test_a_primary_is_added(formed: Nodes) -> None:
    first, second = formed.add(2)
    formed.start(first, second)
    done = formed.form()
    assert done.returncode == 0, done.stderr
    target = formed.nodes(first)[first].id
    assert not formed.nodes(first)[first].slots
    # Without it, min-replicas-to-write would refuse what is moved.
    assert formed.nodes(second)[second].primary == target
    assert formed.form().stderr == "the cluster is complete\n"

    source = formed.owner()
    formed.run("operator", source, "HSET", KEY, "epoch", 1)
    set_rights_of_replicas(formed, may_write=True)
    slot = key_slot(KEY.encode())
    words = ("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target)
    let_maintain(formed)
    formed.run("maintenance", source, *words)
    eventually(lambda: formed.owner() == first)
    assert formed.form().stderr == "the cluster is complete\n"
    assert formed.run("operator", first, "HGET", KEY, "epoch") == "1"
    assert formed.run("operator", first, "HSET", KEY, "epoch", 2) == 0


def test_a_slot_is_not_moved_with_the_usual_rights_of_replicas(formed: Nodes) -> None:
    first, second, *_ = formed.ports
    slot = key_slot(KEY.encode())
    source = formed.owner()
    target = next(port for port in (first, second) if port != source)
    node_id = formed.nodes(first)[target].id
    words = ("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", node_id)
    let_maintain(formed)
    formed.run("maintenance", source, *words)
    reply = ("CLUSTER", "GETSLOTMIGRATIONS")
    eventually(lambda: "NOPERM" in str(formed.run("maintenance", source, *reply)))
    assert formed.owner() == source


def test_a_primary_that_is_asked_to_end_hands_over_first(formed: Nodes) -> None:
    """A rolling update loses nothing, and does not wait for the node's time-out."""
    source = formed.owner()
    formed.run("operator", source, "HSET", KEY, "epoch", 7)
    formed.end(source, signal.SIGTERM)
    assert "Perform auto failover" in (formed.folder / f"{source}/log").read_text()
    promoted = eventually(formed.owner, within_s=NODE_TIMEOUT_MS / 1000)
    assert formed.run("operator", promoted, "HGET", KEY, "epoch") == "7"
    formed.start(source)
    eventually(formed.is_replicated)
    assert formed.run("cluster", source, "ROLE")[0] == "slave"


def test_a_lost_primary_is_replaced_and_the_others_are_served(formed: Nodes) -> None:
    source = formed.owner()
    formed.run("operator", source, "HSET", KEY, "epoch", 7)
    assert formed.run("operator", source, "HGET", KEY, "epoch") == "7"
    with formed.as_user("api", source) as client:
        client.execute_command("HSET", KEY, "epoch", 8)
        assert client.execute_command("WAIT", 1, 1000) == 1
    formed.end(source, signal.SIGKILL)
    other = next(port for port in formed.ports[:3] if port != source)
    (served,) = (one.slots for port, one in formed.nodes(other).items() if port == other)
    assert key_slot(KEY.encode()) not in served
    tag = next(f"{{x{n}}}" for n in range(999) if key_slot(f"x{n}".encode()) in served)
    assert formed.run("operator", other, "HSET", f"sb:{tag}:meta", "epoch", 1) == 1
    promoted = eventually(formed.owner)
    assert formed.run("operator", promoted, "HGET", KEY, "epoch") == "8"


def test_a_node_that_comes_back_without_data_becomes_a_replica(formed: Nodes) -> None:
    source = formed.owner()
    formed.end(source, signal.SIGTERM)
    formed.empty(source)
    formed.start(source)
    done = formed.form()
    assert done.returncode == 0, done.stderr
    assert formed.run("cluster", source, "ROLE")[0] == "slave"
    assert eventually(formed.owner) != source


def test_nodes_that_have_moved_find_each_other(formed: Nodes) -> None:
    """Pods of Kubernetes that all start at once have other addresses than they had."""
    for port in formed.ports:
        formed.end(port, signal.SIGKILL)
    for port in formed.ports:
        path = formed.folder / str(port) / "nodes.conf"
        path.write_text(path.read_text().replace("127.0.0.1", "127.0.0.2"))
    formed.start()
    done = formed.form()
    assert done.returncode == 0, done.stderr
    assert "meets" in done.stderr
    assert "has slots" not in done.stderr


def test_slots_whose_nodes_have_lost_everything_are_not_served_empty(formed: Nodes) -> None:
    """An operator decides that, who knows what PostgreSQL has."""
    for number in range(30):  # on every primary
        key = f"sb:{{main:{number}}}:meta"
        formed.run("operator", formed.owner(key), "HSET", key, "epoch", 1)
    source = formed.owner()
    (replica,) = (
        port
        for port, one in formed.nodes(source).items()
        if one.primary == formed.nodes(source)[source].id
    )
    before = formed.nodes(source)
    for port in (source, replica):
        formed.end(port, signal.SIGKILL)
        formed.empty(port)
    formed.start(source, replica)
    done = formed.form("--within=8")
    assert done.returncode == 1
    assert "slots that were in use have no node" in done.stderr

    let_maintain(formed)
    for port in {*formed.ports} - {source, replica}:  # as the guide says
        for lost in (source, replica):
            formed.run("maintenance", port, "CLUSTER", "FORGET", before[lost].id)
    slots = before[source].slots
    formed.run("maintenance", source, "CLUSTER", "ADDSLOTSRANGE", min(slots), max(slots))
    done = formed.form()
    assert done.returncode == 0, done.stderr
    assert formed.nodes(replica)[replica].primary == formed.nodes(source)[source].id


# The system -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[System, Nodes]]:
    """Services on the cluster, each with its deployed rights at both stores."""
    folder = tmp_path_factory.mktemp("cluster")
    environments: dict[str, dict[str, str]] = {name: {} for name in ("api", "streamer", "flusher")}
    made = System(
        folder / "system", environments=environments, acknowledge="replicated", replicas=1
    )
    with ExitStack() as stack:
        nodes = Nodes(folder, stack)
        nodes.start()
        done = nodes.form()
        assert done.returncode == 0, done.stderr
        stack.callback(made.stop)
        made.postgres.start()
        make_roles(made.postgres.url, PASSWORD)
        migrations.migrate(made.postgres.url)
        for name, given in environments.items():
            given.update(environment_of(made, nodes, name))
        nothing = {"start": lambda: None, "stop": lambda: None}
        made.valkey = cast("EmbeddedValkey", SimpleNamespace(url=nodes.url("operator"), **nothing))
        made.start()
        yield made, nodes


def environment_of(system: System, nodes: Nodes, name: str) -> dict[str, str]:
    database = as_user(system.postgres.url, f"scoreboard_{name}_a", PASSWORD)
    return {
        "REDIS_URL": nodes.url(name),
        "DATABASE_URL": "" if name == "streamer" else database,
        "SCOREBOARD_ACKNOWLEDGE": "replicated",
        "SCOREBOARD_REPLICAS": "1",
    }


def update(system: System, user: str, action: str, board: str = "main") -> dict[str, Any]:
    request = urllib.request.Request(
        f"{system.api}/api/scores/update",
        json.dumps({"userId": user, "actionId": action, "boards": [board]}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {system.token(user)}"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def test_services_and_commands_need_no_more_rights(system: tuple[System, Nodes]) -> None:
    services, nodes = system
    nodes.refused()
    operator = environment_of(services, nodes, "operator")

    def command(*words: str) -> str:
        done = run_command(*words, **operator)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    command("board", "create", "large", "--partitions", "4")
    command("board", "create", "weeks", "--season", "weekly", "--time-zone", "UTC")
    with connect_viewer(
        f"{services.ws}?board=large", subprotocols=[Subprotocol("scoreboard.v1")], open_timeout=30
    ) as viewer:
        viewer.recv(timeout=30)
        boards = ("main", "large", "weeks")
        for board in boards:
            for user in ("alice", "bob", "carol", "dave"):
                eventually(lambda u=user, b=board: is_counted(services, u, b))
        seen = eventually(lambda: json.loads(viewer.recv(timeout=30)).get("leaderboard"))
        eventually(lambda: len(seen) == 4 or len(next_board(viewer)) == 4)
    eventually(lambda: is_committed(services, len(boards) * 4))
    for words in (
        ("verify", "--full"), ("verify", "--board", "large"), ("board", "top", "--board", "large"),
        ("action", "set", "win", "15"), ("board", "list"), ("repair", "--yes"),
        ("reseed", "--board", "main", "--force", "--yes"),
    ):  # fmt: skip
        command(*words)
    assert nodes.refused() == []


def next_board(viewer: ClientConnection) -> list[Any]:
    return json.loads(viewer.recv(timeout=30)).get("leaderboard", [])


def is_counted(system: System, user: str, board: str) -> bool:
    try:
        return update(system, user, "win:1", board)["success"] is True
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 503:  # the api has not heard of the board yet
            raise
        return False


def is_committed(system: System, count: int) -> bool:
    with psycopg.connect(system.postgres.url) as connection:
        return connection.execute("SELECT count(*) FROM score_events").fetchone() == (count,)


def test_a_rotation_changes_every_node(system: tuple[System, Nodes]) -> None:
    _, nodes = system
    secret = nodes.secrets / "streamer/redis"
    before = secret.read_text()
    rotate = ("secrets", "rotate", "redis", str(secret), "--grace", "0")
    environ = {
        "REDIS_URL": nodes.url(),
        "SCOREBOARD_SECRETS": "file",
        "SCOREBOARD_REDIS_SECRET": str(nodes.secrets / "rotator/redis"),
    }
    done = run_command(*rotate, **environ)
    assert done.returncode == 0, done.stderr
    for port in nodes.ports:
        with nodes.as_user("streamer", port) as client:
            assert client.ping()
        hashes = nodes.run("admin", port, "ACL", "GETUSER", "streamer")["passwords"]
        assert len(hashes) == 1
        assert json.loads(before)["password"] not in str(hashes)

    # One that is away would come back with the old password.
    replica = nodes.ports[-1]
    nodes.end(replica, signal.SIGTERM)
    done = run_command(*rotate, **environ)
    assert done.returncode == 69, (done.stdout, done.stderr)
    nodes.start(replica)
    done = run_command(*rotate, **environ)
    assert done.returncode == 0, done.stderr
    with nodes.as_user("streamer", replica) as client:
        assert client.ping()


# Rights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("replica", ("GET", "sb:actions")),
        ("replica", ("CONFIG", "GET", "*")),
        ("replica", ("CLUSTER", "SYNCSLOTS", "ESTABLISH")),
        ("cluster", ("HGETALL", KEY)),
        ("cluster", ("CLUSTER", "GETKEYSINSLOT", "0", "1")),
        ("cluster", ("CLUSTER", "RESET")),
        ("cluster", ("CLUSTER", "FLUSHSLOTS")),
        ("cluster", ("CLUSTER", "FAILOVER")),
        ("cluster", ("CLUSTER", "FORGET", "0" * 40)),
        ("cluster", ("ACL", "LIST")),
        ("cluster", ("CONFIG", "GET", "*")),
        ("cluster", ("SHUTDOWN",)),
        ("health", ("CLUSTER", "NODES")),
        ("api", ("CLUSTER", "FAILOVER")),
        ("flusher", ("CLUSTER", "NODES")),
        ("operator", ("CLUSTER", "MEET", "127.0.0.1", "1")),
        ("monitor", ("CLUSTER", "NODES")),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_other_rights_are_refused(nodes: Nodes, user: str, words: tuple[str, ...]) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        nodes.run(user, nodes.ports[0], *words)
