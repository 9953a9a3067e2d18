"""submit.lua on boards with rules: operators, order, bounds, and what changes nothing."""

from typing import Any

import pytest

from scoreboard.model import SCORE_MAX, SLOT_COUNT, Order, Rules
from tests.support.clients.scripts import KEYS, Scripts, text

ORDERS: list[Order] = ["highest", "lowest"]


def board_with(scripts: Scripts, rules: Rules) -> Scripts:
    """Open an empty partition with rules."""
    scripts.use_rules(rules)
    scripts.open()
    return scripts


def ranking(scripts: Scripts) -> list[tuple[str, int]]:
    rules = scripts.layout.rules
    return [(user, rules.unpack_score(packed)) for user, packed in scripts.board()]


def stored(scripts: Scripts, user: str, action: str) -> str:
    """Return the dedup record of an action."""
    keys, args = scripts.submit_call((user, action, 1))
    return text(scripts.client.hget(seen_key(keys), args[5]))


def seen_key(keys: list[str]) -> str:
    """Return the hash of the current generation."""
    return next(key for key in keys if ":seen:" in key)


def without_memory(scripts: Scripts) -> dict[str, object]:
    """Return what the server has, except the dedup window."""
    return {key: held for key, held in scripts.snapshot().items() if ":seen:" not in text(key)}


@pytest.mark.parametrize("order", ORDERS)
def test_add_adds_in_any_order_of_ranking(scripts: Scripts, order: Order) -> None:
    board = board_with(scripts, Rules(order=order, lowering="players"))

    rows = board.submit(("ann", "1", 10), ("bob", "1", 7), ("ann", "2", -4))

    assert rows == [["applied", 10, 10, 1], ["applied", 7, 7, 2], ["applied", -4, 6, 3]]
    assert not any("v" in event for event in board.events())
    expected = [("bob", 7), ("ann", 6)] if order == "highest" else [("ann", 6), ("bob", 7)]
    assert ranking(board) == expected


def test_best_keeps_the_greatest_value(scripts: Scripts) -> None:
    board = board_with(scripts, Rules(operator="best"))

    rows = board.submit(("ann", "1", 10), ("ann", "2", 25), ("ann", "3", 7), ("ann", "4", 25))

    assert rows == [
        ["applied", 10, 10, 1],
        ["applied", 15, 25, 2],
        ["applied", 0, 25, 2],
        ["applied", 0, 25, 2],
    ]
    assert [(e["d"], e["s"], e["v"]) for e in board.events()] == [
        ("10", "10", "highest"),
        ("15", "25", "highest"),
    ]


def test_best_keeps_the_smallest_value_of_a_lowest_board(scripts: Scripts) -> None:
    board = board_with(scripts, Rules(operator="best", order="lowest"))

    rows = board.submit(("ann", "1", 10), ("ann", "2", 25), ("ann", "3", 7), ("ann", "4", 0))

    assert rows == [
        ["applied", 10, 10, 1],
        ["applied", 0, 10, 1],
        ["applied", -3, 7, 2],
        ["applied", -7, 0, 3],
    ]
    assert ranking(board) == [("ann", 0)], "the best score of all"


@pytest.mark.parametrize("order", ORDERS)
def test_last_keeps_the_latest_value(scripts: Scripts, order: Order) -> None:
    board = board_with(scripts, Rules(operator="last", order=order))

    rows = board.submit(("ann", "1", 10), ("ann", "2", 25), ("ann", "3", 7), ("ann", "4", 7))

    assert rows == [
        ["applied", 10, 10, 1],
        ["applied", 15, 25, 2],
        ["applied", -18, 7, 3],
        ["applied", 0, 7, 3],
    ]
    assert sum(int(event["d"]) for event in board.events()) == 7, "the score is the sum of deltas"


@pytest.mark.parametrize("operator", ["best", "last"])
@pytest.mark.parametrize("order", ORDERS)
def test_what_changes_nothing_is_only_remembered(
    scripts: Scripts, operator: Any, order: Order
) -> None:
    board = board_with(scripts, Rules(operator=operator, order=order))
    board.submit(("ann", "1", 10), ("bob", "1", 10))
    before = without_memory(board)

    assert board.submit(("ann", "2", 10, 1)) == [["applied", 0, 10, 2]]

    assert without_memory(board) == before
    assert stored(board, "ann", "2") == "0:10:2:10"
    assert all(board.client.ttl(key) > 0 for key in board.client.keys("*:seen:*"))
    board.submit(("ann", "3", 11 if order == "highest" else 9))
    assert board.submit(("ann", "2", 10, 1)) == [["replayed", 0, 10, 2]]


