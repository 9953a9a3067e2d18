"""Pages of listed origins may call the API; those of any other origin may not read responses."""

import asyncio

import pytest

from tests.support.servers.api import LEADERBOARD_PATH, UPDATE_PATH, ApiClient, StartApi

ORIGIN = "https://app.example.com"
STREAM_PATH = "/api/scores/stream"
ALLOW = "access-control-allow-origin"

FOREIGN = [
    *("null", "https://evil.test", "https://app.example.com:8443", "http://app.example.com"),
    *("https://app.example.com.evil.test", "https://app.example.com/", "https://app.example.com@x"),
    *("https://app.example.com,https://evil.test", "app.example.com", "*", ""),
]


async def start(start_api: StartApi, **more: object) -> ApiClient:
    return await start_api(origins=f"{ORIGIN},http://localhost:3000", **more)


def preflight(method: str = "POST", origin: str = ORIGIN, headers: str = "") -> dict[str, str]:
    named = {"Access-Control-Request-Headers": headers} if headers else {}
    return {"Origin": origin, "Access-Control-Request-Method": method} | named


def words(text: str) -> set[str]:
    return {word.strip().lower() for word in text.split(",")}


REQUESTS = [
    ("GET", LEADERBOARD_PATH, None, 200),
    ("HEAD", LEADERBOARD_PATH, None, 200),
    ("GET", "/api/scores/users/alice", None, 200),
    ("GET", "/api/scores/me", None, 200),
    ("POST", UPDATE_PATH, {"userId": "alice", "actionId": "win:2"}, 200),
    ("POST", UPDATE_PATH, {"userId": "mallory", "actionId": "win:2"}, 403),
    ("POST", UPDATE_PATH, {"userId": "alice"}, 422),
    ("GET", "/api/scores/users/nobody", None, 404),
    ("GET", "/api/nowhere", None, 404),
    ("GET", f"{LEADERBOARD_PATH}?board=%ff", None, 400),
    ("DELETE", UPDATE_PATH, None, 405),
]


@pytest.mark.parametrize("direct", [True, False])
async def test_a_page_of_a_listed_origin_reads_every_response(
    start_api: StartApi, direct: bool
) -> None:
    """Handlers of the framework, those without it, and errors of both."""
    client = await start(start_api, direct=direct)
    await client.update()
    headers = client.bearer("alice") | {"Origin": ORIGIN}
    for method, path, body, status in REQUESTS:
        answer = await client.request(method, path, json=body, headers=headers)
        assert answer.status_code == status, path
        assert answer.headers.get_list(ALLOW) == [ORIGIN], path
        assert "origin" in words(answer.headers["vary"]), path
        exposed = words(answer.headers["access-control-expose-headers"])
        assert {"etag", "retry-after", "ratelimit", "ratelimit-policy", "x-request-id"} <= exposed
        assert "access-control-allow-credentials" not in answer.headers


async def test_a_page_reads_401_429_and_503_too(start_api: StartApi) -> None:
    client = await start(start_api, rate_limit="app", updates_per_minute=1)
    origin = {"Origin": ORIGIN}
    answers = [await client.update(headers=origin)]
    for number in range(2):
        headers = client.bearer("alice") | origin
        answers.append(await client.update(action=f"win:{number}", headers=headers))
    empty = await start(start_api, open=(), boards="main,other")
    answers.append(await empty.get(LEADERBOARD_PATH, params={"board": "other"}, headers=origin))
    assert [answer.status_code for answer in answers] == [401, 200, 429, 503]
    assert [answer.headers.get_list(ALLOW) for answer in answers] == [[ORIGIN]] * 4


async def test_a_copy_that_is_current_can_be_read(start_api: StartApi) -> None:
    client = await start(start_api)
    tag = (await client.get(LEADERBOARD_PATH)).headers["etag"]
    headers = {"If-None-Match": tag, "Origin": ORIGIN}
    answer = await client.get(LEADERBOARD_PATH, headers=headers)
    assert (answer.status_code, answer.headers.get_list(ALLOW)) == (304, [ORIGIN])


