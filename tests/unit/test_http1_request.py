"""Limits on handlers: kept, told apart from others' cancellations. And heads of answers."""

import asyncio
from typing import Any, cast

import pytest

from scoreboard.http.connection import Connection
from scoreboard.http.request import TimeLimit
from scoreboard.http.response import encode_head


class Held:
    """What a limit needs of a connection."""

    def __init__(self) -> None:
        self.task: asyncio.Task[str] | None = None
        self.limit: TimeLimit | None = None
        self.until: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def now_s(self) -> float:
        return 100.0

    async def serve(self) -> str:
        with TimeLimit(cast("Connection", self), 5):
            return await self.until


async def started() -> tuple[Held, Any]:
    held = Held()
    held.task = asyncio.ensure_future(held.serve())
    await asyncio.sleep(0)
    return held, held.limit


async def test_what_is_late_ends_with_a_time_out() -> None:
    held, limit = await started()
    assert limit.due_s == 105.0
    limit.expire()
    assert held.task is not None
    with pytest.raises(TimeoutError):
        await held.task
    assert held.task.cancelling() == 0
    assert held.limit is None


async def test_what_is_in_time_is_left_alone() -> None:
    held, _ = await started()
    held.until.set_result("in time")
    assert await cast("Any", held.task) == "in time"
    assert held.limit is None


async def test_anothers_cancellation_stays_one() -> None:
    held, limit = await started()
    cast("Any", held.task).cancel()
    with pytest.raises(asyncio.CancelledError):
        await cast("Any", held.task)
    assert not limit._is_late


async def test_both_at_once_is_a_cancellation() -> None:
    held, limit = await started()
    limit.expire()
    cast("Any", held.task).cancel()
    with pytest.raises(asyncio.CancelledError):
        await cast("Any", held.task)


async def test_a_result_that_comes_together_with_the_limit_is_late() -> None:
    held, limit = await started()
    held.until.set_result("just now")
    limit.expire()
    with pytest.raises(TimeoutError):
        await cast("Any", held.task)


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb", b"a\n"])
def test_a_header_cannot_begin_another(value: bytes) -> None:
    assert encode_head(200, [(b"a", b"b")], b"c: d\r\n") == (
        b"HTTP/1.1 200 OK\r\nc: d\r\na: b\r\n\r\n"
    )
    with pytest.raises(ValueError, match="line end"):
        encode_head(200, [(b"a", value)])
