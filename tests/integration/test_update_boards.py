"""An action that several boards count: each once, and a failure on some can be repeated."""

from typing import Any

import httpx
import pytest
import redis

from scoreboard.model import SCORE_MAX, Board, Layout, Partition, Rules
from scoreboard.store.keys import PartitionKeys
from tests.support.servers.api import (
    LEADERBOARD_PATH,
    UPDATE_PATH,
    ApiClient,
    StartApi,
    list_boards,
    open_boards,
)

NAMES = ("main", "weekly", "daily")
BOARDS = {"boards": "main,weekly,daily,unloaded"}
THREE = (Board(), Board("weekly", Layout(partitions=3)), Board("daily", is_public=False))


async def scores(client: ApiClient, board: str) -> dict[str, int]:
    answer = await client.get(
        LEADERBOARD_PATH, params={"board": board}, headers=client.bearer("reader")
    )
    return {row["userId"]: row["score"] for row in answer.json()["leaderboard"]}


def keys_of(redis_url: str) -> set[bytes]:
    with redis.Redis.from_url(redis_url) as server:
        return {
            key for key in server.scan_iter("sb:*") if not key.endswith((b":meta", b"sb:pulse"))
        }


def fence(redis_url: str, board: str, state: str) -> None:
    with redis.Redis.from_url(redis_url) as server:
        server.hset(PartitionKeys(Partition(board)).meta, "state", state)


async def test_each_board_counts_the_action_once(start_api: StartApi) -> None:
    client = await start_api(open=THREE, **BOARDS)
    await client.update("alice", "win:0", board="weekly")
    first = await client.update("alice", "win:1", boards=list(NAMES))
    assert first.status_code == 200, first.text
    assert first.json() == {
        "success": True,
        "newScore": 10,
        "replayed": False,
        "scores": {
            "main": {"score": 10, "replayed": False},
            "weekly": {"score": 20, "replayed": False},
            "daily": {"score": 10, "replayed": False},
        },
    }
    again = await client.update("alice", "win:1", boards=["weekly", "main"])
    assert again.json() == {
        "success": True,
        "newScore": 20,
        "replayed": True,
        "scores": {
            "weekly": {"score": 20, "replayed": True},
            "main": {"score": 10, "replayed": True},
        },
    }
    one = await client.update("alice", "win:1", board="daily")
    assert one.json() == {"success": True, "newScore": 10, "replayed": True}
    for board, score in (("main", 10), ("weekly", 20), ("daily", 10)):
        assert await scores(client, board) == {"alice": score}


async def test_an_action_without_boards_is_answered_as_before(start_api: StartApi) -> None:
    client = await start_api()
    assert (await client.update()).content == b'{"success":true,"newScore":10,"replayed":false}'
    single = await client.update("alice", "win:2", boards=["main"])
    assert single.json()["scores"] == {"main": {"score": 20, "replayed": False}}


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"boards": ["main", "none"]}, 404, "unknown-board"),
        ({"boards": ["none", "main"]}, 404, "unknown-board"),
        ({"boards": []}, 422, "invalid"),
        ({"boards": ["main", "main"]}, 422, "invalid"),
        ({"boards": [f"b{number}" for number in range(9)]}, 422, "invalid"),
        ({"boards": "main"}, 422, "invalid"),
        ({"boards": None}, 422, "invalid"),
        ({"boards": ["Main"]}, 422, "invalid"),
        ({"boards": ["main"], "board": "main"}, 422, "invalid"),
        ({"boards": ["main", "weekly"], "points": 5}, 403, "forbidden"),
    ],
)
async def test_a_request_that_is_refused_beforehand_reaches_no_board(
    start_api: StartApi, redis_url: str, more: dict[str, Any], status: int, code: str
) -> None:
    await list_boards(redis_url, *THREE)
    for is_fast in (True, False):
        client = await start_api(open=THREE, direct=is_fast, **BOARDS)
        before = keys_of(redis_url)
        answer = await client.post(
            UPDATE_PATH,
            json={"userId": "alice", "actionId": "win:1"} | more,
            headers=client.bearer("alice"),
        )
        assert (answer.status_code, answer.json()["type"]) == (status, f"/docs/problems/{code}")
        assert keys_of(redis_url) == before


