"""Live boards of the Python clients and of the Go client, on the real system."""

import httpx

from scoreboard.security.tokens import UPDATE_ANY
from tests.clients.programs import Start
from tests.support.servers.system import System


def fill(system: System, board: str) -> None:
    """Make a board with twelve players, p1 the best; p11 has a name."""
    assert system.run("board", "create", board).returncode == 0
    assert system.run("user", "set", f"{board}p11", "--name", "Ada Lovelace").returncode == 0
    players = [
        {"userId": f"{board}p{rank}", "actionId": "bulk:1", "points": 130 - 10 * rank}
        for rank in range(1, 13)
    ]
    answer = httpx.post(
        f"{system.api}/api/scores/updates",
        json={"updates": [player | {"board": board} for player in players]},
        headers={"Authorization": f"Bearer {system.token('arena', UPDATE_ANY)}"},
    )
    assert [one["outcome"] for one in answer.json()["results"]] == ["applied"] * 12


def test_a_window_has_names_and_a_player_its_place(start: Start, system: System, user: str) -> None:
    board = user[-20:].lower()
    fill(system, board)

    with start(
        do="live",
        url=system.api,
        liveUrl=system.ws,
        token=system.token(f"{board}p12"),
        board=board,
        rows=10,
        offset=10,
    ) as program:
        place = program.until("place", userId=f"{board}p12")
        assert (place["rank"], place["score"], place["toNext"]) == (12, 10, 10)
        assert (place["toTop"], place["around"]) == (20, [2, 0])
        rows = [[11, f"{board}p11", "Ada Lovelace", 20], [12, f"{board}p12", "", 10]]
        if not any(one.get("rows") == rows for one in program.events):
            program.until("board", board=board, offset=10, rows=rows)

        program.tell(watch=[f"{board}p1"])
        assert program.until("place", userId=f"{board}p1")["rank"] == 1
        program.tell(subscribe={"board": board, "rows": 10, "offset": 0})
        top = program.until("board", board=board, offset=0)["rows"]
        assert [row[0] for row in top] == list(range(1, 11))
        program.tell(subscribe={"board": "main", "rows": 10, "offset": 0})
        program.until("board", board="main")
