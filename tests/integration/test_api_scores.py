"""The score endpoints on a real Redis: responses, refusals, and idempotent retries."""

import asyncio
import functools
import itertools
from typing import Any

import httpx
import pytest
import redis

from scoreboard.model import ActionKind, Board, Layout, Partition
from scoreboard.runtime.settings import load
from scoreboard.store.client import make_client
from scoreboard.store.keys import ACTIONS, PartitionKeys
from scoreboard.store.store import Store
from tests.support.eventually import eventually_async
from tests.support.servers.api import (
    LEADERBOARD_PATH,
    UPDATE_PATH,
    ApiClient,
    StartApi,
    list_boards,
    open_boards,
)
from tests.support.servers.stores import OwnValkey

PROBLEM = "application/problem+json"


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    """Check that a response is a complete problem document; return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    body: dict[str, Any] = answer.json()
    assert body["type"] == f"/docs/problems/{code}"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


def mirror(redis_url: str, points: dict[str, int]) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.hset(ACTIONS, mapping=points)


async def ranking(client: ApiClient, **params: Any) -> list[tuple[int, str, int]]:
    answer = await client.get(LEADERBOARD_PATH, params=params)
    assert answer.status_code == 200, answer.text
    return [(row["rank"], row["userId"], row["score"]) for row in answer.json()["leaderboard"]]


async def test_a_repeated_update_does_not_raise_the_score_again(start_api: StartApi) -> None:
    client = await start_api()
    first = await client.update("alice", "win:1")
    assert first.status_code == 200
    assert first.json() == {"success": True, "newScore": 10, "replayed": False}
    await client.update("alice", "win:2")
    again = await client.update("alice", "win:1")
    assert again.json() == {"success": True, "newScore": 10, "replayed": True}
    assert await ranking(client) == [(1, "alice", 20)]


async def test_the_request_id_is_stored_in_the_stream_event(
    start_api: StartApi, redis_url: str
) -> None:
    client = await start_api()
    answer = await client.update(headers=client.bearer() | {"X-Request-Id": "from-the-client-1"})
    assert answer.headers["x-request-id"] == "from-the-client-1"
    with redis.Redis.from_url(redis_url, decode_responses=True) as server:
        [(_, event)] = server.xrange(PartitionKeys(Partition("main")).events)
    assert event["t"] == "from-the-client-1"


@pytest.mark.parametrize(
    "given", ["short", "with space in it", "x" * 129, "semi;colon-id", "é" * 9]
)
async def test_an_unsafe_request_id_is_replaced(start_api: StartApi, given: str) -> None:
    client = await start_api(open=())
    answer = await client.get("/health/live", headers=[(b"x-request-id", given.encode())])
    assert answer.headers["x-request-id"] != given
    assert 8 <= len(answer.headers["x-request-id"]) <= 128


async def test_points_come_from_the_catalogue(start_api: StartApi, redis_url: str) -> None:
    mirror(redis_url, {"win": 50, "loss": 0})
    client = await start_api(unknown_kinds="")
    assert (await client.update(action="win:1")).json()["newScore"] == 50
    # Incident: misspelled and invented kinds earned the default points.
    for action in ("other:1", "Win:1", "loss:1"):
        detail = problem(await client.update(action=action), 422, "unknown-kind")["detail"]
        assert repr(action.split(":")[0]) in detail
    assert (await client.update(action="plain")).json()["newScore"] == 60
    assert (await client.update(action=":plain")).json()["newScore"] == 70


async def test_unknown_kinds_are_applied_if_the_settings_allow_it(
    start_api: StartApi, redis_url: str
) -> None:
    mirror(redis_url, {"win": 50, "loss": 0})
    client = await start_api(unknown_kinds="default", default_points=3)
    assert (await client.update(action="other:1")).json()["newScore"] == 3
    assert (await client.update(action="plain")).json()["newScore"] == 6
    problem(await client.update(action="loss:1"), 422, "unknown-kind")


@pytest.mark.parametrize("unknown_kinds", ["refuse", "default"])
async def test_actions_without_a_kind_are_refused_if_default_points_are_zero(
    unknown_kinds: str, start_api: StartApi, redis_url: str
) -> None:
    mirror(redis_url, {"win": 50})
    client = await start_api(unknown_kinds=unknown_kinds, default_points=0)
    assert (await client.update(action="win:1")).status_code == 200
    for action in ("other:1", "plain"):
        assert "kind" in problem(await client.update(action=action), 422, "unknown-kind")["detail"]


async def test_a_game_server_updates_any_user_and_sets_the_points(start_api: StartApi) -> None:
    client = await start_api()
    server = client.bearer("server-1", "update:score:any")
    assert (await client.update("bob", "x:1", headers=server, points=7)).json()["newScore"] == 7
    again = await client.update("bob", "x:1", headers=server, points=7)
    assert again.json() == {"success": True, "newScore": 7, "replayed": True}
    assert (
        "7 points"
        in problem(
            await client.update("bob", "x:1", headers=server, points=8), 409, "action-conflict"
        )["detail"]
    )


@pytest.mark.parametrize("written", ["5", "5.0", "0.5e1", "50E-1"])
async def test_points_may_be_any_json_form_of_an_integer(start_api: StartApi, written: str) -> None:
    client = await start_api()
    headers = client.bearer("server-1", "update:score:any") | {"Content-Type": "application/json"}
    body = f'{{"userId":"bob","actionId":"x:1","points":{written}}}'
    for replayed in (False, True):
        answer = await client.post(UPDATE_PATH, content=body, headers=headers)
        assert answer.json() == {"success": True, "newScore": 5, "replayed": replayed}


@pytest.mark.parametrize(
    "points", [0, -1, 1_000_001, 1.5, 0.0, -0.0, 1e7, 1e300, "7", True, None, [5]]
)
async def test_points_outside_their_range_are_refused(start_api: StartApi, points: Any) -> None:
    client = await start_api()
    server = client.bearer("server-1", "update:score:any")
    answer = await client.update("bob", "x:1", headers=server, points=points)
    assert "points" in problem(answer, 422, "invalid")["detail"]


async def test_a_player_cannot_set_points_or_update_another_user(start_api: StartApi) -> None:
    client = await start_api()
    mine = client.bearer("alice", "update:score")
    body = problem(await client.update("alice", headers=mine, points=5), 403, "forbidden")
    assert "update:score:any" in body["detail"]
    answer = await client.update("bob", headers=mine)
    problem(answer, 403, "forbidden")
    assert 'scope="update:score:any"' in answer.headers["www-authenticate"]
    assert await ranking(client) == []


async def test_an_update_beyond_the_score_limit_is_refused(
    start_api: StartApi, redis_url: str
) -> None:
    client = await start_api(open=())
    await open_boards(redis_url, scores=[("bob", 2**31 - 5)])
    answer = await client.update("bob", "x:1")
    problem(answer, 422, "score-out-of-range")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed"),
        (b"{", 400, "malformed"),
        (b"\xff\xfe", 400, "malformed"),
        (b"[" * 16_000, 422, "invalid"),
        (b"[]", 422, "invalid"),
        (b"{}", 422, "invalid"),
        (b'{"userId":"alice"}', 422, "invalid"),
        (b'{"userId":7,"actionId":"a"}', 422, "invalid"),
        (b'{"userId":"alice","actionId":""}', 422, "invalid"),
        (b'{"userId":"alice","actionId":"a b"}', 422, "invalid"),
        (b'{"userId":"alice","actionId":"a\\n"}', 422, "invalid"),
        (b'{"userId":"alice","actionId":"act:0123456789abcdef"}', 422, "invalid"),
        (b'{"userId":"alice","actionId":"a","season":"2026-W48\\n"}', 422, "invalid"),
        (b'{"userId":"alice","actionId":"a","boards":["main\\n"]}', 422, "invalid"),
        (b'{"userId":"alice","actionId":"' + b"a" * 129 + b'"}', 422, "invalid"),
        (b'{"userId":"alice","actionId":"a","extra":1}', 422, "invalid"),
        (b'{"userId":"alice","actionId":"' + b"a" * 17_000 + b'"}', 413, "body-too-large"),
    ],
)
async def test_an_invalid_body_is_refused(
    start_api: StartApi, body: bytes, status: int, code: str
) -> None:
    client = await start_api()
    headers = client.bearer("alice") | {"Content-Type": "application/json"}
    problem(await client.post(UPDATE_PATH, content=body, headers=headers), status, code)


async def test_the_fast_update_answers_like_the_framework_handler(
    start_api: StartApi, redis_url: str
) -> None:
    direct, plain = await start_api(), await start_api(direct=False, open=())
    calls: list[dict[str, Any]] = [
        {"json": {"userId": "alice", "actionId": "a:1"}},
        {"json": {"userId": "bob", "actionId": "a:1"}},
        {"json": {"userId": "alice", "actionId": "a:1", "points": 3}},
        {"json": {"userId": "alice", "actionId": "a:1"}, "headers": {}},
        {"json": {"userId": "alice", "actionId": "a:1"}, "headers": {"Authorization": "Bearer x"}},
        {"json": {"userId": "alice", "actionId": "a:1"}, "headers": direct.bearer("alice", "x")},
        {"json": {"userId": "alice", "actionId": "a:1"}, "params": {"board": "other"}},
        {"json": {"userId": "alice", "actionId": "a:1"}, "params": {"board": "main"}},
        {"content": b"userId=alice"},
        {"content": b"{", "headers": direct.bearer("alice") | {"Content-Type": "text/plain"}},
    ]
    for call in calls:
        answers = []
        for client in (direct, plain):
            with redis.Redis.from_url(redis_url) as server:
                server.delete(PartitionKeys(Partition("main")).board)
                for key in server.scan_iter("*:seen:*"):
                    server.delete(key)
            headers = {"headers": client.bearer("alice")} | call
            answers.append(await client.post(UPDATE_PATH, **headers))
        first, second = answers
        assert first.status_code == second.status_code, (call, first.text, second.text)
        ignored = {"x-request-id", "content-length", "date"}
        assert {n: v for n, v in first.headers.items() if n not in ignored} == {
            n: v for n, v in second.headers.items() if n not in ignored
        }, call
        if first.status_code == 200:
            assert first.content == second.content
        else:
            assert first.json()["type"] == second.json()["type"]


def shown(answer: httpx.Response) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return a response without its date; headers may be in any order."""
    fields = sorted((name, value) for name, value in answer.headers.raw if name != b"date")
    return answer.status_code, fields, answer.content


