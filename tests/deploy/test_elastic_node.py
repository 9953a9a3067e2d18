"""The log lines of a real run, indexed by a real OpenSearch node under the templates.

The searches are those of docs/how-to/logs-and-audit.md.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.sync.client import connect

from scoreboard.security.tokens import READ, UPDATE
from tests.support.clients.forked import run_forked
from tests.support.eventually import eventually
from tests.support.repository import ROOT
from tests.support.servers.opensearch import opensearch, require_opensearch
from tests.support.servers.rotated import ROTATOR, Rotated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

Line = dict[str, Any]

PAGE = ROOT / "docs/how-to/logs-and-audit.md"
ALICE = "192.0.2.7"
PLACEHOLDERS = {"REQUEST-ID": "slow-request"}
FLOOD = 80

EXPECTED: dict[str, Callable[[Line], bool]] = {
    "What happened to one request?": lambda one: one.get("http.request.id") == "slow-request",
    "Which requests failed with a server error?": lambda one: (
        one["message"] == "request_served" and one["http.response.status_code"] >= 500
    ),
    "Which requests took longer than 50 ms?": lambda one: (
        one["message"] == "request_served" and one["event.duration"] >= 50_000_000
    ),
    "What needs attention?": lambda one: one["log.level"] in {"error", "critical"},
    "Which WebSocket handshakes were refused?": lambda one: one["message"] == "handshake_refused",
    "Which secrets did services load?": lambda one: one["message"] == "secret_changed",
    "Were lines dropped?": lambda one: one["message"] in {"log_lines_dropped", "audit drop"},
    "Which tokens were refused?": lambda one: (
        one["message"] == "authenticate" and one["event.outcome"] == "failure"
    ),
    "Which tokens were for another audience?": lambda one: (
        one["message"] == "authenticate" and one.get("event.reason") == "audience"
    ),
    "Who tried to act for somebody else, or without a scope?": lambda one: (
        one.get("event.outcome") == "failure" and one.get("error.code") == "forbidden"
    ),
    "Which updates were refused, or have an unknown outcome?": lambda one: (
        one["message"] == "update" and one["event.outcome"] != "success"
    ),
    "Who reached the rate limit?": lambda one: (
        "event.outcome" in one and one.get("error.code") == "rate-limited"
    ),
    "What did a player do, and what was done to the player?": lambda one: (
        "alice" in {one.get("user.id"), one.get("user.target.id")}
    ),
    "What came from a network?": lambda one: (
        "event.outcome" in one
        and "client.ip" in one
        and ip_address(one["client.ip"]) in ip_network("192.0.2.0/24")
    ),
    "What did operators change?": lambda one: "scoreboard.audit.seq" in one,
    "Which boards were reseeded, repaired or closed?": lambda one: (
        one["message"] in {"reseed", "repair", "fence"}
    ),
    "Which secrets were rotated?": lambda one: one["message"] in {"secret rotate", "secret retire"},
    "With which settings did services start?": lambda one: one["message"] == "service start",
}
"""What each search of the page promises to find."""


def searches() -> dict[str, tuple[str, str]]:
    """Return data stream and query of the searches on the page, by question."""
    table = PAGE.read_text().partition("## Searches")[2].partition("## ")[0]
    rows = re.findall(r"^\| ([A-Z].+?\?)[^|]*\| `(.+?)` \| `(.+?)` \|$", table, re.MULTILINE)
    return {question: (stream, query) for question, stream, query in rows}


# The run ----------------------------------------------------------------------------------------


class Run:
    """A system in use, with every line that its processes and commands write."""

    def __init__(self, folder: Path) -> None:
        self.lines: list[Line] = []
        self.rotated = Rotated(
            folder,
            has_acl_file=True,
            boards="main,closed",
            log_lines=FLOOD // 2,
            log_success_share=1,
            audit_updates="true",
            updates_per_minute=8,
            secrets_refresh_s=1,
            trusted_hops="127.0.0.1",
        )
        self.system = self.rotated.system

    def command(self, *arguments: str) -> str:
        """Run a command as in a container; return what it prints."""
        done = run_forked("cli", arguments, self._environment())
        assert done.returncode == 0, done.stderr
        self.lines += map(json.loads, done.stderr.splitlines())
        return done.stdout

    def _environment(self) -> dict[str, str]:
        def without_login(url: str) -> str:
            parts = urlsplit(url)
            return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

        system, clean = self.system, os.environ.items()
        return {
            **{name: text for name, text in clean if not name.startswith("SCOREBOARD_")},
            "SCOREBOARD_LOG_FORMAT": "json",
            "REDIS_URL": without_login(system.valkey.url),
            "DATABASE_URL": without_login(system.postgres.url),
            **self.rotated.secret_variables(self.login),
        }

    login = "operator"

    def use(self) -> None:
        """Cause lines of every kind that the page names."""
        self.make_requests()
        self.refuse_a_handshake()
        self.command("board", "create", "weekly")
        self.command("action", "set", "bonus", "7")
        self.command("user", "set", "alice", "--name", "Alice")
        self.store_a_dead_letter()
        self.command("reseed", "--board", "main", "--force", "--yes")
        self.make_redis_unsafe()
        self.login = ROTATOR
        for kind in ("db", "redis"):
            self.command("secrets", "rotate", kind, "--grace", "0")
        eventually(lambda: self.log("api").count('"message": "secret_changed"') >= 2, within_s=30)

    def make_requests(self) -> None:
        alice = self.system.token("alice")
        foreign = self.system.issuer.issue("alice", [UPDATE, READ], audience="another")
        arena = self.system.game_server()["Authorization"].partition(" ")[2]
        with httpx.Client(base_url=self.system.api, timeout=20) as client:

            def update(token: str, board: str = "main", **body: object) -> int:
                headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": ALICE}
                path = f"/api/scores/update?board={board}"
                return client.post(path, json=body, headers=headers).status_code

            mine = {"userId": "alice", "actionId": "win:1"}
            assert [update(alice, **mine) for _ in range(2)] == [200, 200]
            assert update(alice, userId="bob", actionId="win:2") == 403
            assert update(foreign, **mine) == 401
            assert update("nonsense", **mine) == 401
            assert update(alice, userId="alice", actionId="not an id") == 422
            assert update(alice, board="closed", **mine) == 503
            stated = {"userId": "carol", "actionId": "win:9"}
            assert [update(arena, **stated, points=n) for n in (5, 6)] == [200, 409]
            assert 429 in [update(alice, userId="alice", actionId=f"w:{n}") for n in range(12)]
            for _ in range(FLOOD):
                assert client.get("/nothing").status_code == 404
            assert client.get("/api/scores/leaderboard").status_code == 200
            self.rotated.redis.client_pause(150)
            headers = {"Authorization": f"Bearer {arena}", "X-Request-Id": "slow-request"}
            slow = {"userId": "dave", "actionId": "win:1"}
            sent = client.post("/api/scores/update", json=slow, headers=headers)
            assert sent.status_code == 200

    def refuse_a_handshake(self) -> None:
        with (
            pytest.raises(Exception, match="401"),
            connect(self.system.ws, additional_headers={"Authorization": "Bearer nonsense"}),
        ):
            pass
        with connect(self.system.ws) as viewer:
            viewer.recv(10)

    def store_a_dead_letter(self) -> None:
        self.rotated.redis.xadd("sb:{main:0}:events", {"k": "unknown", "t": "dead-request"})
        rows = "SELECT id FROM dead_events"
        [(number,)] = eventually(
            lambda: self.rotated.database.execute(rows).fetchall(), within_s=20
        )
        self.command("dead", "discard", str(number), "--reason", "a test", "--yes")

    def make_redis_unsafe(self) -> None:
        client = self.rotated.redis
        client.config_set("appendfsync", "everysec")
        eventually(lambda: self.log("api").count('"message": "redis_not_durable"'), within_s=30)
        client.config_set("appendfsync", "always")

    def log(self, service: str) -> str:
        httpx.get(f"{self.system.api}/health/ready", timeout=10)
        return (self.system.folder / f"{service}.log").read_text()

    def stop(self) -> None:
        """Stop everything, and read the lines of the services."""
        self.rotated.close()
        for path in sorted(self.system.folder.glob("*.log*")):
            self.lines += map(json.loads, path.read_text().splitlines())


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    require_opensearch()
    run = Run(tmp_path_factory.mktemp("run"))
    try:
        run.rotated.start()
        run.use()
    finally:
        run.stop()
    return run.lines


# The node ---------------------------------------------------------------------------------------


def templates(kind: str) -> dict[str, Any]:
    """Return the templates for OpenSearch: without what only Elasticsearch has."""
    folder = ROOT / "deploy/elastic/elasticsearch"
    found = {}
    for path in folder.glob(f"{kind}.*.json"):
        document = json.loads(path.read_text())
        template = document.get("template", {})
        index = template.get("settings", {}).get("index", {})
        index.pop("lifecycle", None)
        index.pop("default_pipeline", None)
        properties = template.get("mappings", {}).get("properties", {})
        if namespace := properties.get("data_stream", {}).get("properties", {}).get("namespace"):
            namespace["value"] = "default"
        found[path.name[len(kind) + 1 : -5]] = document
    return found


@pytest.fixture(scope="module")
def node(lines: list[Line], tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Run a node with the templates and every line."""
    with opensearch(tmp_path_factory.mktemp("opensearch")) as client:
        for kind, path in (
            ("component-template", "_component_template"),
            ("index-template", "_index_template"),
        ):
            for name, document in templates(kind).items():
                client.put(f"/{path}/{name}", json=document).raise_for_status()
        bulk = ""
        for line in lines:
            dataset = line["event.dataset"]
            stream = {"type": "logs", "dataset": dataset, "namespace": "default"}
            bulk += json.dumps({"create": {"_index": f"logs-{dataset}-default"}}) + "\n"
            bulk += json.dumps({**line, "data_stream": stream}) + "\n"
        done = client.post(
            "/_bulk?refresh=true",
            content=bulk,
            headers={"Content-Type": "application/x-ndjson"},
            timeout=60,
        ).json()
        refused = [one["create"]["error"] for one in done["items"] if "error" in one["create"]]
        assert refused == []
        yield client


