"""What callers get for actions that exceed a limit of a board."""

from typing import Any

from api.metrics import UPDATES
from scoreboard.model import Board, Limits
from tests.support.servers.api import ApiClient, StartApi

OPEN = (Board(limits=Limits(per_action=10)), Board("free"))
BOARDS = {"boards": "main,free"}
SERVER = "update:score:any"


def server(client: ApiClient) -> dict[str, str]:
    return client.bearer("server", SERVER)


async def test_an_action_above_the_limit_is_held_and_so_is_its_repeat(start_api: StartApi) -> None:
    client = await start_api(open=OPEN, **BOARDS)
    before = dict(UPDATES)

    answers = [
        await client.update("alice", action, points=points, headers=server(client))
        for action, points in (("x:1", 10), ("x:2", 11), ("x:2", 11), ("x:2", 12), ("x:3", 1))
    ]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 409, 200]
    assert answers[0].json() == {"success": True, "newScore": 10, "replayed": False}
    held = {"success": True, "newScore": 10, "held": True}
    assert answers[1].json() == held | {"replayed": False}
    assert answers[2].json() == held | {"replayed": True}
    assert answers[4].json() == {"success": True, "newScore": 11, "replayed": False}
    assert UPDATES["held"] - before["held"] == 1
    assert UPDATES["replayed"] - before["replayed"] == 1


async def test_each_board_holds_by_its_own_limits(start_api: StartApi) -> None:
    client = await start_api(open=OPEN, **BOARDS)

    async def send(*boards: str) -> Any:
        answer = await client.update(
            "alice", "x:1", points=50, boards=list(boards), headers=server(client)
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert await send("free", "main") == {
        "success": True,
        "newScore": 50,
        "replayed": False,
        "scores": {
            "free": {"score": 50, "replayed": False},
            "main": {"score": 0, "replayed": False, "held": True},
        },
    }
    assert await send("main") == {
        "success": True,
        "newScore": 0,
        "replayed": True,
        "held": True,
        "scores": {"main": {"score": 0, "replayed": True, "held": True}},
    }


async def test_a_bulk_request_says_which_actions_are_held(start_api: StartApi) -> None:
    client = await start_api(open=OPEN, **BOARDS)
    items = [
        {"userId": "alice", "actionId": "x:1", "points": 10},
        {"userId": "alice", "actionId": "x:2", "points": 11},
        {"userId": "alice", "actionId": "x:2", "points": 11},
        {"userId": "bob", "actionId": "x:2", "points": 11, "boards": ["free", "main"]},
    ]

    answer = await client.post(
        "/api/scores/updates", json={"updates": items}, headers=server(client)
    )

    body = answer.json()
    assert body["success"] is True
    assert [one["outcome"] for one in body["results"]] == ["applied", "held", "held", "applied"]
    assert body["results"][1] == {"outcome": "held", "newScore": 10}
    assert body["results"][3]["scores"]["main"] == {"score": 0, "replayed": False, "held": True}
