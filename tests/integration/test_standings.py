"""Standings of some users, of the caller, and ranks of scores, over HTTP on a real Redis."""

import asyncio
import json
import random
import string
from typing import Any

import httpx
import psycopg
import pytest
import redis

from api.endpoints.board_reader import percentile_of
from scoreboard.model import (
    SCORE_MAX,
    SLOT_COUNT,
    Action,
    Board,
    Layout,
    Partition,
    Rules,
    pack,
)
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import PartitionKeys
from tests.support.servers.api import (
    LEADERBOARD_PATH,
    ApiClient,
    StartApi,
    list_boards,
    open_boards,
)

USERS = "/api/scores/users"
SERVER = "update:score:any"
LEGAL = string.ascii_letters + string.digits + "._|:@-"


@pytest.fixture
async def listed(redis_url: str) -> None:
    """Write the list of boards, without which no board is unknown."""
    await list_boards(redis_url, Board())


async def fill(client: ApiClient, scores: dict[str, int], board: str | None = None) -> None:
    """Give users scores, in this order."""
    headers = client.bearer("server", SERVER)
    for user, points in scores.items():
        answer = await client.update(user, "x:1", headers=headers, points=points, board=board)
        assert answer.status_code == 200, answer.text


async def get(client: ApiClient, path: str, **params: Any) -> dict[str, Any]:
    headers = params.pop("headers", None)
    answer = await client.get(path, params=params, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def ranking(client: ApiClient) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while page := (await get(client, LEADERBOARD_PATH, limit=100, offset=len(rows)))["leaderboard"]:
        rows += page
    return rows


@pytest.mark.parametrize("partitions", [1, 3, 64])
async def test_friends_have_the_ranks_of_the_board_and_places_among_them(
    start_api: StartApi, partitions: int
) -> None:
    client = await start_api(open=(Board(layout=Layout(partitions=partitions)),))
    choose = random.Random(partitions)
    users = [f"user{number}" for number in range(130)]
    # Many equals: their order is that of the board.
    await fill(client, {user: choose.randint(1, 20) for user in users})
    board = {row["userId"]: row for row in await ranking(client)}
    for count in (1, 2, 64, 65, 100):
        asked = choose.sample(users, count - count // 4) + [f"no{n}" for n in range(count // 4)]
        choose.shuffle(asked)
        found = await get(client, USERS, ids=",".join(asked))
        known = [user for user in asked if user in board]
        expected = sorted((board[user] for user in known), key=lambda row: row["rank"])
        assert found["users"] == [{**row, "place": place} for place, row in enumerate(expected, 1)]
        assert found["notFound"] == [user for user in asked if user not in board]
        assert (found["total"], found["seq"]) == (130, 130)
        assert found["epoch"] == partitions


@pytest.mark.parametrize("partitions", [1, 4])
async def test_users_without_a_score_are_not_found(start_api: StartApi, partitions: int) -> None:
    client = await start_api(open=(Board(layout=Layout(partitions=partitions)),))
    empty = await get(client, USERS, ids="alice")
    assert (empty["users"], empty["notFound"], empty["total"]) == ([], ["alice"], 0)
    await fill(client, {"bob": 5})
    found = await get(client, USERS, ids="alice,carol")
    assert (found["users"], found["notFound"]) == ([], ["alice", "carol"])
    assert (found["total"], found["seq"], found["epoch"]) == (1, 1, partitions)


async def test_an_id_with_every_permitted_character_is_one_user(start_api: StartApi) -> None:
    """A list that is split at a character which ids may contain would make two users of one."""
    client = await start_api()
    users = [*(LEGAL[at] for at in range(0, len(LEGAL), 7)), LEGAL, "|" * 128, "x" * 127 + ":"]
    await fill(client, dict.fromkeys(users, 10))
    for params in (
        {"ids": ",".join(users)},
        {"ids": users},
        {"ids": [",".join(users[:2]), *users[2:]]},
    ):
        found = await get(client, USERS, **params)
        assert [row["userId"] for row in found["users"]] == users
        assert [row["place"] for row in found["users"]] == [*range(1, len(users) + 1)]
    one = await get(client, USERS, ids=[users[0], users[0], users[0]])
    assert [row["place"] for row in one["users"]] == [1]


async def test_names_belong_to_their_users(start_api: StartApi, database_url: str) -> None:
    client = await start_api(database_url=database_url)
    await fill(client, {"alice": 30, "bob": 20, "carol": 10, "dave": 5})
    with psycopg.connect(database_url, autocommit=True) as owner:
        for user, name in (("alice", "Alice"), ("carol", "Carol"), ("nobody", "No body")):
            owner.execute(
                "INSERT INTO users (id, external_id, name) VALUES (gen_random_uuid(), %s, %s)",
                (user, name),
            )
        owner.execute("INSERT INTO users (id, external_id) VALUES (gen_random_uuid(), 'bob')")
    found = await get(client, USERS, ids="dave,nobody,carol,bob,alice", names="true")
    assert [(row["userId"], row.get("name")) for row in found["users"]] == [
        ("alice", "Alice"),
        ("bob", None),
        ("carol", "Carol"),
        ("dave", None),
    ]
    assert found["notFound"] == ["nobody"]
    plain = await get(client, USERS, ids="alice,bob")
    assert all("name" not in row for row in plain["users"])


async def test_a_page_of_standings_is_not_modified_until_the_board_changes(
    start_api: StartApi,
) -> None:
    client = await start_api()
    await fill(client, {"alice": 5})
    first = await client.get(USERS, params={"ids": "alice,bob"})
    known = {"If-None-Match": first.headers["etag"]}
    again = await client.get(USERS, params={"ids": "alice,bob"}, headers=known)
    assert (again.status_code, again.content) == (304, b"")
    await fill(client, {"bob": 9})
    changed = await client.get(USERS, params={"ids": "alice,bob"}, headers=known)
    assert [row["userId"] for row in changed.json()["users"]] == ["bob", "alice"]


@pytest.mark.one_server
async def test_friends_are_read_in_one_call_per_partition_and_step(
    start_api: StartApi, redis_url: str
) -> None:
    client = await start_api(open=(Board(layout=Layout(partitions=4)),))
    await fill(client, {f"user{number}": number + 1 for number in range(60)})
    ids = ",".join(f"user{number}" for number in range(60))
    await get(client, USERS, ids=ids)

    def calls() -> int:
        with redis.Redis.from_url(redis_url) as server:
            return int(server.info("commandstats")["cmdstat_evalsha_ro"]["calls"])

    before = calls()
    await get(client, USERS, ids=ids)
    assert calls() - before == 8


async def test_the_callers_standing_is_that_of_its_subject(start_api: StartApi) -> None:
    boards = (Board(), Board("closed", is_public=False))
    client = await start_api(open=boards, boards="main,closed")
    await fill(client, {"alice": 5, "bob": 7})
    await fill(client, {"alice": 3}, "closed")
    mine = await client.get("/api/scores/me", headers=client.bearer("alice", "update:score"))
    shown = await client.get("/api/scores/users/alice")
    assert (mine.status_code, mine.content) == (200, shown.content)
    assert mine.json()["rank"] == 2
    # Caches must not give the standing of one caller to another.
    assert mine.headers["cache-control"] == "private, no-store"
    around = await get(client, "/api/scores/me", headers=client.bearer("bob"), around=1)
    assert [row["userId"] for row in around["neighbours"]] == ["bob", "alice"]

    missing = await client.get("/api/scores/me", headers=client.bearer("carol"))
    assert (missing.status_code, missing.json()["type"]) == (404, "/docs/problems/unknown-user")
    assert (await client.get("/api/scores/me")).status_code == 401
    closed = {"board": "closed"}
    assert (
        await client.get("/api/scores/me", params=closed, headers=client.bearer("alice", "x"))
    ).status_code == 403
    assert (await get(client, "/api/scores/me", headers=client.bearer(), **closed))["score"] == 3


@pytest.mark.parametrize(
    ("rank", "total", "percentile"),
    [
        *((1, 1, 100), (1, 2, 100), (2, 2, 0), (2, 3, 50), (2, 20_418, 99.99), (2, 2**31, 99.99)),
        *((1, 2**31, 100), (2**31, 2**31, 0), (2**31 - 1, 2**31, 0), (3, 2, 0), (1, 0, 100)),
    ],
)
def test_the_percentile_is_the_share_of_the_others_below(
    rank: int, total: int, percentile: float
) -> None:
    assert percentile_of(rank, total) == percentile


async def test_a_standing_has_its_percentile(start_api: StartApi) -> None:
    client = await start_api()
    await fill(client, {f"user{number}": 100 - number for number in range(9)})
    found = [
        (await get(client, f"/api/scores/users/user{number}"))["percentile"] for number in range(9)
    ]
    assert found == [100, 87.5, 75, 62.5, 50, 37.5, 25, 12.5, 0]


@pytest.mark.parametrize("partitions", [1, 3])
async def test_the_rank_of_a_score_is_the_one_that_a_new_arrival_gets(
    start_api: StartApi, partitions: int
) -> None:
    client = await start_api(open=(Board(layout=Layout(partitions=partitions)),))
    empty = await get(client, "/api/scores/rank", score=0)
    assert (empty["rank"], empty["equals"], empty["total"]) == (1, 0, 0)
    scores = [50, 40, 40, 40, 1, SCORE_MAX // 4096]
    await fill(client, {f"user{number}": score for number, score in enumerate(scores)})
    for score in (0, 1, 2, 39, 40, 41, 50, 51, 524_287, 524_288, SCORE_MAX):
        found = await get(client, "/api/scores/rank", score=score)
        assert found == {
            "score": score,
            "rank": sum(one >= score for one in scores) + 1,
            "equals": scores.count(score),
            "total": len(scores),
            "epoch": partitions,
            "seq": len(scores),
        }
    told = await get(client, "/api/scores/rank", score=40)
    await fill(client, {"arrival": 40})
    if partitions == 1:
        assert (await get(client, "/api/scores/users/arrival"))["rank"] == told["rank"]


async def test_ranks_of_scores_are_exact_at_the_limits_of_packed_scores(
    start_api: StartApi, redis_url: str
) -> None:
    client = await start_api()
    keys = PartitionKeys(Partition("main"))
    with redis.Redis.from_url(redis_url) as server:
        for score in (0, 1, SCORE_MAX - 1, SCORE_MAX):
            server.zadd(keys.board, {f"low{score}": pack(score, 0)})
            server.zadd(keys.board, {f"high{score}": pack(score, SLOT_COUNT - 1)})
    for score, rank in ((SCORE_MAX, 3), (SCORE_MAX - 1, 5), (2, 5), (1, 7), (0, 9)):
        found = await get(client, "/api/scores/rank", score=score)
        assert (found["rank"], found["equals"]) == (rank, 0 if score == 2 else 2)


@pytest.mark.parametrize("partitions", [1, 3])
async def test_the_cutoff_is_the_score_that_takes_a_rank(
    start_api: StartApi, partitions: int
) -> None:
    client = await start_api(open=(Board(layout=Layout(partitions=partitions)),))
    scores = {"a": 50, "b": 40, "c": 40, "d": 7}
    await fill(client, scores)
    for rank, score in enumerate([50, 40, 40, 7], 1):
        found = await get(client, "/api/scores/cutoff", rank=rank)
        assert (found["rank"], found["score"], found["needed"]) == (rank, score, score + 1)
        taken = await get(client, "/api/scores/rank", score=found["needed"])
        assert taken["rank"] <= rank
    beyond = await get(client, "/api/scores/cutoff", rank=5)
    assert "score" not in beyond
    assert (beyond["needed"], beyond["total"]) == (0, 4)


async def test_no_score_takes_the_first_rank_from_the_greatest_one(
    start_api: StartApi, redis_url: str
) -> None:
    client = await start_api(open=())
    await open_boards(redis_url, scores=[("alice", SCORE_MAX)])
    found = await get(client, "/api/scores/cutoff", rank=1)
    assert (found["score"], "needed" in found) == (SCORE_MAX, False)


@pytest.mark.parametrize("partitions", [1, 3])
async def test_a_board_that_ranks_the_lowest_score_first_has_the_same_reads(
    start_api: StartApi, redis_url: str, partitions: int
) -> None:
    rules = Rules("best", "lowest", 18, 200, "nobody", "stated")
    golf = Board("golf", Layout(partitions=partitions, rules=rules))
    client = await start_api(open=(Board(), golf), boards="main,golf")
    scores = {"alice": 72, "bob": 70, "carol": 72, "dave": 18}
    dispatcher = Dispatcher(Settings(redis_url=Secret(redis_url)))
    running = asyncio.create_task(dispatcher.run())
    for user, value in scores.items():
        await dispatcher.submit("golf", Action(user, "round:1", value, stated=True, rules=rules))
    dispatcher.close()
    await running
    board = await get(client, LEADERBOARD_PATH, board="golf")
    order = [row["userId"] for row in board["leaderboard"]]
    assert order[:2] == ["dave", "bob"]

    found = await get(client, USERS, ids="carol,alice,zoe,dave", board="golf")
    assert [(row["rank"], row["userId"], row["score"]) for row in found["users"]] == [
        (rank, user, scores[user]) for rank, user in enumerate(order, 1) if user != "bob"
    ]
    for value in (18, 19, 70, 71, 72, 73, 200):
        told = await get(client, "/api/scores/rank", score=value, board="golf")
        assert told["rank"] == sum(one <= value for one in scores.values()) + 1
        assert told["equals"] == list(scores.values()).count(value)
    first = await get(client, "/api/scores/cutoff", rank=1, board="golf")
    assert (first["score"], "needed" in first) == (18, False)
    third = await get(client, "/api/scores/cutoff", rank=3, board="golf")
    assert (third["score"], third["needed"]) == (72, 71)
    beyond = await get(client, "/api/scores/cutoff", rank=5, board="golf")
    assert ("score" in beyond, beyond["needed"]) == (False, 200)


@pytest.mark.parametrize(
    ("path", "query", "status", "named"),
    [
        (USERS, "", 422, "ids"),
        (USERS, "ids=", 422, "ids"),
        (USERS, "ids=a,,b", 422, "ids"),
        (USERS, "ids=" + ",".join(f"u{n}" for n in range(101)), 422, "100"),
        ("/api/scores/rank", "", 422, "score"),
        ("/api/scores/rank", "score=-1", 422, "score"),
        ("/api/scores/rank", "score=2147483648", 422, "score"),
        ("/api/scores/rank", "score=1.5", 422, "score"),
        ("/api/scores/rank", "score=1&score=2", 400, "score"),
        ("/api/scores/rank", "score=1&ids=a", 400, "ids"),
        ("/api/scores/cutoff", "rank=0", 422, "rank"),
        ("/api/scores/cutoff", "", 422, "rank"),
        ("/api/scores/cutoff", "rank=1&board=none", 404, "board"),
        ("/api/scores/me", "ids=a", 400, "ids"),
    ],
)
@pytest.mark.usefixtures("listed")
async def test_invalid_parameters_are_named(
    start_api: StartApi, path: str, query: str, status: int, named: str
) -> None:
    client = await start_api()
    answer = await client.get(f"{path}?{query}", headers=client.bearer())
    assert answer.status_code == status
    assert named in answer.json()["detail"]


async def test_a_rank_of_several_partitions_is_read_to_a_bounded_depth(start_api: StartApi) -> None:
    client = await start_api(open=(Board(layout=Layout(partitions=2)),))
    assert (await client.get("/api/scores/cutoff?rank=10000")).status_code == 200
    refused = await client.get("/api/scores/cutoff?rank=10001")
    assert (refused.status_code, "rank is at most" in refused.json()["detail"]) == (422, True)


@pytest.mark.parametrize(
    "path", [f"{USERS}?ids=a", "/api/scores/rank?score=1", "/api/scores/cutoff?rank=1"]
)
async def test_ranks_of_a_private_board_need_the_scope(start_api: StartApi, path: str) -> None:
    client = await start_api(open=(Board(is_public=False),))
    assert (await client.get(path)).status_code == 401
    refused = await client.get(path, headers=client.bearer("alice", "update:score"))
    assert (refused.status_code, "read:leaderboard" in refused.text) == (403, True)
    allowed = await client.get(path, headers=client.bearer())
    assert allowed.status_code == 200
    assert allowed.headers["cache-control"] == "private, no-store"


@pytest.mark.parametrize(
    "path", [f"{USERS}?ids=a,b", "/api/scores/rank?score=1", "/api/scores/cutoff?rank=1"]
)
async def test_an_emptied_redis_gives_no_ranks(
    start_api: StartApi, redis_url: str, path: str
) -> None:
    """An emptied board must not be taken for one where everybody is first."""
    client = await start_api(open=(Board(layout=Layout(partitions=3)),))
    assert (await client.get(path)).status_code == 200
    keys = PartitionKeys(Partition("main", 1))
    with redis.Redis.from_url(redis_url) as server:
        server.delete(keys.meta, keys.board)
    answer = await client.get(path)
    assert (answer.status_code, answer.json()["type"]) == (503, "/docs/problems/uninitialised")


async def test_concurrent_standings_of_all_kinds_agree(start_api: StartApi) -> None:
    """Reads of different sizes share script calls; each gets its own part of the reply."""
    client = await start_api(open=(Board(layout=Layout(partitions=2)),), connections=200)
    users = [f"user{number}" for number in range(90)]
    await fill(client, {user: number % 9 + 1 for number, user in enumerate(users)})
    rows = {row["userId"]: row for row in await ranking(client)}

    async def friends(count: int) -> None:
        asked = users[:count]
        found = await get(client, USERS, ids=",".join(asked))
        assert {row["userId"]: row["rank"] for row in found["users"]} == {
            user: rows[user]["rank"] for user in asked
        }

    async def one(user: str) -> None:
        assert (await get(client, f"{USERS}/{user}"))["rank"] == rows[user]["rank"]

    async def rank(score: int) -> None:
        found = await get(client, "/api/scores/rank", score=score)
        assert found["rank"] == sum(row["score"] >= score for row in rows.values()) + 1

    await asyncio.gather(
        *(friends(count) for count in range(1, 90, 7)),
        *(one(user) for user in users[:30]),
        *(rank(score) for score in range(12)),
    )


async def test_a_long_list_is_refused_by_the_length_of_the_request_line(
    start_api: StartApi,
) -> None:
    client = await start_api()
    ids = ",".join("x" * 126 + f"{number:02}" for number in range(40))
    answer: httpx.Response = await client.get(USERS, params={"ids": ids})
    assert answer.status_code == 414
    assert json.loads(answer.content)["type"] == "/docs/problems/uri-too-long"