@pytest.mark.usefixtures("node")
def test_the_run_has_lines_of_every_process_with_one_type_for_each_field(
    lines: list[Line],
) -> None:
    services = {line["service.name"] for line in lines}
    assert services == {f"scoreboard-{name}" for name in ("api", "streamer", "flusher", "cli")}
    assert len(lines) > 200
    types: dict[str, set[type]] = {}
    for line in lines:
        for name, value in line.items():
            items = value if isinstance(value, list) else [value]
            types.setdefault(name, set()).update(map(type, items))
    assert {name: found for name, found in types.items() if len(found) > 1} == {}
    assert [name for name in types if name.startswith("labels.")] == []


def test_a_request_id_reaches_the_line_of_its_dead_letter(lines: list[Line]) -> None:
    [stored] = [line for line in lines if line["message"] == "dead_letters_stored"]
    assert stored["http.request.id"] == ["dead-request"]


def test_every_field_of_every_line_is_mapped(node: httpx.Client, lines: list[Line]) -> None:
    for dataset in ("scoreboard.app", "scoreboard.audit"):
        used = {name for line in lines if line["event.dataset"] == dataset for name in line}
        found = node.get(f"/logs-{dataset}-default/_mapping/field/*").json()
        mapped = {name for index in found.values() for name in index["mappings"]}
        assert used - mapped == set()
        assert len(found) == 1


