"""The api serves every board of the list, also one that is made or deleted while it runs."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import redis.asyncio as aioredis

from api.endpoints import board_reader
from scoreboard.model import Board, Layout, Partition, Rules
from scoreboard.runtime.settings import load
from scoreboard.store import board_directory, boards, dispatcher
from scoreboard.store.client import make_client
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from tests.support.data.boards import open_board
from tests.support.eventually import eventually_async
from tests.support.servers.api import LEADERBOARD_PATH, ApiClient, StartApi

PROMISED_S = 2.0
"""A new board is served within this time."""

CLOSED_S = 1.0
"""A stream that its reader may no longer see is closed within this time."""


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    client = make_client(load({"REDIS_URL": redis_url}), name="test")
    yield Store(client)
    await client.aclose()


async def make_board(store: Store, board: Board) -> None:
    """Open a board and list it, as `scoreboard board create` does."""
    await open_board(store, board)
    await store.write_boards([board])


async def statuses(client: ApiClient, board: str) -> list[int]:
    """Return the statuses of an update and of both reads of a board."""
    params = {"board": board}
    update = await client.update("alice", board=board)
    top = await client.get(LEADERBOARD_PATH, params=params)
    one = await client.get("/api/scores/users/alice", params=params)
    return [update.status_code, top.status_code, one.status_code]


@pytest.mark.parametrize("direct", [True, False])
async def test_a_board_made_while_the_api_runs_is_served(
    start_api: StartApi, store: Store, direct: bool
) -> None:
    client = await start_api(direct=direct)
    await store.write_boards([Board("main")])
    assert await statuses(client, "weekly") == [404, 404, 404]
    began_s = time.monotonic()
    await make_board(store, Board("weekly", Layout(2, 60, 4)))

    async def is_served() -> bool:
        return await statuses(client, "weekly") == [200, 200, 200]

    await eventually_async(is_served, within_s=PROMISED_S)
    assert time.monotonic() - began_s < PROMISED_S
    answer = await client.get(LEADERBOARD_PATH, params={"board": "weekly"})
    assert [row["userId"] for row in answer.json()["leaderboard"]] == ["alice"]
    assert (await client.get(LEADERBOARD_PATH)).json()["total"] == 0, "another board is unchanged"


async def test_a_name_with_every_legal_character_is_served(
    start_api: StartApi, store: Store
) -> None:
    client = await start_api()
    for name in ("abcdefghijklmnopqrstuvwxyz012345", "6789_.-", "-", "...", ".a"):
        await make_board(store, Board(name))
        assert await statuses(client, name) == [200, 200, 200], name
    for name in (".", ".."):  # which clients and proxies drop from paths
        assert await statuses(client, name) == [404, 404, 404], name


async def test_the_boards_of_an_emptied_redis_are_not_unknown(
    start_api: StartApi, store: Store, redis_url: str
) -> None:
    """A client gives up after 404, and tries again after 503."""
    client = await start_api()
    await make_board(store, Board("weekly"))
    assert await statuses(client, "weekly") == [200, 200, 200]
    await store._client.flushall()

    async def is_uninitialised() -> bool:
        return await statuses(client, "weekly") == [503, 503, 503]

    await eventually_async(is_uninitialised)
    assert await statuses(client, "main") == [503, 503, 503]
    assert (await statuses(client, "chess"))[0] == 503
    await make_board(store, Board("weekly"))

    async def is_served() -> bool:
        return await statuses(client, "weekly") == [200, 200, 200]

    await eventually_async(is_served, within_s=PROMISED_S)


@pytest.mark.parametrize("direct", [True, False])
async def test_a_deleted_board_is_unknown(start_api: StartApi, store: Store, direct: bool) -> None:
    client = await start_api(direct=direct)
    await make_board(store, Board("main"))
    await make_board(store, Board("weekly"))
    assert await statuses(client, "weekly") == [200, 200, 200]
    keys = PartitionKeys(Partition("weekly"))
    await store.write_boards([], ["weekly"])
    await store._client.unlink(keys.meta, keys.board, keys.events)

    async def is_unknown() -> bool:
        return await statuses(client, "weekly") == [404, 404, 404]

    await eventually_async(is_unknown, within_s=PROMISED_S)
    assert await statuses(client, "main") == [200, 200, 200]
    assert not await store._client.exists(keys.meta, keys.board, keys.events)


async def test_a_board_that_becomes_private_is_closed_to_readers_without_a_token(
    start_api: StartApi, store: Store
) -> None:
    client = await start_api()
    await make_board(store, Board("weekly"))
    params = {"board": "weekly"}
    assert (await client.get(LEADERBOARD_PATH, params=params)).status_code == 200
    for value, status in (("0", 401), ("1", 200)):
        await store._client.hset(PartitionKeys(Partition("weekly")).meta, "public", value)

        async def is_applied(status: int = status) -> bool:
            answer = await client.get(LEADERBOARD_PATH, params=params)
            return answer.status_code == status

        await eventually_async(is_applied, within_s=PROMISED_S)
    allowed = await client.get(LEADERBOARD_PATH, params=params, headers=client.bearer())
    assert allowed.status_code == 200


async def test_memory_is_bounded(
    start_api: StartApi, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (board_reader, board_directory, boards, dispatcher):
        monkeypatch.setattr(module, "BOARDS_KEPT_MAX", 3)
    client = await start_api()
    for number in range(6):
        await make_board(store, Board(f"board-{number}", Layout(2, 60, 4)))
    for number in [*range(6), *range(6)]:
        assert await statuses(client, f"board-{number}") == [200, 200, 200]
    unknown = await asyncio.gather(*(statuses(client, f"unknown-{n}") for n in range(20)))
    assert unknown == [[404, 404, 404]] * 20
    assert len(client.api._dispatcher._layouts) == 3


async def test_a_known_board_is_not_looked_up(
    start_api: StartApi, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update of a board that was found costs no command more than one of a default board."""
    looked_up: list[str] = []
    listed = Store.listed

    async def note(self: Store, names: Sequence[str]) -> dict[str, Board | None]:
        looked_up.extend(names)
        return await listed(self, names)

    monkeypatch.setattr(Store, "listed", note)
    await store.write_boards([Board("main")])
    client = await start_api()
    await make_board(store, Board("weekly"))
    for number in range(20):
        for board in ("main", "weekly"):
            answer = await client.update("alice", f"win:{number}", board=board)
            assert answer.status_code == 200
    assert sorted(looked_up) == ["main", "weekly"]


