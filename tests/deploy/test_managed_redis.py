"""The whole system on a Redis with the restrictions of a managed one (docs/how-to/aws.md).

The server refuses the commands that Amazon's documentation lists as restricted. That of MemoryDB is
a cluster, as MemoryDB always is, with one shard. Neither service itself was used.
"""

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis
from websockets.sync.client import connect as connect_viewer

from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedValkey
from scoreboard.model import Partition
from scoreboard.store.keys import PartitionKeys
from tests.support.eventually import eventually
from tests.support.servers.system import System

RESTRICTED = {
    "elasticache": (
        *("bgrewriteaof", "bgsave", "config", "debug", "migrate", "replicaof", "save"),
        *("slaveof", "shutdown", "sync"),
    ),
    "memorydb": (
        *("bgrewriteaof", "bgsave", "config", "debug", "migrate", "module", "psync", "replicaof"),
        *("save", "shutdown", "slaveof", "sync", "acl"),
    ),
}
"""As documented. MemoryDB restricts only some of ACL, and none that the services use."""

SETTINGS = {
    # Nothing acknowledged depends on the memory of ElastiCache, which has no append-only file.
    "elasticache": {"appendonly": "no"},
    "memorydb": {"cluster-enabled": "yes"},
}


class ClusterNode(EmbeddedValkey):
    """The one shard of a cluster; services get the address of the cluster."""

    @property
    def url(self) -> str:
        """A `redis+cluster://` address."""
        return f"redis+cluster://:{self.password}@127.0.0.1:{self.port}"


ACKNOWLEDGE = {"elasticache": "committed", "memorydb": "fsync"}
KEYS = PartitionKeys(Partition("main"))


@pytest.fixture(scope="module", params=sorted(RESTRICTED))
def managed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    kind: str = request.param
    lines = [f'{command} ""' for command in RESTRICTED[kind]]
    settings = SETTINGS[kind] | {"rename-command": "\nrename-command ".join(lines)}
    if kind == "memorydb":
        settings["cluster-port"] = str(find_free_port())
    system = System(
        tmp_path_factory.mktemp(kind),
        valkey_settings=settings,
        acknowledge=ACKNOWLEDGE[kind],
        vouched_redis=True,
    )
    if kind == "memorydb":
        system.valkey = ClusterNode(system.folder / "valkey", settings=settings)
    try:
        system.valkey.start()
        if kind == "memorydb":
            with connect(system) as client:
                client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_383)
                eventually(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        system.start()
        yield system
    finally:
        system.stop()


def connect(system: System) -> redis.Redis:
    """Connect to the server itself."""
    return redis.Redis.from_url(system.valkey.url.replace("redis+cluster:", "redis:"))


def ask(url: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None) -> Any:
    request = urllib.request.Request(
        url,
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json", **(headers or {})},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def update(system: System, user: str, action: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {system.token(user)}"}
    body = {"userId": user, "actionId": action}
    return ask(f"{system.api}/api/scores/update", body, headers)


def is_committed(system: System) -> bool:
    with (
        psycopg.connect(system.postgres.url) as connection,
        connect(system) as client,
    ):
        row = connection.execute("SELECT seq FROM flush_state WHERE board = 'main'").fetchone()
        return row is not None and row[0] == int(client.hget(KEYS.meta, "seq") or 0)


def test_updates_viewers_and_the_ledger_work(managed: System) -> None:
    with connect_viewer(
        managed.ws, additional_headers={"Authorization": f"Bearer {managed.token('viewer')}"}
    ) as viewer:
        assert update(managed, "alice", "win:1")["newScore"] == 10
        assert update(managed, "alice", "win:1")["replayed"] is True
        eventually(lambda: "alice" in str(viewer.recv(timeout=30)), within_s=30)
    eventually(lambda: is_committed(managed))


def test_readiness_and_status_show_that_the_operator_vouches(managed: System) -> None:
    check = ask(f"{managed.api}/health/ready")["checks"]["durability"]
    assert check["state"] == "vouched"
    assert "maxmemory-policy noeviction" in check["detail"]
    done = managed.run("status", "--json")
    assert json.loads(done.stdout)["checks"]["durability"]["state"] == "vouched", done.stderr
    done = managed.run("config", "check")
    assert "redis\tok" in done.stdout, (done.stdout, done.stderr)
    port = managed.variables["flusher"]["SCOREBOARD_FLUSHER_METRICS_PORT"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        assert "\nscoreboard_redis_durable 1.0" in response.read().decode()


def test_the_commands_work(managed: System) -> None:
    eventually(lambda: is_committed(managed))
    done = managed.run("verify", "--full")
    assert done.returncode == 0, (done.stdout, done.stderr)
    with connect(managed) as client:
        client.zincrby(KEYS.board, 1 << 22, "alice")
    assert managed.run("verify", "--full").returncode == 1
    done = managed.run("repair", "--yes")
    assert done.returncode == 0, (done.stdout, done.stderr)
    done = managed.run("action", "set", "boss", "50")
    assert done.returncode == 0, (done.stdout, done.stderr)
    with connect(managed) as client:
        client.flushall()
    done = managed.run("reseed")
    assert done.returncode == 0, (done.stdout, done.stderr)
    eventually(lambda: update(managed, "alice", "win:2")["newScore"] == 20)