READS = [
    (path, query)
    for path in (LEADERBOARD_PATH, "/api/scores/users/alice")
    for query in (
        *("", "board=main", "board=closed", "board=other", "board=", "board=MAIN", "other=1"),
        *("limit=1", "limit=0", "limit=100", "limit=101", "limit=-1", "limit=x", "limit="),
        *("limit=01", "limit=1.0", "limit=%2B1", "limit=+1", "limit=1e1", "limit=%D9%A1"),
        *("limit=99999999999999999999999", "limit=0&offset=-1", "limit=5&offset=x&names=y"),
        *("limit=1&limit=1", "limit=1&%6Cimit=1", "limit", "&&limit=2&", "limit=%zz", "limit=%ff"),
        *("offset=0", "offset=1", "offset=9&limit=1", "offset=2147483647", "offset=2147483648"),
        *("names=true", "names=false", "names=True", "names=1", "names=", "names=maybe"),
        *("around=0", "around=1", "around=25", "around=26", "around=-1", "around=x", "around=1.5"),
        *("around=1&around=1", "around=1&board=main", "board=main&board=main"),
    )
] + [
    ("/api/scores/users/" + user, query)
    for user in (
        *("nobody", "auth0%7Calice", "auth0|alice", "a%40b", "a:b@c", "a%20b", "%C3%A9", "a%C3%A9"),
        *("", "alice/", "alice/x", "x" * 128, "x" * 129),
        *("{user_id}", "%7Buser_id%7D", "a+b", "a%2Bb", "*"),
    )
    for query in ("", "around=1")
]  # fmt: skip
IDS = [f"ids={value}" for value in (
    *("alice", "bob,alice", "alice,bob", "nobody", "alice,nobody,bob", "alice,alice"),
    *("auth0|alice", "auth0%7Calice,a:b@c", "a%2Cb", "alice%2Cbob", "", ",", "alice,", ",alice"),
    *("alice,,bob", "a%20b", "%C3%A9", "%zz", "x" * 128, "x" * 129, "alice&ids=bob"),
    *("alice&ids=", "alice&%69ds=bob", "alice&names=true", "alice&names=x", "alice&board=main"),
    *("alice&board=closed", "alice&board=no", "alice&limit=1"),
    "alice&names=true&names=true",
    *(",".join(f"u{n}" for n in range(count)) for count in (99, 100, 101)),
    *("&ids=".join(f"u{n}" for n in range(count)) for count in (100, 101, 117)),
)]  # fmt: skip
READS += [("/api/scores/users", query) for query in ("", "board=main", "names=true", *IDS)]
CALLERS: dict[str, dict[str, Any]] = {
    "nobody": {},
    "reader": {"scope": "read:leaderboard"},
    "player": {"scope": "update:score"},
    "expired": {"scope": "read:leaderboard", "exp": 1},
}


