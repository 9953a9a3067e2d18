"""Live boards of the Python clients and of the Go client, against a streamer that follows a script.

The same tests run for all of them: one client as three programs.
"""

import signal
import threading
import time
from collections.abc import Callable

import pytest

from tests.clients.programs import WITHIN_S, Start, Streamer, Viewer

Serve = Callable[..., Streamer]
QUICK = {"firstWaitS": 0.05, "ceilingS": 0.1}
ROW = {"rank": 1, "userId": "ada", "score": 7}


def steady(viewer: Viewer) -> None:
    viewer.board(1)
    viewer.wait()


def closes(code: int) -> Callable[[Viewer], None]:
    def script(viewer: Viewer) -> None:
        viewer.board(1)
        viewer.close(code)

    return script


@pytest.mark.parametrize(
    ("code", "reason", "least_s"),
    [
        (1001, "restart", 0.5),
        (1011, "lost", 0),
        (1012, "restart", 0),
        (1013, "full", 5),
        (4408, "lost", 0),
        (4429, "too-chatty", 30),
        (4450, "lost", 0),
        (4999, "lost", 0),
    ],
)
def test_a_close_code_that_asks_for_patience_is_retried_after_a_wait(
    start: Start, streamer: Serve, code: int, reason: str, least_s: float
) -> None:
    server = streamer(closes(code), steady)
    with start(do="live", url="http://127.0.0.1:1", liveUrl=server.url) as program:
        status = program.until("status", state="reconnecting")

        assert (status["reason"], status["code"], status["attempt"]) == (reason, code, 1)
        assert least_s <= status["wait"] <= max(5, 2 * least_s)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (1002, "protocol-error"),
        (1003, "protocol-error"),
        (1007, "protocol-error"),
        (1009, "protocol-error"),
        (4400, "malformed"),
        (4401, "signed-out"),
        (4403, "forbidden"),
        (4404, "no-such-board"),
    ],
)
def test_a_close_code_that_makes_retries_useless_stops(
    start: Start, streamer: Serve, code: int, reason: str
) -> None:
    server = streamer(closes(code))
    program = start(do="live", url="http://127.0.0.1:1", liveUrl=server.url)

    events = program.rest()

    assert [one.get("state") for one in events] == ["connecting", "live", None, "stopped", None]
    assert events[-1] == {"event": "end", "reason": reason, "code": code, "status": 0}
    assert len(server.requests) == 1


def test_a_lost_connection_is_opened_again(start: Start, streamer: Serve) -> None:
    def cut(viewer: Viewer) -> None:
        viewer.board(1)
        viewer.connection.socket.shutdown(2)

    server = streamer(cut, steady)
    with start(do="live", url="http://127.0.0.1:1", liveUrl=server.url, patience=QUICK) as program:
        assert program.until("status", state="reconnecting")["code"] == 1006
        program.until("status", state="live")


@pytest.mark.parametrize(("status", "reason"), [(403, "forbidden"), (404, "no-such-board")])
def test_a_refused_handshake_stops(start: Start, streamer: Serve, status: int, reason: str) -> None:
    server = streamer((status, {}))

    events = start(do="live", url="http://127.0.0.1:1", liveUrl=server.url).rest()

    assert events[-1] == {"event": "end", "reason": reason, "code": 0, "status": status}


@pytest.mark.parametrize("status", [429, 503])
def test_a_handshake_that_is_refused_for_a_while_waits_as_long(
    start: Start, streamer: Serve, status: int
) -> None:
    server = streamer((status, {"Retry-After": "3"}), steady)
    with start(do="live", url="http://127.0.0.1:1", liveUrl=server.url) as program:
        assert 3 <= program.until("status", state="reconnecting")["wait"] <= 6


def test_the_wait_that_the_server_names_is_kept(start: Start, streamer: Serve) -> None:
    def leave(viewer: Viewer) -> None:
        viewer.board(1)
        viewer.send("bye", code=1012, reconnect=True, delay_ms=[700, 800])
        viewer.close(1012)

    server = streamer(leave, steady)
    with start(do="live", url="http://127.0.0.1:1", liveUrl=server.url) as program:
        assert 0.7 <= program.until("status", state="reconnecting")["wait"] <= 0.8
        program.until("status", state="live")


def test_a_last_goodbye_stops(start: Start, streamer: Serve) -> None:
    def leave(viewer: Viewer) -> None:
        viewer.send("bye", code=1001, reconnect=False)
        viewer.close(1001)

    server = streamer(leave)

    events = start(do="live", url="http://127.0.0.1:1", liveUrl=server.url).rest()

    assert events[-1]["reason"] == "goodbye"


