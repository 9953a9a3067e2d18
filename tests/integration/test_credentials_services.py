"""The services as processes, with the deployed rights, while both logins change."""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from psycopg import sql

from scoreboard.ledger import migrations
from tests.support.eventually import eventually
from tests.support.servers.rights import make_roles, make_users
from tests.support.servers.system import System

pytestmark = pytest.mark.slow

USERS = {"api": "scoreboard_api", "flusher": "scoreboard_flusher", "streamer": None}


class Rotated:
    """A system with the deployed users and roles, whose services take their logins from files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.system = System(
            folder / "system",
            environments={
                name: {
                    "SCOREBOARD_SECRETS": "file",
                    "SCOREBOARD_REDIS_SECRET": str(folder / f"redis-{name}.json"),
                    "SCOREBOARD_DATABASE_SECRET": str(folder / f"database-{name}.json"),
                }
                for name in USERS
            },
        )
        self.system.valkey.start()
        self.system.postgres.start()
        self.redis = redis.Redis.from_url(self.system.valkey.url, decode_responses=True)
        self.database = psycopg.connect(self.system.postgres.url, autocommit=True)
        make_users(self.redis, "first")
        make_roles(self.system.postgres.url, "first")
        migrations.migrate(self.system.postgres.url)
        self.rotate("first", "a")

    def rotate(self, password: str, login: str) -> None:
        """Set the password of users and logins, and write the secret files."""
        for name, role in USERS.items():
            self.redis.execute_command("ACL", "SETUSER", name, f">{password}")
            write(self.folder / f"redis-{name}.json", name, password)
            if role is not None:
                self.database.execute(
                    sql.SQL("ALTER ROLE {} PASSWORD {}").format(
                        sql.Identifier(f"{role}_{login}"), sql.Literal(password)
                    )
                )
                write(self.folder / f"database-{name}.json", f"{role}_{login}", password)

    def redis_connections(self) -> set[str]:
        """Return the api's connections for reads; updates use other, permanent connections."""
        return {
            client["id"]
            for client in self.redis.client_list()
            if client["user"] == "api" and client["name"] == "scoreboard-api"
        }

    def database_logins(self) -> set[str]:
        found = self.database.execute(
            "SELECT usename FROM pg_stat_activity WHERE application_name = 'scoreboard-api'"
        )
        return {str(row[0]) for row in found}

    def close(self) -> None:
        self.system.stop()
        self.redis.close()
        self.database.close()


def write(path: Path, username: str, password: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"username": username, "password": password}))
    new.rename(path)


@pytest.fixture
def rotated(tmp_path: Path) -> Iterator[Rotated]:
    made = Rotated(tmp_path)
    try:
        made.system.start()
        yield made
    finally:
        made.close()


def update(system: System, action: str) -> int:
    """Submit an action of alice; return her score."""
    body = json.dumps({"userId": "alice", "actionId": action, "points": 5}).encode()
    headers = {"Content-Type": "application/json", **system.game_server()}
    request = urllib.request.Request(f"{system.api}/api/scores/update", body, headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)["newScore"]


def test_services_run_with_the_least_rights_while_both_logins_change(rotated: Rotated) -> None:
    system = rotated.system
    assert update(system, "win:1") == 5
    before = rotated.redis_connections()

    rotated.rotate("second", "b")
    deadline_s = time.monotonic() + 20
    scores = []
    while time.monotonic() < deadline_s:
        scores.append(update(system, f"win:{len(scores) + 2}"))
        if not rotated.redis_connections() & before and (
            rotated.database_logins() <= {"scoreboard_api_b"}
        ):
            break
    rotated.redis.execute_command("ACL", "SETUSER", "api", "<first")

    assert time.monotonic() < deadline_s, "the old logins were still in use"
    assert scores == [5 * number for number in range(2, len(scores) + 2)]
    last = update(system, "win:last")
    eventually(lambda: stored_score(rotated) == last, within_s=10)


def stored_score(rotated: Rotated) -> int:
    row = rotated.database.execute("SELECT score FROM scores").fetchone()
    return row[0] if row else 0
