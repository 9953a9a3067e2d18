"""`eventually`: when it returns, and what it reports after the timeout."""

import asyncio

import pytest

from tests.support.eventually import eventually, eventually_async


def test_it_returns_the_first_true_value():
    answers = iter([0, None, "ready", "later"])

    assert eventually(lambda: next(answers), every_s=0) == "ready"


def test_a_failed_assertion_is_retried_and_the_last_one_is_reported():
    numbers = iter(range(1000))

    def it_grows() -> bool:
        number = next(numbers)
        assert number > 3, f"only {number}"
        return True

    assert eventually(it_grows, every_s=0) is True

    def it_is_never_true() -> bool:
        assert "red" == "green"  # noqa: PLR0133 - it must fail
        return True

    with pytest.raises(AssertionError, match=r"it_is_never_true was not true within 0 s.*red"):
        eventually(it_is_never_true, within_s=0)


def test_a_check_that_returns_none_fails():
    with pytest.raises(AssertionError, match="must return a true value"):
        eventually(lambda: None, within_s=0)


def test_other_errors_are_raised_at_once():
    with pytest.raises(ZeroDivisionError):
        eventually(lambda: 1 / 0)


async def test_async_checks_may_be_plain_functions_or_coroutines():
    answers = iter([0, "plain", 0, "awaited"])

    async def ask() -> object:
        return next(answers)

    assert await eventually_async(lambda: next(answers), every_s=0) == "plain"
    assert await eventually_async(ask, every_s=0) == "awaited"


async def test_a_hanging_async_check_ends_at_the_timeout():
    with pytest.raises(
        AssertionError, match=r"was not true within 0.01 s; last result: it returned"
    ):
        await eventually_async(lambda: asyncio.Event().wait(), within_s=0.01)


async def test_a_timeout_error_of_the_check_is_raised_unchanged():
    async def gives_up() -> bool:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await eventually_async(gives_up)
