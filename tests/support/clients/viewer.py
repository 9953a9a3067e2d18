"""A raw WebSocket client for tests, and fixtures that start a streamer.

    streamer = await start_streamer(viewers_per_address=5)
    viewer = await connect(streamer.port)              # handshake done, nothing read yet
    board = await viewer.next("leaderboard")

A raw viewer reads only when asked, so a test controls which viewers are slow. It checks that the
server follows RFC 6455, and validates every message against docs/asyncapi.yaml.
"""

import asyncio
import base64
import itertools
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from scoreboard.model import DEFAULT_RULES, Action, Board, Rules
from scoreboard.runtime.settings import PREFIX, UNPREFIXED, Settings, load
from scoreboard.store.client import make_client
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.store import Store
from streamer.handshake.listener import make_listener
from streamer.server import Streamer, running
from tests.support.asyncapi import check_message
from tests.support.data.boards import open_board
from tests.support.eventually import eventually_async
from tests.support.fakes.tokens import AUDIENCE, ISSUER, MakeToken

HOST = "127.0.0.1"
PATH = "/ws/scoreboard"
KEY = base64.b64encode(bytes(range(16))).decode()

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
CONTINUATION = 0

Headers = list[tuple[str, str]]


def request_bytes(
    path: str = PATH,
    *,
    method: str = "GET",
    version: str = "HTTP/1.1",
    drop: tuple[str, ...] = (),
    headers: Headers | None = None,
    token: str | None = None,
    subprotocols: str | None = None,
    origin: str | None = None,
) -> bytes:
    """Return a handshake request; ``drop`` omits standard headers, ``headers`` adds others."""
    standard = [
        ("Host", "scoreboard.test"),
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", KEY),
    ]
    lines = [f"{method} {path} {version}"]
    lines += [f"{name}: {value}" for name, value in standard if name not in drop]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if subprotocols is not None:
        lines.append(f"Sec-WebSocket-Protocol: {subprotocols}")
    if origin is not None:
        lines.append(f"Origin: {origin}")
    lines += [f"{name}: {value}" for name, value in headers or []]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def masked_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bool = True,
    length: int | None = None,
) -> bytes:
    """Return a client frame; the options can make it invalid."""
    size = len(payload) if length is None else length
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0x80 if mask else 0
    if size < 126:
        head += bytes([bit | size])
    elif size < 65_536:
        head += bytes([bit | 126]) + struct.pack("!H", size)
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", size)
    if not mask:
        return head + payload
    key = os.urandom(4)
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


