"""Waiting: what counts as true, and what is said when it never comes."""

import asyncio

import pytest

from tests.support.eventually import eventually, eventually_async


def test_it_gives_the_first_true_answer():
    answers = iter([0, None, "ready", "later"])

    assert eventually(lambda: next(answers), every_s=0) == "ready"


def test_a_failed_assertion_is_tried_again_and_reported_last():
    numbers = iter(range(1000))

    def it_grows() -> bool:
        number = next(numbers)
        assert number > 3, f"only {number}"
        return True

    assert eventually(it_grows, every_s=0) is True

    def it_never_holds() -> bool:
        assert "red" == "green"  # noqa: PLR0133 - it must fail
        return True

    with pytest.raises(AssertionError, match=r"it_never_holds did not hold within 0 s.*red"):
        eventually(it_never_holds, within_s=0)


def test_a_check_that_returns_nothing_does_not_pass():
    with pytest.raises(AssertionError, match="must return something true"):
        eventually(lambda: None, within_s=0)


def test_other_errors_go_through_at_once():
    with pytest.raises(ZeroDivisionError):
        eventually(lambda: 1 / 0)


async def test_async_checks_may_be_plain_or_awaited():
    answers = iter([0, "plain", 0, "awaited"])

    async def ask() -> object:
        return next(answers)

    assert await eventually_async(lambda: next(answers), every_s=0) == "plain"
    assert await eventually_async(ask, every_s=0) == "awaited"


async def test_an_async_check_that_hangs_ends_at_the_limit():
    with pytest.raises(AssertionError, match=r"did not hold within 0.01 s; at last: it returned"):
        await eventually_async(lambda: asyncio.Event().wait(), within_s=0.01)


async def test_a_time_out_of_the_checks_own_is_not_mistaken_for_the_limit():
    async def gives_up() -> bool:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await eventually_async(gives_up)
