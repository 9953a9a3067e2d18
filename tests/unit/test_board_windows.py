"""When the windows of a board are read, what a read changes, and which windows are dropped."""

import asyncio
from math import inf

import pytest

from scoreboard.broadcast.windows import SAMPLE_S, BoardWindows
from scoreboard.model import Row, Span, Window

NEAR, DEEP = Span(0, 50), Span(100, 10)


def window(seq: int, *users: str) -> Window:
    rows = tuple(Row(rank, user, 1) for rank, user in enumerate(users, 1))
    return Window(1, seq, 1000, rows, ((1, seq),))


def read(windows: BoardWindows, seq: int, now_s: float, *users: str) -> list[Span]:
    """Read what is due; return the spans that have changed."""
    spans = windows.to_read(now_s)
    found = [(span, window(seq, *users)) for span in spans]
    return [state.span for state in windows.apply(window(seq), found, now_s)]


@pytest.fixture
def windows() -> BoardWindows:
    made = BoardWindows()
    for span in (NEAR, DEEP):
        made.add("main", span)
    return made


def test_a_board_without_windows_is_never_due() -> None:
    windows = BoardWindows()
    windows.put_off(5.0)

    assert windows.due_at_s == inf
    assert not windows.to_read(1e9)


def test_all_windows_are_due_each_second_and_those_near_the_top_always(
    windows: BoardWindows,
) -> None:
    assert read(windows, 1, 10.0, "ada") == [NEAR, DEEP]
    assert windows.due_at_s == 10.0 + SAMPLE_S
    assert list(windows.to_read(10.5)) == [NEAR]
    assert read(windows, 2, 10.5, "bob") == [NEAR]
    assert windows.due_at_s == 10.0 + SAMPLE_S
    assert read(windows, 3, 11.0, "bob") == [DEEP], "the near one has these rows already"


def test_a_board_that_has_not_moved_is_not_read(windows: BoardWindows) -> None:
    read(windows, 7, 10.0, "ada")

    assert not windows.have_changed(((1, 7),), 11.0)
    assert windows.due_at_s == 11.0 + SAMPLE_S
    assert windows.have_changed(((1, 8),), 12.0)
    assert windows.have_changed(((2, 7),), 12.0)


def test_a_new_window_is_due_at_once(windows: BoardWindows) -> None:
    read(windows, 7, 10.0, "ada")
    added = windows.add("main", Span(500, 10))

    assert windows.due_at_s == 0.0
    assert windows.have_changed(((1, 7),), 10.1)
    assert read(windows, 7, 10.1, "ada") == [Span(500, 10)]
    assert added.first_read.is_set()
    assert windows.due_at_s == 10.0 + SAMPLE_S


def test_a_new_window_does_not_make_the_others_due(windows: BoardWindows) -> None:
    read(windows, 7, 10.0, "ada")
    for number in range(3):
        new = Span(500 + number, 10)
        windows.add("main", new)
        assert list(windows.to_read(10.1)) == [NEAR, new]
        read(windows, 8, 10.1, "bob")

    assert list(windows.to_read(10.9)) == [NEAR]
    assert windows.have_changed(((1, 8),), 11.0), "the deep one is of seq 7"
    assert len(windows.to_read(11.0)) == 5


def test_a_new_window_of_a_rewound_board_is_put_off(windows: BoardWindows) -> None:
    windows.put_off(10.0)

    assert windows.due_at_s == 10.0 + SAMPLE_S
    assert windows.have_changed((), 11.0), "it was not read yet"


def test_a_window_that_is_added_during_a_read_is_read_next(windows: BoardWindows) -> None:
    spans = windows.to_read(10.0)
    added = windows.add("main", Span(500, 10))
    windows.apply(window(7), [(span, window(7, "ada")) for span in spans], 10.0)

    assert windows.due_at_s == 0.0
    assert not added.first_read.is_set()


def test_a_window_that_is_dropped_during_a_read_is_left_out(windows: BoardWindows) -> None:
    spans = windows.to_read(10.0)
    dropped = windows.find(DEEP)
    windows.drop(DEEP)
    changed = windows.apply(window(7), [(span, window(7, "ada")) for span in spans], 10.0)

    assert [state.span for state in changed] == [NEAR]
    assert dropped is not None
    assert dropped.first_read.is_set()
    assert dropped.state.message is None, "who waited for it finds no board"


def test_an_older_read_changes_nothing(windows: BoardWindows) -> None:
    read(windows, 7, 10.0, "ada")

    assert read(windows, 6, 11.0, "bob") == []


async def test_the_window_that_was_unused_longest_comes_first(windows: BoardWindows) -> None:
    await asyncio.sleep(0.02)  # pace: later than the others
    windows.add("main", Span(500, 10))

    def unused(idle_s: float, *viewed: Span) -> list[Span]:
        return [span for _, span in windows.unused(lambda span: span in viewed, idle_s)]

    assert unused(0.0) == [NEAR, DEEP, Span(500, 10)]
    assert unused(0.0, NEAR) == [DEEP, Span(500, 10)]
    assert unused(0.01, NEAR) == [DEEP]
    assert windows.too_deep() == []
    windows.clear()
    assert len(windows) == 0
    assert windows.due_at_s == inf
