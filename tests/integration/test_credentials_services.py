"""The services as processes, with the least rights of docs/secrets.md, while both logins change."""

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from psycopg import sql

from scoreboard import migrations
from tests.support.eventually import eventually
from tests.support.system import System

DOCUMENT = (Path(__file__).parents[2] / "docs" / "secrets.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)


class Rotated:
    """A system whose services take their logins from two files."""

    def __init__(self, folder: Path) -> None:
        self.redis_secret = folder / "redis.json"
        self.database_secret = folder / "database.json"
        self.system = System(
            folder / "system",
            secrets="file",
            redis_secret=self.redis_secret,
            database_secret=self.database_secret,
        )
        self.system.valkey.start()
        self.system.postgres.start()
        migrations.migrate(self.system.postgres.url)
        self.redis = redis.Redis.from_url(self.system.valkey.url, decode_responses=True)
        self.database = psycopg.connect(self.system.postgres.url, autocommit=True)
        (line,) = blocks("acl")
        self.redis.execute_command("ACL", "SETUSER", *line.split()[1:])
        for statements in blocks("sql"):
            self.database.execute(statements.encode())
        self.rotate("first", "scoreboard_a")

    def rotate(self, password: str, login: str) -> None:
        """Give both a new password, and the services the files that say so."""
        self.redis.execute_command("ACL", "SETUSER", "scoreboard", f">{password}")
        role = sql.Identifier(login)
        self.database.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(password))
        )
        write(self.redis_secret, "scoreboard", password)
        write(self.database_secret, login, password)

    def redis_connections(self) -> set[str]:
        """The connections of the api that come and go; updates have others, which stay."""
        return {
            client["id"]
            for client in self.redis.client_list()
            if client["user"] == "scoreboard" and client["name"] == "scoreboard-api"
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
    """Let alice do something; her score."""
    body = json.dumps({"userId": "alice", "actionId": action, "points": 5}).encode()
    headers = {"Content-Type": "application/json", **system.game_server()}
    request = urllib.request.Request(f"{system.api}/api/scores/update", body, headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)["newScore"]


def test_services_run_with_the_least_rights_while_both_logins_change(rotated: Rotated) -> None:
    system = rotated.system
    assert update(system, "win:1") == 5
    before = rotated.redis_connections()

    rotated.rotate("second", "scoreboard_b")
    deadline_s = time.monotonic() + 20
    scores = []
    while time.monotonic() < deadline_s:
        scores.append(update(system, f"win:{len(scores) + 2}"))
        if not rotated.redis_connections() & before and (
            rotated.database_logins() <= {"scoreboard_b"}
        ):
            break
    rotated.redis.execute_command("ACL", "SETUSER", "scoreboard", "<first")

    assert time.monotonic() < deadline_s, "the old logins were still in use"
    assert scores == [5 * number for number in range(2, len(scores) + 2)]
    last = update(system, "win:last")
    eventually(lambda: stored_score(rotated) == last, within_s=10)


def stored_score(rotated: Rotated) -> int:
    row = rotated.database.execute("SELECT score FROM scores").fetchone()
    return row[0] if row else 0


@pytest.mark.parametrize(
    "command",
    [
        ("CONFIG", "SET", "appendfsync", "no"),
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("ACL", "LIST"),
        ("GET", "other"),
        ("SCRIPT", "FLUSH"),
    ],
    ids=" ".join,
)
def test_the_services_redis_user_may_not(command: tuple[str, ...], redis_url: str) -> None:
    (line,) = blocks("acl")
    host, port = urlsplit(redis_url).hostname, urlsplit(redis_url).port
    assert host is not None
    assert port is not None
    with redis.Redis.from_url(redis_url) as admin:
        admin.execute_command("ACL", "SETUSER", *line.split()[1:], ">pass")
        try:
            with redis.Redis(host, port, username="scoreboard", password="pass") as user:
                with pytest.raises(redis.exceptions.NoPermissionError):
                    user.execute_command(*command)
                assert user.config_get("appendfsync") == {"appendfsync": "always"}
        finally:
            admin.execute_command("ACL", "DELUSER", "scoreboard")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE score_events SET delta = 1",
        "DELETE FROM score_events",
        "DELETE FROM scores",
        "INSERT INTO audit_log (actor, action, board, detail) VALUES ('a', 'b', 'c', '{}')",
        "UPDATE actions SET points = 100",
        "CREATE TABLE public.mine (id INT)",
        "DROP TABLE dead_events",
    ],
)
def test_the_services_database_login_may_not(statement: str, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        for statements in blocks("sql"):
            connection.execute(statements.encode())
        connection.execute("SET LOCAL ROLE scoreboard_a")

        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement.encode())
        connection.rollback()  # the roles are the whole cluster's, and vanish with this


def test_an_operators_database_login_may_change_boards_and_the_catalogue(
    database_url: str,
) -> None:
    statements = [
        "INSERT INTO boards VALUES ('weekly', 1, 43200, 16, TRUE)",
        "INSERT INTO actions (kind, points) VALUES ('win', 10)",
        "UPDATE actions SET enabled = FALSE",
        "INSERT INTO audit_log (actor, action, board, detail) VALUES ('a', 'b', 'c', '{}')",
    ]
    with psycopg.connect(database_url) as connection:
        for block in blocks("sql"):
            connection.execute(block.encode())
        connection.execute("SET LOCAL ROLE scoreboard_operator")

        changed = [connection.execute(statement.encode()).rowcount for statement in statements]
        connection.rollback()

    assert changed == [1, 1, 1, 1]
