"""submit.lua on boards with limits: what is held, what a window counts, and what repeats get."""

from typing import Any

import pytest

from scoreboard.model import DEFAULT_RULES, SCORE_MAX, Limits, Order, Rules
from tests.support.clients.scripts import KEYS, Scripts, text

from .conftest import on_the_real_server

DAY_S = 86_400


def limit(scripts: Scripts, limits: Limits, rules: Rules = DEFAULT_RULES) -> Scripts:
    """Open an empty partition with limits."""
    scripts.use_rules(rules)
    scripts.open()
    scripts.run("configure", [KEYS.meta, KEYS.changes], 1, "open", str(limits))
    return scripts


def gained(scripts: Scripts) -> dict[str, str]:
    return {text(key): text(value) for key, value in scripts.client.hgetall(KEYS.gained).items()}


def begin_another_window(scripts: Scripts) -> None:
    """Make the window of the counters an earlier one."""
    ends = int(gained(scripts)["/ends"])
    scripts.client.hset(KEYS.gained, "/ends", ends - DAY_S)


def test_an_action_above_the_limit_changes_no_score_and_is_in_the_stream(scripts: Scripts) -> None:
    board = limit(scripts, Limits(per_action=10))

    rows = board.submit(
        ("ann", "1", 10), ("ann", "2", 11, 1, "request"), ("bob", "1", 500), ("ann", "3", 4)
    )

    assert rows == [
        ["applied", 10, 10, 1],
        ["held", 11, 10, 2],
        ["held", 500, 0, 3],
        ["applied", 4, 14, 4],
    ]
    assert [user for user, _ in board.board()] == ["ann"]
    assert board.events()[1:3] == [
        {"q": "2", "u": "ann", "a": "2", "d": "11", "s": "10", "e": "1", "k": "h", "l": "action"}
        | {"t": "request"},
        {"q": "3", "u": "bob", "a": "1", "d": "500", "s": "0", "e": "1", "k": "h", "l": "action"},
    ]
    assert text(board.client.hget(KEYS.meta, "seq")) == "4"
    assert gained(board) == {}


def test_a_repeat_of_a_held_action_gets_the_same_answer(scripts: Scripts) -> None:
    board = limit(scripts, Limits(per_action=10))
    both = board.submit(("ann", "1", 11), ("ann", "1", 11))
    assert both == [["held", 11, 0, 1], ["held_before", 11, 0, 1]]
    before = board.snapshot()

    assert board.submit(("ann", "1", 11, 1)) == [["held_before", 11, 0, 1]]
    assert board.submit(("ann", "1", 3)) == [["held_before", 11, 0, 1]]
    assert board.submit(("ann", "1", 3, 1)) == [["conflict", 11, 0, 1]]
    board.run("configure", [KEYS.meta, KEYS.changes], 1, "open", "")
    assert board.submit(("ann", "1", 11, 1)) == [["held_before", 11, 0, 1]]
    board.run("configure", [KEYS.meta, KEYS.changes], 1, "open", "10:0:0")
    assert board.snapshot() == before


