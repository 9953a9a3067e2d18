"""The two handlers on a real nginx, with real tokens. It is not Kong: see nginx_gateway.py.

These tests need a real server: forwarding of headers, hop-by-hop headers, WebSocket upgrades that
stay open by heartbeats, and nginx's own errors.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import yaml
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from cli.gateway.config import GatewayOptions, render
from cli.gateway.keys import rows_of
from scoreboard.runtime.resources import kong_path
from scoreboard.security.key_set import parse_keys
from tests.kong.backends import Recorder, http_recorder, ws_recorder
from tests.kong.nginx_gateway import NginxGateway, nginx_gateway, raw_request, require_nginx
from tests.kong.runtime import ROOT, Gateway, encode_part
from tests.support.eventually import eventually_async
from tests.support.fakes.tokens import AUDIENCE, ISSUER, KeyPair, MakeToken

pytestmark = pytest.mark.slow

READ_TIMEOUT_MS = 1500
UPDATE = "/api/scores/update"
READER = "read:leaderboard"


@dataclass
class Stage:
    """A gateway with one recording service of each kind."""

    gateway: NginxGateway
    api: Recorder
    admin: Recorder
    streamer: Recorder
    client: httpx.AsyncClient
    expected_errors: list[str] = field(default_factory=list)

    async def update(self, token: str | None, **options: Any) -> httpx.Response:
        """Post an update."""
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        headers |= options.pop("headers", {})
        return await self.client.post(UPDATE, json={"userId": "alice"}, headers=headers, **options)

    async def raw(self, *lines: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        """Send a request unchanged."""
        return await asyncio.to_thread(raw_request, self.gateway.port, lines, body)

    @property
    def ws_url(self) -> str:
        """Return the URL for viewers."""
        return f"ws://127.0.0.1:{self.gateway.port}/ws/scoreboard"

    @property
    def logged(self) -> list[dict[str, Any]]:
        """Return the messages of the log plugin."""
        text = self.gateway.log.read_text() if self.gateway.log.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    async def until_logged(self, count: int) -> None:
        """Wait for this number of log lines; nginx writes them after the response."""
        await eventually_async(lambda: len(self.logged) >= count)
        assert len(self.logged) == count

    @property
    def series(self) -> list[str]:
        """Return the series that prometheus would count, as service, route and status."""
        return self.gateway.series.read_text().splitlines()

    def check_error_log(self) -> None:
        """Fail if nginx or a plugin has logged an error that the test does not expect."""
        lines = self.gateway.error_log.read_text().splitlines()
        errors = [line for line in lines if re.search(r"\[(warn|error|crit|alert|emerg)\]", line)]
        unexpected = [e for e in errors if not any(text in e for text in self.expected_errors)]
        assert unexpected == []


@pytest.fixture(scope="module")
def document(jwks: dict[str, Any]) -> dict[str, Any]:
    """Return the rendered configuration; it is rendered once, because YAML is slow."""
    rows = rows_of(parse_keys(msgspec.json.encode(jwks)))
    options = GatewayOptions(
        issuer=ISSUER,
        audiences=(AUDIENCE,),
        redis_url="redis://kong@valkey-counters:6379/0",
        origins=("https://play.example",),
        admin_targets=("admin:8000",),
        trusted_updates_per_minute=20,
    )
    return yaml.safe_load(render((kong_path() / "kong.yml").read_text(), rows, options))


@pytest.fixture
def kong_settings() -> dict[str, str]:
    """Return settings in addition to the image's; tests override it with ``parametrize``."""
    return {}


@pytest.fixture
async def stage(
    tmp_path: Path, document: dict[str, Any], kong_settings: dict[str, str]
) -> AsyncIterator[Stage]:
    require_nginx()
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(http_recorder())
        admin = await stack.enter_async_context(http_recorder())
        streamer = await stack.enter_async_context(ws_recorder())
        targets = {
            "scoreboard-admin": admin.target,
            "scoreboard-api": api.target,
            "scoreboard-events": api.target,
            "scoreboard-streamer": streamer.target,
        }
        running = nginx_gateway(
            tmp_path, document, targets, Gateway().schemas,
            read_timeout_ms=READ_TIMEOUT_MS, settings=kong_settings,
        )  # fmt: skip
        gateway = stack.enter_context(running)
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30)
        )
        stage = Stage(gateway, api, admin, streamer, client)
        yield stage
        stage.check_error_log()


