"""A failover of Redis whose name then leads to another server, as that of a managed primary does.

The old primary becomes a replica of the new one and keeps its connections. Services must not stay
on them.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from cli.embedded.servers import EmbeddedValkey
from tests.support.eventually import eventually
from tests.support.fakes.tls import Terminator, terminating
from tests.support.servers.system import System, run_command

RECOVERY_S = 30.0


@dataclass(frozen=True)
class Pair:
    """A system that reaches Redis by a name; its primary and its replica."""

    system: System
    name: Terminator
    replica: EmbeddedValkey

    def fail_over(self) -> None:
        """Promote the replica and let the name lead to it, without closing a connection."""
        old, new = self.system.valkey, self.replica
        with redis.Redis.from_url(old.url) as demoted, redis.Redis.from_url(new.url) as promoted:
            demoted.set("written", 1)  # WAIT waits for the last write of its connection
            eventually(lambda: demoted.wait(1, 100) == 1)
            promoted.replicaof("NO", "ONE")
            self.name.target_port = new.port
            demoted.replicaof("127.0.0.1", str(new.port))

    def update(self, action: str) -> dict[str, Any] | None:
        """Send an update; return None if it may be repeated."""
        request = urllib.request.Request(
            f"{self.system.api}/api/scores/update",
            json.dumps({"userId": "alice", "actionId": action}).encode(),
            {
                "Content-Type": "application/json",
                "Authorization": f"Bearer {self.system.token('alice')}",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 503:
                    raise
            return None

    def counted(self) -> int:
        with psycopg.connect(self.system.postgres.url) as connection:
            row = connection.execute("SELECT count(*) FROM score_events").fetchone()
        assert row is not None
        return row[0]

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.system.api}/health/ready", timeout=10) as response:
                return response.status == 200
        except urllib.error.HTTPError as error:
            error.close()
            return False


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    environment: dict[str, str] = {}
    system = System(
        tmp_path / "system",
        environments=dict.fromkeys(("api", "streamer", "flusher"), environment),
        rate_limit="gateway",
    )
    with ExitStack() as stack:
        stack.callback(system.stop)
        system.valkey.start()
        name = stack.enter_context(terminating(system.valkey.port, None))
        address = f":{system.valkey.password}@127.0.0.1"
        environment["REDIS_URL"] = f"redis://{address}:{name.port}/0"
        password = system.valkey.password
        # Each is able to become the replica of the other.
        with redis.Redis.from_url(system.valkey.url) as client:
            client.config_set("masterauth", password)
            client.config_set("repl-diskless-sync-delay", 0)
        system.start()
        replica = EmbeddedValkey(
            tmp_path / "replica",
            password=password,
            settings={
                "replicaof": f"127.0.0.1 {system.valkey.port}",
                "masterauth": password,
            },
        )
        stack.enter_context(replica)
        with redis.Redis.from_url(replica.url) as client:
            eventually(lambda: client.info("replication")["master_link_status"] == "up")
        yield Pair(system, name, replica)
        system.stop()  # before the name


def test_services_follow_the_name_of_the_primary(pair: Pair) -> None:
    assert pair.update("win:1") is not None
    eventually(lambda: pair.counted() == 1)
    eventually(pair.is_ready)

    pair.fail_over()

    eventually(lambda: pair.update("win:2") is not None, within_s=RECOVERY_S)
    answer = pair.update("win:1")
    assert answer is not None
    assert answer["replayed"] is True
    eventually(lambda: pair.counted() == 2, within_s=RECOVERY_S)
    eventually(pair.is_ready, within_s=RECOVERY_S)
    variables = pair.system.variables["flusher"]
    done = run_command(
        "verify",
        "--full",
        **{name: text for name, text in variables.items() if "SCOREBOARD_" in name},
        REDIS_URL=variables["REDIS_URL"],
        DATABASE_URL=variables["DATABASE_URL"],
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
