"""Requests are read strictly: headers, addresses, parameters, request ids."""

import asyncio
import contextlib
import json
import re
from typing import Any

import httpx
import pytest
import redis

from scoreboard.model import Board, Partition
from scoreboard.store.keys import PartitionKeys
from tests.support.clients.smuggling import CHUNKS, HEADS
from tests.support.servers.api import LEADERBOARD_PATH, UPDATE_PATH, ApiClient, StartApi

pytestmark = pytest.mark.slow

STREAM_PATH = "/api/scores/stream"
STANDING_PATH = "/api/scores/users/alice"
READS = [LEADERBOARD_PATH, STANDING_PATH, STREAM_PATH]
OTHERS = ["/", "/index.html", "/config.json", "/docs", "/docs/problems", "/openapi.json"]
OTHERS += ["/health/live", "/health/ready", "/nothing"]


async def talk(client: ApiClient, data: bytes, *, end: bool = True) -> bytes:
    """Send bytes over a new connection; return what the server sends until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    try:
        writer.write(data)
        if end:
            writer.write_eof()
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def request(method: str, target: str, *lines: str, body: str | None = None) -> bytes:
    if body is not None:
        lines = (*lines, "Content-Type: application/json", f"Content-Length: {len(body)}")
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: a", *lines, "", body or ""]).encode()


def update_body(action: str = "win:1") -> str:
    return json.dumps({"userId": "alice", "actionId": action})


def answer_of(data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Check that there is one response; return its status, headers and body."""
    assert data.count(b"HTTP/1.1 ") == 1, data
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    fields = (line.partition(": ") for line in lines[1:])
    return int(lines[0].split(" ")[1]), {name: value for name, _, value in fields}, body


def problem_of(data: bytes, status: int, code: str) -> dict[str, Any]:
    """Check that a response is a complete problem document with a request id; return it."""
    found, headers, body = answer_of(data)
    assert (found, headers["content-type"]) == (status, "application/problem+json"), data
    problem: dict[str, Any] = json.loads(body)
    assert problem["type"] == f"/docs/problems/{code}"
    assert problem["status"] == status
    assert problem["request_id"] == headers["x-request-id"]
    assert re.fullmatch(r"[a-z0-9-]{8,}", problem["request_id"])
    return problem


async def score_of(client: ApiClient) -> int:
    return int((await client.get(LEADERBOARD_PATH)).json()["total"])


async def test_ambiguous_requests_get_a_problem_with_a_request_id(start_api: StartApi) -> None:
    client = await start_api()
    token = client.bearer("alice")["Authorization"]
    usual = f"Host: a\r\nAuthorization: {token}\r\nContent-Type: application/json\r\n".encode()
    wrong = {}
    for name, vector in (HEADS | CHUNKS).items():
        data = vector.replace(b"POST / ", f"POST {UPDATE_PATH} ".encode())
        status, headers, _ = answer_of(await talk(client, data.replace(b"Host: a\r\n", usual, 1)))
        if (status, headers["connection"]) != (400, "close"):
            wrong[name] = status
    assert wrong == {}
    problem_of(await talk(client, HEADS["bare LF"]), 400, "malformed")
    assert await score_of(client) == 0


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"\x16\x03\x01 nonsense", 400, "malformed"),
        (request("GET", "/" + "a" * 5000), 414, "uri-too-long"),
        (request("GET", "/", "X: " + "y" * 17_000), 431, "head-too-large"),
        (request("GET", "/", *["X: y"] * 70), 431, "head-too-large"),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, "http-version"),
        (request("GET", "/", "Expect: rain"), 417, "expectation-failed"),
    ],
)
async def test_unreadable_requests_get_a_problem(
    start_api: StartApi, data: bytes, status: int, code: str
) -> None:
    client = await start_api()
    problem_of(await talk(client, data, end=False), status, code)


async def test_a_refusal_does_not_wait_for_the_body(start_api: StartApi) -> None:
    client = await start_api()
    head = request("POST", UPDATE_PATH, "Content-Type: application/json", "Content-Length: 100")
    problem_of(await talk(client, head, end=False), 401, "unauthenticated")