def test_an_equal_seq_brings_names_and_an_older_one_nothing(start: Start, streamer: Serve) -> None:
    def script(viewer: Viewer) -> None:
        viewer.board(5)
        viewer.board(5, leaderboard=[{**ROW, "name": "Ada"}])
        viewer.board(4)
        viewer.board(2, epoch=2)  # the board was loaded again
        viewer.board(9, epoch=2, later=[1])
        viewer.wait()

    server = streamer(script)
    with start(do="live", url="http://127.0.0.1:1", liveUrl=server.url) as program:
        program.until("board", position=[2, 9])

    boards = [one for one in program.events if one["event"] == "board"]
    assert [one["position"] for one in boards] == [[1, 5], [1, 5], [2, 2], [2, 9]]
    assert boards[1]["rows"] == [[1, "ada", "Ada", 7]]


def test_an_older_board_of_another_process_is_not_shown(start: Start, streamer: Serve) -> None:
    def behind(viewer: Viewer) -> None:
        viewer.board(0)
        viewer.board(2)
        viewer.wait()

    server = streamer(closes(1012), behind)
    with start(do="live", url="http://127.0.0.1:1", liveUrl=server.url, patience=QUICK) as program:
        program.until("board", position=[1, 2])

    positions = [one["position"] for one in program.events if one["event"] == "board"]
    assert positions == [[1, 1], [1, 2]]


def test_deltas_are_applied_to_the_board_before(start: Start, streamer: Serve) -> None:
    ada, bob, cid = (
        {"rank": rank, "userId": user_id, "score": 10 - rank}
        for rank, user_id in enumerate(("ada", "bob", "cid"), start=1)
    )

    def script(viewer: Viewer) -> None:
        viewer.board(1, leaderboard=[ada, bob], season="spring", viewers=3)
        viewer.delta(1, 2, count=3, changes=[{**ada, "score": 11}, cid])
        viewer.delta(2, 2, count=3, changes=[{**bob, "name": "Bob"}])
        viewer.send("heartbeat", board="main", epoch=1, seq=2, viewers=4)
        viewer.delta(2, 5, count=2, changes=[])
        viewer.delta(5, 6, count=0, changes=[])
        viewer.wait()

    server = streamer(script)
    with start(do="live", url="http://127.0.0.1:1", liveUrl=server.url) as program:
        program.until("board", position=[1, 6])

    boards = [one for one in program.events if one["event"] == "board"]
    assert [one["position"] for one in boards] == [[1, 1], [1, 2], [1, 2], [1, 5], [1, 6]]
    assert [one["rows"] for one in boards] == [
        [[1, "ada", "", 9], [2, "bob", "", 8]],
        [[1, "ada", "", 11], [2, "bob", "", 8], [3, "cid", "", 7]],
        [[1, "ada", "", 11], [2, "bob", "Bob", 8], [3, "cid", "", 7]],
        [[1, "ada", "", 11], [2, "bob", "Bob", 8]],
        [],
    ]
    assert [one["viewers"] for one in boards] == [3, 3, 3, 4, 4]
    assert {one["season"] for one in boards} == {"spring"}


def test_deltas_of_a_window_are_applied_at_its_ranks(start: Start, streamer: Serve) -> None:
    rows = [{"rank": rank, "userId": f"u{rank}", "score": 1} for rank in (21, 22)]
    window = {"offset": 20, "rows": 15}

    def script(viewer: Viewer) -> None:
        viewer.board(1, leaderboard=rows, **window)
        viewer.delta(1, 2, count=2, changes=[{**rows[1], "score": 0}], **window)
        viewer.delta(2, 3, count=2, changes=[rows[1]])  # of the first ten rows
        assert viewer.receive() == {"type": "sync"}
        viewer.board(4, leaderboard=rows, **window)
        viewer.wait()

    server = streamer(script)
    with start(do="live", url="http://127.0.0.1:1", liveUrl=server.url, **window) as program:
        program.until("board", position=[1, 4])

    boards = [one for one in program.events if one["event"] == "board"]
    assert [one["position"] for one in boards] == [[1, 1], [1, 2], [1, 4]]
    assert boards[1]["rows"] == [[21, "u21", "", 1], [22, "u22", "", 0]]