def assert_problem(answer: httpx.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["type"], problem["status"]) == (f"/docs/problems/{code}", status)
    assert len(problem["request_id"]) == 32


# Tokens -----------------------------------------------------------------------------------------


async def test_a_valid_token_is_forwarded_unchanged(stage: Stage, make_token: MakeToken) -> None:
    token = make_token("alice")
    answer = await stage.update(token)
    assert answer.status_code == 200
    assert stage.api.requests[-1][0] == f"POST {UPDATE} HTTP/1.1"
    assert stage.api.values("Authorization") == [f"Bearer {token}"]
    assert stage.api.requests[-1][2] == b'{"userId":"alice"}'


async def test_a_token_with_an_ec_key_is_accepted(
    stage: Stage, make_token: MakeToken, ec_key: KeyPair
) -> None:
    assert (await stage.update(make_token("alice", key=ec_key))).status_code == 200


async def test_invalid_tokens_get_401_and_are_not_forwarded(
    stage: Stage, make_token: MakeToken, rsa_key: KeyPair, ec_key: KeyPair
) -> None:
    good = make_token("alice")
    head, body, signature = good.split(".")
    now_s = int(time.time())
    none = encode_part({"alg": "none", "kid": rsa_key.kid})
    bad = {
        "tampered": f"{head}.{encode_part({'sub': 'bob', 'exp': now_s + 60})}.{signature}",
        "cut": f"{head}.{body}.{signature[:-4]}",
        "unsigned": f"{none}.{body}.",
        "unsigned with a signature": f"{none}.{body}.AAAA",
        "expired": make_token("alice", exp=now_s - 1),
        "foreign key": make_token("alice", headers={"kid": "other"}),
        "swapped algorithm": make_token("alice", key=ec_key, headers={"kid": rsa_key.kid}),
        "numeric kid": make_token("alice", headers={}).replace(
            head, encode_part({"alg": "RS256", "kid": 7})
        ),
        "foreign issuer": make_token("alice", iss="https://other.example/"),
        "foreign audience": make_token("alice", aud="other"),
        "not yet": make_token("alice", nbf=now_s + 600),
        "no expiry": make_token("alice", exp=None),
        "invalid sub": make_token("al ice"),
        "not a token": "x",
    }
    for name, token in bad.items():
        answer = await stage.update(token)
        assert answer.status_code == 401, (name, answer.text)
        assert_problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"].endswith('error="invalid_token"'), name
    missing = await stage.update(None)
    assert missing.headers["www-authenticate"] == 'Bearer realm="scoreboard"'
    assert_problem(missing, 401, "unauthenticated")
    assert stage.api.requests == []


async def test_a_token_without_the_scope_gets_403(stage: Stage, make_token: MakeToken) -> None:
    answer = await stage.update(make_token("alice", READER))
    assert_problem(answer, 403, "forbidden")
    assert 'scope="update:score"' in answer.headers["www-authenticate"]
    assert stage.api.requests == []


async def test_the_eleventh_update_of_a_user_gets_429_and_others_are_accepted(
    stage: Stage, make_token: MakeToken
) -> None:
    for _ in range(10):
        assert (await stage.update(make_token("alice"))).status_code == 200
    answer = await stage.update(make_token("alice"))
    assert_problem(answer, 429, "rate-limited")
    assert answer.headers["retry-after"] == "42"
    assert (await stage.update(make_token("bob"))).status_code == 200


async def test_a_game_server_has_a_higher_limit(stage: Stage, make_token: MakeToken) -> None:
    for _ in range(20):
        assert (await stage.update(make_token("server", "update:score:any"))).status_code == 200
    assert (await stage.update(make_token("server", "update:score:any"))).status_code == 429


# Administrators ---------------------------------------------------------------------------------