@pytest.mark.parametrize("path", [*READS, *OTHERS, UPDATE_PATH])
async def test_repeated_headers_that_are_not_lists_are_refused(
    start_api: StartApi, path: str
) -> None:
    client = await start_api()
    good = f"Authorization: {client.bearer('alice')['Authorization']}"
    body = update_body() if path == UPDATE_PATH else None
    method = "POST" if body else "GET"
    for pair in (
        (good, "Authorization: Bearer junk"),
        ("authorization: Bearer junk", good),
        (good, good),
        (good, "X-Request-Id: one-request", "X-Request-Id: two-requests"),
        (good, "Host: b"),
    ):
        problem = problem_of(
            await talk(client, request(method, path, *pair, body=body)), 400, "malformed"
        )
        assert "repeated" in problem["detail"]
    assert await score_of(client) == 0


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize("public", [True, False])
async def test_an_authorization_header_without_a_bearer_token_is_refused(
    start_api: StartApi, path: str, public: bool
) -> None:
    client = await start_api(open=(Board(is_public=public),))
    await client.update()
    token = client.bearer("alice")["Authorization"].removeprefix("Bearer ")
    for wrong in ("Basic YTpi", "Bearer", token, f"Bearer {token} {token}", f"Bearer {token},x"):
        answer = await client.get(path, headers={"Authorization": wrong})
        assert answer.status_code == 401, wrong
        assert answer.headers["www-authenticate"] == 'Bearer realm="scoreboard"'
    for scheme in ("Bearer", "bearer", "BEARER"):
        async with client.stream("GET", path, headers={"Authorization": f"{scheme} {token}"}) as ok:
            assert ok.status_code == 200


@pytest.mark.parametrize("path", OTHERS)
async def test_public_paths_ignore_the_token(start_api: StartApi, path: str) -> None:
    client = await start_api()
    plain = await client.get(path)
    answer = await client.get(path, headers={"Authorization": "Basic YTpi"})
    assert answer.status_code == plain.status_code


@pytest.mark.parametrize(
    ("path", "query", "named"),
    [
        (LEADERBOARD_PATH, "limit=1&limit=2", "limit"),
        (LEADERBOARD_PATH, "limit=1&%6Cimit=1", "limit"),
        (LEADERBOARD_PATH, "offset=0&offset=0", "offset"),
        (LEADERBOARD_PATH, "names=true&names=true", "names"),
        (LEADERBOARD_PATH, "board=main&board=main", "board"),
        (LEADERBOARD_PATH, "around=1", "around"),
        (LEADERBOARD_PATH, "Limit=1", "Limit"),
        (LEADERBOARD_PATH, "limit=%zz", "%"),
        (LEADERBOARD_PATH, "board=%ff", "UTF-8"),
        (STANDING_PATH, "around=1&around=2", "around"),
        (STANDING_PATH, "limit=1", "limit"),
        (STREAM_PATH, "board=main&board=main", "board"),
        (STREAM_PATH, "access_token=hush", "access_token"),
        (UPDATE_PATH, "board=main&board=main", "board"),
        (UPDATE_PATH, "points=5", "points"),
    ],
)
@pytest.mark.parametrize("is_fast", [True, False])
async def test_repeated_and_unknown_parameters_are_refused(
    start_api: StartApi, path: str, query: str, named: str, is_fast: bool
) -> None:
    client = await start_api(direct=is_fast)
    if path == UPDATE_PATH:
        answer = await client.post(
            f"{path}?{query}", json=json.loads(update_body()), headers=client.bearer("alice")
        )
    else:
        answer = await client.get(f"{path}?{query}")
    assert (answer.status_code, answer.json()["type"]) == (400, "/docs/problems/malformed")
    assert named in answer.json()["detail"]
    assert "hush" not in answer.text


async def test_percent_encoded_parameters_are_decoded(start_api: StartApi) -> None:
    client = await start_api()
    server = client.bearer("server", "update:score:any")
    for number in range(3):
        await client.update(f"user{number}", headers=server)
    for query in (
        "limit=1&offset=1",
        "limit=%31&offset=%31",
        "&offset=1&&limit=1&",
        "offset=1&limit=1",
    ):
        answer = await client.get(f"{LEADERBOARD_PATH}?{query}")
        assert [row["rank"] for row in answer.json()["leaderboard"]] == [2], query


SPELLINGS = [
    "//api/scores/update", "/api//scores/update", "/api/scores//update", "/api/scores/update/",
    "/api/scores/update//", "/./api/scores/update", "/x/../api/scores/update",
    "/api/scores/./update", "/api/scores/update/.", "/api%2fscores%2fupdate",
    "/api/scores%2Fupdate", "/api/scores/%75pdate", "/%61pi/scores/update",
    "/api/scores/update%2f", "/api/scores/update%00", "/api/scores/update%20",
    "/api/scores/update;x", "/API/scores/update", "/api/scores/Update", "/api/scores/update%3Fx",
    "/api\\scores\\update", "/api/scores/update#x", "/api/scores/update.", "api/scores/update",
    "http://b/api/scores/update", "http:///api/scores/update",
]  # fmt: skip


