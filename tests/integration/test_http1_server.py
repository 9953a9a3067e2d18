"""The HTTP/1.1 server on real sockets: framing, limits, slow and silent peers, shutdown."""

import asyncio
import contextlib
import random
import socket
import struct
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from scoreboard.errors import ScoreboardError
from scoreboard.http.connection import DISCARD_BYTES, LINGER_S, SLICE_BYTES, Connection
from scoreboard.http.problems import status_of
from scoreboard.http.request import Request
from scoreboard.http.response import HttpResponse
from scoreboard.http.server import Server, ServerLimits
from scoreboard.runtime.sockets import bind_listener
from scoreboard.security.addresses import trusted_networks
from tests.support.clients.smuggling import CHUNKS, HEADS
from tests.support.eventually import eventually_async

pytestmark = pytest.mark.slow

LONG = b"0123456789abcdef" * 262_144
"""A body of 4 MiB, more than the kernel's buffers of a connection."""


class Site:
    """The application of the server; each path has one behaviour."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.bodies: list[bytes] = []
        self.released = asyncio.Event()
        self.in_progress = 0
        self.outcomes: list[str] = []
        self.refused: list[str] = []

    async def __call__(self, request: Request) -> HttpResponse | None:
        head = request.head
        self.seen.append(f"{head.method} {head.path}")
        self.in_progress += 1
        try:
            return await self._answer(request)
        except ScoreboardError as error:
            return self.refuse(error, "")
        finally:
            self.in_progress -= 1

    def refuse(self, error: ScoreboardError, peer: str) -> HttpResponse:
        self.refused.append(error.code)
        return HttpResponse(status_of(type(error)), [], error.detail.encode())

    async def _answer(self, request: Request) -> HttpResponse | None:  # noqa: PLR0911 (a table)
        match request.head.path:
            case "/echo":
                body = await request.read_body()
                self.bodies.append(body)
                return HttpResponse(200, [(b"content-type", b"text/plain")], body)
            case "/wait":
                await self.released.wait()
                return HttpResponse(200, [], b"waited")
            case "/late":
                try:
                    with request.time_limit(0.1):
                        await asyncio.Event().wait()
                except TimeoutError:
                    self.outcomes.append("late")
                return HttpResponse(503, [], b"late")
            case "/long":
                return HttpResponse(200, [], LONG)
            case "/none":
                return HttpResponse(204, [], b"ignored")
            case "/same":
                return HttpResponse(304, [(b"etag", b'"1"')], b"ignored")
            case "/broken":
                raise RuntimeError("broken on purpose")
            case "/split":
                return HttpResponse(200, [(b"x-a", b"b\r\nset-cookie: c")])
            case "/stream":
                await self._stream(request)
                return None
            case _:
                return HttpResponse(200, [], request.head.path.encode())

    async def _stream(self, request: Request) -> None:
        stream = request.start_stream(200, [(b"content-type", b"text/plain")], send_s=0.5)
        outcome = "ended"
        leaving = asyncio.ensure_future(request.wait_disconnected())
        try:
            await stream.write(b"first")
            if request.head.query == b"flood":
                while True:
                    await stream.write(b"x" * 100_000)
            waiting = asyncio.ensure_future(self.released.wait())
            await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if leaving.done():
                outcome = "left"
            await stream.end()
        except TimeoutError:
            outcome = "too slow"
        except ConnectionError:
            outcome = "gone"
        finally:
            leaving.cancel()
            self.outcomes.append(outcome)


class Served:
    """A running server with its application and port."""

    def __init__(self, server: Server, site: Site, port: int) -> None:
        self.server = server
        self.site = site
        self.port = port

    def connection(self) -> Connection:
        """Return the only connection."""
        [found] = (*self.server._idle, *self.server._serving)
        return found


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Return a function that starts servers; keywords are limits."""
    async with AsyncExitStack() as stack:

        async def start(**limits: Any) -> Served:
            defaults: dict[str, Any] = {
                "body_bytes": 1000,
                "head_s": 60.0,
                "body_s": 60.0,
                "keep_alive_s": 60.0,
                "send_s": 60.0,
                "connections": 100,
                "connections_per_address": 100,
            }
            site = Site()
            server = Server(site, ServerLimits(**defaults | limits))
            listener = stack.enter_context(bind_listener("127.0.0.1", 0))
            await stack.enter_async_context(server.listening(listener))
            return Served(server, site, listener.getsockname()[1])

        yield start