async def test_requests_of_administrators_reach_their_api_only(
    stage: Stage, make_token: MakeToken
) -> None:
    refused = await stage.client.get(
        "/api/admin/acts",
        headers={"Authorization": f"Bearer {make_token('alice', 'update:score:any')}"},
    )
    assert_problem(refused, 403, "forbidden")
    assert_problem(await stage.client.get("/api/admin/acts"), 401, "unauthenticated")
    assert stage.admin.requests == []
    token = make_token("anna", "admin:scores")
    headers = {"Authorization": f"Bearer {token}"}
    for method, path in (
        ("GET", "/api/admin/users/auth0|64f1/history"),
        ("POST", "/api/admin/acts"),
        ("PATCH", "/api/admin/boards/weekly"),
        ("GET", "/admin"),
    ):
        body = {"reason": "x"} if method in {"POST", "PATCH"} else None
        answer = await stage.client.request(method, path, headers=headers, json=body)
        assert answer.status_code == 200, path
        assert stage.admin.requests[-1][0].startswith(f"{method} /")
        assert stage.admin.values("Authorization") == [f"Bearer {token}"]
    assert len(stage.admin.requests) == 4
    assert stage.api.requests == []


async def test_a_lost_answer_of_an_act_is_told_apart_from_a_refusal(
    stage: Stage, make_token: MakeToken
) -> None:
    headers = {"Authorization": f"Bearer {make_token('anna', 'admin:scores')}"}
    stage.admin.answer = None
    stage.expected_errors = ["upstream prematurely closed connection"]
    for method in ("POST", "PATCH"):
        answer = await stage.client.request(method, "/api/admin/acts", headers=headers, json={})
        assert_problem(answer, 503, "outcome-unknown")
    assert_problem(await stage.client.get("/api/admin/acts", headers=headers), 503, "unavailable")


# Headers ----------------------------------------------------------------------------------------


def lines_of(
    token: str, *more: str, method: str = "GET", path: str = "/api/scores/leaderboard"
) -> Sequence[str]:
    return [
        f"{method} {path} HTTP/1.1",
        "Host: play.example",
        f"Authorization: Bearer {token}",
        *more,
    ]


async def test_headers_with_underscores_and_identity_headers_are_not_forwarded(
    stage: Stage, make_token: MakeToken
) -> None:
    status, _, _ = await stage.raw(
        *lines_of(
            make_token("alice"),
            "X_Kong_Request_Id: forged",
            "x-kong-request-id: forged",
            "X-Consumer-Username: game-servers",
            "X_Consumer_Username: game-servers",
            "X-Credential-Identifier: bob",
            'If_None_Match: "9"',
            'If-None-Match: "1"',
        )
    )
    assert status == 200
    names = stage.api.names
    assert not [name for name in names if "_" in name]
    assert "x-credential-identifier" not in names
    assert stage.api.values("X-Consumer-Username") == [
        "players"
    ]  # set by jwt; the services do not read it
    assert stage.api.values("If-None-Match") == ['"1"']
    (request_id,) = stage.api.values("X-Kong-Request-Id")
    assert request_id != "forged"
    assert stage.api.values("Host") == ["play.example"]


@pytest.mark.parametrize("name", ["X-Request-Id", "X-Kong-Request-Id", "X_Request_Id"])
async def test_the_request_id_is_set_by_the_gateway(
    stage: Stage, make_token: MakeToken, name: str
) -> None:
    _, refused, body = await stage.raw(
        "GET /api/scores/leaderboard HTTP/1.1", HOST, f"{name}: forged-by-client"
    )
    assert json.loads(body)["request_id"] == refused["x-kong-request-id"]

    reader = make_token("alice", READER)
    status, headers, _ = await stage.raw(*lines_of(reader, f"{name}: forged-by-client"))
    assert status == 200
    (passed_on,) = stage.api.values("X-Kong-Request-Id")
    assert passed_on == headers["x-kong-request-id"]
    assert stage.api.values("X-Request-Id") == []
    assert "forged-by-client" not in str(stage.api.requests)
    await stage.until_logged(2)
    assert [line["request"]["id"] for line in stage.logged] == [
        refused["x-kong-request-id"],
        passed_on,
    ]


