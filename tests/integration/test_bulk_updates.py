"""Many updates in one request: an outcome for each, and each counted once."""

import asyncio
import json
from typing import Any

import httpx
import pytest
import redis
import structlog

from api.metrics import UPDATES
from scoreboard.model import SCORE_MAX, Board, Layout, Partition
from scoreboard.runtime import audit
from scoreboard.store.keys import ACTIONS, PartitionKeys
from tests.support.eventually import eventually_async
from tests.support.fakes.proxy import TO_CLIENT, MakeProxy
from tests.support.servers.api import (
    LEADERBOARD_PATH,
    ApiClient,
    StartApi,
    list_boards,
    open_boards,
)
from tests.support.servers.stores import EmbeddedValkey

PATH = "/api/scores/updates"
SERVER = "update:score:any"


async def send(client: ApiClient, *items: Any, scope: str = SERVER) -> httpx.Response:
    return await client.post(
        PATH, json={"updates": list(items)}, headers=client.bearer("server", scope)
    )


async def results(client: ApiClient, *items: Any) -> list[dict[str, Any]]:
    answer = await send(client, *items)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["success"] is all(one["outcome"] != "problem" for one in body["results"])
    assert len(body["results"]) == len(items)
    return body["results"]


def item(user: str, action: str = "x:1", **more: Any) -> dict[str, Any]:
    return {"userId": user, "actionId": action} | more


def problems(found: list[dict[str, Any]]) -> list[str | None]:
    """Return the code of each problem, or None."""
    return [
        one["problem"]["type"].rpartition("/")[2] if "problem" in one else None for one in found
    ]


async def scores(client: ApiClient, board: str = "main") -> dict[str, int]:
    answer = await client.get(LEADERBOARD_PATH, params={"limit": 100, "board": board})
    return {row["userId"]: row["score"] for row in answer.json()["leaderboard"]}


async def test_each_action_has_its_outcome_in_order(start_api: StartApi) -> None:
    client = await start_api()
    first = await results(client, item("alice", points=7), item("bob"), item("alice", "x:2"))
    assert first == [
        {"outcome": "applied", "newScore": 7},
        {"outcome": "applied", "newScore": 10},
        {"outcome": "applied", "newScore": 17},
    ]
    again = await results(client, item("bob"), item("carol"), item("alice", points=7))
    assert again == [
        {"outcome": "replayed", "newScore": 10},
        {"outcome": "applied", "newScore": 10},
        {"outcome": "replayed", "newScore": 7},
    ]
    assert await scores(client) == {"alice": 17, "bob": 10, "carol": 10}