def test_a_delta_to_another_board_is_not_shown(start: Start, streamer: Serve) -> None:
    asked: list[object] = []

    def script(viewer: Viewer) -> None:
        viewer.board(4)
        viewer.delta(2, 3)
        viewer.delta(5, 6)
        asked.append(viewer.receive())
        viewer.board(6)
        viewer.delta(6, 7, count=3)  # of which two are missing
        viewer.delta(1, 7, epoch=2)
        viewer.board(7, epoch=2)
        viewer.wait()

    server = streamer(script)
    with start(do="live", url="http://127.0.0.1:1", liveUrl=server.url) as program:
        program.until("board", position=[2, 7])

    assert asked == [{"type": "sync"}]
    positions = [one["position"] for one in program.events if one["event"] == "board"]
    assert positions == [[1, 4], [1, 6], [2, 7]]


def test_a_delta_is_applied_to_the_board_of_its_connection(start: Start, streamer: Serve) -> None:
    bob = {"rank": 2, "userId": "bob", "score": 1}

    def leave(viewer: Viewer) -> None:
        viewer.board(5)
        viewer.close(1012)

    def behind(viewer: Viewer) -> None:
        viewer.board(4, leaderboard=[{"rank": 1, "userId": "cid", "score": 9}])
        viewer.delta(4, 5, count=2, changes=[bob])
        viewer.delta(5, 6, count=2, changes=[bob])
        viewer.wait()

    server = streamer(leave, behind)
    with start(do="live", url="http://127.0.0.1:1", liveUrl=server.url, patience=QUICK) as program:
        program.until("board", position=[1, 6])

    boards = [one for one in program.events if one["event"] == "board"]
    assert [one["position"] for one in boards] == [[1, 5], [1, 5], [1, 6]]
    assert boards[1]["rows"] == boards[2]["rows"] == [[1, "cid", "", 9], [2, "bob", "", 1]]


def test_deltas_of_a_further_board_are_applied_while_it_is_subscribed(
    start: Start, streamer: Serve
) -> None:
    gone = threading.Event()

    def script(viewer: Viewer) -> None:
        viewer.receive()
        viewer.delta(6, 7, board="weekly")  # of an earlier subscription
        viewer.board(1)
        viewer.board(7, board="weekly")
        viewer.delta(7, 8, board="weekly")
        viewer.delta(1, 2)
        assert viewer.receive()["type"] == "unsubscribe"
        viewer.delta(8, 9, board="weekly")
        viewer.delta(2, 3)
        gone.set()
        assert viewer.receive()["type"] == "subscribe"
        viewer.delta(9, 10, board="weekly")
        viewer.board(10, board="weekly")
        viewer.wait()

    server = streamer(script)
    weekly = {"board": "weekly", "rows": 10, "offset": 0}
    with start(
        do="live", url="http://127.0.0.1:1", liveUrl=server.url, board="main", subscribe=[weekly]
    ) as program:
        program.until("board", position=[1, 2])
        program.tell(unsubscribe="weekly")
        assert gone.wait(WITHIN_S)
        program.until("board", position=[1, 3])
        program.tell(subscribe=weekly)
        program.until("board", position=[1, 10])

    boards = [one for one in program.events if one["event"] == "board"]
    assert [one["position"][1] for one in boards if one["board"] == "main"] == [1, 2, 3]
    assert [one["position"][1] for one in boards if one["board"] == "weekly"] == [7, 8, 10]


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"board": "main", "epoch": 1, "base": 1, "seq": 2},
        {"board": "main", "epoch": 1, "base": 1, "seq": 2, "count": 1},
        {"board": "main", "epoch": 1, "base": 1, "seq": 2, "count": "1", "changes": []},
        {"board": "main", "epoch": 1, "base": 1, "seq": 2, "count": -1, "changes": []},
    ],
)
def test_an_incomplete_delta_is_reported_and_changes_nothing(
    start: Start, streamer: Serve, members: dict[str, object]
) -> None:
    def script(viewer: Viewer) -> None:
        viewer.board(1)
        viewer.send("delta", **members)
        viewer.board(3)
        viewer.wait()

    server = streamer(script)
    with start(do="live", url="http://127.0.0.1:1", liveUrl=server.url) as program:
        program.until("board", position=[1, 3])

    assert [one["code"] for one in program.events if one["event"] == "refused"] == ["bad-frame"]
    positions = [one["position"] for one in program.events if one["event"] == "board"]
    assert positions == [[1, 1], [1, 3]]