@pytest.mark.parametrize("value", ["close, Authorization", "Authorization", "close, X-Other"])
async def test_a_connection_header_cannot_remove_the_token(
    stage: Stage, make_token: MakeToken, value: str
) -> None:
    status, headers, body = await stage.raw(*lines_of(make_token("alice"), f"Connection: {value}"))
    assert status == 400
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["type"] == "/docs/problems/malformed"
    assert stage.api.requests == []


async def test_hop_by_hop_headers_are_accepted_and_not_forwarded(
    stage: Stage, make_token: MakeToken
) -> None:
    status, _, _ = await stage.raw(*lines_of(make_token("alice"), "Connection: close, TE", "TE: x"))
    assert status == 200
    assert "te" not in stage.api.names
    assert stage.api.values("Authorization")


HIDDEN = b"POST /api/scores/update HTTP/1.1\r\nHost: play.example\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    "offered",
    [
        ["Upgrade: websocket", "Connection: Upgrade"],
        ["Connection: keep-alive, upgrade", "upgrade: WEBSOCKET"],
        ["Upgrade: h2c", "HTTP2-Settings: AAMA", "Connection: Upgrade, HTTP2-Settings"],
        ["Upgrade: websocket", "HTTP2-Settings: AAMA"],
        ["Upgrade: websocket", "Upgrade: websocket", "Connection: Upgrade"],
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/scores/leaderboard"),
        ("GET", "/api/scores/users/alice"),
        ("GET", "/api/scores/stream"),
        ("GET", "/"),
        ("POST", UPDATE),
    ],
)
async def test_upgrades_are_not_forwarded_to_the_api_and_the_body_is_kept(
    stage: Stage, make_token: MakeToken, offered: list[str], method: str, path: str
) -> None:
    token = make_token("alice", READER if method == "GET" else "update:score")
    lines = lines_of(token, *offered, f"Content-Length: {len(HIDDEN)}", method=method, path=path)
    status, _, _ = await stage.raw(*lines, body=HIDDEN)
    assert status == 200
    ((first, _, body),) = stage.api.requests
    assert first == f"{method} {path} HTTP/1.1"
    assert body == HIDDEN
    assert {"upgrade", "http2-settings"}.isdisjoint(stage.api.names)
    assert "upgrade" not in str(stage.api.values("Connection")).lower()


async def test_a_handshake_with_a_body_is_not_forwarded_to_the_streamer(
    stage: Stage, make_token: MakeToken
) -> None:
    lines = lines_of(
        make_token("alice", READER), "Upgrade: websocket", "Connection: Upgrade",
        "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        f"Content-Length: {len(HIDDEN)}", path="/ws/scoreboard",
    )  # fmt: skip
    status, headers, _ = await stage.raw(*lines, body=HIDDEN)
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert stage.streamer.requests == []


async def test_two_authorization_headers_are_refused(stage: Stage, make_token: MakeToken) -> None:
    token = make_token("alice")
    status, _, _ = await stage.raw(*lines_of(token, f"Authorization: Bearer {token}"))
    assert status in {400, 401}  # some versions of nginx refuse it themselves
    assert stage.api.requests == []


async def test_more_than_100_headers_are_refused(stage: Stage, make_token: MakeToken) -> None:
    status, headers, _ = await stage.raw(
        *lines_of(make_token("alice"), *[f"X-{number}: 1" for number in range(100)])
    )
    assert (status, headers["content-type"]) == (400, "application/problem+json")


# WebSockets -------------------------------------------------------------------------------------


def offer(token: str) -> list[Subprotocol]:
    return [Subprotocol("scoreboard.v1"), Subprotocol(f"bearer.{token}")]


async def test_a_subprotocol_token_is_forwarded_as_authorization(
    stage: Stage, make_token: MakeToken
) -> None:
    token = make_token("alice", READER)
    async with connect(
        stage.ws_url,
        subprotocols=offer(token),
        origin="https://play.example",
        proxy=None,  # type: ignore[arg-type]
    ) as viewer:
        assert viewer.subprotocol == "scoreboard.v1"
        await viewer.send("hello")
        assert await viewer.recv() == "hello"
    assert stage.streamer.values("Sec-WebSocket-Protocol") == ["scoreboard.v1"]
    assert stage.streamer.values("Authorization") == [f"Bearer {token}"]
    assert stage.streamer.values("Connection") == ["keep-alive, Upgrade"]


