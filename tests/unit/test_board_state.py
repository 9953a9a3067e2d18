"""BoardState accepts newer reads and rejects older ones (I8)."""

import pytest

from scoreboard.broadcast.state import BoardState, ReadResult
from scoreboard.model import Row, Window

TOP = (Row(1, "ada", 30),)
OTHER_TOP = (Row(1, "bob", 40),)


def window(
    epoch: int = 2,
    seq: int = 10,
    rows: tuple[Row, ...] = TOP,
    positions: tuple[tuple[int, int], ...] = (),
) -> Window:
    return Window(epoch, seq, len(rows), rows, positions)


def fed(*windows: Window) -> BoardState:
    state = BoardState("main")
    for one in windows:
        state.apply(one, at_ms=1)
    return state


def test_first_read_is_a_change_even_if_the_board_is_empty() -> None:
    state = BoardState("main")

    assert state.apply(window(rows=()), at_ms=5) is ReadResult.CHANGED
    assert state.message is not None
    assert state.message.leaderboard == ()


@pytest.mark.parametrize(
    ("read", "verdict"),
    [
        (window(epoch=3, seq=0), ReadResult.CHANGED),
        (window(epoch=3, seq=0, rows=OTHER_TOP), ReadResult.CHANGED),
        (window(seq=11, rows=OTHER_TOP), ReadResult.CHANGED),
        (window(seq=11), ReadResult.UNCHANGED),
        (window(), ReadResult.UNCHANGED),
        (window(seq=9, rows=OTHER_TOP), ReadResult.REWOUND),
        (window(seq=9), ReadResult.REWOUND),
        (window(epoch=1, seq=99, rows=OTHER_TOP), ReadResult.REWOUND),
    ],
    ids=[
        "new epoch, same rows",
        "new epoch",
        "higher seq",
        "higher seq, same rows",
        "the same",
        "lower seq",
        "lower seq, same rows",
        "older epoch",
    ],
)
def test_read_is_compared_with_the_last_accepted_one(read: Window, verdict: ReadResult) -> None:
    state = fed(window())
    held = state.message

    assert state.apply(read, at_ms=2) is verdict
    assert (state.message is not held) == (verdict is ReadResult.CHANGED)


def test_read_after_a_rewind_is_compared_with_the_last_accepted_one() -> None:
    state = fed(window(seq=10), window(seq=4))

    assert state.apply(window(seq=9, rows=OTHER_TOP), at_ms=3) is ReadResult.REWOUND
    assert state.apply(window(seq=10), at_ms=4) is ReadResult.UNCHANGED


def test_unchanged_read_with_higher_seq_raises_the_rewind_limit() -> None:
    state = fed(window(seq=10), window(seq=20))

    assert state.apply(window(seq=15, rows=OTHER_TOP), at_ms=3) is ReadResult.REWOUND


def test_rewind_of_one_partition_is_detected_if_the_sum_rises() -> None:
    state = fed(window(epoch=2, seq=20, positions=((1, 10), (1, 10))))

    back = window(epoch=2, seq=104, rows=OTHER_TOP, positions=((1, 4), (1, 100)))

    assert state.apply(back, at_ms=2) is ReadResult.REWOUND


def test_repair_of_one_partition_is_a_change_if_its_seq_falls() -> None:
    state = fed(window(epoch=2, seq=20, positions=((1, 10), (1, 10))))

    repaired = window(epoch=3, seq=14, positions=((2, 4), (1, 10)))

    assert state.apply(repaired, at_ms=2) is ReadResult.CHANGED


def test_change_of_partition_count_requires_a_higher_epoch() -> None:
    state = fed(window(epoch=4, seq=20, positions=((2, 10), (2, 10))))

    assert state.apply(window(epoch=3, positions=((3, 10),)), at_ms=2) is ReadResult.REWOUND
    assert state.apply(window(epoch=5, positions=((5, 0),)), at_ms=2) is ReadResult.CHANGED


def test_the_time_of_a_change_is_known_by_redis_clock_alone() -> None:
    state = BoardState("main")

    def accepted_at_s(changed_ms: int, read_ms: int) -> float:
        window = Window(2, 10, 1, TOP, (), changed_ms, read_ms)
        state.note_times(window, asked_at_s=100.0)
        return state.accepted_at_s

    # The first read may show an old change.
    assert accepted_at_s(5_000, 9_000) == 0.0
    assert accepted_at_s(9_500, 9_750) == 99.75
    # A process of an older version changed the board and wrote no time.
    assert accepted_at_s(9_500, 20_000) == 0.0
    # The stream id is ahead of a clock that went back.
    assert accepted_at_s(30_000, 20_100) == 100.0
    # A reseed removes the time; the next change is known again.
    assert accepted_at_s(0, 40_000) == 0.0
    assert accepted_at_s(41_000, 41_100) == pytest.approx(99.9)


def test_another_season_is_a_change_although_both_boards_are_empty() -> None:
    state = BoardState("main")
    state.apply(Window(2, 10, 0, (), season="A:1:2"), at_ms=1)
    assert state.apply(Window(2, 11, 0, (), season="A:1:2"), at_ms=2) is ReadResult.UNCHANGED
    assert state.apply(Window(2, 12, 0, (), season="B:2:3"), at_ms=3) is ReadResult.CHANGED
    assert state.message is not None
    assert (state.message.season, state.message.ends_at) == ("B", 3000)
