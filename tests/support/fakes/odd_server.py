"""A TCP server that completes the Redis handshake, then answers every command with the same bytes.

async with odd_server(b"+what\r\n") as url:
    ...
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import hiredis

HANDSHAKE = frozenset({b"AUTH", b"CLIENT", b"SELECT", b"HELLO", b"READONLY"})


@asynccontextmanager
async def odd_server(answer: bytes) -> AsyncIterator[str]:
    """Serve on a free loopback port; return the URL."""
    peers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.add(writer)
        commands = hiredis.Reader()
        try:
            while data := await reader.read(65_536):
                commands.feed(data)
                while (command := commands.gets()) is not False:
                    writer.write(b"+OK\r\n" if _is_handshake(command) else answer)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            peers.discard(writer)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()
        for peer in tuple(peers):
            peer.transport.abort()
        await asyncio.sleep(0)


def _is_handshake(command: Any) -> bool:
    return isinstance(command, list) and bool(command) and command[0].upper() in HANDSHAKE
