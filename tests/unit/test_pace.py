"""The pace of boards: at once after a quiet time, then the configured rate, slower under load."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoreboard.broadcast.pace import BURST, GAP_MAX_S, LOAD_FACTOR, Pace, gap_after

INTERVAL_S = 0.1
GAP_S = INTERVAL_S / BURST


def sent_at(changes_s: list[float], gap_s: float = 0.0) -> list[float]:
    """Return when boards are sent, if each shows all changes up to then."""
    pace, sent, waiting = Pace(INTERVAL_S), list[float](), sorted(changes_s)
    while waiting:
        now_s = max(waiting[0], pace.next_at_s(gap_s))
        pace.take(now_s)
        sent.append(now_s)
        waiting = [at_s for at_s in waiting if at_s > now_s]
    return sent


def test_first_board_is_sent_at_once() -> None:
    assert Pace(INTERVAL_S).next_at_s(0.0) <= 0.0


def test_change_after_a_quiet_time_is_sent_at_once() -> None:
    assert sent_at([5.0, 5.03, 5.06, 7.0]) == [5.0, 5.03, 5.06, 7.0]


def test_continuous_changes_are_sent_as_a_burst_and_then_at_the_configured_rate() -> None:
    sent = sent_at([number / 1000 for number in range(2000)])

    gaps = [later - earlier for earlier, later in pairwise(sent)]
    assert gaps[: BURST - 1] == pytest.approx([GAP_S] * (BURST - 1))
    assert gaps[BURST:] == pytest.approx([INTERVAL_S] * len(gaps[BURST:]))


def test_changes_at_the_configured_rate_are_not_delayed_by_their_jitter() -> None:
    changes_s = [number * INTERVAL_S + (0.01 if number % 2 else 0.0) for number in range(100)]

    assert sent_at(changes_s) == pytest.approx(changes_s)


@given(st.lists(st.floats(0, 3), min_size=1, max_size=200), st.floats(0, 0.3))
def test_no_window_has_more_boards_than_the_burst_and_the_rate_allow(
    changes_s: list[float], gap_s: float
) -> None:
    sent = sent_at(changes_s, gap_s)

    assert sent[-1] >= max(changes_s), "the last board shows the last change"
    for start, from_s in enumerate(sent):
        for count, until_s in enumerate(sent[start:], 1):
            assert count <= BURST + (until_s - from_s) / INTERVAL_S + 1e-6
    least_s = max(GAP_S, gap_s)
    for earlier, later in pairwise(sent):
        assert later - earlier >= least_s - 1e-9


def test_expensive_board_lengthens_the_gap() -> None:
    pace = Pace(INTERVAL_S)
    pace.take(10.0)

    assert pace.next_at_s(gap_after(0.001, 0.001)) == pytest.approx(10.0 + GAP_S)
    assert pace.next_at_s(gap_after(0.4, 0.35)) == pytest.approx(10.0 + 0.35 * LOAD_FACTOR)
    assert pace.next_at_s(gap_after(0.4, 0.05)) == pytest.approx(10.0 + 0.4)
    assert pace.next_at_s(gap_after(60.0, 60.0)) == pytest.approx(10.0 + GAP_MAX_S)