@pytest.mark.parametrize(("count", "ranks"), [(2, []), (2, [3]), (3, [3]), (1, [0]), (1, [2])])
def test_a_delta_that_does_not_fit_makes_the_client_ask_for_the_board(
    start: Start, streamer: Serve, count: int, ranks: list[int]
) -> None:
    def script(viewer: Viewer) -> None:
        changes = [{"rank": rank, "userId": f"u{rank}", "score": 1} for rank in ranks]
        viewer.board(1)
        viewer.delta(1, 2, count=count, changes=changes)
        assert viewer.receive() == {"type": "sync"}
        viewer.board(3)
        viewer.wait()

    server = streamer(script)
    with start(do="live", url="http://127.0.0.1:1", liveUrl=server.url) as program:
        program.until("board", position=[1, 3])

    positions = [one["position"] for one in program.events if one["event"] == "board"]
    assert positions == [[1, 1], [1, 3]]


def test_viewers_that_are_not_known_any_more_are_told(start: Start, streamer: Serve) -> None:
    def script(viewer: Viewer) -> None:
        viewer.board(1, viewers=3)
        viewer.send("heartbeat", board="main", epoch=1, seq=1, exp=2)  # answers a token
        viewer.send("heartbeat", board="main", epoch=1, seq=1, viewers=3)
        viewer.send("heartbeat", board="main", epoch=1, seq=1)
        viewer.board(2, viewers=0)
        viewer.wait()

    server = streamer(script)
    with start(do="live", url="http://127.0.0.1:1", liveUrl=server.url) as program:
        program.until("board", position=[1, 2])

    shown = [one["viewers"] for one in program.events if one["event"] == "viewers"]
    assert shown == [3, None, 0]


def test_a_heartbeat_that_is_ahead_makes_the_client_ask(start: Start, streamer: Serve) -> None:
    asked: list[object] = []

    def script(viewer: Viewer) -> None:
        viewer.board(1)
        viewer.send("heartbeat", board="main", epoch=1, seq=1, viewers=3)
        viewer.send("heartbeat", board="main", epoch=1, seq=2, viewers=3)
        asked.append(viewer.receive())
        viewer.board(2)
        viewer.wait()

    server = streamer(script)
    with start(do="live", url="http://127.0.0.1:1", liveUrl=server.url) as program:
        program.until("board", position=[1, 2])

    assert asked == [{"type": "sync"}]
    viewers = [one for one in program.events if one["event"] == "viewers"]
    assert viewers[0] == {"event": "viewers", "board": "main", "viewers": 3}


def test_a_heartbeat_of_another_board_asks_for_that_board(start: Start, streamer: Serve) -> None:
    asked: list[object] = []

    def script(viewer: Viewer) -> None:
        viewer.receive()
        viewer.board(1)
        viewer.board(1, board="weekly")
        viewer.send("heartbeat", board="weekly", epoch=1, seq=2)
        asked.append(viewer.receive())
        viewer.board(2, board="weekly")
        viewer.wait()

    server = streamer(script)
    with start(
        do="live",
        url="http://127.0.0.1:1",
        liveUrl=server.url,
        subscribe=[{"board": "weekly", "rows": 10, "offset": 0}],
    ) as program:
        program.until("board", board="weekly", position=[1, 2])

    assert asked == [{"type": "sync", "board": "weekly"}]


def test_a_stale_board_is_said_so(start: Start, streamer: Serve) -> None:
    def script(viewer: Viewer) -> None:
        viewer.board(1)
        viewer.send("status", state="stale", reason="unreachable")
        viewer.send("status", state="live", reason="x", board="main")
        viewer.wait()

    server = streamer(script)
    with start(do="live", url="http://127.0.0.1:1", liveUrl=server.url) as program:
        assert program.until("status", state="stale")["stale"] == ["main"]
        assert program.until("status", state="live")["stale"] == []


def test_a_board_that_is_not_followed_any_more_is_not_stale(start: Start, streamer: Serve) -> None:
    def script(viewer: Viewer) -> None:
        viewer.board(1)
        viewer.receive()
        viewer.receive()
        for board in ("left", "private"):
            viewer.board(1, board=board)
            viewer.send("status", state="stale", reason="unreachable", board=board)
        assert viewer.receive() == {"type": "unsubscribe", "board": "left"}
        viewer.send("status", state="stale", reason="unreachable", board="left")  # was on its way
        viewer.send("heartbeat", board="main", epoch=1, seq=1)
        viewer.send("error", code="forbidden", detail="…", board="private")
        viewer.wait()

    server = streamer(script)
    boards = [{"board": board, "rows": 10, "offset": 0} for board in ("left", "private")]
    with start(
        do="live", url="http://127.0.0.1:1", liveUrl=server.url, subscribe=boards
    ) as program:
        program.until("status", stale=["left", "private"])
        program.tell(unsubscribe="left")
        assert program.until("status")["stale"] == ["private"]
        program.until("refused", code="forbidden")
        assert program.until("status")["state"] == "live"