async def test_an_archived_board_can_be_read_and_refuses_updates(
    start_api: StartApi, store: Store, redis_url: str
) -> None:
    client = await start_api()
    await make_board(store, Board("weekly"))
    assert await statuses(client, "weekly") == [200, 200, 200]
    weekly = Partition("weekly")
    before = await snapshot(redis_url)
    assert await store.configure(weekly, Board("weekly", state="archived"))
    for user, action in (("bob", "win:9"), ("alice", "win:1")):
        refused = await client.update(user, action, board="weekly")
        assert refused.status_code == 409
        assert refused.json()["type"] == "/docs/problems/board-archived"
        assert "retry-after" not in refused.headers
    after = await snapshot(redis_url)
    meta = PartitionKeys(weekly).meta
    assert before.pop(meta) | {b"state": b"archived"} == after.pop(meta)
    assert after == before, "a refused update leaves no trace"
    params = {"board": "weekly"}
    assert (await client.get(LEADERBOARD_PATH, params=params)).json()["total"] == 1

    async def is_shown() -> bool:
        return (await client.get("/api/boards/weekly")).json()["state"] == "archived"

    await eventually_async(is_shown, within_s=PROMISED_S)
    assert not await store.configure(weekly, Board("weekly", state="archived"))
    assert await store.configure(weekly, Board("weekly"))
    assert (await client.update("bob", "win:9", board="weekly")).status_code == 200


async def snapshot(redis_url: str) -> dict[str, Any]:
    """Return the contents of all keys: of hashes the fields, of others what DUMP returns.

    ``:expiry`` after a name has when the key expires.
    """
    found: dict[str, Any] = {}
    async with aioredis.from_url(redis_url) as client:
        for key in await client.keys():
            is_hash = await client.type(key) == b"hash"
            found[key.decode()] = await (client.hgetall(key) if is_hash else client.dump(key))
            found[f"{key.decode()}:expiry"] = await client.pexpiretime(key)
    return found


BOARDS_PATH = "/api/boards"


def default_rules(**rules: object) -> dict[str, object]:
    return {
        "operator": "add",
        "order": "highest",
        "min": 0,
        "max": 2**31 - 1,
        "lowering": "nobody",
        "points": "catalogue",
    } | rules


