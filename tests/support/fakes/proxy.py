"""A TCP proxy between a client and a real server that injects network faults.

    async with Proxy(postgres.port) as proxy:
        connect(proxy.through(postgres.url))
        proxy.freeze()                                  # accepts, forwards nothing
        seen = proxy.cut_when(TO_SERVER, b"COMMIT")     # delivered; the answer is lost

It runs on the test's event loop: blocking that loop stops the traffic too.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Self
from urllib.parse import urlsplit, urlunsplit

import pytest

HOST = "127.0.0.1"
_CHUNK_BYTES = 65536
_CLOSE_TIMEOUT_S = 10.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Direction(Enum):
    """The direction of a transfer."""

    TO_SERVER = "to server"
    TO_CLIENT = "to client"


TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


@dataclass(eq=False)
class _Trigger:
    direction: Direction
    pattern: bytes = b""
    bytes_left: int = 0
    deliver: bool = True
    fired: asyncio.Event = field(default_factory=asyncio.Event)


class Proxy:
    """Forwards its own port to a port of 127.0.0.1; an async context manager."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.connections_seen = 0
        self._target_port = target_port
        self._delay_s = 0.0
        self._is_closing = False
        self._listener: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._handlers: set[asyncio.Task[None]] = set()
        self._triggers: list[_Trigger] = []

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._is_closing = True
        self.refuse()
        self._flowing.set()
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await asyncio.gather(*self._handlers)

    def through(self, url: str) -> str:
        """Return ``url`` with this proxy's port instead of the server's."""
        parts = urlsplit(url)
        credentials = parts.netloc.rpartition("@")[0]
        address = f"{HOST}:{self.port}"
        netloc = f"{credentials}@{address}" if credentials else address
        return urlunsplit(parts._replace(netloc=netloc))

    @property
    def open_connections(self) -> int:
        """Return the number of connected clients."""
        return len(self._handlers)

    def cut(self) -> None:
        """Reset every connection; accept new ones."""
        for writer in tuple(self._writers):
            _reset(writer)

    def refuse(self) -> None:
        """Reset every connection and refuse new ones, as if the server had stopped."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.cut()

    def freeze(self) -> None:
        """Forward nothing in either direction; still accept connections."""
        self._flowing.clear()

    def delay(self, delay_s: float) -> None:
        """Delay every chunk by ``delay_s`` from now on."""
        self._delay_s = delay_s

    async def restore(self) -> None:
        """Stop refusing, freezing and delaying; remove triggers that have not fired."""
        self._delay_s = 0.0
        self._triggers.clear()
        self._flowing.set()
        await self._listen()

    def cut_after(self, direction: Direction, byte_count: int) -> asyncio.Event:
        """Forward ``byte_count`` more bytes in that direction, then reset their connection.

        The event is set when that has happened; it happens once.
        """
        return self._arm(_Trigger(direction, bytes_left=byte_count))

    def cut_when(
        self,
        direction: Direction,
        pattern: bytes,
        *,
        deliver: bool = True,
    ) -> asyncio.Event:
        """Reset the connection on which ``pattern`` is seen, after or instead of delivering it.

        The server acts on a delivered pattern: only the answer is lost. The event is set when that
        has happened; it happens once.
        """
        return self._arm(_Trigger(direction, pattern=pattern, deliver=deliver))

    def _arm(self, trigger: _Trigger) -> asyncio.Event:
        self._triggers.append(trigger)
        return trigger.fired

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, HOST, self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        self.connections_seen += 1
        async with AsyncExitStack() as stack:
            stack.callback(self._handlers.discard, task)
            self._keep(stack, writer)
            with suppress(OSError):
                await self._flowing.wait()
                if self._is_closing:
                    return
                answers, server = await asyncio.open_connection(HOST, self._target_port)
                self._keep(stack, server)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(TO_SERVER, reader, writer, server))
                    group.create_task(self._pump(TO_CLIENT, answers, writer, server))

    def _keep(self, stack: AsyncExitStack, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        stack.callback(writer.close)
        stack.callback(self._writers.discard, writer)

    async def _pump(
        self,
        direction: Direction,
        source: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        server: asyncio.StreamWriter,
    ) -> None:
        sink = server if direction is TO_SERVER else client
        overlap = b""
        try:
            while data := await source.read(_CHUNK_BYTES):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                await self._flowing.wait()
                allowed, trigger = self._recheck(direction, data, overlap)
                overlap = (overlap + data)[-256:]
                sink.write(data[:allowed])
                await sink.drain()
                if trigger is not None:
                    # An orderly close: the server still reads what was delivered.
                    server.close()
                    _reset(client)
                    trigger.fired.set()
                    return
            await self._flowing.wait()
            if not sink.is_closing():
                sink.write_eof()
        except (OSError, RuntimeError):
            # uvloop raises RuntimeError for a write to a closed connection.
            _reset(sink)

    def _recheck(
        self,
        direction: Direction,
        data: bytes,
        overlap: bytes,
    ) -> tuple[int, _Trigger | None]:
        for trigger in self._triggers:
            if trigger.direction is not direction:
                continue
            if trigger.pattern:
                tail = overlap[max(0, len(overlap) - len(trigger.pattern) + 1) :]
                found = (tail + data).find(trigger.pattern)
                if found < 0:
                    continue
                end = found + len(trigger.pattern) - len(tail)
                allowed = end if trigger.deliver else max(0, found - len(tail))
            elif len(data) < trigger.bytes_left:
                trigger.bytes_left -= len(data)
                continue
            else:
                allowed = trigger.bytes_left
            self._triggers.remove(trigger)
            return allowed, trigger
        return len(data), None


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()


MakeProxy = Callable[[int], Awaitable[Proxy]]


@pytest.fixture
async def make_proxy() -> AsyncIterator[MakeProxy]:
    """Return a function that starts a proxy to a port; all are closed after the test."""
    async with AsyncExitStack() as stack:

        async def make(target_port: int) -> Proxy:
            return await stack.enter_async_context(Proxy(target_port))

        yield make
