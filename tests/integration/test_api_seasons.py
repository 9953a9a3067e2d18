"""Seasons over HTTP: the current one, earlier ones, their list, and updates that state one."""

import asyncio
import time
from typing import Any

import pytest
import redis

from flusher import seasons
from scoreboard.ledger.boards import insert_board
from scoreboard.ledger.pool import connect
from scoreboard.model import Board, Layout, Partition, Rules
from scoreboard.recovery.reseed import SESSION, reseed
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.keys import PartitionKeys
from tests.support.eventually import eventually_async
from tests.support.servers.api import ApiClient, StartApi
from tests.support.servers.flushers import flushing, is_drained, query, store_of

pytestmark = pytest.mark.slow
RULES = Rules(season="monthly", time_zone="Europe/Berlin")
BOARD = Board("main", Layout(2, 1000, 4, RULES))


@pytest.fixture(autouse=True)
def read_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notice soon that a test has changed when a season ends."""
    monkeypatch.setattr(seasons, "LIST_EVERY_S", 1.0)


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url), database_url=Secret(database_url), flusher_metrics_port=0
    )


async def open_board(settings: Settings) -> None:
    connection = await connect(settings, name="test", autocommit=True, **SESSION)
    try:
        await insert_board(connection, BOARD)
        async with store_of(settings) as store:
            await reseed(store, connection, BOARD, [0, 1], actor="test")
    finally:
        await connection.close()


def end_season(settings: Settings) -> None:
    """Let the season end now, as if the clock had gone on."""
    with redis.Redis.from_url(settings.redis_url.reveal(), decode_responses=True) as client:
        for number in range(2):
            meta = PartitionKeys(Partition("main", number)).meta
            name, start, _ = str(client.hget(meta, "season")).split(":")
            client.hset(meta, "season", f"{name}:{start}:{int(time.time())}")


async def read(client: ApiClient, path: str, status: int = 200, **params: Any) -> dict[str, Any]:
    answer = await client.get(f"/api/scores/{path}", params=params)
    assert answer.status_code == status, answer.text
    return answer.json()


def ranking(reply: dict[str, Any]) -> list[tuple[int, str, int]]:
    return [(row["rank"], row["userId"], row["score"]) for row in reply["leaderboard"]]


async def test_seasons_are_read_by_their_id_and_listed_with_winners(
    start_api: StartApi, settings: Settings
) -> None:
    await open_board(settings)
    client = await start_api(open=(), database_url=settings.database_url.reveal())
    [(first, ends)] = query(settings, "SELECT season, extract(epoch FROM ends_at) FROM seasons")
    async with flushing(settings):
        for user, points in (("alice", 30), ("bob", 20), ("carol", 10), ("dave", 5)):
            answer = await client.update(
                user,
                points=points,
                season=first,
                headers=client.bearer("game", scope="update:score:any"),
            )
            assert answer.status_code == 200, answer.text
        await eventually_async(lambda: is_drained(settings, partitions=2))
        now = await read(client, "leaderboard")
        assert now["season"] == first
        assert now["endsAt"] == int(ends) * 1000
        assert await read(client, "leaderboard", season=first) == now
        standing = await read(client, "users/bob", season=first)
        assert (standing["rank"], "season" in standing) == (2, False)
        listed = await read(client, "seasons")
        assert [(one["id"], one["state"], one["winners"]) for one in listed["seasons"]] == [
            (first, "open", [])
        ]

        end_season(settings)
        late = await client.update("erin", season=first)
        assert late.status_code == 409
        assert late.json()["type"] == "/docs/problems/season-closed"
        assert (await client.update("erin")).status_code == 200

        async def is_final() -> bool:
            found = await read(client, "seasons")
            return [one["state"] for one in found["seasons"]] == ["open", "final"]

        await eventually_async(is_final, 15)
        second = (await read(client, "leaderboard"))["season"]
    assert second != first
    assert ranking(await read(client, "leaderboard", season=second)) == [(1, "erin", 10)]
    assert (await read(client, "seasons", before=first)) == {"seasons": []}, "no earlier one"
    final = await read(client, "leaderboard", season=first, limit=2, offset=1)
    assert ranking(final) == [(2, "bob", 20), (3, "carol", 10)]
    assert (final["total"], final["season"], "endsAt" in final) == (4, first, False)
    listed = (await read(client, "seasons", limit=1, before=second))["seasons"]
    assert [row["userId"] for row in listed[0]["winners"]] == ["alice", "bob", "carol"]
    assert listed[0]["users"] == 4
    page = await read(client, "seasons", limit=1)
    assert (page["next"], len(page["seasons"])) == (second, 1)
    near = await read(client, "users/bob", season=first, around=1)
    assert (near["rank"], near["total"], near["season"]) == (2, 4, first)
    assert [row["userId"] for row in near["neighbours"]] == ["alice", "bob", "carol"]

    own = client.bearer("bob", scope="read:leaderboard")
    answer = await client.get("/api/scores/me", params={"season": first, "around": 1}, headers=own)
    assert answer.json() == near
    answer = await client.get("/api/scores/me", params={"season": second}, headers=own)
    assert answer.json()["type"].endswith("unknown-user")
    friends = await read(client, "users", season=first, ids="erin,dave,alice")
    assert [
        (row["place"], row["rank"], row["userId"], row["score"]) for row in friends["users"]
    ] == [
        (1, 1, "alice", 30),
        (2, 4, "dave", 5),
    ]
    assert (friends["notFound"], friends["total"], friends["season"]) == (["erin"], 4, first)
    assert await read(client, "users", season=second, ids="erin,dave") == await read(
        client, "users", ids="erin,dave"
    )
    place = {"total": 4, "epoch": 0, "seq": 0, "season": first}
    for score, rank, equals in ((31, 1, 0), (30, 2, 1), (12, 3, 0), (5, 5, 1), (0, 5, 0)):
        assert await read(client, "rank", season=first, score=score) == {
            "score": score,
            "rank": rank,
            "equals": equals,
            **place,
        }
    assert (await read(client, "rank", season=second, score=5))["rank"] == 2
    cut = {"rank": 2, "score": 20, "needed": 21, **place}
    assert await read(client, "cutoff", season=first, rank=2) == cut
    cut = {"rank": 5, "needed": 0, **place}
    assert await read(client, "cutoff", season=first, rank=5) == cut
    assert (await read(client, "cutoff", season=second, rank=1))["score"] == 10

    # A revision of the standings is another version of the response.
    before = await client.get("/api/scores/leaderboard", params={"season": first})
    query(
        settings, "UPDATE seasons SET revisions = 1, revised_at = ends_at WHERE season = %s", first
    )
    known = {"If-None-Match": before.headers["etag"]}
    after = await client.get("/api/scores/leaderboard", params={"season": first}, headers=known)
    assert (before.status_code, after.status_code) == (200, 200)
    listed = (await read(client, "seasons", limit=1, before=second))["seasons"]
    assert listed[0]["revisedAt"] == int(ends) * 1000

    for path, params in (
        ("leaderboard", {}),
        ("users/bob", {}),
        ("users", {"ids": "bob"}),
        ("rank", {"score": 1}),
        ("cutoff", {"rank": 1}),
    ):
        problem = await read(client, path, 404, season="1999-01", **params)
        assert problem["type"] == "/docs/problems/unknown-season"
        await read(client, path, 422, season="a@b", **params)
    assert (await read(client, "users/erin", 404, season=first))["type"].endswith("unknown-user")
    await read(client, "leaderboard", 422, season="a@b")
    rules = (await client.get("/api/boards/main")).json()["rules"]
    assert (rules["season"], rules["timeZone"]) == ("monthly", "Europe/Berlin")


async def test_standings_that_are_not_final_are_not_shown(
    start_api: StartApi, settings: Settings
) -> None:
    await open_board(settings)
    client = await start_api(open=(), database_url=settings.database_url.reveal())
    first = (await read(client, "leaderboard"))["season"]
    assert (await client.update("alice")).status_code == 200
    end_season(settings)
    assert (await client.update("bob")).status_code == 200  # no flusher: it turns its partition
    async with store_of(settings) as store:
        for number in range(2):
            await store.turn(Partition("main", number), RULES)
    for path, params in (
        ("leaderboard", {}),
        ("users/alice", {}),
        ("users", {"ids": "alice"}),
        ("rank", {"score": 1}),
        ("cutoff", {"rank": 1}),
    ):
        problem = await read(client, path, 503, season=first, **params)
        assert problem["type"] == "/docs/problems/season-ended"


async def test_a_board_without_seasons_has_none(start_api: StartApi, database_url: str) -> None:
    client = await start_api(database_url=database_url)
    assert (await read(client, "seasons")) == {"seasons": []}
    for before in ("ZZZ", "2026-11"):
        problem = await read(client, "seasons", 422, before=before)
        assert problem["detail"] == "before: use `next` of the page before it"
    await read(client, "leaderboard", 404, season="2026-11")
    refused = await client.update("alice", season="2026-11")
    assert (refused.status_code, refused.json()["detail"]) == (
        422,
        "season: the board main has no seasons",
    )
    reply = await read(client, "leaderboard")
    assert "season" not in reply


async def test_updates_over_a_boundary_need_no_flusher(
    start_api: StartApi, settings: Settings
) -> None:
    await open_board(settings)
    client = await start_api(open=(), database_url=settings.database_url.reveal())
    users = [f"user{number}" for number in range(20)]
    first = await asyncio.gather(*(client.update(user) for user in users))
    end_season(settings)
    second = await asyncio.gather(*(client.update(user, "win:2") for user in users))
    repeats = await asyncio.gather(*(client.update(user) for user in users))
    assert {answer.status_code for answer in (*first, *second, *repeats)} == {200}
    assert {answer.json()["newScore"] for answer in second} == {10}
    assert {answer.json()["replayed"] for answer in repeats} == {True}


async def test_a_read_begins_the_next_season_without_flusher_and_updates(
    start_api: StartApi, settings: Settings
) -> None:
    """Readers saw the standings of a season for as long as nobody played, with the flusher away."""
    await open_board(settings)
    client = await start_api(open=(), database_url=settings.database_url.reveal())
    for user in ("alice", "bob", "carol"):
        assert (await client.update(user)).status_code == 200
    first = await read(client, "leaderboard")
    assert len(first["leaderboard"]) == 3
    end_season(settings)

    async def is_over() -> bool:
        return (await client.get("/api/scores/users/alice")).status_code == 404

    began = time.monotonic()
    await eventually_async(is_over, 5)
    assert time.monotonic() - began < 3
    now = await read(client, "leaderboard")
    assert (now["leaderboard"], now["total"]) == ([], 0)
    assert now["season"] != first["season"]
    assert now["endsAt"] > time.time() * 1000
    assert (await read(client, "rank", score=5))["rank"] == 1
    assert (await read(client, "users", ids="alice,bob"))["notFound"] == ["alice", "bob"]


async def test_a_season_that_cannot_end_is_shown_with_its_past_end(
    start_api: StartApi, settings: Settings
) -> None:
    await open_board(settings)
    client = await start_api(open=(), database_url=settings.database_url.reveal())
    assert (await client.update("alice")).status_code == 200
    first = await read(client, "leaderboard")
    with redis.Redis.from_url(settings.redis_url.reveal(), decode_responses=True) as store:
        for number in range(2):
            store.hset(PartitionKeys(Partition("main", number)).meta, "state", "archived")
    end_season(settings)

    async def is_past() -> bool:
        found = await read(client, "leaderboard")
        return found["endsAt"] <= time.time() * 1000

    await eventually_async(is_past, 5)
    found = await read(client, "leaderboard")
    assert (found["season"], ranking(found)) == (first["season"], [(1, "alice", 10)])