class Client:
    """A raw connection of a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(30):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = (line.partition(": ") for line in lines[1:-2])
        return int(lines[0].split(" ")[1]), {name: value for name, _, value in fields}

    async def answer(self) -> tuple[int, bytes]:
        status, headers = await self.head()
        async with asyncio.timeout(30):
            return status, await self.reader.readexactly(int(headers.get("content-length", "0")))

    async def rest(self, within_s: float = 30) -> bytes:
        """Read until the server closes."""
        async with asyncio.timeout(within_s):
            with contextlib.suppress(ConnectionError):
                return await self.reader.read()
        return b""


@asynccontextmanager
async def talking(served: Served, source: str = "127.0.0.1") -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, local_addr=(source, 0))
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


def get(path: str = "/", *lines: str, version: str = "HTTP/1.1", method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} {version}", "Host: a", *lines, "", ""]).encode()


def post(body: bytes, *lines: str, path: str = "/echo") -> bytes:
    length = f"Content-Length: {len(body)}"
    return get(path, length, *lines, method="POST") + body


# --- sequences of requests ---


async def test_a_connection_serves_requests_in_sequence(serve: Serve) -> None:
    served = await serve()
    async with talking(served) as client:
        for number in range(3):
            await client.send(post(b"%d" % number))
            status, headers = await client.head()
            assert (status, headers["content-length"]) == (200, "1")
            assert "connection" not in headers
            assert "date" in headers
            assert await client.reader.readexactly(1) == b"%d" % number
        await client.send(get("/last", "Connection: close"))
        status, headers = await client.head()
        assert (status, headers["connection"]) == (200, "close")
        assert await client.rest() == b"/last"
    await eventually_async(lambda: served.server.count == 0)


@pytest.mark.parametrize(
    ("lines", "kept"),
    [((), False), (("Connection: keep-alive",), True), (("Connection: x",), False)],
)
async def test_http_1_0_connections_are_kept_alive_on_request(
    serve: Serve, lines: tuple[str, ...], kept: bool
) -> None:
    served = await serve()
    async with talking(served) as client:
        await client.send(get("/", *lines, version="HTTP/1.0"))
        _, headers = await client.head()
        assert headers["connection"] == ("keep-alive" if kept else "close")
        await client.reader.readexactly(1)
        if kept:
            await client.send(get("/", version="HTTP/1.0"))
            assert (await client.answer())[0] == 200
        assert await client.rest() == b""


async def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    served = await serve()
    async with talking(served) as client:
        await client.send(b"".join(post(b"%d" % number) for number in range(2000)))
        answers = [(await client.answer())[1] for _ in range(2000)]
    assert answers == [b"%d" % number for number in range(2000)]


async def test_pipelined_requests_are_not_read_ahead(serve: Serve) -> None:
    served = await serve()
    with socket.create_connection(("127.0.0.1", served.port)) as flooding:
        flooding.setblocking(False)
        flooding.send(get("/wait"))
        await eventually_async(lambda: served.site.in_progress == 1)
        taken, data = 0, get("/flood") * 1000
        last_s = time.monotonic()
        while time.monotonic() < last_s + 0.3:  # until the kernel's buffers are full
            with contextlib.suppress(BlockingIOError):
                taken += flooding.send(data)
                last_s = time.monotonic()
            await asyncio.sleep(0.001)  # pace: lets the server read
        assert len(served.connection()._held) < 200_000
        assert taken < 16_000_000
        assert served.site.seen == ["GET /wait"]
        flooding.setblocking(True)
        served.site.released.set()
        await asyncio.to_thread(flooding.recv, 100)
    await eventually_async(lambda: served.server.count == 0)


@pytest.mark.parametrize("pieces", [1, 7, 1000])
@pytest.mark.parametrize("coding", ["length", "chunks"])
@pytest.mark.parametrize("upgrade", [(), ("Connection: Upgrade", "Upgrade: h2c")])
async def test_a_body_belongs_to_its_request(
    serve: Serve, pieces: int, coding: str, upgrade: tuple[str, ...]
) -> None:
    served = await serve()
    body = get("/hidden") + b"end"
    if coding == "length":
        data = post(body, *upgrade)
    else:
        chunks = b"%x\r\n%b\r\n3;x=y\r\n%b\r\n0\r\n\r\n" % (len(body) - 3, body[:-3], body[-3:])
        data = get("/echo", "Transfer-Encoding: chunked", *upgrade, method="POST") + chunks
    data += get("/next")
    async with talking(served) as client:
        client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), len(data) // pieces or 1):
            await client.send(data[start : start + (len(data) // pieces or 1)])
            await asyncio.sleep(0)
        assert await client.answer() == (200, body)
        assert await client.answer() == (200, b"/next")
    assert served.site.seen == ["POST /echo", "GET /next"]


@pytest.mark.parametrize("path", ["/long", "/none", "/same"])
async def test_responses_without_a_body_send_none(serve: Serve, path: str) -> None:
    served = await serve()
    async with talking(served) as client:
        method = "HEAD" if path == "/long" else "GET"
        await client.send(get(path, method=method) + get("/next"))
        status, headers = await client.head()
        assert headers.get("content-length") == (str(len(LONG)) if path == "/long" else None)
        assert status == {"/long": 200, "/none": 204, "/same": 304}[path]
        assert await client.answer() == (200, b"/next")


# --- invalid requests ---


@pytest.mark.parametrize("split", [False, True])
async def test_nothing_is_served_after_an_ambiguous_request(serve: Serve, split: bool) -> None:
    served = await serve(body_bytes=16_384)
    wrong = {}
    vectors = HEADS | {name: data.replace(b" / ", b" /echo ") for name, data in CHUNKS.items()}
    for name, data in vectors.items():
        async with talking(served) as client:
            if split:
                await client.send(data[: len(data) // 2])
                await asyncio.sleep(0.005)  # pace: two packets
                with contextlib.suppress(ConnectionError):
                    await client.send(data[len(data) // 2 :])
            else:
                await client.send(data)
            client.writer.write_eof()
            answers = await client.rest()
        is_refused = answers.startswith(b"HTTP/1.1 400 ") and answers.count(b"HTTP/1.1 ") == 1
        if not is_refused or b"\r\nconnection: close\r\n" not in answers:
            wrong[name] = answers
    assert wrong == {}
    assert set(served.site.seen) <= {"POST /echo"}
    assert served.site.bodies == []


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(
    "request_bytes",
    [
        get("//", method="HEAD"),
        get("/", version="HTTP/2.0", method="HEAD"),
        get("/", "X: a\x00b", method="HEAD"),
        get("/", "X: " + "x" * 20_000, method="HEAD"),
        get("/echo", "Transfer-Encoding: chunked", method="HEAD") + b"g\r\n",
    ],
)
async def test_an_error_response_to_head_has_no_body(
    serve: Serve, split: bool, request_bytes: bytes
) -> None:
    served = await serve()
    async with talking(served) as client:
        if split:
            await client.send(request_bytes[:1])
            await eventually_async(lambda: served.connection()._held == request_bytes[:1])
            request_bytes = request_bytes[1:]
        await client.send(request_bytes)
        status, headers = await client.head()
        assert status >= 400
        assert int(headers["content-length"]) > 0
        assert await client.rest() == b""


async def test_a_refusal_reaches_a_peer_that_is_still_sending(serve: Serve) -> None:
    served = await serve()
    async with talking(served) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * (DISCARD_BYTES // 2))
        assert (await client.answer())[0] == 431
        assert await client.reader.read() == b""  # it has half-closed
        await client.send(get("/smuggled"))
    assert served.site.seen == []
    assert served.site.refused == ["head-too-large"]


async def test_a_peer_that_keeps_sending_after_a_refusal_is_disconnected(serve: Serve) -> None:
    served = await serve()
    async with talking(served) as client:
        await client.send(b"\0" * 100)
        assert (await client.answer())[0] == 400
        with contextlib.suppress(ConnectionError, RuntimeError):  # uvloop's for a closed transport
            for _ in range(1000):
                await client.send(b"\0" * 10_000)
        assert client.writer.transport.is_closing()
    await eventually_async(lambda: served.server.count == 0, within_s=LINGER_S / 2)


# --- incomplete, late and large bodies ---


async def test_a_response_before_the_body_ends_the_connection(serve: Serve) -> None:
    served = await serve()
    async with talking(served) as client:
        await client.send(get("/early", "Content-Length: 500", method="POST") + b"x" * 100)
        status, headers = await client.head()
        assert (status, headers["connection"]) == (200, "close")
        await client.send(b"x" * 400 + get("/smuggled"))
        assert await client.rest() == b"/early"
    assert served.site.seen == ["POST /early"]


async def test_a_too_large_body_is_refused_before_it_arrives(serve: Serve) -> None:
    served = await serve()
    for coded in (("Content-Length: 1001", b""), ("Transfer-Encoding: chunked", b"3e9\r\n")):
        async with talking(served) as client:
            await client.send(get("/echo", coded[0], method="POST") + coded[1])
            assert (await client.answer())[0] == 413
            await client.send(b"x" * 10_000)
            assert await client.rest() == b""
    assert served.site.refused == ["body-too-large"] * 2


async def test_an_incomplete_body_is_refused_in_time(serve: Serve) -> None:
    served = await serve(body_s=0.2)
    async with talking(served) as client:
        await client.send(get("/echo", "Content-Length: 5", method="POST") + b"hell")
        began_s = time.monotonic()
        status, detail = await client.answer()
    assert (status, b"0.2 s" in detail) == (400, True)
    assert 0.2 <= time.monotonic() - began_s < 30


async def test_expect_100_continue_is_answered(serve: Serve) -> None:
    served = await serve()
    ask = ("Expect: 100-continue", "Content-Length: 5")
    async with talking(served) as client:
        await client.send(get("/echo", *ask, method="POST"))
        assert (await client.head())[0] == 100
        await client.send(b"hello")
        assert await client.answer() == (200, b"hello")
        await client.send(get("/echo", *ask, method="POST") + b"there")
        assert await client.answer() == (200, b"there")  # no 100: the body arrived with the head
        await client.send(get("/early", *ask, method="POST"))
        status, headers = await client.head()
        assert (status, headers["connection"]) == (200, "close")
    async with talking(served) as client:
        await client.send(get("/echo", "Expect: something", method="POST"))
        assert (await client.answer())[0] == 417


# --- peers that close their sending half ---


async def test_a_complete_request_is_answered_after_a_half_close(serve: Serve) -> None:
    served = await serve()
    async with talking(served) as client:
        await client.send(get("/wait") + post(b"hello") + get("/third") + b"GET /fourth HTT")
        client.writer.write_eof()
        await eventually_async(lambda: served.site.in_progress == 1)
        served.site.released.set()
        assert [await client.answer() for _ in range(3)] == [
            (200, b"waited"),
            (200, b"hello"),
            (200, b"/third"),
        ]
        assert await client.rest() == b""
    assert served.site.seen == ["GET /wait", "POST /echo", "GET /third"]


async def test_a_body_truncated_by_a_half_close_is_refused(serve: Serve) -> None:
    served = await serve()
    async with talking(served) as client:
        await client.send(get("/echo", "Content-Length: 5", method="POST") + b"hell")
        client.writer.write_eof()
        status, detail = await client.answer()
        assert (status, b"complete" in detail) == (400, True)
        assert await client.rest() == b""
    assert served.site.bodies == []


async def test_a_truncated_pipelined_body_is_not_awaited(
    serve: Serve,
) -> None:
    served = await serve(body_s=60)
    async with talking(served) as client:
        await client.send(get("/wait") + get("/echo", "Content-Length: 5", method="POST") + b"he")
        client.writer.write_eof()
        await eventually_async(lambda: served.site.in_progress == 1)
        served.site.released.set()
        assert (await client.answer())[0] == 200
        status, detail = await client.answer()
        assert (status, b"complete" in detail) == (400, True)
        assert await client.rest() == b""
    assert served.site.bodies == []


# --- time limits ---


@pytest.mark.parametrize("start", [b"", b"G", get()[:-2]])
async def test_a_connection_with_an_incomplete_head_is_closed(serve: Serve, start: bytes) -> None:
    served = await serve(head_s=0.3)
    async with talking(served) as client:
        await client.send(start)
        assert await client.rest() == b""
    assert served.site.seen == []


async def test_a_slowly_sent_head_gets_no_additional_time(serve: Serve) -> None:
    served = await serve(head_s=0.5)
    began_s = time.monotonic()
    async with talking(served) as client:
        with contextlib.suppress(ConnectionError, RuntimeError):  # uvloop's for a closed transport
            for byte in get("/" + "a" * 1000):
                await client.send(bytes([byte]))
                await asyncio.sleep(0.01)  # pace: of the attack
        assert await client.rest() == b""
    assert time.monotonic() - began_s < 8


async def test_an_idle_connection_is_closed_and_a_second_request_has_time(serve: Serve) -> None:
    served = await serve(keep_alive_s=0.3, head_s=2)
    async with talking(served) as idle, talking(served) as slow:
        for client in (idle, slow):
            await client.send(get())
            await client.answer()
        await slow.send(b"GET / ")
        assert await idle.rest() == b""
        await slow.send(get()[6:])
        assert (await slow.answer())[0] == 200


async def test_a_peer_that_does_not_read_is_disconnected(serve: Serve) -> None:
    served = await serve(send_s=0.3)
    with socket.socket() as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.connect(("127.0.0.1", served.port))
        unread.sendall(get("/long") * 100)
        await eventually_async(lambda: served.site.seen == ["GET /long"])
        transport = served.connection()._transport
        assert transport.get_write_buffer_size() <= SLICE_BYTES + 500
        await eventually_async(lambda: served.server.count == 0)
    assert served.site.seen == ["GET /long"]


async def test_unread_long_responses_are_not_copied(serve: Serve) -> None:
    served = await serve()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        async with AsyncExitStack() as stack:
            for _ in range(30):
                unread = stack.enter_context(socket.socket())
                unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                unread.connect(("127.0.0.1", served.port))
                unread.sendall(get("/long"))
            await eventually_async(
                lambda: sum(one._is_stalled for one in served.server._serving) == 30
            )
            now, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now - before < 2 * len(LONG)


async def test_a_slow_reader_receives_a_long_response_completely(serve: Serve) -> None:
    served = await serve(send_s=0.5)
    async with talking(served) as client:
        await client.send(get("/long"))
        _, headers = await client.head()
        assert headers["content-length"] == str(len(LONG))
        got = b""
        while len(got) < len(LONG):
            got += await client.reader.read(200_000)
            await asyncio.sleep(0.05)  # pace: in total longer than send_s
        assert got == LONG


async def test_the_time_limit_applies_after_the_peer_has_disconnected(serve: Serve) -> None:
    served = await serve()
    async with talking(served) as client:
        await client.send(get("/late"))
        assert await client.answer() == (503, b"late")
        await client.send(get("/late"))
        await eventually_async(lambda: served.site.in_progress == 1)
    await eventually_async(lambda: served.site.outcomes == ["late", "late"])
    await eventually_async(lambda: not served.server._serving)


# --- limits of connections ---


async def test_the_longest_idle_connection_is_closed_for_a_new_one(serve: Serve) -> None:
    served = await serve(connections=3)
    async with talking(served) as first, talking(served) as second, talking(served) as third:
        for client in (third, first, second):
            await client.send(get())
            await client.answer()
        async with talking(served) as fourth:
            await fourth.send(get())
            assert (await fourth.answer())[0] == 200
            assert await third.rest() == b""
            await first.send(get())
            assert (await first.answer())[0] == 200
    await eventually_async(lambda: served.server.count == 0)


async def test_queued_connections_are_accepted_in_few_loop_iterations(serve: Serve) -> None:
    served = await serve()
    with contextlib.ExitStack() as stack:
        for _ in range(64):  # the kernel queues them while the loop is blocked
            address = ("127.0.0.1", served.port)
            stack.enter_context(socket.create_connection(address, timeout=30))
        turns = 0
        while served.server.count < 64 and turns < 64:
            await asyncio.sleep(0)
            turns += 1
        assert turns < 24
    await eventually_async(lambda: served.server.count == 0)


async def test_a_connection_is_refused_if_all_others_are_busy(serve: Serve) -> None:
    served = await serve(connections=2)
    async with talking(served) as one, talking(served) as two:
        for client in (one, two):
            await client.send(get("/wait"))
        await eventually_async(lambda: served.site.in_progress == 2)
        async with talking(served) as third:
            assert (await third.answer())[0] == 503
            assert await third.rest() == b""
        served.site.released.set()
        assert [await one.answer(), await two.answer()] == [(200, b"waited")] * 2


async def test_a_refused_connection_can_read_its_response_while_sending(serve: Serve) -> None:
    served = await serve(connections=1)
    async with talking(served) as busy:
        await busy.send(get("/wait"))
        await eventually_async(lambda: served.site.in_progress == 1)
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as refused:
            refused.sendall(get("/echo", "Content-Length: 20", method="POST"))
            await eventually_async(lambda: served.site.refused == ["overloaded"])
            for _ in range(2):
                refused.sendall(b"x" * 10)
                await asyncio.sleep(0.05)  # pace: a reset would arrive in this time
            answer = await asyncio.to_thread(refused.recv, 4096)
            assert answer.startswith(b"HTTP/1.1 503 ")
        await eventually_async(lambda: not served.server._refused)
        assert served.server.count == 1


async def test_the_number_of_refused_connections_is_limited(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.http.server.REFUSED_MAX", 3)
    served = await serve(connections=1)
    async with AsyncExitStack() as stack:
        busy = await stack.enter_async_context(talking(served))
        await busy.send(get("/wait"))
        await eventually_async(lambda: served.site.in_progress == 1)
        for number in range(1, 9):
            await stack.enter_async_context(talking(served))
            await eventually_async(lambda count=number: len(served.site.refused) == count)
            assert len(served.server._refused) <= 3
        served.site.released.set()
        assert (await busy.answer())[0] == 200
        await eventually_async(lambda: not served.server._refused)


async def test_idle_connections_of_one_address_do_not_block_others(serve: Serve) -> None:
    served = await serve(connections=20, connections_per_address=5)
    async with AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(talking(served, "127.0.0.2")) for _ in range(12)]
        await eventually_async(lambda: served.server.count == 5)
        for source in ("127.0.0.1", "127.0.0.2"):
            client = await stack.enter_async_context(talking(served, source))
            await client.send(get())
            assert (await client.answer())[0] == 200
        assert [await one.rest() for one in silent[:7]] == [b""] * 7
    await eventually_async(lambda: served.server.count == 0)
    assert not served.server._addresses


async def test_busy_connections_per_address_are_limited(serve: Serve) -> None:
    served = await serve(connections_per_address=2, trusted_hops=trusted_networks(["127.0.0.9"]))
    async with AsyncExitStack() as stack:

        async def busy(source: str) -> Client:
            client = await stack.enter_async_context(talking(served, source))
            await client.send(get("/wait"))
            return client

        held = [await busy("127.0.0.2"), await busy("127.0.0.2")]
        await eventually_async(lambda: served.site.in_progress == 2)
        assert (await (await busy("127.0.0.2")).answer())[0] == 429
        held += [await busy("127.0.0.3"), *[await busy("127.0.0.9") for _ in range(5)]]
        await eventually_async(lambda: served.site.in_progress == 8)
        served.site.released.set()
        assert {await one.answer() for one in held} == {(200, b"waited")}


# --- handlers that fail, and streams ---


@pytest.mark.parametrize("path", ["/broken", "/split"])
async def test_a_failed_handler_ends_only_its_connection(serve: Serve, path: str) -> None:
    served = await serve()
    async with talking(served) as client, talking(served) as other:
        await client.send(get(path))
        assert await client.rest() == b""
        await other.send(get())
        assert (await other.answer())[0] == 200


@pytest.mark.parametrize(
    ("version", "written"),
    [("HTTP/1.1", b"5\r\nfirst\r\n0\r\n\r\n"), ("HTTP/1.0", b"first")],
)
async def test_a_stream_ends_with_its_connection(
    serve: Serve, version: str, written: bytes
) -> None:
    served = await serve()
    async with talking(served) as client:
        await client.send(get("/stream", version=version))
        _, headers = await client.head()
        assert headers["connection"] == "close"
        assert "content-length" not in headers
        served.site.released.set()
        assert await client.rest() == written
    assert served.site.outcomes == ["ended"]


async def test_a_stream_notices_a_disconnect(serve: Serve) -> None:
    served = await serve()
    async with talking(served) as half_closing:
        await half_closing.send(get("/stream"))
        await half_closing.head()
        half_closing.writer.write_eof()
        await eventually_async(lambda: served.site.outcomes == ["left"])
    async with talking(served) as resetting:
        await resetting.send(get("/stream") + get("/more"))
        await resetting.head()
        connection = resetting.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await eventually_async(lambda: served.site.outcomes == ["left", "gone"])
    await eventually_async(lambda: served.server.count == 0)
    assert served.site.seen == ["GET /stream"] * 2


async def test_an_unread_stream_is_aborted(serve: Serve) -> None:
    served = await serve()
    with socket.socket() as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.connect(("127.0.0.1", served.port))
        unread.sendall(get("/stream?flood"))
        await eventually_async(lambda: served.site.outcomes == ["too slow"])
    await eventually_async(lambda: served.server.count == 0)


# --- shutdown ---


async def test_a_drain_finishes_requests_and_closes_idle_connections(serve: Serve) -> None:
    served = await serve()
    async with talking(served) as idle, talking(served) as busy, talking(served) as new:
        await idle.send(get())
        await idle.answer()
        await busy.send(get("/wait"))
        await eventually_async(lambda: served.site.in_progress == 1)
        draining = asyncio.ensure_future(served.server.drain(60))
        assert await idle.rest() == b""
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", served.port)
        await new.send(get("/new"))  # it was accepted before
        assert (await new.head())[1]["connection"] == "close"
        assert not draining.done()
        served.site.released.set()
        status, headers = await busy.head()
        assert (status, headers["connection"]) == (200, "close")
    await asyncio.wait_for(draining, 30)


async def test_a_drain_waits_for_a_request_that_came_after_the_last_connection_had_closed(
    serve: Serve,
) -> None:
    # Incident: the port was open for a moment more, and the first moment without connections
    # counted as the end of the drain, so the request in flight was aborted.
    served = await serve()
    served.server.is_draining = True
    async with talking(served) as first:
        await first.send(get())
        assert await first.rest() != b""
    await eventually_async(lambda: served.server.count == 0)
    async with talking(served) as busy:
        await busy.send(get("/wait"))
        await eventually_async(lambda: served.site.in_progress == 1)
        draining = asyncio.ensure_future(served.server.drain(60))
        done, _ = await asyncio.wait({draining}, timeout=0.2)
        assert not done
        served.site.released.set()
        assert (await busy.head())[0] == 200
    await asyncio.wait_for(draining, 30)


async def test_a_drain_ends_in_time_and_leaves_no_connection(serve: Serve) -> None:
    served = await serve()
    async with talking(served) as client:
        await client.send(get("/wait"))
        await eventually_async(lambda: served.site.in_progress == 1)
        began_s = time.monotonic()
        await served.server.drain(0.2)
        assert time.monotonic() - began_s < 30
        await asyncio.gather(*served.server._abort_all(), return_exceptions=True)
        assert await client.rest() == b""
    assert served.site.in_progress == 0
    assert served.server.count == 0


async def test_a_late_sweep_enforces_no_deadline(serve: Serve) -> None:
    served = await serve(head_s=0.3)
    async with talking(served) as client:
        await client.send(b"GET / HTTP/1.1\r\n")
        await eventually_async(lambda: served.server.count == 1)
        client.writer.write(b"Host: a\r\n\r\n")
        time.sleep(1.2)  # noqa: ASYNC251  # pace: a loop that is blocked
        assert (await client.answer())[0] == 200


# --- mixed traffic ---

GOOD = [
    get("/a"), get("/late"), get("/long"), get("/long", method="HEAD"), get("/stream"),
    get("/stream?flood"), get("/a", "Connection: close"), get("/a", version="HTTP/1.0"),
    post(b"hello"), post(b"hello", path="/early"), post(b"hello", "Expect: 100-continue"),
    get("/echo", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n0\r\n\r\n",
]  # fmt: skip
BAD = [*HEADS.values(), *CHUNKS.values(), get("/echo", "Content-Length: 9") + b"x", b"A" * 40_000]


async def send_mixture(served: Served, randomness: random.Random) -> None:
    """Send valid and invalid requests in pieces; disconnect at random, half-close or reset."""
    pick = randomness.choice
    data = b"".join(pick(GOOD if randomness.random() < 0.9 else BAD) for _ in range(6))
    async with talking(served, pick(["127.0.0.1", "127.0.0.2"])) as client:
        with contextlib.suppress(OSError, RuntimeError):  # TimeoutError is an OSError
            while data and randomness.random() < 0.97:
                size = pick([1, 50, 500, 5000, 50_000])
                await client.send(data[:size])
                data = data[size:]
            if randomness.random() < 0.3:
                client.writer.write_eof()
            async with asyncio.timeout(randomness.random() / 2):
                await client.reader.read()
        if randomness.random() < 0.3:
            connection = client.writer.get_extra_info("socket")
            with contextlib.suppress(
                OSError, AttributeError
            ):  # there is none once both have closed
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("seed", [1, 2])
async def test_mixed_traffic_leaks_nothing(
    serve: Serve, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await serve(
        head_s=0.3,
        body_s=0.3,
        send_s=0.3,
        keep_alive_s=0.3,
        connections=30,
        connections_per_address=20,
    )
    failures: list[Any] = []
    monkeypatch.setattr(
        "scoreboard.http.connection._log.error", lambda *event, **more: failures.append(more)
    )
    served.server.loop.set_exception_handler(lambda _, context: failures.append(context))
    randomness = random.Random(seed)

    for _ in range(6):
        await asyncio.gather(*(send_mixture(served, randomness) for _ in range(40)))

    await eventually_async(
        lambda: not (served.server.count or served.server._serving or served.server._refused)
    )
    assert not served.server._idle
    assert not served.server._addresses
    assert served.site.in_progress == 0
    assert failures == []
    async with talking(served) as client:
        await client.send(get("/after"))
        assert await client.answer() == (200, b"/after")