def test_a_window_counts_what_each_user_gains_in_it(scripts: Scripts) -> None:
    board = limit(scripts, Limits(per_window=100, window_s=DAY_S))

    rows = board.submit(("ann", "1", 60), ("ann", "2", 50), ("ann", "3", 40), ("bob", "1", 100))
    assert [row[0] for row in rows] == ["applied", "held", "applied", "applied"]
    assert board.submit(("ann", "4", 1), ("bob", "2", 1)) == [
        ["held", 1, 100, 5],
        ["held", 1, 100, 6],
    ]
    assert {event["l"] for event in board.events() if "l" in event} == {"window"}
    ends = (board.now() // DAY_S + 1) * DAY_S
    assert gained(board) == {"/ends": str(ends), "ann": "100", "bob": "100"}
    assert 0 < board.client.ttl(KEYS.gained) <= DAY_S

    begin_another_window(board)
    assert board.submit(("ann", "5", 99)) == [["applied", 99, 199, 7]]
    assert gained(board) == {"/ends": str(ends), "ann": "99"}
    assert board.submit(("ann", "6", 2), ("ann", "7", 1)) == [
        ["held", 2, 199, 8],
        ["applied", 1, 200, 9],
    ]
    assert board.submit(("ann", "4", 1)) == [["held_before", 1, 100, 5]]


def test_the_limit_of_an_action_comes_before_that_of_the_window(scripts: Scripts) -> None:
    board = limit(scripts, Limits(10, 15, DAY_S))

    board.submit(("ann", "1", 10), ("ann", "2", 20), ("ann", "3", 10))

    assert [event.get("l") for event in board.events()] == [None, "action", "window"]


def test_only_what_makes_a_score_better_is_limited(scripts: Scripts) -> None:
    board = limit(scripts, Limits(10, 20, DAY_S), Rules(lowering="players"))

    rows = board.submit(("ann", "1", 10), ("ann", "2", 10), ("ann", "3", -15), ("ann", "4", 1))

    assert [row[0] for row in rows] == ["applied", "applied", "applied", "held"]
    assert gained(board)["ann"] == "20"


def test_where_the_lowest_score_is_the_best_lowering_is_limited(scripts: Scripts) -> None:
    rules = Rules(order="lowest", lowering="players")
    board = limit(scripts, Limits(10, 15, DAY_S), rules)

    rows = board.submit(("ann", "1", 500), ("ann", "2", -10), ("ann", "3", -11), ("ann", "4", -6))

    assert [row[0] for row in rows] == ["applied", "applied", "held", "held"]
    assert gained(board)["ann"] == "10"
    assert board.submit(("ann", "5", -5)) == [["applied", -5, 485, 5]]


@pytest.mark.parametrize("operator", ["best", "last"])
@pytest.mark.parametrize(
    ("order", "values", "words"),
    [
        ("highest", [40, 90, 91, 141, 20], ["applied", "applied", "applied", "applied", None]),
        ("highest", [51, 50, 101], ["held", "applied", "held"]),
        ("lowest", [500, 449, 450, 480], ["applied", "held", "applied", None]),
    ],
)
def test_a_value_may_improve_the_score_by_the_limit(
    scripts: Scripts, operator: Any, order: Order, values: list[int], words: list[str | None]
) -> None:
    """A window is not counted: values are not points."""
    board = limit(scripts, Limits(50, 60, DAY_S), Rules(operator=operator, order=order))

    rows = [board.submit(("ann", str(at), value))[0] for at, value in enumerate(values)]

    assert [row[0] for row in rows] == [word or "applied" for word in words]
    assert gained(board) == {}
    for at, (value, row) in enumerate(zip(values, rows, strict=True)):
        again = "held_before" if row[0] == "held" else "replayed"
        assert board.submit(("ann", str(at), value, 1)) == [[again, *row[1:]]]
        assert board.submit(("ann", str(at), value + 1, 1))[0][0] == "conflict"
    held = [event for event in board.events() if event.get("k") == "h"]
    assert [int(one["s"]) + int(one["d"]) for one in held] == [
        value for value, row in zip(values, rows, strict=True) if row[0] == "held"
    ]


def test_what_is_refused_is_not_held(scripts: Scripts) -> None:
    board = limit(scripts, Limits(per_action=10))
    board.client.hset(KEYS.banned, "eve", -1)
    board.submit(("ann", "1", 5))

    assert board.submit(("eve", "1", 11)) == [["banned", 11, 0, 0]]
    assert board.submit(("ann", "2", SCORE_MAX)) == [["range", SCORE_MAX, 5, 0]]
    board.cap = 1
    assert board.submit(("ann", "3", 11)) == [["busy", 11, 5, 0]]
    assert len(board.events()) == 1


def test_a_held_action_takes_room_in_the_stream(scripts: Scripts) -> None:
    board = limit(scripts, Limits(per_action=10))
    board.cap = 2
    rows = board.submit(("ann", "1", 11), ("ann", "2", 12), ("ann", "3", 13))
    assert [row[0] for row in rows] == ["held", "held", "busy"]


def test_viewers_are_not_told_of_a_held_action_and_the_flusher_is(scripts: Scripts) -> None:
    board = limit(scripts, Limits(per_action=10))
    listener = board.client.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(KEYS.changes, "sb:active")
    for _ in range(2):
        listener.get_message(timeout=1)
    board.submit(("ann", "1", 11))
    message = listener.get_message(timeout=5)
    assert message is not None
    assert text(message["channel"]) == "sb:active"
    assert listener.get_message(timeout=0) is None
    listener.close()


@pytest.mark.parametrize("limits", ["", "0:0:0", "x", "10", "1e1:0:0", "-1:0:0", "0:5:0", "0:0:60"])
def test_limits_that_cannot_be_read_or_are_none_limit_nothing(opened: Scripts, limits: str) -> None:
    opened.client.hset(KEYS.meta, "limits", limits)
    assert opened.submit(("ann", "1", 1_000_000)) == [["applied", 1_000_000, 1_000_000, 1]]
    assert gained(opened) == {}


def test_parts_that_a_later_version_adds_to_limits_are_ignored(opened: Scripts) -> None:
    opened.client.hset(KEYS.meta, "limits", "10:0:0:7:x")
    assert opened.submit(("ann", "1", 11)) == [["held", 11, 0, 1]]


def test_parts_that_a_later_version_adds_to_the_answer_of_a_held_action_are_ignored(
    scripts: Scripts,
) -> None:
    board = limit(scripts, Limits(per_action=10))
    board.submit(("ann", "1", 11))
    keys, args = board.submit_call(("ann", "1", 11))
    seen = next(key for key in keys if ":seen:" in key)
    stored = text(board.client.hget(seen, args[5]))
    assert stored == "11:0:1:11:held"
    board.client.hset(seen, args[5], stored + ":later")
    assert board.submit(("ann", "1", 11, 1)) == [["held_before", 11, 0, 1]]


def test_counters_of_a_wrong_type_are_replaced(scripts: Scripts) -> None:
    board = limit(scripts, Limits(per_window=10, window_s=DAY_S))
    board.client.set(KEYS.gained, "x")
    assert board.submit(("ann", "1", 5), ("ann", "2", 6)) == [
        ["applied", 5, 5, 1],
        ["held", 6, 5, 2],
    ]
    assert gained(board)["ann"] == "5"
    board.client.hset(KEYS.gained, "ann", "many")
    assert board.submit(("ann", "3", 6)) == [["applied", 6, 11, 3]]


@on_the_real_server
def test_limits_survive_a_reseed_and_are_those_of_its_board(scripts: Scripts) -> None:
    board = limit(scripts, Limits(10, 15, DAY_S))
    swap = [KEYS.board, KEYS.shadow, KEYS.events, KEYS.meta, KEYS.changes]
    for epoch, limits in enumerate(("20:0:0", "", None), 2):
        board.fence("T")
        args = ["T", epoch, 9, "0-0", "flusher", str(board.layout), 1, 0, "open"]
        board.run("open", swap, *args, *([] if limits is None else [limits]))
        assert text(board.client.hget(KEYS.meta, "limits") or b"") == (limits or "")
    board.fence("T")
    args = ["T", 9, 9, "0-0", "flusher", str(board.layout), 1, 0, "open", "1:2"]
    assert board.refuses("open", swap, *args).startswith("BADARG ")


def test_without_limits_nothing_is_written_beside_the_keys_of_before(opened: Scripts) -> None:
    opened.submit(("ann", "1", 10), ("ann", "2", 1_000_000))
    assert not opened.client.exists(KEYS.gained)
    assert text(opened.client.hget(KEYS.meta, "limits") or b"") == ""