async def test_boards_are_listed_with_their_rules(start_api: StartApi, store: Store) -> None:
    client = await start_api()
    laps = Board("laps", Layout(1, 60, 4, Rules("best", "lowest", 1, 99, "nobody", "stated")))
    await store.write_boards([Board("main"), laps, Board("secret", is_public=False)])
    answer = await client.get(BOARDS_PATH)
    assert answer.status_code == 200
    assert answer.json() == {
        "boards": [
            {
                "name": "laps",
                "public": True,
                "state": "open",
                "rules": default_rules(
                    operator="best", order="lowest", min=1, max=99, points="stated"
                ),
            },
            {"name": "main", "public": True, "state": "open", "rules": default_rules()},
        ]
    }
    assert answer.headers["cache-control"].startswith("public")
    everything = await client.get(BOARDS_PATH, headers=client.bearer())
    assert [one["name"] for one in everything.json()["boards"]] == ["laps", "main", "secret"]
    assert everything.headers["cache-control"] == "private, no-store"
    without_scope = await client.get(BOARDS_PATH, headers=client.bearer(scope="update:score"))
    assert [one["name"] for one in without_scope.json()["boards"]] == ["laps", "main"]
    invalid = await client.get(BOARDS_PATH, headers={"Authorization": "Bearer x"})
    assert invalid.status_code == 401


async def test_boards_are_paged_by_name(start_api: StartApi, store: Store) -> None:
    client = await start_api()
    names = sorted(f"board-{number}" for number in range(250))
    await store.write_boards([Board(name, is_public=name != "board-7") for name in names])
    names.remove("board-7")
    for limit in (1, 7, 100):
        found: list[str] = []
        params: dict[str, object] = {"limit": limit}
        while True:
            page = (await client.get(BOARDS_PATH, params=params)).json()
            assert len(page["boards"]) <= limit
            found += [one["name"] for one in page["boards"]]
            if "next" not in page:
                break
            params["after"] = page["next"]
        assert found == names
    assert (await client.get(BOARDS_PATH, params={"after": "zzz"})).json() == {"boards": []}
    for params in ({"limit": 0}, {"limit": 101}, {"limit": "x"}, {"after": "x" * 33}):
        assert (await client.get(BOARDS_PATH, params=params)).status_code == 422, params
    assert (await client.get(BOARDS_PATH, params={"page": 1})).status_code == 400


async def test_a_board_is_read_by_those_who_may_read_it(start_api: StartApi, store: Store) -> None:
    client = await start_api()
    await make_board(store, Board("secret", is_public=False))
    await make_board(store, Board("a.b_c-9"))
    assert (await client.get(f"{BOARDS_PATH}/a.b_c-9")).json()["rules"] == default_rules()
    assert (await client.get(f"{BOARDS_PATH}/main")).json()["name"] == "main"
    assert (await client.get(f"{BOARDS_PATH}/secret")).status_code == 401
    headers = client.bearer(scope="update:score")
    assert (await client.get(f"{BOARDS_PATH}/secret", headers=headers)).status_code == 403
    allowed = await client.get(f"{BOARDS_PATH}/secret", headers=client.bearer())
    assert allowed.json()["public"] is False
    for name in ("chess", "Main", "x" * 33):
        assert (await client.get(f"{BOARDS_PATH}/{name}")).status_code == 404, name


async def test_an_emptied_redis_has_no_empty_list_of_boards(start_api: StartApi) -> None:
    client = await start_api(open=())
    assert (await client.get(BOARDS_PATH)).status_code == 503


async def test_streams_without_a_token_are_closed_when_the_board_becomes_private(
    start_api: StartApi, store: Store
) -> None:
    client = await start_api()
    url = "/api/scores/stream"
    headers = client.bearer()
    async with (
        client.stream("GET", url) as stream,
        client.stream("GET", url, headers=headers) as own,
    ):
        lines, others = stream.aiter_lines(), own.aiter_lines()
        for one in (lines, others):
            await wait_for_event(one, "leaderboard")
        began_s = time.monotonic()
        assert await store.configure(Partition("main"), Board("main", is_public=False))
        async with asyncio.timeout(CLOSED_S):
            await wait_for_event(lines, "bye")
        assert time.monotonic() - began_s < CLOSED_S
        assert (await client.update("alice", "win:1")).status_code == 200
        async with asyncio.timeout(CLOSED_S):
            await wait_for_event(others, "leaderboard")


async def wait_for_event(lines: AsyncIterator[str], name: str) -> None:
    async for line in lines:
        if line == f"event: {name}":
            return
    raise AssertionError(f"the stream ended without {name}")
