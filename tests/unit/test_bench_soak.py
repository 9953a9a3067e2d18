"""The arithmetic of `make soak`: lag, slopes, percentiles, limits."""

from collections import deque

import pytest

from tests.bench.soak.__main__ import Interval, lag_s, percentile, slope_per_minute


@pytest.mark.parametrize(
    ("committed", "expected_s"),
    [
        (0, 1.0),  # the first action is from the time of the first reading
        (100, 1.0),
        (150, 0.75),  # halfway between the readings at 0 and 0.5
        (200, 0.5),
        (300, 0.0),
    ],
)
def test_the_lag_is_the_age_of_the_oldest_uncommitted_action(
    committed: int, expected_s: float
) -> None:
    accepted = deque([(100, 0.0), (200, 0.5), (300, 0.9)])

    assert lag_s(accepted, committed, 1.0) == pytest.approx(expected_s)


def test_an_idle_board_has_no_lag() -> None:
    accepted = deque([(100, 0.0), (100, 0.5), (100, 0.9)])

    assert lag_s(accepted, 100, 1.0) == 0.0
    assert accepted == deque([(100, 0.9)])


def test_readings_are_dropped_once_they_are_committed() -> None:
    accepted = deque((number, float(number)) for number in range(1000))

    lag_s(accepted, 998, 1000.0)

    assert len(accepted) == 2


def test_the_slope_is_that_of_the_last_half() -> None:
    grown = [(minute, 100.0 * minute) for minute in range(10)]
    flat = [(float(minute), 1000.0 + 2 * minute) for minute in range(10, 20)]

    assert slope_per_minute(grown + flat) == pytest.approx(2.0)
    assert slope_per_minute([(1.0, 5.0)]) == 0.0


def test_percentiles() -> None:
    values = [float(number) for number in range(100, 0, -1)]

    assert percentile(values, 0.5) == 51.0
    assert percentile(values, 0.99) == 100.0
    assert percentile([], 0.99) == 0.0


def test_limits_and_failures_are_named() -> None:
    figures = {"update p99": 51.0, "flusher lag p99": 1000.0, "viewer delay p99": 251.0}

    found = Interval(1.0, 100.0, figures, {}, {"503": 7})

    assert found.exceeded() == ["update p99", "viewer delay p99", "7 × 503"]
