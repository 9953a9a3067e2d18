"""The faults that the test proxy injects."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from tests.support.eventually import eventually_async
from tests.support.fakes.proxy import TO_CLIENT, TO_SERVER, MakeProxy, Proxy, _reset


class Echo:
    """A server that records the received bytes and, unless it is mute, sends them back."""

    def __init__(self) -> None:
        self.port = 0
        self.received = b""
        self.mute = False
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                self.received += data
                if not self.mute:
                    writer.write(data)
                    await writer.drain()
        self.ended.set()
        writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    server = Echo()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    yield server
    listener.close()
    await listener.wait_closed()


@pytest.fixture
async def proxy(echo: Echo, make_proxy: MakeProxy) -> Proxy:
    return await make_proxy(echo.port)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, data: bytes) -> bytes:
        self.writer.write(data)
        return await self.reader.readexactly(len(data))

    async def is_reset(self) -> bool:
        try:
            async with asyncio.timeout(30):
                while await self.reader.read(65536):
                    pass
        except ConnectionResetError:
            return True
        return False


@pytest.fixture
async def connect(proxy: Proxy):
    clients: list[Client] = []

    async def make() -> Client:
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", proxy.port)))
        return clients[-1]

    yield make
    for client in clients:
        client.writer.close()
        with suppress(ConnectionError):
            await client.writer.wait_closed()


async def test_bytes_and_the_end_of_stream_are_forwarded_both_ways(
    echo: Echo, proxy: Proxy, connect
):
    client = await connect()
    assert await client.ask(b"hello") == b"hello"
    big = b"x" * 1_000_000
    answer = asyncio.create_task(client.reader.readexactly(len(big)))
    client.writer.write(big)
    assert await answer == big

    client.writer.write_eof()

    assert await client.reader.read() == b""
    await asyncio.wait_for(echo.ended.wait(), 30)
    await eventually_async(lambda: proxy.open_connections == 0)


async def test_cut_resets_every_connection_and_accepts_new_ones(proxy: Proxy, connect):
    clients = [await connect(), await connect()]
    for client in clients:
        await client.ask(b"hello")

    proxy.cut()

    assert [await client.is_reset() for client in clients] == [True, True]
    assert await (await connect()).ask(b"again") == b"again"
    assert proxy.connections_seen == 3


async def test_refuse_refuses_connections_until_restore(proxy: Proxy, connect):
    client = await connect()
    await client.ask(b"hello")
    port = proxy.port

    proxy.refuse()

    assert await client.is_reset()
    with pytest.raises(ConnectionRefusedError):
        await connect()
    await proxy.restore()
    assert proxy.port == port
    assert await (await connect()).ask(b"again") == b"again"


async def test_a_reset_by_the_client_ends_the_connection_to_the_server(
    echo: Echo, proxy: Proxy, connect
):
    client = await connect()
    await client.ask(b"hello")

    _reset(client.writer)

    await asyncio.wait_for(echo.ended.wait(), 30)
    await eventually_async(lambda: proxy.open_connections == 0)


async def test_freeze_accepts_connections_and_forwards_nothing_until_restore(
    echo: Echo,
    proxy: Proxy,
    connect,
):
    old = await connect()
    await old.ask(b"before")
    proxy.freeze()
    new = await connect()
    answers = [asyncio.create_task(client.ask(b"during")) for client in (old, new)]

    done, _ = await asyncio.wait(answers, timeout=0.1)

    assert done == set()
    assert echo.received == b"before"
    await proxy.restore()
    assert await asyncio.gather(*answers) == [b"during", b"during"]


async def test_delay_delays_every_chunk(proxy: Proxy, connect):
    client = await connect()
    await client.ask(b"fast")
    proxy.delay(0.1)
    loop = asyncio.get_running_loop()
    began = loop.time()

    await client.ask(b"slow")

    assert loop.time() - began >= 0.2


async def test_cut_after_forwards_that_many_bytes_to_the_server(echo: Echo, proxy: Proxy, connect):
    client = await connect()
    cut = proxy.cut_after(TO_SERVER, 5)
    assert await client.ask(b"abc") == b"abc"

    client.writer.write(b"defgh")

    assert await client.is_reset()
    assert cut.is_set()
    await asyncio.wait_for(echo.ended.wait(), 30)
    assert echo.received == b"abcde"
    assert await (await connect()).ask(b"it happens once") == b"it happens once"


async def test_cut_when_delivers_the_pattern_and_drops_the_answer(
    echo: Echo, proxy: Proxy, connect
):
    echo.mute = True
    client = await connect()
    cut = proxy.cut_when(TO_SERVER, b"COMMIT")

    client.writer.write(b"BEGIN; COM")
    await eventually_async(lambda: echo.received == b"BEGIN; COM")
    assert not cut.is_set()
    client.writer.write(b"MIT; lost")

    assert await client.is_reset()
    await asyncio.wait_for(echo.ended.wait(), 30)
    assert echo.received == b"BEGIN; COMMIT"


async def test_cut_when_can_drop_the_pattern(echo: Echo, proxy: Proxy, connect):
    echo.mute = True
    client = await connect()
    proxy.cut_when(TO_SERVER, b"COMMIT", deliver=False)

    client.writer.write(b"BEGIN; COMMIT;")

    assert await client.is_reset()
    await asyncio.wait_for(echo.ended.wait(), 30)
    assert echo.received == b"BEGIN; "


async def test_cut_when_can_match_answers(echo: Echo, proxy: Proxy, connect):
    client = await connect()
    other = await connect()
    cut = proxy.cut_when(TO_CLIENT, b"OK", deliver=False)

    client.writer.write(b"OK")

    assert await client.is_reset()
    assert cut.is_set()
    assert echo.received == b"OK"
    assert await other.ask(b"untouched") == b"untouched"


async def test_through_replaces_only_the_port(proxy: Proxy):
    port = proxy.port

    assert proxy.through("redis://:pw@127.0.0.1:1/0") == f"redis://:pw@127.0.0.1:{port}/0"
    assert proxy.through("http://127.0.0.1:1/a?b") == f"http://127.0.0.1:{port}/a?b"


async def test_closing_a_frozen_proxy_ends_its_connections(echo: Echo):
    async with Proxy(echo.port) as proxy:
        proxy.freeze()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        await eventually_async(lambda: proxy.open_connections == 1)

    assert proxy.open_connections == 0
    assert await Client(reader, writer).is_reset()
    writer.close()