def test_another_window_of_a_board_may_be_an_older_one(start: Start, streamer: Serve) -> None:
    def script(viewer: Viewer) -> None:
        viewer.board(5)
        viewer.receive()
        viewer.board(6)  # was on its way
        viewer.board(4, offset=10, rows=20)
        viewer.board(3, offset=10, rows=20)
        viewer.board(7, offset=10, rows=20)
        viewer.wait()

    server = streamer(script)
    with start(do="live", url="http://127.0.0.1:1", liveUrl=server.url, board="main") as program:
        program.until("board", position=[1, 5])
        program.tell(subscribe={"board": "main", "rows": 20, "offset": 10})
        program.until("board", position=[1, 7])

    boards = [one for one in program.events if one["event"] == "board"]
    assert [one["position"][1] for one in boards] == [5, 6, 4, 7]


def test_silence_is_a_lost_connection(start: Start, streamer: Serve) -> None:
    server = streamer(Viewer.wait, steady, steady)
    patience = QUICK | {"firstMessageS": 2, "silenceS": 2}
    with start(
        do="live", url="http://127.0.0.1:1", liveUrl=server.url, patience=patience
    ) as program:
        assert program.until("status", state="reconnecting")["reason"] == "silent"
        program.until("status", state="live")
        assert program.until("status", state="reconnecting")["reason"] == "silent"
        program.until("status", state="live")


def test_a_program_that_slept_shows_the_newest_board(start: Start, streamer: Serve) -> None:
    def script(viewer: Viewer) -> None:
        for seq in range(1, 200):
            viewer.board(seq)
            time.sleep(0.02)  # pace: a busy board
        viewer.wait()

    def later(viewer: Viewer) -> None:
        viewer.board(1000)
        viewer.wait()

    server = streamer(script, later)
    patience = QUICK | {"silenceS": 1.0}
    with start(
        do="live", url="http://127.0.0.1:1", liveUrl=server.url, patience=patience
    ) as program:
        program.until("board")
        program.signal(signal.SIGSTOP)
        time.sleep(2)  # pace: longer than the silence that it accepts
        program.signal(signal.SIGCONT)
        program.until("board", position=[1, 1000])

    seqs = [one["position"][1] for one in program.events if one["event"] == "board"]
    assert seqs == sorted(seqs)


def test_what_a_later_version_sends_is_ignored_and_nonsense_reported(
    start: Start, streamer: Serve
) -> None:
    def script(viewer: Viewer) -> None:
        viewer.send("later", x=[1])
        viewer.connection.send("{")
        viewer.connection.send("[]")
        viewer.send("leaderboard", board="main")
        viewer.send("error", code="too-many-watched", detail="…", board="main", later=1)
        viewer.board(1)
        viewer.wait()

    server = streamer(script)
    with start(do="live", url="http://127.0.0.1:1", liveUrl=server.url) as program:
        program.until("board", position=[1, 1])

    codes = [one["code"] for one in program.events if one["event"] == "refused"]
    assert codes == ["bad-frame", "bad-frame", "bad-frame", "too-many-watched"]


