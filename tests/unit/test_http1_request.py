"""Time limits of handlers, together with other cancellations; encoding of response heads."""

import asyncio
from typing import Any, cast

import pytest

from scoreboard.http.connection import Connection
from scoreboard.http.request import TimeLimit
from scoreboard.http.response import encode_head


class FakeConnection:
    """The part of a connection that TimeLimit uses."""

    def __init__(self) -> None:
        self.task: asyncio.Task[str] | None = None
        self.limit: TimeLimit | None = None
        self.result: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def now_s(self) -> float:
        return 100.0

    async def serve(self) -> str:
        with TimeLimit(cast("Connection", self), 5):
            return await self.result


async def started() -> tuple[FakeConnection, Any]:
    connection = FakeConnection()
    connection.task = asyncio.ensure_future(connection.serve())
    await asyncio.sleep(0)
    return connection, connection.limit


async def test_a_late_handler_raises_timeout_error() -> None:
    connection, limit = await started()
    assert limit.due_s == 105.0
    limit.expire()
    assert connection.task is not None
    with pytest.raises(TimeoutError):
        await connection.task
    assert connection.task.cancelling() == 0
    assert connection.limit is None


async def test_a_handler_within_its_limit_returns_its_result() -> None:
    connection, _ = await started()
    connection.result.set_result("in time")
    assert await cast("Any", connection.task) == "in time"
    assert connection.limit is None


async def test_another_cancellation_is_not_turned_into_a_timeout() -> None:
    connection, limit = await started()
    cast("Any", connection.task).cancel()
    with pytest.raises(asyncio.CancelledError):
        await cast("Any", connection.task)
    assert not limit._is_late


async def test_a_cancellation_together_with_the_limit_is_a_cancellation() -> None:
    connection, limit = await started()
    limit.expire()
    cast("Any", connection.task).cancel()
    with pytest.raises(asyncio.CancelledError):
        await cast("Any", connection.task)


async def test_a_result_that_comes_together_with_the_limit_is_late() -> None:
    connection, limit = await started()
    connection.result.set_result("just now")
    limit.expire()
    with pytest.raises(TimeoutError):
        await cast("Any", connection.task)


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb", b"a\n"])
def test_a_header_value_with_a_line_end_is_refused(value: bytes) -> None:
    assert encode_head(200, [(b"a", b"b")], b"c: d\r\n") == (
        b"HTTP/1.1 200 OK\r\nc: d\r\na: b\r\n\r\n"
    )
    with pytest.raises(ValueError, match="line end"):
        encode_head(200, [(b"a", value)])
