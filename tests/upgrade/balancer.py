"""A TCP load balancer, as the gateway is one: connections go to the targets in turn.

Like the gateway it tries the next target if one refuses the connection, and never repeats what it
has sent.
"""

import asyncio
from contextlib import suppress
from typing import Self

HOST = "127.0.0.1"
_CHUNK_BYTES = 65_536


class Balancer:
    """Forwards its own port to the ports in ``targets``; an async context manager."""

    def __init__(self) -> None:
        self.port = 0
        self.targets: list[int] = []
        self._listener: asyncio.Server | None = None
        self._turn = 0
        self._handlers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._listener is not None:
            self._listener.close()
        for handler in list(self._handlers):
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            server = await self._connect()
            if server is not None:
                answers, requests = server
                sending = asyncio.create_task(_pump(reader, requests))
                try:
                    await _pump(answers, writer)
                finally:
                    sending.cancel()
                    requests.close()
        finally:
            writer.close()
            self._handlers.discard(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        targets = list(self.targets)
        self._turn += 1
        for place in range(len(targets)):
            port = targets[(self._turn + place) % len(targets)]
            with suppress(OSError):
                return await asyncio.open_connection(HOST, port)
        return None


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Forward until the source ends; a lost source also resets the sink."""
    try:
        while data := await source.read(_CHUNK_BYTES):
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()
    except OSError:
        sink.transport.abort()