@pytest.mark.parametrize("target", SPELLINGS)
async def test_another_spelling_of_a_path_is_refused(start_api: StartApi, target: str) -> None:
    client = await start_api()
    authorization = f"Authorization: {client.bearer('alice')['Authorization']}"
    data = request("POST", target, authorization, body=update_body())
    assert answer_of(await talk(client, data))[0] in {400, 404}
    assert await score_of(client) == 0


async def test_an_absolute_target_of_this_host_is_accepted(start_api: StartApi) -> None:
    client = await start_api()
    assert answer_of(await talk(client, request("GET", "http://a/health/live")))[0] == 200


@pytest.mark.parametrize("path", [*READS, *OTHERS, UPDATE_PATH])
async def test_the_gateways_request_id_is_preferred(start_api: StartApi, path: str) -> None:
    client = await start_api()
    await client.update("alice", "win:0")
    method = "POST" if path == UPDATE_PATH else "GET"
    sent: dict[str, Any] = {"headers": client.bearer("alice")}
    if method == "POST":
        sent["json"] = json.loads(update_body())

    async def id_of(**ids: str) -> str:
        named = {name.replace("_", "-"): value for name, value in ids.items()}
        headers = sent["headers"] | named
        async with client.stream(method, path, **sent | {"headers": headers}) as answer:
            return answer.headers["x-request-id"]

    assert (
        await id_of(X_Request_Id="client-id-1", X_Kong_Request_Id="gateway-id-1") == "gateway-id-1"
    )
    assert await id_of(X_Request_Id="client-id-1", X_Kong_Request_Id="<b>") == "client-id-1"
    assert await id_of(X_Request_Id="client-id-1") == "client-id-1"
    assert await id_of(X_Request_Id="<script>") not in {"<script>", ""}


async def test_the_gateways_request_id_is_stored_with_the_action(
    start_api: StartApi, redis_url: str
) -> None:
    client = await start_api()
    ids = {"X-Request-Id": "client-id-1", "X-Kong-Request-Id": "gateway-id-1"}
    await client.update("alice", "win:1", headers=client.bearer("alice") | ids)
    with redis.Redis.from_url(redis_url, decode_responses=True) as server:
        [(_, event)] = server.xrange(PartitionKeys(Partition("main")).events)
    assert event["t"] == "gateway-id-1"


@pytest.mark.parametrize(
    ("origins", "origin", "status"),
    [
        ("", None, 200),
        ("", "http://127.0.0.1:{port}", 200),
        ("", "http://127.0.0.1", 403),
        ("", "https://evil.test", 403),
        ("", "null", 403),
        ("https://app.example.com", "https://app.example.com", 200),
        ("https://app.example.com", "https://app.example.com.evil.test", 403),
        ("https://app.example.com", "http://127.0.0.1:{port}", 200),
        ("https://app.example.com", "http://127.0.0.1", 403),
    ],
)
async def test_streams_are_open_to_pages_of_the_same_host_and_listed_origins(
    start_api: StartApi, origins: str, origin: str | None, status: int
) -> None:
    client = await start_api(origins=origins)
    headers = {} if origin is None else {"Origin": origin.format(port=client.port)}
    async with client.stream("GET", STREAM_PATH, headers=headers) as answer:
        assert answer.status_code == status
        if status == 403:
            assert json.loads(await answer.aread())["type"] == "/docs/problems/origin"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD", "TRACE", "FOO"])
@pytest.mark.parametrize(("path", "allowed"), [(UPDATE_PATH, "POST"), (STREAM_PATH, "GET")])
async def test_another_method_is_not_allowed(
    start_api: StartApi, method: str, path: str, allowed: str
) -> None:
    client = await start_api()
    if method != allowed:
        answer = await client.request(method, path, headers=client.bearer("alice"))
        assert answer.status_code == 405
        assert allowed in answer.headers["allow"]


@pytest.mark.parametrize("path", [LEADERBOARD_PATH, "/", "/docs", "/openapi.json", "/health/live"])
async def test_head_returns_the_headers_of_get_without_the_body(
    start_api: StartApi, path: str
) -> None:
    client = await start_api()
    got, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    ignored = {"x-request-id", "date"}
    assert {n: v for n, v in head.headers.items() if n not in ignored} == {
        n: v for n, v in got.headers.items() if n not in ignored
    }


async def test_a_full_api_closes_idle_connections_for_new_ones(start_api: StartApi) -> None:
    client = await start_api(connections=4, connections_per_address=4)
    writers = [(await asyncio.open_connection("127.0.0.1", client.port))[1] for _ in range(10)]
    async with httpx.AsyncClient(trust_env=False) as other:
        answer = await other.get(f"http://127.0.0.1:{client.port}/health/live")
    assert answer.status_code == 200
    for writer in writers:
        writer.transport.abort()