async def test_direct_reads_answer_like_the_framework_handlers(start_api: StartApi) -> None:
    boards = {"boards": "main,closed,unloaded"}
    direct = await start_api(open=(Board(), Board("closed", is_public=False)), **boards)
    plain = await start_api(direct=False, open=(), **boards)
    server = direct.bearer("server", "update:score:any")
    for board in ("main", "closed"):
        for user in ("alice", "auth0|alice", "a:b@c", "bob"):
            await direct.update(user, "x:1", headers=server, points=5, board=board)

    tokens = {
        name: direct.bearer("alice", **claims) if claims else {} for name, claims in CALLERS.items()
    } | {"malformed": {"Authorization": "Basic x"}, "invalid": {"Authorization": "Bearer x"}}
    requests = [(target, {}, "GET") for target in READS]
    requests += [
        (("/api/scores/me", query), token, method)
        for query in (
            "",
            "around=1",
            "around=x",
            "around=26",
            "board=main",
            "board=closed",
            "ids=a",
        )
        for token in tokens.values()
        for method in ("GET", "HEAD")
    ]
    for path in (LEADERBOARD_PATH, "/api/scores/users/alice", "/api/scores/users/nobody"):
        for query in ("", "board=main", "board=closed", "board=unloaded", "board=none", "limit=x"):
            requests += [((path, query), token, "GET") for token in tokens.values()]
        for method in ("HEAD", "POST", "PUT", "DELETE", "OPTIONS", "BREW"):
            requests += [((path, query), {}, method) for query in ("", "limit=x", "around=1")]
        for known in ('W/"1-4"', '"1-4"', "*", '"x", W/"1-4"', 'W/"1-3"', "", "é"):
            headers = {"If-None-Match": known.encode()}
            requests += [((path, ""), headers, method) for method in ("GET", "HEAD")]
        requests.append(((path, "board=closed"), tokens["reader"] | {"If-None-Match": "*"}, "GET"))

    statuses: dict[int, int] = {}
    for (path, query), headers, method in requests:
        url = f"{path}?{query}" if query else path
        first, second = [
            await client.request(
                method,
                httpx.URL(str(client.base_url), raw_path=url.encode()),
                headers={"X-Request-Id": "the-same-id"} | headers,
            )
            for client in (direct, plain)
        ]
        if method in {"GET", "HEAD"}:
            assert shown(first) == shown(second), (method, url, headers)
        # The framework lists methods in an order that differs between instances.
        assert first.status_code == second.status_code
        statuses[first.status_code] = statuses.get(first.status_code, 0) + 1
    assert set(statuses) >= {200, 304, 400, 401, 403, 404, 405, 422, 503}


