"""The limit of log lines per kind: which are written, and how the others are counted."""

import threading

import pytest

from scoreboard.runtime import log_limits
from scoreboard.runtime.log_limits import (
    KINDS_MAX,
    LINES_MAX,
    OTHERS,
    STACK_LENGTH_MAX,
    VALUE_LENGTH_MAX,
    WINDOW_S,
    LineRateLimiter,
    event_kind,
    truncate,
)
from tests.support.eventually import eventually


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Limited:
    def __init__(self) -> None:
        self.reports: list[tuple[str, int]] = []
        self.clock = Clock()
        self.limit = LineRateLimiter(
            lambda kind, count: self.reports.append((kind, count)), self.clock
        )


@pytest.fixture
def limited() -> Limited:
    return Limited()


def test_a_few_lines_of_a_kind_are_admitted_and_the_rest_reported_once(limited: Limited) -> None:
    admitted = sum(limited.limit.allow("refused") for _ in range(1000))
    limited.clock.now_s += WINDOW_S
    assert limited.limit.allow("started")

    assert admitted == LINES_MAX
    assert limited.reports == [("refused", 1000 - LINES_MAX)]
    assert limited.limit.allow("refused"), "a new window has begun"


def test_each_kind_has_its_own_limit(limited: Limited) -> None:
    for _ in range(1000):
        limited.limit.allow("refused")

    assert limited.limit.allow("failed")


def test_the_number_of_kinds_is_bounded(limited: Limited) -> None:
    admitted = sum(limited.limit.allow(str(number)) for number in range(10_000))
    limited.limit.flush()

    assert admitted == KINDS_MAX + LINES_MAX
    assert limited.reports == [(OTHERS, 10_000 - KINDS_MAX - LINES_MAX)]


def test_dropped_lines_are_reported_without_a_further_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_limits, "WINDOW_S", 0.05)
    reports: list[tuple[str, int]] = []
    limit = LineRateLimiter(lambda kind, count: reports.append((kind, count)))
    for _ in range(LINES_MAX + 3):
        limit.allow("refused")

    eventually(lambda: reports == [("refused", 3)])


def test_nothing_is_reported_if_nothing_was_dropped(limited: Limited) -> None:
    for _ in range(LINES_MAX):
        assert limited.limit.allow("started")
    limited.limit.flush()

    assert limited.reports == []


def test_threads_share_the_limit(limited: Limited) -> None:
    admitted: list[bool] = []

    def flood() -> None:
        admitted.extend([limited.limit.allow("refused") for _ in range(500)])

    threads = [threading.Thread(target=flood) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    limited.limit.flush()

    assert admitted.count(True) == LINES_MAX
    assert limited.reports == [("refused", 4000 - LINES_MAX)]


def test_lines_with_another_status_or_code_are_another_kind() -> None:
    served = {"event": "request_served", "status": 401, "code": "unauthenticated", "client": "a"}

    assert event_kind(served) == event_kind(served | {"client": "b"})
    assert event_kind(served) != event_kind(served | {"status": 503})
    assert event_kind(served) != event_kind(served | {"code": "missing"})


def test_long_values_are_cut() -> None:
    assert truncate("detail", "x" * 5000) == "x" * VALUE_LENGTH_MAX + " …"
    assert truncate("detail", "short") == "short"
    stack = truncate("exception", "begin" + "x" * 50_000 + "ValueError: last")
    assert stack.endswith("ValueError: last")
    assert len(stack) <= STACK_LENGTH_MAX + 2
