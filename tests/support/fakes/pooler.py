"""A connection pooler that assigns PostgreSQL sessions per transaction.

    async with Pooler(postgres.url) as pooler:
        connect(pooler.url)                     # as PgBouncer with pool_mode = transaction

It implements the part of the protocol that PgBouncer does: it answers the login itself, then
forwards messages both ways until the server is outside a transaction. The startup parameter
`options` is forwarded to the server, dropped, or refused.
"""

import asyncio
import itertools
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Literal, Self

import psycopg
import pytest

from tests.support.servers.rights import as_user

HOST = "127.0.0.1"
SSL_REQUEST = 80877103
CANCEL_REQUEST = 80877102
Options = Literal["carry", "drop", "refuse"]


@dataclass(eq=False)
class _Server:
    connection: psycopg.Connection
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Pooler:
    """A pooler, as an async context manager; ``keeps`` keeps a session per client."""

    def __init__(
        self, database_url: str, *, options: Options = "carry", size: int = 5, keeps: bool = False
    ) -> None:
        self.url = ""
        self._database_url = database_url
        self._options = options
        self._keeps = keeps
        self._room = asyncio.Semaphore(size)
        self._free: list[_Server] = []
        self._made: list[_Server] = []
        self._keys = itertools.count(1_000_000)
        self._clients: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, HOST, 0)
        port = self._listener.sockets[0].getsockname()[1]
        name = self._database_url.rpartition("/")[2]
        self.url = as_user(f"postgresql://{HOST}:{port}/{name}", "any", "unused")
        return self

    async def __aexit__(self, *exception: object) -> None:
        assert self._listener is not None
        self._listener.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        for server in self._made:
            server.writer.close()
            server.connection.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            await self._talk(reader, writer)
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass
        finally:
            self._clients.discard(task)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        startup = await _startup(reader, writer)
        if self._options == "refuse" and "options" in startup:
            text = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
            writer.write(b"E" + struct.pack("!i", len(text) + 4) + text)
            await writer.drain()
            return
        options = startup.get("options", "") if self._options == "carry" else ""
        writer.write(
            b"R" + struct.pack("!ii", 8, 0)
            + _status("server_version", "18.0") + _status("client_encoding", "UTF8")
            + _status("standard_conforming_strings", "on")
            + b"K" + struct.pack("!iii", 12, next(self._keys), 7)
            + b"Z" + struct.pack("!ic", 5, b"I")
        )  # fmt: skip
        server: _Server | None = None
        try:
            while True:
                message = await _message(reader)
                if message[:1] == b"X":
                    return
                server = server or await self._lend(options)
                server.writer.write(message)
                if message[:1] in {b"Q", b"S"}:  # a simple query, or Sync
                    state = await _carry_answer(server.reader, writer)
                    if state == b"I" and not self._keeps:
                        self._give_back(server)
                        server = None
        finally:
            if server is not None:  # inside a transaction, or kept
                server.writer.close()
                server.connection.close()
                self._room.release()

    async def _lend(self, options: str) -> _Server:
        """Return the most recently used session, as PgBouncer does, or a new one."""
        await self._room.acquire()
        if self._free:
            return self._free.pop()
        connection = await asyncio.to_thread(
            psycopg.connect, self._database_url, options=options, autocommit=True
        )
        # The session is logged in; from here bytes are forwarded without the driver.
        handle = socket.socket(fileno=os.dup(connection.fileno()))
        handle.setblocking(False)
        server = _Server(connection, *await asyncio.open_connection(sock=handle))
        self._made.append(server)
        return server

    def _give_back(self, server: _Server) -> None:
        self._free.append(server)
        self._room.release()


async def _startup(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, str]:
    """Read the startup message; encryption is refused."""
    while True:
        length = int.from_bytes(await reader.readexactly(4), "big")
        body = await reader.readexactly(length - 4)
        code = int.from_bytes(body[:4], "big")
        if code == CANCEL_REQUEST:
            raise asyncio.IncompleteReadError(b"", None)
        if code != SSL_REQUEST:
            break
        writer.write(b"N")
    words = [word.decode() for word in body[4:].split(b"\0")]
    return dict(zip(words[::2], words[1::2], strict=False))


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4)


async def _carry_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Forward messages to a client until the server is ready; return its transaction status."""
    while True:
        message = await _message(reader)
        writer.write(message)
        await writer.drain()
        if message[:1] == b"Z":
            return message[5:6]


def _status(name: str, value: str) -> bytes:
    body = name.encode() + b"\0" + value.encode() + b"\0"
    return b"S" + struct.pack("!i", len(body) + 4) + body


MakePooler = Callable[..., Awaitable[Pooler]]


@pytest.fixture
async def make_pooler(database_url: str) -> AsyncIterator[MakePooler]:
    """Return a function that starts poolers for the test's database; all are closed at the end."""
    async with AsyncExitStack() as stack:

        async def make(**options: object) -> Pooler:
            return await stack.enter_async_context(Pooler(database_url, **options))  # pyright: ignore[reportArgumentType]

        yield make