async def test_direct_reads_answer_like_the_framework_handlers_without_redis(
    start_api: StartApi, own_valkey: OwnValkey
) -> None:
    server = own_valkey()
    direct = await start_api(url=server.url)
    plain = await start_api(url=server.url, direct=False, open=())
    for client in (direct, plain):
        await client.get(LEADERBOARD_PATH)
    await asyncio.to_thread(server.stop)
    for path in (
        f"{LEADERBOARD_PATH}?limit=20",
        "/api/scores/users/alice",
        "/api/scores/users?ids=alice,bob",
    ):
        same = {"X-Request-Id": "the-same-id"}
        first, second = [await client.get(path, headers=same) for client in (direct, plain)]
        assert first.status_code == 503
        assert shown(first) == shown(second), path


async def test_other_media_types_are_refused(start_api: StartApi) -> None:
    client = await start_api()
    body = b'{"userId":"alice","actionId":"a:1"}'
    for media in ("text/plain", "application/x-www-form-urlencoded", ""):
        headers = client.bearer("alice") | {"Content-Type": media}
        problem(
            await client.post(UPDATE_PATH, content=body, headers=headers), 415, "unsupported-media"
        )
    for media in ("application/json; charset=utf-8", "Application/JSON"):
        headers = client.bearer("alice") | {"Content-Type": media}
        assert (await client.post(UPDATE_PATH, content=body, headers=headers)).status_code == 200


