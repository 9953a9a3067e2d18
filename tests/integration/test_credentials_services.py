"""The services as processes, with the deployed rights, while both logins change."""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.servers.rotated import Rotated
from tests.support.servers.system import System

pytestmark = pytest.mark.slow


@pytest.fixture
def rotated(tmp_path: Path) -> Iterator[Rotated]:
    made = Rotated(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


def update(system: System, action: str) -> int:
    """Submit an action of alice; return her score."""
    body = json.dumps({"userId": "alice", "actionId": action, "points": 5}).encode()
    headers = {"Content-Type": "application/json", **system.game_server()}
    request = urllib.request.Request(f"{system.api}/api/scores/update", body, headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["newScore"]


def test_services_run_with_the_least_rights_while_both_logins_change(rotated: Rotated) -> None:
    system = rotated.system
    assert update(system, "win:1") == 5
    before = set(rotated.redis_connections())

    rotated.rotate("second", "b")
    deadline_s = time.monotonic() + 20
    scores = []
    while time.monotonic() < deadline_s:
        scores.append(update(system, f"win:{len(scores) + 2}"))
        logins = {login for found in rotated.database_sessions().values() for login in found}
        if not set(rotated.redis_connections()) & before and (
            all(login.endswith("_b") for login in logins)
        ):
            break
    rotated.redis.execute_command("ACL", "SETUSER", "api", "<first")

    assert time.monotonic() < deadline_s, "the old logins were still in use"
    assert scores == [5 * number for number in range(2, len(scores) + 2)]
    last = update(system, "win:last")
    eventually(lambda: stored_score(rotated) == last)


def stored_score(rotated: Rotated) -> int:
    row = rotated.database.execute("SELECT score FROM scores").fetchone()
    return row[0] if row else 0
