"""The score that a stream adds up to, with differences and values."""

import pytest

from scoreboard.events import BadRecord, Event, decode
from scoreboard.store.uncommitted import UncommittedDeltas


def entry(
    number: int, user: str, delta: int, after: int, keeps: str = ""
) -> tuple[bytes, dict[bytes, bytes]]:
    fields = {b"q": number, b"u": user, b"a": f"a:{number}", b"d": delta, b"s": after, b"e": 1}
    record = {name: str(value).encode() for name, value in fields.items()}
    return f"{number}-0".encode(), record | ({b"v": keeps.encode()} if keeps else {})


@pytest.mark.parametrize(
    ("committed", "changes", "expected"),
    [
        (None, [], -1),
        (7, [], 7),
        (7, [(3, 10, "")], 10),
        (None, [(3, 3, "")], 3),
        (7, [(13, 20, "last")], 20),
        # From a score that a late duplicate had moved to 100.
        (8, [(-95, 5, "last")], 5),
        (8, [(-95, 5, "last"), (2, 7, "")], 7),
        (8, [(2, 10, ""), (-5, 5, "last"), (1, 6, "")], 6),
        # From an older score, after a loss of data.
        (50, [(10, 30, "highest")], 50),
        (20, [(-10, 40, "lowest")], 20),
        (20, [(10, 30, "highest")], 30),
        (50, [(-10, 40, "lowest")], 40),
        (None, [(40, 40, "lowest")], 40),
        (50, [(-10, 40, "lowest"), (5, 45, ""), (-1, 44, "lowest")], 44),
    ],
)
def test_a_value_replaces_the_score_and_a_difference_is_added(
    committed: int | None, changes: list[tuple[int, int, str]], expected: int
) -> None:
    uncommitted = UncommittedDeltas(replication_id="", epoch=1, seq=0, stream_id="0-0")

    uncommitted.add(
        entry(number, "ann", delta, after, keeps)
        for number, (delta, after, keeps) in enumerate(changes, 1)
    )

    assert uncommitted.expected_score("ann", committed) == expected
    assert uncommitted.has("ann") is bool(changes)
    assert uncommitted.expected_score("bob", 3) == 3


def test_a_held_action_adds_nothing() -> None:
    uncommitted = UncommittedDeltas(replication_id="", epoch=1, seq=0, stream_id="0-0")
    stream_id, fields = entry(1, "ann", 500, 7)

    uncommitted.add([(stream_id, fields | {b"k": b"h", b"l": b"action"})])

    assert uncommitted.expected_score("ann", 7) == 7
    assert not uncommitted.has("ann")


def test_a_record_says_which_value_stays() -> None:
    found = decode(*entry(1, "ann", 5, 5, "lowest"))

    assert isinstance(found, Event)
    assert found.keeps == "lowest"


def test_a_record_with_an_unknown_rule_for_values_is_kept_as_a_dead_letter() -> None:
    assert isinstance(decode(*entry(1, "ann", 5, 5, "median")), BadRecord)


def test_what_came_before_a_season_began_does_not_add_up() -> None:
    uncommitted = UncommittedDeltas(
        replication_id="", epoch=1, seq=0, stream_id="0-0", season="A:1:2"
    )

    def of(season: str, number: int, delta: int) -> tuple[bytes, dict[bytes, bytes]]:
        stream_id, fields = entry(number, "ann", delta, delta)
        return stream_id, fields | {b"p": season.encode()}

    turn = {b"q": b"2", b"e": b"1", b"k": b"s", b"p": b"B:2:3"}
    uncommitted.add([of("A:1:2", 1, 7), (b"2-0", turn)])
    assert uncommitted.season == "B:2:3"
    assert not uncommitted.has("ann")
    assert uncommitted.expected_score("ann", None) == -1
    uncommitted.add([of("B:2:3", 3, 4)])
    assert uncommitted.expected_score("ann", None) == 4


@pytest.mark.parametrize(
    "fields",
    [
        {b"k": b"s", b"q": b"2", b"e": b"1"},
        {b"k": b"s", b"q": b"2", b"e": b"1", b"p": b"B"},
        {b"k": b"s", b"q": b"x", b"e": b"1", b"p": b"B:2:3"},
        {b"k": b"s", b"q": b"0", b"e": b"1", b"p": b"B:2:3"},
        entry(1, "ann", 1, 1)[1] | {b"p": b"B:3:2"},
    ],
)
def test_a_record_whose_season_cannot_be_read_is_bad(fields: dict[bytes, bytes]) -> None:
    assert isinstance(decode(b"1-0", fields), BadRecord)