async def test_a_viewer_can_use_authorization(stage: Stage, make_token: MakeToken) -> None:
    token = make_token("alice", READER)
    async with connect(
        stage.ws_url,
        subprotocols=[Subprotocol("scoreboard.v1")],
        additional_headers={"Authorization": f"Bearer {token}", "Connection": "keep-alive"},
        proxy=None,
    ) as viewer:
        await viewer.send("hello")
        assert await viewer.recv() == "hello"


@pytest.mark.parametrize(
    ("origin", "offered", "status"),
    [
        ("https://evil.example", "{}", 403),
        ("null", "{}", 403),
        ("https://play.example", "x", 401),
        ("https://play.example", None, 401),
    ],
)
async def test_a_refused_handshake_is_not_forwarded_to_the_streamer(
    stage: Stage, make_token: MakeToken, origin: str, offered: str | None, status: int
) -> None:
    token = offered and offered.format(make_token("alice", READER))
    protocols = offer(token) if token else [Subprotocol("scoreboard.v1")]
    with pytest.raises(InvalidStatus) as refusal:
        await connect(stage.ws_url, subprotocols=protocols, origin=origin, proxy=None)  # type: ignore[arg-type]
    assert refusal.value.response.status_code == status
    assert refusal.value.response.headers["content-type"] == "application/problem+json"
    assert stage.streamer.requests == []


async def test_heartbeats_keep_an_idle_viewer_connected_beyond_the_read_timeout(
    stage: Stage, make_token: MakeToken
) -> None:
    stage.streamer.heartbeat_s = READ_TIMEOUT_MS / 1000 / 3
    async with connect(
        stage.ws_url, subprotocols=offer(make_token("alice", READER)), proxy=None
    ) as viewer:
        started = time.monotonic()
        while time.monotonic() - started < 2 * READ_TIMEOUT_MS / 1000:
            assert await viewer.recv() == "heartbeat"


async def test_without_heartbeats_the_read_timeout_closes_the_connection(
    stage: Stage, make_token: MakeToken
) -> None:
    async with connect(
        stage.ws_url, subprotocols=offer(make_token("alice", READER)), proxy=None
    ) as viewer:
        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(3 * READ_TIMEOUT_MS / 1000):
                await viewer.recv()


# Errors -----------------------------------------------------------------------------------------


async def test_a_request_without_a_route_gets_a_404_problem(stage: Stage) -> None:
    for method, path in (("GET", "/health/ready"), ("GET", UPDATE), ("POST", "/metrics")):
        assert_problem(await stage.client.request(method, path), 404, "not-found")
    assert stage.api.requests == []


async def test_head_returns_the_headers_of_get_without_the_body(stage: Stage) -> None:
    page = await stage.client.head("/")
    assert (page.status_code, page.content, page.headers["etag"]) == (200, b"", '"1"')
    assert stage.api.requests[-1][0] == "HEAD / HTTP/1.1"
    for path, status in (("/api/scores/leaderboard", 401), (UPDATE, 404), ("/nothing", 404)):
        answer = await stage.client.head(path)
        assert (answer.status_code, answer.content) == (status, b""), path
        assert answer.headers["content-type"] == "application/problem+json"


async def test_an_unavailable_service_gets_503(stage: Stage, make_token: MakeToken) -> None:
    stage.api.answer = None
    stage.expected_errors = ["upstream prematurely closed connection"]
    answer = await stage.update(make_token("alice"))
    assert_problem(answer, 503, "outcome-unknown")
    assert answer.headers["retry-after"] == "1"
    headers = {"Authorization": f"Bearer {make_token('alice', READER)}"}
    answer = await stage.client.get("/api/scores/leaderboard", headers=headers)
    assert_problem(answer, 503, "unavailable")


async def test_a_service_that_hangs_gets_503(stage: Stage, make_token: MakeToken) -> None:
    stage.api.answer = b""
    stage.expected_errors = ["upstream timed out"]
    assert_problem(await stage.update(make_token("alice")), 503, "outcome-unknown")