@dataclass(frozen=True)
class HttpResponse:
    """An HTTP response to a handshake."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        return json.loads(self.body)


@dataclass(frozen=True)
class Received:
    """A frame from the server."""

    opcode: int
    payload: bytes

    @property
    def message(self) -> dict[str, Any]:
        return json.loads(self.payload)

    @property
    def code(self) -> int:
        """The code of a close frame; 1005 if it has none."""
        return struct.unpack("!H", self.payload[:2])[0] if self.payload else 1005


class Closed(Exception):  # noqa: N818 (an event, not an error)
    """Raised when the connection has ended; ``code`` is that of the close frame, or 1006."""

    def __init__(self, code: int, payload: bytes = b"") -> None:
        super().__init__(code)
        self.code = code
        self.payload = payload


@dataclass(eq=False)
class RawViewer:
    """A connection controlled by the test; only pings are answered automatically."""

    connection: socket.socket
    buffer: bytearray = field(default_factory=bytearray)
    answers_pings: bool = True
    checks_messages: bool = True
    messages: list[dict[str, Any]] = field(default_factory=list)
    pings: list[bytes] = field(default_factory=list)
    frames_read: int = 0

    @classmethod
    async def open(
        cls, port: int, *, receive_bytes: int | None = None, source: str | None = None
    ) -> Self:
        """Connect; ``receive_bytes`` limits the receive buffer of the kernel.

        ``source`` is the local address, such as 127.0.0.2.
        """
        connection = socket.socket()
        connection.setblocking(False)
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source is not None:
            connection.bind((source, 0))
        try:
            await asyncio.get_running_loop().sock_connect(connection, (HOST, port))
        except BaseException:
            connection.close()
            raise
        return cls(connection)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.connection, data)

    async def send_json(self, message: object) -> None:
        await self.send(masked_frame(TEXT, json.dumps(message).encode()))

    async def answer(self, within_s: float = 30.0) -> HttpResponse:
        """Read an HTTP response."""
        async with asyncio.timeout(within_s):
            while b"\r\n\r\n" not in self.buffer:
                await self._fill()
            head, _, rest = bytes(self.buffer).partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines[1:])
            }
            size = int(headers.get("content-length", "0"))
            self.buffer = bytearray(rest)
            while len(self.buffer) < size:
                await self._fill()
        body = bytes(self.buffer[:size])
        del self.buffer[:size]
        return HttpResponse(int(lines[0].split(" ")[1]), headers, body)

    async def frame(self, within_s: float = 30.0) -> Received:
        """Read one frame of any type; answer a ping. Raises Closed."""
        async with asyncio.timeout(within_s):
            while True:
                found = self._parse()
                if found is None:
                    await self._fill()
                    continue
                self.frames_read += 1
                if found.opcode == PING:
                    self.pings.append(found.payload)
                    if self.answers_pings:
                        await self.send(masked_frame(PONG, found.payload))
                if found.opcode == CLOSE:
                    raise Closed(found.code, found.payload)
                if found.opcode == TEXT:
                    message = found.message
                    if self.checks_messages:
                        check_message(message)
                    self.messages.append(message)
                return found

    async def next(self, kind: str | None = None, within_s: float = 30.0) -> dict[str, Any]:
        """Read until the next message (of a type). Raises Closed."""
        async with asyncio.timeout(within_s):
            while True:
                found = await self.frame(within_s)
                if found.opcode == TEXT and kind in {None, found.message["type"]}:
                    return found.message

    async def closed(self, within_s: float = 30.0) -> int:
        """Read until the end; return the close code."""
        async with asyncio.timeout(within_s):
            try:
                while True:
                    await self.frame(within_s)
            except Closed as closed:
                return closed.code

    async def close_payload(self, within_s: float = 30.0) -> bytes:
        """Read until the close frame; return its payload."""
        async with asyncio.timeout(within_s):
            try:
                while True:
                    await self.frame(within_s)
            except Closed as closed:
                return closed.payload

    async def eof(self, within_s: float = 30.0) -> bytes:
        """Read until the server has closed the connection; return what was received."""
        async with asyncio.timeout(within_s):
            try:
                while True:
                    await self._fill()
            except Closed:
                return bytes(self.buffer)

    def close(self) -> None:
        self.connection.close()

    def reset(self) -> None:
        """Close with a TCP reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    async def _fill(self) -> None:
        try:
            data = await asyncio.get_running_loop().sock_recv(self.connection, 65_536)
        except ConnectionError:
            data = b""
        if not data:
            raise Closed(1006)
        self.buffer += data

    def _parse(self) -> Received | None:
        buffer = self.buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        assert first & 0x80, "the server does not fragment"
        assert not first & 0x70, "no extension is negotiated"
        assert not second & 0x80, "a server must not mask"
        size, start = second & 0x7F, 2
        if size == 126:
            if len(buffer) < 4:
                return None
            size, start = struct.unpack("!H", buffer[2:4])[0], 4
        assert size < 65_536
        if len(buffer) < start + size:
            return None
        payload = bytes(buffer[start : start + size])
        del buffer[: start + size]
        assert first & 0x0F in {TEXT, CLOSE, PING, PONG}
        return Received(first & 0x0F, payload)


@dataclass
class RunningStreamer:
    """A streamer in the process of the test."""

    streamer: Streamer
    settings: Settings
    port: int
    store: Store

    @property
    def viewers(self) -> int:
        return self.streamer.manager.admission.viewers

    async def wait_until_quiet(self, board: str = "main") -> None:
        """Wait until the reads after a start or a change have ended."""
        channel, clock = self.streamer.manager.hub.channel(board), self.streamer.manager.clock
        await eventually_async(lambda: clock() - channel.frame_at_s > 0.3)

    async def wait_until_empty(self, within_s: float = 30.0) -> None:
        """Wait until all connections and counts are released."""
        manager = self.streamer.manager
        await eventually_async(
            lambda: manager.admission.is_empty and not manager.connections, within_s=within_s
        )
        assert manager.hub.viewer_count == 0