def test_places_windows_and_boards_are_asked_for_on_each_connection(
    start: Start, streamer: Serve
) -> None:
    said: list[object] = []
    place = {"board": "main", "epoch": 1, "seq": 1, "at": 1, "total": 9}

    def first(viewer: Viewer) -> None:
        said.extend([viewer.receive(), viewer.receive()])
        viewer.board(1, offset=10, rows=20)
        viewer.board(5, board="weekly")
        viewer.board(5, board="another")
        viewer.send(
            "place", **place, userId="ada", rank=3, score=7, toNext=2, above=[ROW, ROW], below=[]
        )
        viewer.send("place", **place, userId="bob", rank=None, score=None)
        said.extend([viewer.receive(), viewer.receive()])
        viewer.close(1012)

    def second(viewer: Viewer) -> None:
        said.extend([viewer.receive(), viewer.receive()])
        viewer.board(2)
        viewer.wait()

    server = streamer(first, second)
    with start(
        do="live",
        url="http://127.0.0.1:1",
        liveUrl=server.url,
        board="main",
        rows=20,
        offset=10,
        watch=["ada", "bob"],
        subscribe=[{"board": "weekly", "rows": 25, "offset": 0}],
        patience=QUICK,
    ) as program:
        ada, bob = program.until("place"), program.until("place")
        program.tell(watch=["carol"])
        program.tell(subscribe={"board": "weekly", "rows": 50, "offset": 5})
        program.until("board", position=[1, 2])
        program.tell(close=True)
        assert program.rest()[-1]["reason"] == "closed"

    assert (ada["rank"], ada["toNext"], ada["toTop"], ada["around"]) == (3, 2, None, [2, 0])
    assert (bob["rank"], bob["score"]) == (None, None)
    boards = [one["board"] for one in program.events if one["event"] == "board"]
    assert boards == ["main", "weekly", "main"]
    queries = {frozenset(one.path.partition("?")[2].split("&")) for one in server.requests}
    assert queries == {frozenset({"board=main", "rows=20", "offset=10"})}
    weekly = {"type": "subscribe", "board": "weekly"}
    assert said == [
        {"type": "watch", "userIds": ["ada", "bob"]},
        {**weekly, "rows": 25, "offset": 0},
        {"type": "watch", "userIds": ["carol"]},
        {**weekly, "rows": 50, "offset": 5},
        {"type": "watch", "userIds": ["carol"]},
        {**weekly, "rows": 50, "offset": 5},
    ]


def test_a_plain_viewer_asks_for_nothing_that_an_earlier_server_refuses(
    start: Start, streamer: Serve
) -> None:
    server = streamer(steady, subprotocols=["scoreboard.v1"])
    with start(do="live", url="http://127.0.0.1:1", liveUrl=server.url) as program:
        program.until("board")

    (request,) = server.requests
    assert request.path == "/ws/scoreboard"
    names = request.headers["Sec-WebSocket-Protocol"].replace(" ", "").split(",")
    assert names == ["scoreboard.v1.delta", "scoreboard.v1"]  # it knows the second


def test_a_token_that_expires_is_renewed_on_the_connection(start: Start, streamer: Serve) -> None:
    said: list[object] = []

    def script(viewer: Viewer) -> None:
        viewer.board(1)
        viewer.send("auth_expiring", exp=1, grace_ms=1)
        said.append(viewer.receive())
        viewer.send("error", code="keys-unavailable", detail="…")
        said.append(viewer.receive())
        viewer.send("heartbeat", board="main", epoch=1, seq=1, exp=2)
        viewer.board(2)
        viewer.wait()

    server = streamer(script)
    with start(
        do="live",
        url="http://127.0.0.1:1",
        liveUrl=server.url,
        tokens=["one", "fail", "two", "three"],
        patience={"renewalS": 0.2},
    ) as program:
        program.until("board", position=[1, 2])

    assert server.tokens() == ["Bearer one"]
    assert said == [{"type": "auth", "token": "two"}, {"type": "auth", "token": "three"}]
    shown = [
        one.get("reason") or one.get("code")
        for one in program.events
        if one["event"] in {"token", "refused"}
    ]
    assert shown == [
        *("first", "expiring", "token-provider", "expiring", "keys-unavailable", "expiring"),
    ]


@pytest.mark.parametrize("refusal", [closes(4401), (401, {})], ids=["closed", "refused"])
def test_a_rejected_token_is_renewed_once(
    start: Start, streamer: Serve, refusal: Callable[[Viewer], None]
) -> None:
    server = streamer(refusal)

    events = start(
        do="live", url="http://127.0.0.1:1", liveUrl=server.url, tokens=["one", "two", "three"]
    ).rest()

    assert server.tokens() == ["Bearer one", "Bearer two"]
    assert [one["reason"] for one in events if one["event"] == "token"] == ["first", "rejected"]
    assert events[-1]["reason"] == "signed-out"


def test_a_failing_provider_is_asked_again(start: Start, streamer: Serve) -> None:
    server = streamer(steady)
    with start(
        do="live",
        url="http://127.0.0.1:1",
        liveUrl=server.url,
        tokens=["fail", "one"],
        patience=QUICK,
    ) as program:
        assert program.until("status", state="reconnecting")["reason"] == "token-provider"
        program.until("status", state="live")

    assert server.tokens() == ["Bearer one"]
