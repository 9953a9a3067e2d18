"""Limits on waits: kept, told apart from others' cancellations, and forgotten when over."""

import asyncio

import pytest

from api.deadlines import Deadlines


async def wait_under(deadlines: Deadlines, until: "asyncio.Future[str]") -> str:
    task = asyncio.current_task()
    assert task is not None
    with deadlines.begin(task, asyncio.get_running_loop()):
        return await until


def started(deadlines: Deadlines) -> "tuple[asyncio.Task[str], asyncio.Future[str]]":
    until: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    return asyncio.ensure_future(wait_under(deadlines, until)), until


async def test_a_wait_beyond_its_limit_ends_with_a_time_out() -> None:
    deadlines = Deadlines(5)
    waiting, _ = started(deadlines)
    await asyncio.sleep(0)
    now_s = asyncio.get_running_loop().time()
    deadlines.end_late(now_s + 4)
    assert not waiting.done()
    deadlines.end_late(now_s + 6)
    with pytest.raises(TimeoutError):
        await waiting
    assert waiting.cancelling() == 0


async def test_what_is_in_time_is_left_alone_and_forgotten() -> None:
    deadlines = Deadlines(5)
    waiting, until = started(deadlines)
    await asyncio.sleep(0)
    until.set_result("in time")
    assert await waiting == "in time"
    deadlines.end_late(0)
    assert not deadlines._waits


async def test_another_s_cancellation_stays_one() -> None:
    deadlines = Deadlines(5)
    waiting, _ = started(deadlines)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_both_at_once_is_a_cancellation() -> None:
    deadlines = Deadlines(0)
    waiting, _ = started(deadlines)
    await asyncio.sleep(0)
    deadlines.end_late(asyncio.get_running_loop().time() + 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_an_error_of_its_own_passes_through_a_late_wait() -> None:
    deadlines = Deadlines(0)
    waiting, until = started(deadlines)
    await asyncio.sleep(0)
    until.set_exception(ValueError("mine"))
    deadlines.end_late(asyncio.get_running_loop().time() + 1)
    with pytest.raises((ValueError, TimeoutError)):
        await waiting


async def test_the_oldest_under_way_does_not_hide_the_late_behind_it() -> None:
    deadlines = Deadlines(5)
    first, _ = started(deadlines)
    second, _ = started(deadlines)
    await asyncio.sleep(0)
    deadlines.end_late(asyncio.get_running_loop().time() + 6)
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(result) for result in results] == [TimeoutError, TimeoutError]