async def test_a_bad_action_does_not_affect_the_others(start_api: StartApi, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as server:
        server.hset(ACTIONS, mapping={"win": 5})
    client = await start_api(
        open=(Board(), Board("second")), boards="main,second,unloaded", unknown_kinds="refuse"
    )
    await open_boards(redis_url, Board("second"), scores=[("rich", SCORE_MAX)])
    await list_boards(redis_url, Board())
    assert await results(client, item("alice", "win:1", points=3)) != []
    found = await results(
        client,
        item("good", "win:1"),
        item("alice", "win:1", points=4),
        item("alice", "dance:1"),
        item("bad id", "win:1"),
        item("alice", "win:2", board="none"),
        item("alice", "win:2", board="unloaded"),
        item("alice", "win:2", points=0),
        item("rich", "win:1", board="second"),
        {"userId": "alice"},
        item("alice", "win:2", extra=1),
        item("alice", "win:2", board="main", boards=["main"]),
        [],
        None,
        5,
        "x",
        item("last", "win:1", board="second"),
    )
    assert problems(found) == [
        *(None, "action-conflict", "unknown-kind", "invalid", "unknown-board", "uninitialised"),
        *("invalid", "score-out-of-range", "invalid", "invalid", "invalid"),
        *("invalid", "invalid", "invalid", "invalid", None),
    ]
    assert (found[0]["newScore"], found[-1]["newScore"]) == (5, 5)
    for one in found:
        if "problem" in one:
            problem = one["problem"]
            assert set(problem) == {"type", "title", "status", "detail", "request_id"}
            assert ("retryAfter" in one) is (problem["status"] == 503)
            assert "newScore" not in one
    assert await scores(client) == {"alice": 3, "good": 5}
    assert (await scores(client, "second"))["last"] == 5


@pytest.mark.parametrize("partitions", [1, 3])
async def test_an_action_that_is_repeated_in_one_request_is_a_replay(
    start_api: StartApi, partitions: int
) -> None:
    client = await start_api(open=(Board(layout=Layout(partitions=partitions)),))
    found = await results(
        client,
        item("alice", points=5),
        *(item(f"user{number}") for number in range(90)),
        item("alice", points=5),
        item("alice", points=6),
        item("alice", points=5),
    )
    assert [one["outcome"] for one in found] == ["applied"] * 91 + [
        "replayed",
        "problem",
        "replayed",
    ]
    assert problems(found)[-2] == "action-conflict"
    assert (await client.get("/api/scores/users/alice")).json()["score"] == 5


async def test_equal_bulks_at_once_count_each_action_once(start_api: StartApi) -> None:
    client = await start_api(connections=100)
    items = [item(f"user{number}", points=number + 1) for number in range(50)]
    answers = await asyncio.gather(*(results(client, *items) for _ in range(6)))
    for number in range(50):
        outcomes = sorted(answer[number]["outcome"] for answer in answers)
        assert outcomes == ["applied"] + ["replayed"] * 5
        assert {answer[number]["newScore"] for answer in answers} == {number + 1}
    assert await scores(client) == {f"user{number}": number + 1 for number in range(50)}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed"),
        (b"{", 400, "malformed"),
        (b'{"updates":[{]}', 400, "malformed"),
        (b'{"updates":' + b"[" * 12_000, 400, "malformed"),
        (b"[]", 422, "invalid"),
        (b"{}", 422, "invalid"),
        (b'{"updates":{}}', 422, "invalid"),
        (b'{"updates":[]}', 422, "invalid"),
        (b'{"updates":[' + b",".join([b"{}"] * 101) + b"]}", 422, "invalid"),
        (b'{"updates":[{}],"more":1}', 422, "invalid"),
        (b'{"updates":["' + b"a" * 17_000 + b'"]}', 413, "body-too-large"),
    ],
)
async def test_a_body_that_is_no_list_of_actions_is_refused(
    start_api: StartApi, body: bytes, status: int, code: str
) -> None:
    client = await start_api()
    headers = client.bearer("server", SERVER) | {"Content-Type": "application/json"}
    answer = await client.post(PATH, content=body, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (status, f"/docs/problems/{code}")


async def test_a_hundred_actions_fit_into_the_default_body(start_api: StartApi) -> None:
    client = await start_api()
    user = "018f6d0e-5f2c-7c3a-9f57-3a1f6f0f9{:03}"
    items = [item(user.format(n), f"win:01J9ZQ4T8B6W3M{n}", points=250) for n in range(100)]
    assert all(one["newScore"] == 250 for one in await results(client, *items))


async def test_only_game_servers_may_send_many_updates(start_api: StartApi) -> None:
    """A player could otherwise evade the limit of ten updates a minute."""
    client = await start_api()
    for scope in ("update:score", "read:leaderboard", "update:score read:leaderboard"):
        refused = await send(client, item("server"), scope=scope)
        assert refused.status_code == 403
        assert 'scope="update:score:any"' in refused.headers["www-authenticate"]
    assert (await client.post(PATH, json={"updates": [item("a")]})).status_code == 401
    headers = client.bearer("server", SERVER)
    plain = headers | {"Content-Type": "text/plain"}
    assert (await client.post(PATH, content=b"{}", headers=plain)).status_code == 415
    assert (await client.post(f"{PATH}?board=main", json={}, headers=headers)).status_code == 400
    assert (await client.get(PATH, headers=headers)).status_code == 405
    assert await scores(client) == {}


async def test_each_action_counts_for_the_limit(start_api: StartApi) -> None:
    client = await start_api(rate_limit="app", trusted_updates_per_minute=7)
    before = dict(UPDATES)
    answer = await send(client, *(item(f"user{number}") for number in range(5)))
    assert answer.headers["ratelimit"].startswith('"default";r=2;t=')
    found = await results(
        client, item("bad id"), item("user5"), item("user6"), item("user7"), item("user8")
    )
    assert problems(found) == ["invalid", None, None, "rate-limited", "rate-limited"]
    assert 1 <= found[-1]["retryAfter"] <= 60
    refused = await results(client, item("user9"))
    assert problems(refused) == ["rate-limited"]
    server = client.bearer("server", SERVER)
    assert (await client.update("user9", "x:1", headers=server)).status_code == 429
    assert len(await scores(client)) == 7
    counted = {name: UPDATES[name] - before[name] for name in UPDATES}
    assert counted == dict.fromkeys(UPDATES, 0) | {"applied": 7, "rate_limited": 4, "refused": 1}


async def test_a_partition_that_is_unavailable_gives_its_actions_503_and_no_others(
    start_api: StartApi, redis_url: str
) -> None:
    client = await start_api(open=(Board(layout=Layout(partitions=2)),))
    items = [item(f"user{number}") for number in range(20)]
    keys = PartitionKeys(Partition("main", 1))
    with redis.Redis.from_url(redis_url) as server:
        server.hset(keys.meta, "state", "fenced")
    found = await results(client, *items)
    assert set(problems(found)) == {None, "fenced"}
    assert all(one["retryAfter"] == 2 for one in found if "problem" in one)
    with redis.Redis.from_url(redis_url) as server:
        assert (server.exists(keys.board), server.xlen(keys.events)) == (0, 0)
        server.hset(keys.meta, "state", "open")
    again = await results(client, *items)
    for one, then in zip(found, again, strict=True):
        assert then["outcome"] == ("applied" if "problem" in one else "replayed")
    assert await scores(client) == {f"user{number}": 10 for number in range(20)}


async def test_a_bulk_whose_answer_was_lost_is_repeated_without_counting_twice(
    start_api: StartApi, valkey_server: EmbeddedValkey, redis_url: str, make_proxy: MakeProxy
) -> None:
    """Clients are told 503, although Redis has counted some actions: the retry finds them."""
    proxy = await make_proxy(valkey_server.port)
    client = await start_api(url=proxy.through(redis_url), open=())
    await open_boards(redis_url)
    items = [item(f"user{number}", points=3) for number in range(30)]
    assert problems(await results(client, item("warm"))) == [None]
    lost = proxy.cut_when(TO_CLIENT, b"applied")
    refuse = asyncio.create_task(results(client, *items))
    await asyncio.wait_for(lost.wait(), 30)
    await refuse

    async def is_counted() -> bool:
        found = await results(client, *items)
        return problems(found) == [None] * 30 and {one["newScore"] for one in found} == {3}

    await eventually_async(is_counted)
    assert await scores(client) == {f"user{number}": 3 for number in range(30)} | {"warm": 10}


async def test_a_bulk_has_one_request_id_and_an_audit_line_for_each_action(
    start_api: StartApi, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[tuple[Any, ...]] = []

    def record(action: str, outcome: str, fields: dict[str, Any]) -> None:
        who = (fields.get("user_id"), fields.get("target_id"), fields.get("request_id"))
        lines.append((action, outcome, fields.get("code"), *who))

    monkeypatch.setattr(structlog, "is_configured", lambda: True)
    monkeypatch.setattr(audit, "_write", record)
    headers = {"X-Request-Id": "from-the-client-1"}
    for is_audited in (True, False):
        client = await start_api(audit_updates=is_audited, open=(Board(),) if is_audited else ())
        lines.clear()
        action = f"x:{is_audited}"
        await client.post(
            PATH,
            json={"updates": [item("alice", action), item("bob", action), item("bad id")]},
            headers=client.bearer("server", SERVER) | headers,
        )
        counted = [
            ("update", "success", None, "server", user, "from-the-client-1")
            for user in ("alice", "bob")
        ]
        assert lines == [
            *(counted if is_audited else ()),
            ("update", "failure", "invalid", "server", None, "from-the-client-1"),
        ]
    with redis.Redis.from_url(redis_url, decode_responses=True) as server:
        events = server.xrange(PartitionKeys(Partition("main")).events)
    assert {event["t"] for _, event in events} == {"from-the-client-1"}


async def test_a_bulk_is_sent_in_few_calls(start_api: StartApi, redis_url: str) -> None:
    client = await start_api()
    await results(client, item("warm"))

    def calls() -> int:
        with redis.Redis.from_url(redis_url) as server:
            return int(server.info("commandstats")["cmdstat_evalsha"]["calls"])

    before = calls()
    await results(client, *(item(f"user{number}") for number in range(100)))
    assert calls() - before == 2, "a call takes 64 actions"


async def test_actions_of_a_bulk_wait_for_the_commit_if_the_settings_ask_for_it(
    start_api: StartApi, redis_url: str
) -> None:
    """Without a flusher nothing is committed: the outcome of actions that Redis has is unknown."""
    client = await start_api(acknowledge="committed", commit_timeout_s=0.3)
    found = await results(client, item("alice"), item("bob"))
    assert problems(found) == ["outcome-unknown", "outcome-unknown"]
    assert await scores(client) == {"alice": 10, "bob": 10}
    assert json.dumps(found).count("retryAfter") == 2