async def test_points_are_checked_by_the_rules_of_each_board_before_any_gets_the_action(
    start_api: StartApi, redis_url: str
) -> None:
    golf = Board("golf", Layout(rules=Rules("best", "lowest", 18, 200, "nobody", "stated")))
    client = await start_api(open=(Board(), golf))
    await list_boards(redis_url, Board(), golf)
    server = client.bearer("server", "update:score:any")
    boards = ["main", "golf"]
    before = keys_of(redis_url)
    refused = await client.update("alice", "x:1", headers=server, boards=boards)
    assert (refused.status_code, "golf" in refused.text or "points" in refused.text) == (422, True)
    assert keys_of(redis_url) == before
    counted = await client.update("alice", "x:1", headers=server, points=72, boards=boards)
    assert counted.json()["scores"] == {board: {"score": 72, "replayed": False} for board in boards}
    better = await client.update("alice", "x:2", headers=server, points=70, boards=boards)
    assert {board: one["score"] for board, one in better.json()["scores"].items()} == {
        "main": 142,
        "golf": 70,
    }


async def test_a_board_in_the_query_and_boards_in_the_body_exclude_each_other(
    start_api: StartApi, redis_url: str
) -> None:
    client = await start_api()
    before = keys_of(redis_url)
    answer = await client.update("alice", "win:1", board="main", boards=["main"])
    assert (answer.status_code, "both" in answer.json()["detail"]) == (422, True)
    assert keys_of(redis_url) == before


@pytest.mark.parametrize("is_fast", [True, False])
async def test_a_board_that_fails_is_named_and_the_retry_completes_the_action(
    start_api: StartApi, redis_url: str, is_fast: bool
) -> None:
    client = await start_api(open=THREE, direct=is_fast, **BOARDS)
    fence(redis_url, "daily", "fenced")
    answer = await client.update("alice", "win:1", boards=list(NAMES))
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "2"
    problem = answer.json()
    assert problem["type"] == "/docs/problems/fenced"
    assert problem["detail"].startswith("daily: ")
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["scores"] == {
        "main": {"score": 10, "replayed": False},
        "weekly": {"score": 10, "replayed": False},
    }
    assert list(problem["problems"]) == ["daily"]
    with redis.Redis.from_url(redis_url) as server:
        keys = PartitionKeys(Partition("daily"))
        assert (server.exists(keys.board), server.xlen(keys.events)) == (0, 0)

    fence(redis_url, "daily", "open")
    again = await client.update("alice", "win:1", boards=list(NAMES))
    assert again.status_code == 200
    assert again.json()["scores"] == {
        "main": {"score": 10, "replayed": True},
        "weekly": {"score": 10, "replayed": True},
        "daily": {"score": 10, "replayed": False},
    }


async def test_an_error_after_which_to_repeat_comes_before_a_final_one(
    start_api: StartApi, redis_url: str
) -> None:
    """The client must repeat the request, or the fenced board would never count the action."""
    client = await start_api(open=THREE, **BOARDS)
    await open_boards(redis_url, scores=[("alice", SCORE_MAX)])
    fence(redis_url, "daily", "fenced")
    boards = {"boards": ["main", "weekly", "daily", "unloaded"]}
    answer = await client.update("alice", "win:1", **boards)
    assert answer.status_code == 503
    assert {board: one["status"] for board, one in answer.json()["problems"].items()} == {
        "main": 422,
        "daily": 503,
        "unloaded": 503,
    }
    fence(redis_url, "daily", "open")
    await open_boards(redis_url, Board("unloaded"))
    final = await client.update("alice", "win:1", **boards)
    assert (final.status_code, final.json()["type"]) == (422, "/docs/problems/score-out-of-range")
    assert final.json()["scores"] == {
        "weekly": {"score": 10, "replayed": True},
        "daily": {"score": 10, "replayed": False},
        "unloaded": {"score": 10, "replayed": False},
    }


async def test_all_boards_are_sent_in_one_write(start_api: StartApi, redis_url: str) -> None:
    client = await start_api(open=THREE, **BOARDS)
    await client.update("warm", "win:1", boards=list(NAMES))

    def reads() -> int:
        with redis.Redis.from_url(redis_url) as server:
            return int(server.info("stats")["total_reads_processed"])

    def alone() -> int:
        before = reads()
        return reads() - before

    unrelated = alone()
    before = reads()
    await client.update("alice", "win:1", boards=list(NAMES))
    # Other connections may ask something meanwhile, but not as much as two more writes.
    assert reads() - before - unrelated <= 2