def test_the_page_has_the_expected_searches() -> None:
    assert list(searches()) == list(EXPECTED)


@pytest.mark.parametrize("question", EXPECTED)
def test_a_search_of_the_page_finds_what_it_promises(
    node: httpx.Client, lines: list[Line], question: str
) -> None:
    stream, query = searches()[question]
    for name, value in PLACEHOLDERS.items():
        query = query.replace(name, value)
    dataset = re.compile(stream.replace(".", r"\.").replace("*", ".*"))
    expected = [
        line
        for line in lines
        if dataset.fullmatch(f"logs-{line['event.dataset']}-default") and EXPECTED[question](line)
    ]

    answer = node.get(f"/{stream}/_search", params={"q": query, "size": 1000}).json()

    found = [hit["_source"] for hit in answer["hits"]["hits"]]
    assert len(found) == len(expected) > 0
    assert {one["@timestamp"] for one in found} == {one["@timestamp"] for one in expected}


def test_both_data_streams_exist_with_their_templates(node: httpx.Client) -> None:
    streams = node.get("/_data_stream").json()["data_streams"]
    assert {one["name"]: one["template"] for one in streams} == {
        "logs-scoreboard.app-default": "logs-scoreboard.app",
        "logs-scoreboard.audit-default": "logs-scoreboard.audit",
    }


def test_no_line_contains_a_password_or_a_token(lines: list[Line]) -> None:
    text = json.dumps(lines)
    assert "eyJ" not in text
    assert '"first"' not in text