async def test_another_origin_cannot_read_responses(start_api: StartApi) -> None:
    client = await start(start_api)
    for origin in FOREIGN:
        answer = await client.get(LEADERBOARD_PATH, headers={"Origin": origin})
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control-")], origin
        # A cache must not give this response to a listed origin.
        assert "origin" in words(answer.headers["vary"])
        refused = await client.options(UPDATE_PATH, headers=preflight(origin=origin))
        assert refused.status_code == 403, origin
        assert refused.json()["type"] == "/docs/problems/origin"
        assert not [name for name in refused.headers if name.startswith("access-control-")]


async def test_two_origins_are_refused(start_api: StartApi) -> None:
    client = await start(start_api)
    twice = [("Origin", ORIGIN), ("Origin", "https://evil.test")]
    answer = await client.get(LEADERBOARD_PATH, headers=twice)
    assert answer.status_code == 400
    assert ALLOW not in answer.headers


async def test_a_preflight_request_lists_what_is_allowed(start_api: StartApi) -> None:
    """The browser refuses a method that is not listed."""
    client = await start(start_api)
    for path in (LEADERBOARD_PATH, UPDATE_PATH, STREAM_PATH, "/api/boards/main"):
        for method in ("GET", "POST", "DELETE", "FOO"):
            headers = preflight(method, headers="authorization,content-type")
            answer = await client.options(path, headers=headers)
            assert (answer.status_code, answer.content) == (204, b"")
            assert answer.headers.get_list(ALLOW) == [ORIGIN]
            assert words(answer.headers["access-control-allow-methods"]) == {"get", "head", "post"}
            assert words(answer.headers["access-control-allow-headers"]) == {
                *("authorization", "content-type", "if-none-match", "last-event-id"),
                "x-request-id",
            }
            assert int(answer.headers["access-control-max-age"]) > 0
            assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "headers", [{}, {"Origin": ORIGIN}, {"Access-Control-Request-Method": "POST"}]
)
async def test_other_options_requests_are_no_preflight(
    start_api: StartApi, headers: dict[str, str]
) -> None:
    client = await start(start_api)
    answer = await client.options(UPDATE_PATH, headers=headers)
    assert "access-control-allow-methods" not in answer.headers
    assert "POST" in answer.headers["allow"]


async def test_administration_is_closed_to_other_origins(
    start_api: StartApi, database_url: str
) -> None:
    client = await start(start_api, database_url=database_url, admin_api="true")
    headers = client.bearer("carla", "admin:scores") | {"Origin": ORIGIN}
    for path in ("/api/admin/acts", "/api/admin/boards", "/api/admin/nowhere"):
        for answer in (
            await client.get(path, headers=headers),
            await client.options(path, headers=preflight("GET")),
        ):
            assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_only_the_api_is_open_to_other_origins(start_api: StartApi) -> None:
    client = await start(start_api)
    for path in ("/", "/config.json", "/openapi.json", "/health/live", "/embed", "/oembed"):
        for answer in (
            await client.get(path, headers={"Origin": ORIGIN}),
            await client.options(path, headers=preflight("GET")),
        ):
            assert ALLOW not in answer.headers, path


async def test_without_a_list_no_origin_is_allowed(start_api: StartApi) -> None:
    client = await start_api()
    answer = await client.get(LEADERBOARD_PATH, headers={"Origin": ORIGIN})
    assert ALLOW not in answer.headers
    refused = await client.options(UPDATE_PATH, headers=preflight())
    assert not [name for name in refused.headers if name.startswith("access-control-")]


async def test_events_can_be_read_by_a_page_of_a_listed_origin(start_api: StartApi) -> None:
    client = await start(start_api)
    async with client.stream("GET", STREAM_PATH, headers={"Origin": ORIGIN}) as answer:
        assert answer.status_code == 200
        assert answer.headers.get_list(ALLOW) == [ORIGIN]
        assert "origin" in words(answer.headers["vary"])
        async with asyncio.timeout(30):
            assert (await anext(answer.aiter_lines())).startswith("retry:")
    invalid = {"unknown": "1"}
    answer = await client.get(STREAM_PATH, params=invalid, headers={"Origin": ORIGIN})
    assert (answer.status_code, answer.headers.get_list(ALLOW)) == (400, [ORIGIN])
    foreign = await client.get(STREAM_PATH, headers={"Origin": "https://evil.test"})
    assert (foreign.status_code, ALLOW in foreign.headers) == (403, False)