async def test_an_action_of_several_boards_counts_once_for_the_limit(start_api: StartApi) -> None:
    client = await start_api(open=THREE, rate_limit="app", updates_per_minute=2, **BOARDS)
    statuses = [
        (await client.update("alice", f"win:{n}", boards=list(NAMES))).status_code for n in range(3)
    ]
    assert statuses == [200, 200, 429]


async def test_both_handlers_answer_alike(start_api: StartApi, redis_url: str) -> None:
    direct = await start_api(open=THREE, **BOARDS)
    plain = await start_api(open=(), direct=False, **BOARDS)
    fence(redis_url, "daily", "fenced")
    for number, boards in enumerate((["main", "weekly"], ["main", "daily"], ["daily"], ["main"])):
        answers: list[httpx.Response] = []
        for client in (direct, plain):
            with redis.Redis.from_url(redis_url) as server:
                for key in server.scan_iter("*:seen:*"):
                    server.delete(key)
                for board, count in (("main", 1), ("weekly", 3)):
                    for part in range(count):
                        server.delete(PartitionKeys(Partition(board, part)).board)
            headers = client.bearer("alice") | {"X-Request-Id": "the-same-id"}
            answers.append(
                await client.update("alice", f"win:{number}", headers=headers, boards=boards)
            )
        first, second = answers
        assert (first.status_code, first.content) == (second.status_code, second.content)
        ignored = {"date"}
        assert {n: v for n, v in first.headers.items() if n not in ignored} == {
            n: v for n, v in second.headers.items() if n not in ignored
        }


async def test_an_action_of_a_bulk_may_name_several_boards(
    start_api: StartApi, redis_url: str
) -> None:
    client = await start_api(open=THREE, **BOARDS)
    await list_boards(redis_url, *THREE)
    fence(redis_url, "daily", "fenced")
    answer = await client.post(
        "/api/scores/updates",
        json={
            "updates": [
                {"userId": "alice", "actionId": "win:1", "boards": ["weekly", "main"]},
                {"userId": "alice", "actionId": "win:1"},
                {"userId": "alice", "actionId": "win:1", "boards": ["main", "daily"]},
                {"userId": "bob", "actionId": "win:1", "boards": ["main", "none"]},
            ]
        },
        headers=client.bearer("server", "update:score:any"),
    )
    whole, single, partly, refused = answer.json()["results"]
    assert whole == {
        "outcome": "applied",
        "newScore": 10,
        "scores": {
            "weekly": {"score": 10, "replayed": False},
            "main": {"score": 10, "replayed": False},
        },
    }
    assert single == {"outcome": "replayed", "newScore": 10}
    assert (partly["outcome"], partly["retryAfter"]) == ("problem", 2)
    assert partly["problem"]["scores"] == {"main": {"score": 10, "replayed": True}}
    assert list(partly["problem"]["problems"]) == ["daily"]
    assert refused["problem"]["type"] == "/docs/problems/unknown-board"
    assert await scores(client, "main") == {"alice": 10}


async def test_a_season_is_stated_for_one_board(start_api: StartApi, redis_url: str) -> None:
    """One board counted an action of a season that the other one had not."""
    rules = {"league": "weekly", "hours": "cron:0 * * * *"}
    made = tuple(
        Board(name, Layout(rules=Rules(season=season, time_zone="UTC")))
        for name, season in rules.items()
    )
    await list_boards(redis_url, *made)
    client = await start_api(open=made, boards="league,hours")
    season = (await client.get(LEADERBOARD_PATH)).json()["season"]
    before = keys_of(redis_url)

    refused = await client.update("alice", "win:1", boards=list(rules), season=season)

    assert (refused.status_code, refused.json()["type"]) == (422, "/docs/problems/invalid")
    assert refused.json()["detail"].startswith("season: state it for one board")
    assert keys_of(redis_url) == before
    counted = await client.update("alice", "win:1", boards=["league"], season=season)
    assert counted.json()["scores"] == {"league": {"score": 10, "replayed": False}}
