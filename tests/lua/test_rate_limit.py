"""rate_limit.lua: the exact limit in every window, the remaining calls and the reset time."""

import pytest

from tests.support.clients.scripts import Scripts

TIMES = "sb:limit:LIMITER/user/alice/3/1/minute"


def call(scripts: Scripts, limit: int = 3, window: int = 60, count: int = 1) -> list[int]:
    return scripts.run("rate_limit", [TIMES], limit, window, count)


def age(scripts: Scripts, seconds: float) -> None:
    """Move every counted call into the past."""
    times = [float(one) - seconds for one in scripts.client.lrange(TIMES, 0, -1)]
    scripts.client.delete(TIMES)
    scripts.client.rpush(TIMES, *(f"{one:.6f}" for one in times))


def test_calls_are_counted_up_to_the_limit(scripts: Scripts) -> None:
    replies = [call(scripts) for _ in range(5)]

    assert [reply[:2] for reply in replies] == [[1, 2], [1, 1], [1, 0], [0, 0], [0, 0]]
    assert all(59_000 < reply[2] <= 60_000 for reply in replies)
    assert scripts.client.llen(TIMES) == 3
    assert 0 < scripts.client.ttl(TIMES) <= 60


def test_a_call_outside_the_window_does_not_count(scripts: Scripts) -> None:
    call(scripts)
    age(scripts, 50)
    call(scripts)
    call(scripts)
    counted, _, reset_ms = call(scripts)
    assert counted == 0
    assert 9_000 < reset_ms <= 10_000

    age(scripts, 11)

    counted, left, reset_ms = call(scripts)
    assert (counted, left) == (1, 0)
    assert 48_000 < reset_ms <= 49_000


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
def test_the_remaining_calls_are_exact_for_every_limit(scripts: Scripts, limit: int) -> None:
    assert [call(scripts, limit)[1] for _ in range(limit)] == list(range(limit - 1, -1, -1))
    assert call(scripts, limit)[:2] == [0, 0]


def test_calls_are_counted_as_far_as_the_limit_allows(scripts: Scripts) -> None:
    assert call(scripts, 10, count=4)[:2] == [4, 6]
    age(scripts, 50)
    counted, left, reset_ms = call(scripts, 10, count=100)
    assert (counted, left) == (6, 0)
    assert 9_000 < reset_ms <= 10_000
    assert call(scripts, 10, count=1)[:2] == [0, 0]
    assert scripts.client.llen(TIMES) == 10

    age(scripts, 11)

    assert call(scripts, 10, count=3)[:2] == [3, 1]
    assert call(scripts, 10, count=3)[:2] == [1, 0]


@pytest.mark.parametrize(
    "arguments",
    [
        *(("0", "60", "1"), ("x", "60", "1"), ("3", "0", "1"), ("3", "x", "1"), ("3", "60")),
        *(("3", "60", "0"), ("3", "60", "x"), ("3", "60", "-1")),
    ],
)
def test_invalid_arguments_are_refused(scripts: Scripts, arguments: tuple[str, ...]) -> None:
    refused = scripts.refuses("rate_limit", [TIMES], *arguments)

    assert refused.startswith("BADARG")
    assert not scripts.client.exists(TIMES)
