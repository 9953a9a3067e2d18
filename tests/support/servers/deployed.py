"""A system whose services have the deployed rights, on test servers."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import psycopg
import redis

from scoreboard.ledger import migrations
from scoreboard.model import Partition
from scoreboard.store.keys import PartitionKeys
from tests.support.servers.rights import as_user, make_roles, make_users
from tests.support.servers.system import System, run_command

KEYS = PartitionKeys(Partition("main"))
PASSWORD = "deployed"


class Deployed:
    """A system whose services have the deployed rights; ``admin`` and ``owner`` have all rights."""

    def __init__(self, folder: Path) -> None:
        """Start it; the board ``main`` is open."""
        self.system = System(folder, environments={})
        self.system.valkey.start()
        self.system.postgres.start()
        self.admin = redis.Redis.from_url(self.system.valkey.url, decode_responses=True)
        make_users(self.admin, PASSWORD)
        make_roles(self.system.postgres.url, PASSWORD)
        migrations.migrate(self.system.postgres.url)
        self.owner = psycopg.connect(self.system.postgres.url, autocommit=True)
        self.owner.execute("INSERT INTO boards VALUES ('main', 1, 2, 4, true)")
        self.system._environments = {
            name: self.environment(name) for name in ("api", "streamer", "flusher")
        }
        self.system.start()

    def environment(self, name: str) -> dict[str, str]:
        """Return the URLs with the user and the role of a service."""
        return {
            "REDIS_URL": as_user(self.system.valkey.url, name, PASSWORD),
            "DATABASE_URL": as_user(self.system.postgres.url, f"scoreboard_{name}_a", PASSWORD),
        }

    def run(self, *arguments: str) -> str:
        """Run a command as the operator; return its output."""
        done = run_command(*arguments, **self.environment("operator"))
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    def ask(self, path: str, body: dict[str, Any] | None = None, *, token: str = "") -> Any:
        """Call the api."""
        request = urllib.request.Request(
            f"{self.system.api}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"}
            | ({"Authorization": f"Bearer {token}"} if token else {}),
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def refused(self) -> list[str]:
        """Return the commands that Valkey has refused since the last call."""
        found: Any = self.admin.execute_command("ACL", "LOG")
        self.admin.execute_command("ACL", "LOG", "RESET")
        return [f"{one['username']}: {one['object']}" for one in found]

    def close(self) -> None:
        """Stop everything."""
        self.system.stop()
        self.admin.close()
        self.owner.close()


def play(deployed: Deployed, user: str, action: str, points: int | None = None) -> dict[str, Any]:
    """Send an update, with points as a game server; return the answer."""
    body: dict[str, Any] = {"userId": user, "actionId": action}
    token = deployed.system.token(user)
    if points is not None:
        body["points"] = points
        token = deployed.system.game_server()["Authorization"].removeprefix("Bearer ")
    return deployed.ask("/api/scores/update", body, token=token)


def is_committed(deployed: Deployed) -> bool:
    """Return whether PostgreSQL has every action of the board."""
    row = deployed.owner.execute("SELECT seq FROM flush_state WHERE part = 0").fetchone()
    return row is not None and row[0] == int(deployed.admin.hget(KEYS.meta, "seq") or 0)