StartStreamer = Callable[..., Awaitable[RunningStreamer]]


def streamer_settings(redis_url: str, **more: object) -> Settings:
    """Return settings of a streamer; ``more`` are fields, such as ``viewers_per_address=5``."""
    environ = {
        "REDIS_URL": redis_url,
        "SCOREBOARD_ISSUER": ISSUER,
        "SCOREBOARD_AUDIENCE": AUDIENCE,
        "SCOREBOARD_WS_PORT": "0",
        "SCOREBOARD_WS_METRICS_PORT": "0",
        "SCOREBOARD_VIEWERS_PER_ADDRESS": "10000",
        "SCOREBOARD_NEW_VIEWERS_BURST": "10000",
        "SCOREBOARD_DRAIN_S": "0.5",
    }
    for field_name, value in more.items():
        name = UNPREFIXED.get(field_name, PREFIX + field_name.upper())
        environ[name] = str(value)
    return load(environ)


@pytest.fixture
async def start_streamer(redis_url: str, jwks_file: Path) -> AsyncIterator[StartStreamer]:
    """Return a function that starts streamers on the test's Redis, with a public board."""
    async with AsyncExitStack() as stack:

        async def start(
            *,
            board: Board | None = None,
            scores: list[tuple[str, int]] | None = None,
            opened: bool = True,
            url: str | None = None,
            tick_s: float = 0.1,
            **settings: object,
        ) -> RunningStreamer:
            settings.setdefault("jwks_file", jwks_file)
            chosen = streamer_settings(url or redis_url, **settings)
            direct = streamer_settings(redis_url, **settings)
            client = make_client(direct, name="test")
            stack.push_async_callback(client.aclose)
            store = Store(client)
            if opened:
                await open_board(store, board, scores=scores or [("first", 100), ("second", 50)])
            streamer = Streamer(chosen, tick_s=tick_s)
            await stack.enter_async_context(running(streamer))
            listener = make_listener(chosen, shared=False)
            await streamer.listen(listener)
            if opened:
                await eventually_async(lambda: streamer.watcher.is_ready)
            return RunningStreamer(streamer, chosen, listener.getsockname()[1], store)

        yield start


Submit = Callable[..., Awaitable[int]]

_numbers = itertools.count(1)  # unique within a test run


@asynccontextmanager
async def playing(settings: Settings) -> AsyncIterator[Submit]:
    """Yield a function that submits an action, ``await submit("ada", 10)``, and returns its seq."""
    dispatcher = Dispatcher(settings)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(dispatcher.run())

        async def submit(
            user: str, points: int, board: str = "main", rules: Rules = DEFAULT_RULES
        ) -> int:
            action = Action(user, f"win:{next(_numbers)}", points, rules=rules)
            return (await dispatcher.submit(board, action)).seq

        try:
            yield submit
        finally:
            dispatcher.close()


Connect = Callable[..., Awaitable[RawViewer]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Return a function that connects viewers; all are closed after the test."""
    viewers: list[RawViewer] = []

    async def make(port: int, path: str = PATH, **request: Any) -> RawViewer:
        receive_bytes = request.pop("receive_bytes", None)
        viewer = await RawViewer.open(port, receive_bytes=receive_bytes)
        viewers.append(viewer)
        await viewer.send(request_bytes(path, **request))
        answer = await viewer.answer()
        assert answer.status == 101, (answer.status, answer.body)
        return viewer

    yield make
    for viewer in viewers:
        viewer.close()


@pytest.fixture
async def handshake() -> AsyncIterator[Callable[..., Awaitable[HttpResponse]]]:
    """Return a function that sends a handshake and reads the response; accepted ones stay open."""
    viewers: list[RawViewer] = []

    async def send(
        port: int, path: str = PATH, raw: bytes | None = None, **request: Any
    ) -> HttpResponse:
        viewer = await RawViewer.open(port)
        viewers.append(viewer)
        await viewer.send(request_bytes(path, **request) if raw is None else raw)
        answer = await viewer.answer()
        if answer.status != 101:
            viewer.close()
        return answer

    yield send
    for viewer in viewers:
        viewer.close()


__all__ = ["MakeToken", "RawViewer", "connect", "handshake", "start_streamer"]