async def test_errors_of_a_service_are_forwarded_unchanged(
    stage: Stage, make_token: MakeToken
) -> None:
    for status in (409, 429, 503):
        stage.api.answer = (
            f"HTTP/1.1 {status} X\r\nContent-Type: application/problem+json\r\n"
            "Retry-After: 5\r\nContent-Length: 8\r\n\r\nits own!"
        ).encode()
        answer = await stage.update(make_token(f"user-{status}"))
        assert (answer.status_code, answer.text) == (status, "its own!")
        assert answer.headers["retry-after"] == "5"


async def test_a_large_body_gets_413(stage: Stage, make_token: MakeToken) -> None:
    stage.expected_errors = ["client intended to send too large body"]
    for size in (5_000, 70_000):  # the plugin's limit, and nginx's own
        answer = await stage.client.post(
            UPDATE,
            content=b"x" * size,
            headers={"Authorization": f"Bearer {make_token('alice')}"},
        )
        assert_problem(answer, 413, "body-too-large")
    assert stage.api.requests == []


HOST = "Host: play.example"
NGINX_ERRORS = {
    "no Host": (["GET / HTTP/1.1"], 400, "malformed"),
    "two Hosts": (["GET / HTTP/1.1", "Host: a", "Host: b"], 400, "malformed"),
    "two lengths": (
        ["POST / HTTP/1.1", HOST, "Content-Length: 1", "Content-Length: 2"], 400, "malformed",
    ),
    "another coding": (["POST / HTTP/1.1", HOST, "Transfer-Encoding: gzip"], 400, "malformed"),
    "no path": (["GET  HTTP/1.1", HOST], 400, "malformed"),
    "bad escape": (["GET /%zz HTTP/1.1", HOST], 400, "malformed"),
    "method in lowercase": (["get / HTTP/1.1", HOST], 400, "malformed"),
    "TRACE": (["TRACE / HTTP/1.1", HOST], 405, "method-not-allowed"),
    "TRACE of an update": ([f"TRACE {UPDATE} HTTP/1.1", HOST], 405, "method-not-allowed"),
    "a long address": ([f"GET /?{'x' * 40_000} HTTP/1.1", HOST], 414, "uri-too-long"),
    "a long header": (["GET / HTTP/1.1", HOST, "X: " + "x" * 40_000], 431, "head-too-large"),
    "many headers": (
        ["GET / HTTP/1.1", HOST, *[f"X-{n}: {'x' * 500}" for n in range(100)]],
        431, "head-too-large",
    ),
    "HTTP/2.0": (["GET / HTTP/2.0", HOST], 505, "http-version"),
    "OPTIONS": (["OPTIONS / HTTP/1.1", HOST], 404, "not-found"),
    "PUT": ([f"PUT {UPDATE} HTTP/1.1", HOST, "Content-Length: 0"], 404, "not-found"),
    "HTTP/1.0": ([f"GET {UPDATE} HTTP/1.0"], 404, "not-found"),
}  # fmt: skip


@pytest.mark.parametrize("name", NGINX_ERRORS)
async def test_errors_of_nginx_are_problem_documents(stage: Stage, name: str) -> None:
    lines, status, code = NGINX_ERRORS[name]
    answered, headers, body = await stage.raw(*lines)
    assert answered == status
    assert headers["content-type"] == "application/problem+json"
    problem = json.loads(body)
    assert (problem["type"], problem["status"]) == (f"/docs/problems/{code}", status)
    assert len(problem["request_id"]) == 32
    assert ("allow" in headers) is (status == 405)
    await stage.until_logged(1)
    assert stage.logged[0]["response"]["status"] == status
    assert stage.api.requests == []


def documented_setting(name: str) -> str:
    """Return the value that docs/how-to/run-kong.md recommends for a setting of Kong."""
    text = (ROOT / "docs/how-to/run-kong.md").read_text()
    return re.search(rf'{name}="([^"]+)"', text)[1]  # type: ignore[index]


ZONE, LIMIT = "KONG_NGINX_HTTP_LIMIT_CONN_ZONE", "KONG_NGINX_LOCATION_LIMIT_CONN"


