"""The real api and streamer behind the two handlers on a real nginx. It is not Kong.

All tests use one system: Valkey, PostgreSQL, api, streamer and flusher as processes, with the
settings for a gateway and a board that requires a token.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import httpx
import msgspec
import pytest
import yaml
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from cli.gateway.config import GatewayOptions, render
from cli.gateway.keys import rows_of
from scoreboard.runtime.resources import kong_path
from scoreboard.security.key_set import parse_keys
from scoreboard.security.tokens import LOCAL_ISSUER, READ, UPDATE
from tests.kong.nginx_gateway import NginxGateway, nginx_gateway, require_nginx
from tests.kong.runtime import Gateway
from tests.support.servers.system import System

pytestmark = pytest.mark.slow

ORIGIN = "https://play.example"
HEARTBEAT_S = 0.5
READ_TIMEOUT_MS = 1500


@dataclass
class Front:
    """The gateway, its system and a client."""

    system: System
    gateway: NginxGateway
    client: httpx.AsyncClient

    async def update(self, user: str, action: str, token: str) -> httpx.Response:
        """Post an update through the gateway."""
        return await self.client.post(
            "/api/scores/update",
            json={"userId": user, "actionId": action},
            headers={"Authorization": f"Bearer {token}"},
        )

    def viewer(self, token: str, origin: str = ORIGIN) -> connect:
        """Open the stream as a browser does: the token as a second subprotocol."""
        protocols = [Subprotocol("scoreboard.v1"), Subprotocol(f"bearer.{token}")]
        url = f"ws://127.0.0.1:{self.gateway.port}/ws/scoreboard"
        return connect(url, subprotocols=protocols, origin=Origin(origin), proxy=None)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[System, NginxGateway]]:
    require_nginx()
    folder = tmp_path_factory.mktemp("front")
    system = System(
        folder / "system", rate_limit="gateway", heartbeat_s=HEARTBEAT_S, origins=ORIGIN
    )
    try:
        system.start()
        rows = rows_of(parse_keys(system.issuer.jwks_file.read_bytes()))
        options = GatewayOptions(
            issuer=LOCAL_ISSUER,
            audiences=("scoreboard",),
            redis_url="redis://kong@valkey-counters:6379/0",
            origins=(ORIGIN,),
        )
        document = yaml.safe_load(render((kong_path() / "kong.yml").read_text(), rows, options))
        api, streamer = (
            httpx.URL(url).netloc.decode()
            for url in (system.api, system.ws.replace("ws", "http", 1))
        )
        targets = {
            "scoreboard-api": api, "scoreboard-events": api, "scoreboard-streamer": streamer,
        }  # fmt: skip
        nginx = folder / "nginx"
        nginx.mkdir()
        schemas = Gateway().schemas
        with nginx_gateway(
            nginx, document, targets, schemas, read_timeout_ms=READ_TIMEOUT_MS
        ) as gateway:
            yield system, gateway
    finally:
        system.stop()


@pytest.fixture
async def front(running: tuple[System, NginxGateway]) -> AsyncIterator[Front]:
    system, gateway = running
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as client:
        yield Front(system, gateway, client)


async def test_an_update_through_the_gateway_reaches_viewers(front: Front) -> None:
    async with front.viewer(front.system.token("viewer", READ)) as viewer:
        first = msgspec.json.decode(await viewer.recv())
        assert first["type"] == "leaderboard"

        answer = await front.update("alice", "win:1", front.system.token("alice", UPDATE))

        assert answer.status_code == 200, answer.text
        score = answer.json()["newScore"]
        async with asyncio.timeout(30):
            while True:
                frame = msgspec.json.decode(await viewer.recv())
                rows = {row["userId"]: row["score"] for row in frame.get("leaderboard", [])}
                if rows.get("alice") == score:
                    break


async def test_a_replay_through_the_gateway_counts_once(front: Front) -> None:
    token = front.system.token("bob", UPDATE)
    first = (await front.update("bob", "win:1", token)).json()
    again = (await front.update("bob", "win:1", token)).json()
    assert again == {**first, "replayed": True}


@pytest.mark.parametrize("path", ["/api/scores/leaderboard", "/api/scores/me"])
async def test_a_page_of_a_listed_origin_reads_responses_of_the_api_and_of_the_gateway(
    front: Front, path: str
) -> None:
    """Both add the header, and a browser refuses a response that has it twice."""
    token = {"Authorization": f"Bearer {front.system.token('alice', READ)}"}
    origin = {"Origin": ORIGIN}
    preflight = origin | {
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization",
    }
    api = await front.client.get(path, headers=token | origin, params={"unknown": "1"})
    gateway = await front.client.get(path, headers=origin)
    asked = await front.client.options(path, headers=preflight)
    assert [one.status_code for one in (api, gateway, asked)] == [400, 401, 200]
    for answer in (api, gateway, asked):
        assert answer.headers.get_list("access-control-allow-origin") == [ORIGIN]
        assert "access-control-allow-credentials" not in answer.headers


async def test_the_services_refuse_what_the_gateway_does_not_check(front: Front) -> None:
    answer = await front.update("carol", "win:1", front.system.token("mallory", UPDATE))
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"
    assert (await front.update("bad id", "x", front.system.token("dave"))).status_code == 422


async def test_the_eleventh_update_of_a_user_gets_429(front: Front) -> None:
    token = front.system.token("erin", UPDATE)
    statuses = [(await front.update("erin", f"win:{n}", token)).status_code for n in range(11)]
    assert statuses == [200] * 10 + [429]


async def test_gateway_and_api_refuse_in_the_same_form(front: Front) -> None:
    at_gateway = await front.update("alice", "x", "not.a.token")
    direct = await front.client.post(
        f"{front.system.api}/api/scores/update",
        json={"userId": "alice", "actionId": "x"},
        headers={"Authorization": "Bearer not.a.token"},
    )
    assert at_gateway.status_code == direct.status_code == 401
    for name in ("type", "title", "status"):
        assert at_gateway.json()[name] == direct.json()[name], name
    assert set(at_gateway.json()) == set(direct.json())
    assert at_gateway.headers["content-type"] == direct.headers["content-type"]


async def test_an_idle_viewer_stays_connected_beyond_the_read_timeout(front: Front) -> None:
    async with front.viewer(front.system.token("silent", READ)) as viewer:
        started, seen = time.monotonic(), set()
        while time.monotonic() - started < 2 * READ_TIMEOUT_MS / 1000:
            async with asyncio.timeout(READ_TIMEOUT_MS / 1000):
                seen.add(msgspec.json.decode(await viewer.recv())["type"])
    assert "heartbeat" in seen


async def test_a_viewer_of_another_origin_gets_403(front: Front) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        await front.viewer(front.system.token("viewer", READ), "https://evil.example")
    assert refusal.value.response.status_code == 403


async def test_page_and_documents_are_served_and_internal_paths_are_not(front: Front) -> None:
    for path in ("/", "/page.js", "/docs", "/openapi.json", "/config.json"):
        answer = await front.client.get(path, follow_redirects=True)
        assert answer.status_code == 200, path
    for path in ("/health/live", "/health/ready", "/metrics"):
        assert (await front.client.get(path)).status_code == 404, path


async def test_rankings_are_readable_with_the_read_scope(front: Front) -> None:
    headers = {"Authorization": f"Bearer {front.system.token('reader', READ)}"}
    board = await front.client.get("/api/scores/leaderboard", headers=headers)
    assert (board.status_code, "leaderboard" in board.json()) == (200, True)
    etag = {"If-None-Match": board.headers["etag"]}
    assert (
        await front.client.get("/api/scores/leaderboard", headers={**headers, **etag})
    ).status_code == 304
    await front.update("auth0|7", "win:1", front.system.token("auth0|7", UPDATE))
    one = await front.client.get("/api/scores/users/auth0%7C7", headers=headers)
    assert (one.status_code, one.json()["userId"]) == (200, "auth0|7")
