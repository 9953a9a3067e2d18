"""A network between servers on loopback that can be severed, as between hosts.

    with SeveredNetwork() as network:
        port = network.forward(server.port, to="127.0.0.11")
        network.sever({"127.0.0.11"})                # holds all traffic with other servers
        network.heal()

A server is known by the address from which it connects, and is reached through its forwarded ports.
Traffic of clients, which have other addresses, always passes. As between hosts, connections stay
open while they are severed, and bytes arrive after the network has healed.
"""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Self, TypeVar

from cli.embedded.ports import HOST, find_free_port

T = TypeVar("T")
_CHUNK_BYTES = 65536
ACCEPT_ITERATIONS = 5
"""Iterations of the loop from accepting a connection to the end of its tasks, and some more."""


class SeveredNetwork:
    """Forwards ports in a thread of its own, so that a test may block."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._servers: set[str] = set()
        self._severed: frozenset[str] = frozenset()
        self._changed = asyncio.Event()
        self._listeners: list[asyncio.Server] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_closing = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def forward(self, target_port: int, *, to: str) -> int:
        """Return a new port that leads to ``target_port`` of the server with the address ``to``."""
        self._servers.add(to)
        port = find_free_port()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(reader, writer, target_port, to)

        async def listen() -> None:
            self._listeners.append(await asyncio.start_server(serve, HOST, port))

        self._run(listen())
        return port

    def sever(self, addresses: set[str]) -> None:
        """Hold traffic between these servers and all others; it goes on among them."""
        self._change(frozenset(addresses))

    def heal(self) -> None:
        """Deliver what was held, and all traffic from now on."""
        self._change(frozenset())

    def _change(self, severed: frozenset[str]) -> None:
        async def change() -> None:
            self._severed = severed
            self._changed.set()
            self._changed = asyncio.Event()

        self._run(change())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _end(self) -> None:
        self._is_closing = True
        self._changed.set()
        for listener in self._listeners:
            listener.close()
        # A connection that was accepted a moment ago gets its tasks only in the next iterations.
        for _ in range(ACCEPT_ITERATIONS):
            for writer in self._writers:
                writer.transport.abort()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)  # an aborted transport closes its socket in the next iteration

    async def _serve(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        target_port: int,
        target: str,
    ) -> None:
        source = writer.get_extra_info("peername")[0]
        writers = {writer}
        self._writers |= writers
        try:
            with suppress(OSError):
                if self._is_closing:
                    return
                await self._passage(source, target)
                answers, server = await asyncio.open_connection(HOST, target_port)
                writers.add(server)
                self._writers |= writers
                await asyncio.gather(
                    self._pump(reader, server, source, target),
                    self._pump(answers, writer, source, target),
                )
        finally:
            self._writers -= writers
            for one in writers:
                one.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: str, target: str
    ) -> None:
        """Carry bytes in one direction; a connection that one side closes is closed for both."""
        try:
            while data := await reader.read(_CHUNK_BYTES):
                await self._passage(source, target)
                writer.write(data)
                await writer.drain()
            await self._passage(source, target)
        finally:
            writer.close()

    async def _passage(self, source: str, target: str) -> None:
        """Wait until the network carries bytes between two servers.

        Raises ConnectionAbortedError when the network ends.
        """
        while source in self._servers and (source in self._severed) != (target in self._severed):
            await self._changed.wait()
            if self._is_closing:
                raise ConnectionAbortedError