@pytest.mark.parametrize("operator", ["best", "last"])
def test_a_conflict_compares_the_stated_values(scripts: Scripts, operator: Any) -> None:
    board = board_with(scripts, Rules(operator=operator))
    board.submit(("ann", "1", 10, 1), ("ann", "2", 25, 1), ("ann", "3", 25, 1))
    before = board.snapshot()

    assert stored(board, "ann", "2") == "15:25:2:25"
    assert board.submit(
        ("ann", "2", 25, 1), ("ann", "2", 15, 1), ("ann", "3", 25, 1), ("ann", "3", 0, 1)
    ) == [
        ["replayed", 15, 25, 2],
        ["conflict", 15, 25, 2],
        ["replayed", 0, 25, 2],
        ["conflict", 0, 25, 2],
    ]
    assert board.snapshot() == before


@pytest.mark.parametrize("operator", ["best", "last"])
def test_a_repeat_within_one_call_is_compared_by_its_value(scripts: Scripts, operator: Any) -> None:
    board = board_with(scripts, Rules(operator=operator))
    board.submit(("ann", "1", 10))

    rows = board.submit(("ann", "2", 25, 1), ("ann", "2", 25, 1), ("ann", "2", 15, 1))

    assert [row[0] for row in rows] == ["applied", "replayed", "conflict"]


@pytest.mark.parametrize(
    ("rules", "held", "number", "outcome"),
    [
        (Rules(score_min=5, score_max=20), 0, 4, "range"),
        (Rules(score_min=5, score_max=20), 0, 5, "applied"),
        (Rules(score_min=5, score_max=20), 20, 1, "range"),
        (Rules(score_min=5, score_max=20), 7, -3, "range"),
        (Rules(score_min=5, score_max=20), 7, -2, "applied"),
        (Rules(operator="best", score_min=5, score_max=20), 0, 4, "range"),
        (Rules(operator="best", score_min=5, score_max=20), 9, 21, "range"),
        (Rules(operator="best", score_min=5, score_max=20), 9, 4, "range"),
        (Rules(operator="best", score_min=5, score_max=20), 9, 20, "applied"),
        (Rules(operator="last", score_min=5, score_max=20), 9, 5, "applied"),
        (Rules(operator="last", score_min=5, score_max=20), 9, 4, "range"),
        (Rules(operator="last"), 9, -1, "range"),
        (Rules(operator="last"), 9, 0, "applied"),
        (Rules(operator="best", order="lowest", score_min=5, score_max=20), 9, 5, "applied"),
        (Rules(operator="best", order="lowest", score_min=5, score_max=20), 9, 4, "range"),
        (Rules(order="lowest", score_max=SCORE_MAX - 1), 0, SCORE_MAX, "range"),
    ],
)
def test_what_is_outside_the_bounds_leaves_no_trace(
    scripts: Scripts, rules: Rules, held: int, number: int, outcome: str
) -> None:
    board = board_with(scripts, rules)
    if held:
        board.submit(("ann", "first", held))
    before = board.snapshot()

    (row,) = board.submit(("ann", "next", number))

    assert row[0] == outcome
    if outcome == "range":
        assert row == ["range", number, held, 0]
        assert board.snapshot() == before


@pytest.mark.parametrize("operator", ["best", "last"])
def test_a_first_value_of_zero_on_a_highest_board_changes_nothing(
    scripts: Scripts, operator: Any
) -> None:
    """A user without a score has the score 0, and the ledger has no change of 0."""
    board = board_with(scripts, Rules(operator=operator))

    assert board.submit(("ann", "1", 0, 1)) == [["applied", 0, 0, 0]]
    assert board.submit(("ann", "1", 0, 1)) == [["replayed", 0, 0, 0]]
    assert board.board() == []
    assert board.submit(("ann", "2", 3)) == [["applied", 3, 3, 1]]


@pytest.mark.parametrize("operator", ["best", "last"])
def test_a_first_value_of_zero_on_a_lowest_board_is_refused(
    scripts: Scripts, operator: Any
) -> None:
    """It would be the best score, and neither the board nor the ledger could show it."""
    board = board_with(scripts, Rules(operator=operator, order="lowest"))
    before = board.snapshot()

    assert board.submit(("ann", "1", 0, 1)) == [["range", 0, 0, 0]]
    assert board.snapshot() == before


@pytest.mark.parametrize("score", [1, 1_000_000, SCORE_MAX])
@pytest.mark.parametrize("operator", ["add", "best", "last"])
@pytest.mark.parametrize("order", ORDERS)
def test_the_first_to_reach_a_score_stays_ahead_on_every_board(
    scripts: Scripts, score: int, operator: Any, order: Order
) -> None:
    rules = Rules(operator=operator, order=order)
    board = board_with(scripts, rules)

    for user in ("zoe", "adam", "mia"):
        board.submit((user, "1", score))

    assert board.board() == [
        (user, rules.pack(score, SLOT_COUNT - place))
        for place, user in enumerate(("zoe", "adam", "mia"), 1)
    ]