async def test_reads_page_through_the_ranking(start_api: StartApi) -> None:
    client = await start_api()
    server = client.bearer("server", "update:score:any")
    for number in range(5):
        await client.update(f"user{number}", "x:1", headers=server, points=10 + number)
    assert await ranking(client, limit=2, offset=1) == [(2, "user3", 13), (3, "user2", 12)]
    answer = await client.get(LEADERBOARD_PATH, params={"limit": 100, "offset": 5})
    assert answer.json() == {"leaderboard": [], "total": 5, "epoch": 1, "seq": 5}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "offset=-1", "offset=99999999999", "names=maybe"]
)
async def test_a_window_out_of_range_is_refused(start_api: StartApi, query: str) -> None:
    client = await start_api()
    body = problem(await client.get(f"{LEADERBOARD_PATH}?{query}"), 422, "invalid")
    assert query.split("=", maxsplit=1)[0] in body["detail"]


async def test_the_depth_of_a_partitioned_board_is_limited(start_api: StartApi) -> None:
    client = await start_api(open=(Board(layout=Layout(partitions=2)),))
    assert await ranking(client, offset=9_000) == []
    problem(await client.get(LEADERBOARD_PATH, params={"offset": 10_000}), 422, "invalid")


async def test_an_unchanged_board_returns_304(start_api: StartApi) -> None:
    client = await start_api()
    await client.update("alice", "win:1")
    first = await client.get(LEADERBOARD_PATH)
    tag = first.headers["etag"]
    assert tag == 'W/"1-1"'
    assert first.headers["cache-control"] == "public, max-age=1, stale-while-revalidate=2"
    for known in (tag, f'"other", {tag}', "*", '"1-1"'):
        again = await client.get(LEADERBOARD_PATH, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    await client.update("alice", "win:2")
    changed = await client.get(LEADERBOARD_PATH, headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] == 'W/"1-2"'


async def test_a_standing_shows_neighbours_and_fills_up_at_the_edges(start_api: StartApi) -> None:
    client = await start_api()
    server = client.bearer("server", "update:score:any")
    for number in range(7):
        await client.update(f"user{number}", "x:1", headers=server, points=10 + number)
    answer = await client.get("/api/scores/users/user6", params={"around": 2})
    body = answer.json()
    assert (body["rank"], body["score"], body["total"]) == (1, 16, 7)
    assert [row["rank"] for row in body["neighbours"]] == [1, 2, 3, 4, 5]
    alone = (await client.get("/api/scores/users/user6")).json()
    assert alone["neighbours"] == []
    known = await client.get(
        "/api/scores/users/user6", headers={"If-None-Match": answer.headers["etag"]}
    )
    assert known.status_code == 304


async def test_a_user_without_a_score_is_not_found(start_api: StartApi) -> None:
    client = await start_api()
    problem(await client.get("/api/scores/users/unknown"), 404, "unknown-user")
    problem(await client.get("/api/scores/users/a%20b"), 422, "invalid")
    problem(await client.get("/api/scores/users/unknown?around=26"), 422, "invalid")


async def test_boards_are_independent_and_unlisted_ones_return_404(
    start_api: StartApi, redis_url: str
) -> None:
    client = await start_api(
        open=(Board("main"), Board("weekly"), Board("hidden")), boards="main,weekly"
    )
    await list_boards(redis_url, Board("main"), Board("weekly"))
    await client.update("alice", "win:1")
    assert await ranking(client, board="weekly") == []
    await client.update("alice", "win:1", board="weekly")
    await client.update("alice", "win:2", board="weekly")
    assert await ranking(client, board="weekly") == [(1, "alice", 20)]
    assert await ranking(client) == [(1, "alice", 10)]
    problem(await client.update("alice", "win:1", board="hidden"), 404, "unknown-board")
    problem(await client.get(LEADERBOARD_PATH, params={"board": "hidden"}), 404, "unknown-board")


async def test_a_private_board_requires_the_scope_to_read(start_api: StartApi) -> None:
    client = await start_api(open=(Board(is_public=False),))
    await client.update("alice", "win:1")
    for path in (LEADERBOARD_PATH, "/api/scores/users/alice"):
        answer = await client.get(path)
        problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"] == 'Bearer realm="scoreboard"'
        answer = await client.get(path, headers=client.bearer("bob", "update:score"))
        problem(answer, 403, "forbidden")
        assert 'scope="read:leaderboard"' in answer.headers["www-authenticate"]
        answer = await client.get(path, headers=client.bearer("bob", "read:leaderboard"))
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "private, no-store"


async def test_an_update_without_its_scope_names_the_scope(start_api: StartApi) -> None:
    client = await start_api()
    answer = await client.update(headers=client.bearer("alice", "read:leaderboard"))
    assert "update:score" in problem(answer, 403, "forbidden")["detail"]
    assert 'scope="update:score"' in answer.headers["www-authenticate"]


async def test_an_emptied_redis_returns_503(start_api: StartApi, redis_url: str) -> None:
    client = await start_api()
    await client.update("alice", "win:1")
    with redis.Redis.from_url(redis_url) as server:
        server.flushall()
    answer = await client.update("alice", "win:2")
    problem(answer, 503, "uninitialised")
    assert int(answer.headers["retry-after"]) > 0
    problem(await client.get(LEADERBOARD_PATH), 503, "uninitialised")


async def test_a_fenced_board_returns_503_with_retry_after(
    start_api: StartApi, redis_url: str
) -> None:
    client = await start_api()
    with redis.Redis.from_url(redis_url) as server:
        server.hset(PartitionKeys(Partition("main")).meta, "state", "fenced")
    problem(await client.update(), 503, "fenced")


async def test_concurrent_equal_reads_share_one_call_to_redis(
    start_api: StartApi, redis_url: str
) -> None:
    client = await start_api()
    deep = {"limit": 20}  # the top may be kept
    await client.get(LEADERBOARD_PATH, params=deep)
    await client.update("alice", "win:1")
    with redis.Redis.from_url(redis_url, decode_responses=True) as server:

        def calls() -> int:
            return int(server.info("commandstats")["cmdstat_evalsha_ro"]["calls"])

        before = calls()
        reads = client.api.litestar.state["services"].reads
        window = {"limit": 20, "offset": 0, "names": False}
        pages = await asyncio.gather(*(reads.leaderboard("main", **window) for _ in range(20)))
        assert len({page.etag for page in pages}) == 1
        assert calls() == before + 1
        before = calls()
        await client.get(LEADERBOARD_PATH, params=deep)
        assert calls() == before + 1
        before = calls()
        standings = (reads.standing("main", "alice", around=n % 3) for n in range(60))
        assert len({page.etag for page in await asyncio.gather(*standings)}) == 1
        assert calls() == before + 1


async def test_a_changed_catalogue_is_used_without_a_restart(
    start_api: StartApi, redis_url: str
) -> None:
    client = await start_api()
    assert (await client.update(action="win:1")).json()["newScore"] == 10
    writer = make_client(load({"REDIS_URL": redis_url}), name="test")
    numbers = itertools.count(2)

    async def adds(points: int) -> bool:
        before = (await client.update("bob", f"win:{next(numbers)}")).json()["newScore"]
        after = (await client.update("bob", f"win:{next(numbers)}")).json()["newScore"]
        return after - before == points

    try:
        for points in (33, 44):
            store = Store(writer)
            kinds = {"win": ActionKind(points)}
            await store.mirror_actions(kinds, seen=await store.catalogue_version())
            await eventually_async(functools.partial(adds, points))
    finally:
        await writer.aclose()
