"""PipelinedConnection: replies in order, and no use of a connection after a fault."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from scoreboard.runtime.settings import Settings, load
from scoreboard.store.pipelined_connection import PipelinedConnection
from tests.support.eventually import eventually_async
from tests.support.fakes.proxy import MakeProxy, Proxy
from tests.support.servers.stores import EmbeddedValkey


def settings_for(url: str) -> Settings:
    return load({"REDIS_URL": url, "SCOREBOARD_REDIS_TIMEOUT_S": "2"})


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[PipelinedConnection]:
    link = PipelinedConnection(settings_for(redis_url), name="test")
    await link.connect()
    yield link
    await link.close()


@pytest.fixture
async def proxy(make_proxy: MakeProxy, valkey_server: EmbeddedValkey) -> Proxy:
    return await make_proxy(valkey_server.port)


@pytest.fixture
async def proxied_link(proxy: Proxy, redis_url: str) -> AsyncIterator[PipelinedConnection]:
    link = PipelinedConnection(settings_for(proxy.through(redis_url)), name="test")
    await link.connect()
    yield link
    await link.close()


async def test_replies_are_in_the_order_of_the_commands(link: PipelinedConnection) -> None:
    replies = await link.exchange(
        [("SET", "a", b"\x00\xff"), ("STRLEN", "a"), ("GET", "none"), ("ECHO", "é")]
    )
    assert replies == ["OK", 2, None, "é"]


async def test_a_large_reply_is_assembled(link: PipelinedConnection) -> None:
    text = "x" * 300_000
    assert await link.exchange([("ECHO", text)]) == [text]


async def test_an_error_reply_is_returned_as_an_exception_of_its_class(
    link: PipelinedConnection,
) -> None:
    unknown, wrong, fine = await link.exchange(
        [("EVALSHA", "0" * 40, 0), ("EVAL", "return redis.error_reply('MINE 1 2')", 0), ("PING",)]
    )
    assert isinstance(unknown, NoScriptError)
    assert isinstance(wrong, ResponseError)
    assert str(wrong).startswith("MINE 1 2")
    assert fine == "PONG"


async def test_a_concurrent_exchange_is_refused(link: PipelinedConnection) -> None:
    first = asyncio.ensure_future(link.exchange([("PING",)]))
    await asyncio.sleep(0)
    with pytest.raises(RedisConnectionError):
        await link.exchange([("PING",)])
    assert await first == ["PONG"]


async def test_a_timeout_closes_the_connection(
    proxy: Proxy, proxied_link: PipelinedConnection
) -> None:
    proxy.freeze()
    with pytest.raises(RedisTimeoutError):
        await proxied_link.exchange([("PING",)])
    assert not proxied_link.is_connected
    await proxy.restore()
    await proxied_link.connect()
    assert await proxied_link.exchange([("ECHO", "again")]) == ["again"]


async def test_a_connection_closed_while_idle_is_detected_before_a_send(
    proxy: Proxy, proxied_link: PipelinedConnection
) -> None:
    proxy.cut()
    await eventually_async(lambda: not proxied_link.is_connected)
    await proxied_link.connect()
    assert await proxied_link.exchange([("PING",)]) == ["PONG"]


async def test_a_cancelled_exchange_closes_the_connection(
    proxy: Proxy, proxied_link: PipelinedConnection
) -> None:
    proxy.freeze()
    exchange = asyncio.ensure_future(proxied_link.exchange([("PING",)]))
    await asyncio.sleep(0)
    exchange.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exchange
    assert not proxied_link.is_connected


async def test_an_unexpected_reply_closes_the_connection(
    link: PipelinedConnection, redis_url: str
) -> None:
    with redis.Redis.from_url(redis_url) as other:
        await link.exchange([("SUBSCRIBE", "chatter")])
        other.publish("chatter", "hello")
        await eventually_async(lambda: not link.is_connected)
