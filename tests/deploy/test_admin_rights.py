"""The rights of administrators over HTTP: those of the operator, in a process of their own.

The users come from deploy/docker/users.acl, the roles from postgres-roles.sql, and their rights
from sql/grants.sql.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from api.endpoints.admin.sessions import AdminSessions
from cli.embedded.ports import find_free_port
from cli.running.service import wait_until_ready
from scoreboard.errors import SettingInvalid
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.security.tokens import ADMIN, READ, UPDATE, UPDATE_ANY
from tests.support.eventually import eventually
from tests.support.repository import ROOT
from tests.support.servers.deployed import PASSWORD, Deployed, is_committed, play
from tests.support.servers.forked_service import ForkedService

TABLES: Final = ("acts", "audit_log", "bans", "boards", "score_events", "scores", "users")


class Administration:
    """A system with an api for administrators, and with one that has only the api's logins."""

    def __init__(self, folder: Path) -> None:
        self.deployed = Deployed(folder)
        self.secrets = folder / "secrets"
        for name in ("api", "operator"):
            for kind in ("redis", "database"):
                user = name if kind == "redis" else f"scoreboard_{name}_a"
                path = self.secrets / name / kind
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"username": user, "password": PASSWORD}))
        self.public = self.deployed.system.api
        self.operator = self._start("operator")
        self.weak = self._start("api")

    def _start(self, logins: str) -> str:
        """Start an api whose administrators have the logins of a service; return its address."""
        system, port = self.deployed.system, find_free_port()
        server = system.postgres
        environment = system.variables["api"] | {
            "REDIS_URL": f"redis://127.0.0.1:{system.valkey.port}/0",
            "DATABASE_URL": f"postgresql://127.0.0.1:{server.port}/{server.database}",
            "SCOREBOARD_API_PORT": str(port),
            "SCOREBOARD_ADMIN_API": "true",
            "SCOREBOARD_SECRETS": "file",
            "SCOREBOARD_REDIS_SECRET": str(self.secrets / "api/redis"),
            "SCOREBOARD_DATABASE_SECRET": str(self.secrets / "api/database"),
        }
        if logins != "api":
            environment |= {
                "SCOREBOARD_ADMIN_REDIS_SECRET": str(self.secrets / logins / "redis"),
                "SCOREBOARD_ADMIN_DATABASE_SECRET": str(self.secrets / logins / "database"),
            }
        address = f"http://127.0.0.1:{port}"
        service = ForkedService(
            f"admin-{logins}",
            ["-m", "api"],
            environment,
            system.folder / f"admin-{logins}.log",
            ready_url=f"{address}/health/ready",
        )
        system.on_stop(service.stop)
        service.start()
        wait_until_ready([service], lambda: None)
        return address

    def ask(
        self, api: str, method: str, path: str, body: object = None, *scopes: str
    ) -> httpx.Response:
        """Send a request with a token of these scopes, by default an administrator's."""
        token = self.deployed.system.token("anna", *(scopes or (ADMIN,)))
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.request(
            method, f"{api}{path}", json=body, headers=headers, timeout=30, trust_env=False
        )

    def rows(self) -> dict[str, int]:
        """Return the number of rows of each table that an administrator can change."""
        counts = {}
        for table in TABLES:
            query = f"SELECT count(*) FROM {table}".encode()
            row = self.deployed.owner.execute(query).fetchone()
            assert row is not None
            counts[table] = row[0]
        return counts


@pytest.fixture(scope="module")
def administration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Administration]:
    made = Administration(tmp_path_factory.mktemp("administration"))
    try:
        for user in ("alice", "bob"):
            play(made.deployed, user, "win:1", 50)
        made.deployed.run("board", "set", "main", "--max-points-per-action", "40")
        play(made.deployed, "alice", "win:held", 50)
        made.deployed.run("board", "set", "main", "--max-points-per-action", "none")
        eventually(lambda: is_committed(made.deployed))
        yield made
    finally:
        made.deployed.close()


def act(number: int, **fields: object) -> dict[str, object]:
    return {"board": "main", "userId": "alice", "reason": "test", "id": f"{number:016x}"} | fields


def undo(number: int, undone: int) -> dict[str, object]:
    return {"kind": "undo", "act": f"{undone:016x}", "reason": "test", "id": f"{number:016x}"}