def test_the_lowest_score_is_in_the_watched_top(scripts: Scripts) -> None:
    """Viewers are told of a change among the first ten, which have the lowest scores."""
    board = board_with(scripts, Rules(operator="best", order="lowest"))
    board.submit(*((f"u{n:02}", "1", 100 + n) for n in range(12)))

    def changed() -> str:
        return text(board.client.hget(KEYS.meta, "changed") or b"")

    board.client.hdel(KEYS.meta, "changed")
    board.submit(("slow", "1", 500))
    assert changed() == ""
    board.submit(("fast", "1", 50))
    assert changed() != ""
    assert [user for user, _ in ranking(board)[:2]] == ["fast", "u00"]


def test_ties_of_a_lowest_board_recover_free_slots(scripts: Scripts) -> None:
    rules = Rules(operator="last", order="lowest")
    board = board_with(scripts, rules)
    members = {f"u{n:02}": rules.pack(7, 60 - n) for n in range(41)}
    board.client.zadd(KEYS.board, members)

    board.submit(("late", "1", 7), ("later", "1", 7))

    assert [user for user, _ in board.board()] == [*members, "late", "later"]


def test_a_caller_with_other_rules_learns_the_right_ones(scripts: Scripts) -> None:
    board = board_with(scripts, Rules(operator="best", score_max=100))
    before = board.snapshot()
    keys, args = board.submit_call(("ann", "1", 0), layout="1:1000:4")

    assert board.refuses("submit", keys, *args).startswith(
        "LAYOUT 1:1000:4:best:highest:0:100:nobody:catalogue "
    )
    assert board.snapshot() == before


@pytest.mark.parametrize(
    "layout",
    [
        "1:1000:4:",
        "1:1000:4:best",
        "1:1000:4:best:lowest:0:100:nobody",
        "1:1000:4:best:lowest:-1:100:nobody:stated",
        "1:1000:4:best:lowest:0:1e3:nobody:stated",
        "1:1000:4:best:lowest:0:100:nobody:stated:more",
    ],
)
def test_a_partition_with_unreadable_rules_is_uninitialised(scripts: Scripts, layout: str) -> None:
    scripts.open()
    scripts.client.hset(KEYS.meta, "layout", layout)
    keys, args = scripts.submit_call(("ann", "1", 5), layout=layout)

    assert scripts.refuses("submit", keys, *args).startswith("UNINIT ")


def test_an_older_record_without_a_value_is_still_an_answer(scripts: Scripts) -> None:
    board = board_with(scripts, Rules(operator="last"))
    board.submit(("ann", "1", 10, 1))
    keys, args = board.submit_call(("ann", "1", 10, 1))
    board.client.hset(seen_key(keys), args[5], "10:10:1")

    assert board.submit(("ann", "1", 10, 1)) == [["replayed", 10, 10, 1]]


def test_a_change_of_nothing_is_committed_with_the_last_change(scripts: Scripts) -> None:
    board = board_with(scripts, Rules(operator="best"))
    board.submit(("ann", "1", 10), ("bob", "1", 10))

    def committed(action: str) -> int:
        keys, args = board.submit_call(("ann", action, 5))
        return int(board.run("submit", keys, *args)[0][4])

    assert committed("2") == 0
    board.client.hset(KEYS.meta, "committed", "1:2")
    assert committed("2") == 1
    assert committed("3") == 1


def test_packed_scores_of_a_lowest_board_are_exact_to_the_last_digit(scripts: Scripts) -> None:
    rules = Rules(operator="last", order="lowest")
    board = board_with(scripts, rules)

    board.submit(("first", "1", 1), ("second", "1", 1), ("third", "1", 2))
    assert board.submit(("first", "2", 0)) == [["applied", -1, 0, 4]]

    assert board.board() == [
        ("first", rules.pack(0, SLOT_COUNT - 1)),
        ("second", rules.pack(1, SLOT_COUNT - 2)),
        ("third", rules.pack(2, SLOT_COUNT - 1)),
    ]
    assert board.board()[0][1] == 2**52 - 1


@pytest.mark.parametrize("score", [0, 1_000_000, SCORE_MAX])
@pytest.mark.parametrize("order", ORDERS)
def test_users_rank_by_arrival_after_their_values_have_changed(
    scripts: Scripts, score: int, order: Order
) -> None:
    board = board_with(scripts, Rules(operator="last", order=order))
    users = ["zoe", "adam", "mia"]
    board.submit(*((user, "1", 7) for user in users))

    for user in reversed(users):
        board.submit((user, "2", score))

    assert [user for user, _ in board.board()] == list(reversed(users))
