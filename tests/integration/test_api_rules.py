"""Updates of boards with rules over HTTP: who may send which number, and what is answered."""

from typing import Any

import httpx
import pytest
import redis

from scoreboard.model import Board, Layout, Partition, Rules
from scoreboard.runtime.settings import load
from scoreboard.store.client import make_client
from scoreboard.store.keys import ACTIONS, PartitionKeys
from scoreboard.store.store import Store
from tests.support.servers.api import LEADERBOARD_PATH, ApiClient, StartApi

LAPS = Board("laps", Layout(rules=Rules("best", "lowest", 1, 600_000, points="stated")))
RATING = Board("rating", Layout(rules=Rules("last", points="stated")))
WALLET = Board("wallet", Layout(rules=Rules(lowering="trusted", points="stated")))
MEDALS = Board("medals", Layout(rules=Rules("best")))
BOARDS = (Board(), LAPS, RATING, WALLET, MEDALS)
NAMES = ",".join(board.name for board in BOARDS)


async def started(start_api: StartApi, redis_url: str, **more: Any) -> ApiClient:
    """Start an api with all boards, in Redis and in its list."""
    held = make_client(load({"REDIS_URL": redis_url}), name="test")
    try:
        await Store(held).write_boards(BOARDS)
    finally:
        await held.aclose()
    return await start_api(open=BOARDS, boards=NAMES, **more)


def server(client: ApiClient) -> dict[str, str]:
    return client.bearer("game-server", "update:score:any read:leaderboard")


def problem(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    assert body["type"] == f"/docs/problems/{code}"
    return str(body["detail"])


def seq(redis_url: str, board: str) -> int:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        return int(client.hget(PartitionKeys(Partition(board)).meta, "seq") or 0)


@pytest.mark.parametrize("direct", [True, False])
async def test_a_player_states_values_and_gets_the_best_one(
    start_api: StartApi, redis_url: str, direct: bool
) -> None:
    client = await started(start_api, redis_url, direct=direct)

    async def lap(user: str, action: str, value: int) -> dict[str, Any]:
        answer = await client.update(user, action, board="laps", points=value)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    assert await lap("ann", "lap:1", 61_200) == {
        "success": True, "newScore": 61_200, "replayed": False}  # fmt: skip
    assert (await lap("ann", "lap:2", 59_870))["newScore"] == 59_870
    assert (await lap("ann", "lap:3", 60_400)) == {
        "success": True, "newScore": 59_870, "replayed": False}  # fmt: skip
    assert (await lap("ann", "lap:3", 60_400))["replayed"] is True
    await lap("bob", "lap:1", 59_000)
    answer = await client.get(LEADERBOARD_PATH, params={"board": "laps"})
    rows = [(row["userId"], row["score"]) for row in answer.json()["leaderboard"]]
    assert rows == [("bob", 59_000), ("ann", 59_870)]
    standing = await client.get("/api/scores/users/ann", params={"board": "laps", "around": 1})
    assert (standing.json()["rank"], standing.json()["score"]) == (2, 59_870)


@pytest.mark.parametrize("direct", [True, False])
async def test_refusals_say_what_to_send_and_leave_no_trace(
    start_api: StartApi, redis_url: str, direct: bool
) -> None:
    client = await started(start_api, redis_url, direct=direct)
    await client.update("ann", "first", board="wallet", points=100)
    trusted = server(client)

    async def refused(
        status: int,
        code: str,
        *words: str,
        board: str,
        by: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        detail = problem(
            await client.update("ann", "win:1", board=board, headers=by, **more), status, code
        )
        assert all(word in detail for word in words), detail

    await refused(422, "invalid", "Add points", "1 to 600000", board="laps")
    await refused(422, "invalid", "Add points", board="laps", by=trusted)
    await refused(422, "score-out-of-range", "1 to 600000", board="laps", points=0)
    await refused(422, "score-out-of-range", "1 to 600000", board="laps", points=600_001)
    await refused(422, "invalid", "points must be the value", board="laps", points=-1)
    await refused(403, "forbidden", "update:score:any", board="wallet", points=-5)
    await refused(422, "invalid", "not 0", board="wallet", points=0)
    await refused(422, "invalid", "-1000000 to 1000000", board="wallet", points=1_000_001)
    await refused(422, "score-out-of-range", board="wallet", points=-101, by=trusted)
    await refused(403, "forbidden", "Omit points", board="main", points=5)
    await refused(422, "invalid", "1 to 1000000", board="main", points=-1, by=trusted)
    await refused(422, "invalid", "1 to 1000000", board="main", points=2_000_000, by=trusted)
    await refused(403, "forbidden", "Omit points", board="medals", points=5)
    await refused(422, "invalid", "points", board="rating", points=2**31)
    for board, expected in (("laps", 0), ("wallet", 1), ("main", 0), ("medals", 0), ("rating", 0)):
        assert seq(redis_url, board) == expected
    lowered = await client.update("ann", "spend:1", board="wallet", points=-30, headers=trusted)
    assert lowered.json()["newScore"] == 70


async def test_another_value_for_the_same_action_is_a_conflict(
    start_api: StartApi, redis_url: str
) -> None:
    client = await started(start_api, redis_url)
    await client.update("ann", "match:1", board="rating", points=1500)
    await client.update("ann", "match:2", board="rating", points=1480)

    again = await client.update("ann", "match:1", board="rating", points=1500)
    other = await client.update("ann", "match:1", board="rating", points=1480)

    assert again.json() == {"success": True, "newScore": 1500, "replayed": True}
    assert "another value" in problem(other, 409, "action-conflict")


async def test_the_catalogue_can_set_the_value(start_api: StartApi, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as held:
        held.hset(ACTIONS, mapping={"bronze": 1, "silver": 2, "gold": 3})
    client = await started(start_api, redis_url, unknown_kinds="refuse")

    scores = [
        (await client.update("ann", f"{kind}:1", board="medals")).json()["newScore"]
        for kind in ("silver", "gold", "bronze")
    ]

    assert scores == [2, 3, 3]