BAN = act(5, kind="ban", userId="bob")
WINDOW = {"since": "2020-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z"}
REQUESTS: Final[list[tuple[str, str, dict[str, object] | None]]] = [
    (
        "POST",
        "/api/admin/acts/preview",
        {"board": "main", "userId": "alice", "kind": "correct", "delta": 1},
    ),
    ("POST", "/api/admin/acts", act(1, kind="correct", delta=5)),
    ("POST", "/api/admin/acts/0000000000000001/resume", None),
    ("POST", "/api/admin/acts", undo(2, 1)),
    ("POST", "/api/admin/acts", act(3, kind="void", actionId="win:1")),
    ("POST", "/api/admin/acts", act(4, kind="void window", userId="bob", **WINDOW)),
    ("POST", "/api/admin/acts", BAN),
    ("GET", "/api/admin/users/bob", None),
    ("POST", "/api/admin/acts", act(6, kind="unban", userId="bob")),
    ("GET", "/api/admin/acts?board=main&state=applied", None),
    ("GET", "/api/admin/users?query=al", None),
    ("GET", "/api/admin/users/alice", None),
    ("GET", "/api/admin/users/alice/history?board=main", None),
    ("POST", "/api/admin/boards", {"name": "daily"}),
    ("PATCH", "/api/admin/boards/daily", {"public": False, "state": "archived"}),
    ("GET", "/api/admin/boards", None),
    ("GET", "/api/admin/boards/daily/seasons", None),
    ("GET", "/api/admin/boards/daily/leaderboard", None),
    ("GET", "/api/admin/audit?board=main", None),
    ("GET", "/api/admin/held?state=held", None),
    ("POST", "/api/admin/held/1/void", {"reason": "test"}),
    ("GET", "/api/admin/status", None),
]
"""Every request of an administrator, in an order in which each succeeds."""


def test_the_requests_are_all_that_administrators_have() -> None:
    paths: dict[str, dict[str, Any]] = json.loads((ROOT / "docs/openapi.json").read_text())["paths"]
    sent = {(method, path.partition("?")[0]) for method, path, _ in REQUESTS}
    for path, methods in paths.items():
        if path.startswith("/api/admin/"):
            pattern = re.sub(r"\{\w+\}", "[^/]+", path)
            for method in methods:
                assert any(
                    verb == method.upper() and re.fullmatch(pattern, one) for verb, one in sent
                ), (method, path)


def test_administrators_can_do_everything_with_the_operators_logins(
    administration: Administration,
) -> None:
    administration.deployed.refused()
    for method, path, body in REQUESTS:
        answer = administration.ask(administration.operator, method, path, body)
        assert answer.is_success, (method, path, body, answer.text)
    assert administration.deployed.refused() == []
    row = administration.deployed.owner.execute(
        "SELECT count(*) FROM audit_log WHERE actor = 'sub:anna'"
    ).fetchone()
    assert row is not None
    assert row[0] >= 8
    administration.deployed.run("verify", "--full")


def test_with_the_apis_own_logins_nothing_is_changed(administration: Administration) -> None:
    """Nothing is half done, and the answers are problems of the service, not of the request."""
    before = administration.rows()
    bans = administration.deployed.admin.keys("sb:*ban*")
    for method, path, body in REQUESTS:
        anew = body and body | ({"id": f"f{str(body['id'])[1:]}"} if "id" in body else {})
        answer = administration.ask(administration.weak, method, path, anew)
        assert answer.status_code == 503, (method, path, answer.text)
        problem = answer.json()
        assert problem["status"] == 503
        assert "permission" in problem["detail"], problem
        assert "SELECT" not in problem["detail"]
    assert administration.rows() == before
    assert administration.deployed.admin.keys("sb:*ban*") == bans


def test_the_public_api_has_no_endpoint_for_administrators(administration: Administration) -> None:
    before = administration.rows()
    for method, path, body in REQUESTS:
        answer = administration.ask(administration.public, method, path, body)
        assert answer.status_code == 404, (method, path, answer.text)
    assert administration.rows() == before


@pytest.mark.parametrize("scopes", [(READ,), (READ, UPDATE), (READ, UPDATE_ANY)])
def test_no_other_scope_is_enough(administration: Administration, scopes: tuple[str, ...]) -> None:
    before = administration.rows()
    for method, path, body in REQUESTS:
        answer = administration.ask(administration.operator, method, path, body, *scopes)
        assert answer.status_code == 403, (method, path, answer.text)
        assert ADMIN in answer.headers["www-authenticate"]
    assert administration.rows() == before


def test_an_administrator_is_no_player(administration: Administration) -> None:
    """The scope includes no other one."""
    update = {"userId": "anna", "actionId": "win:1"}
    for api in (administration.public, administration.operator):
        answer = administration.ask(api, "POST", "/api/scores/update", update)
        assert answer.status_code == 403


@pytest.mark.parametrize("name", ["admin_redis_secret", "admin_database_secret"])
def test_the_operators_logins_are_named_together(name: str) -> None:
    """With one of them, an act would be recorded in PostgreSQL and never reach Redis."""
    given: dict[str, Any] = {"redis_url": Secret("redis://127.0.0.1:1/0"), name: "operator"}
    with pytest.raises(SettingInvalid, match="both"):
        AdminSessions(Settings(**given))
