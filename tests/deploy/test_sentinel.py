"""A system whose Redis is named by sentinels: a replica takes over, and no setting changes."""

import json
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import psycopg
import pytest
from websockets.sync.client import connect as connect_viewer
from websockets.typing import Subprotocol

from tests.support.eventually import eventually
from tests.support.servers.sentinels import Sentinels
from tests.support.servers.system import System, run_command

pytestmark = pytest.mark.slow

FAILOVERS = 3
USERS = 4
RECOVERY_S = 30.0


class World:
    """A system on servers that sentinels watch; every action is repeated until it is counted."""

    def __init__(self, system: System, sentinels: Sentinels) -> None:
        self.system = system
        self.sentinels = sentinels
        self.acknowledged: dict[tuple[str, str], int] = {}
        """The score that each action was answered with."""
        self.changed: list[tuple[str, str]] = []
        """Actions that a repeat answered with another score."""

    def update(self, user: str, action: str) -> bool:
        """Send an update; return whether it was acknowledged."""
        request = urllib.request.Request(
            f"{self.system.api}/api/scores/update",
            json.dumps({"userId": user, "actionId": action}).encode(),
            {"Content-Type": "application/json", **self.system.game_server()},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                score = json.load(response)["newScore"]
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 503:
                    raise
            return False
        if self.acknowledged.setdefault((user, action), score) != score:
            self.changed.append((user, action))
        return True

    @contextmanager
    def load(self) -> Iterator[None]:
        """Let users play meanwhile."""
        stop = threading.Event()
        failures: list[BaseException] = []

        def play(user: str) -> None:
            number = 0
            try:
                while not stop.is_set() or not number:
                    number += 1
                    action = f"win:{number}"
                    eventually(partial(self.update, user, action), RECOVERY_S, 0.05)
            except BaseException as error:  # noqa: BLE001 (raised by the test)
                failures.append(error)

        threads = [
            threading.Thread(target=play, args=(f"user-{number}",)) for number in range(USERS)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not failures, failures

    def ledger(self) -> set[tuple[str, str]]:
        with psycopg.connect(self.system.postgres.url) as connection:
            rows = connection.execute(
                "SELECT u.external_id, e.action_id FROM score_events e JOIN users u"
                " ON u.id = e.user_id"
            ).fetchall()
        assert len(rows) == len(set(rows))
        return set(rows)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        variables = self.system.variables["flusher"]
        return run_command(
            *words,
            **{name: text for name, text in variables.items() if "SCOREBOARD_" in name},
            REDIS_URL=self.sentinels.url,
            DATABASE_URL=variables["DATABASE_URL"],
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    environment: dict[str, str] = {}
    system = System(
        tmp_path / "system",
        environments=dict.fromkeys(("api", "streamer", "flusher"), environment),
        rate_limit="gateway",
        acknowledge="replicated",
        replicas=1,
    )
    with ExitStack() as stack:
        stack.callback(system.stop)
        system.valkey.start()
        sentinels = stack.enter_context(Sentinels(tmp_path, system.valkey))
        environment["REDIS_URL"] = sentinels.url
        system.start()
        yield World(system, sentinels)
        system.stop()  # before the servers


def test_a_promoted_replica_has_every_acknowledged_action(world: World) -> None:
    address = f"{world.system.ws}?board=main"
    with world.load():
        eventually(lambda: len(world.acknowledged) > 20)
        for _ in range(FAILOVERS):
            before = len(world.acknowledged)
            world.sentinels.fail_over()
            eventually(lambda before=before: len(world.acknowledged) > before + 20, RECOVERY_S)
            world.sentinels.repaired()
    eventually(lambda: world.ledger() >= world.acknowledged.keys(), RECOVERY_S)
    assert world.changed == []

    done = world.command("verify", "--full")
    assert done.returncode == 0, (done.stdout, done.stderr)
    with connect_viewer(address, subprotocols=[Subprotocol("scoreboard.v1")]) as viewer:
        shown = json.loads(viewer.recv(timeout=30))["leaderboard"]
    assert len(shown) == USERS


def test_a_planned_failover_needs_no_restart(world: World) -> None:
    with world.load():
        eventually(lambda: len(world.acknowledged) > 20)
        world.sentinels.switch()
        reached = len(world.acknowledged)
        eventually(lambda: len(world.acknowledged) > reached + 20, RECOVERY_S)
    eventually(lambda: world.ledger() >= world.acknowledged.keys(), RECOVERY_S)
    assert world.changed == []


def test_one_sentinel_may_be_away(world: World) -> None:
    world.sentinels.sentinels[0].kill()
    for words in (("board", "top"), ("verify",), ("status",)):
        done = world.command(*words)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    for one in world.sentinels.sentinels:
        one.kill()
    done = world.command("board", "top")
    assert done.returncode == 69
    assert world.sentinels.nodes[0].password not in done.stderr