@pytest.mark.parametrize("kong_settings", [{ZONE: documented_setting(ZONE), LIMIT: "perip 1"}])
async def test_too_many_connections_of_an_address_get_429(
    stage: Stage, make_token: MakeToken
) -> None:
    assert documented_setting(LIMIT).startswith("perip ")
    stage.expected_errors = ['limiting connections by zone "perip"']
    async with connect(stage.ws_url, subprotocols=offer(make_token("alice", READER)), proxy=None):
        answer = await stage.client.get("/")
        assert_problem(answer, 429, "too-many-connections")
        assert answer.headers["retry-after"] == "1"
    await eventually_async(lambda: is_served(stage))


async def is_served(stage: Stage) -> bool:
    return (await stage.client.get("/")).status_code == 200


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_bearer_scheme_is_case_insensitive(
    stage: Stage, make_token: MakeToken, scheme: str
) -> None:
    token = make_token("alice", READER)
    headers = {"Authorization": f"{scheme} {token}"}
    assert (await stage.client.get("/api/scores/leaderboard", headers=headers)).status_code == 200
    assert stage.api.values("Authorization") == [f"Bearer {token}"]


# Logs -------------------------------------------------------------------------------------------


async def test_every_request_is_logged_and_counted_by_route_and_service(
    stage: Stage, make_token: MakeToken
) -> None:
    await stage.update(make_token("alice"))
    await stage.client.get("/api/scores/leaderboard")
    await stage.client.get("/nothing-here")
    await stage.until_logged(3)
    assert [(line.get("route"), line.get("service")) for line in stage.logged] == [
        ({"name": "scores-update"}, {"name": "scoreboard-api"}),
        ({"name": "scores-leaderboard"}, {"name": "scoreboard-api"}),
        (None, None),
    ]
    assert stage.series == [
        "scoreboard-api|scores-update|200",
        "scoreboard-api|scores-leaderboard|401",
    ]


async def test_logs_contain_no_token(stage: Stage, make_token: MakeToken) -> None:
    token = make_token("alice")
    reader = make_token("alice", READER)
    await stage.update(token)
    await stage.client.get(f"/api/scores/leaderboard?access_token={token}&limit=10")
    await stage.client.get(f"/nothing-here?jwt={token}")
    await stage.raw(*lines_of(token, f"Sec_WebSocket_Protocol: bearer.{token}"))
    await stage.raw(*lines_of(reader, "Connection: Authorization"))
    async with connect(stage.ws_url, subprotocols=offer(reader), proxy=None):
        pass
    with pytest.raises(InvalidStatus):
        await connect(stage.ws_url, subprotocols=offer(f"{reader}.x"), proxy=None)
    await stage.client.get("/")
    await stage.raw(*lines_of(token, "X: " + "x" * 40_000, path=f"/?jwt={token}"))
    await stage.raw(*lines_of(token, path=f"/?jwt={token}", method="TRACE"))

    await stage.until_logged(10)
    text = stage.gateway.log.read_text()
    for part in (*token.split("."), *reader.split(".")):
        assert part not in text
    assert "?" not in "".join(line["request"]["uri"] for line in stage.logged)
    assert all("headers" not in line["request"] for line in stage.logged)
    (update,) = [line for line in stage.logged if line.get("route") == {"name": "scores-update"}]
    assert update["authenticated_entity"]["id"] == "alice"
    assert len(update["request"]["id"]) == 32


async def test_error_lines_of_nginx_contain_the_query(stage: Stage, make_token: MakeToken) -> None:
    # nginx adds the request line to its error lines; this cannot be turned off.
    stage.api.answer = None
    token = make_token("alice", READER)
    stage.expected_errors = ["upstream prematurely closed connection"]
    headers = {"Authorization": f"Bearer {token}"}
    await stage.client.get("/api/scores/leaderboard?secret=visible", headers=headers)
    await stage.until_logged(1)
    lines = stage.gateway.error_log.read_text().splitlines()
    assert [line for line in lines if "secret=visible" in line]
    assert token not in "".join(lines)
    assert "secret" not in stage.gateway.log.read_text()
