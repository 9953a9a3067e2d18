"""Keeps the kernel from hoarding what peers do not read or send; counts open files. No state."""

import asyncio
import resource
import socket
import sys
from collections.abc import Callable
from typing import Final

SEND_BYTES: Final = 16_384
"""A peer that never reads swallows 68 KiB of boards so; by default nearly 4 MB."""

NOTSENT_BYTES: Final = 8192
"""Boards the kernel holds back for a slow peer are boards too old; the newest should be next."""

RECEIVE_BYTES: Final = 32_768
"""What one read of requests can bring, and so what a connection can hold; the kernel doubles it."""

ANSWER_BYTES: Final = 65_536
"""What a client that reads nothing swallows of an answer; the kernel doubles it."""

USER_TIMEOUT_MS: Final = 20_000
"""A peer that vanished with data in flight is given up after this."""

ACCEPTS: Final = 16
"""Connections accepted in one turn of the loop. uvloop accepts one per listening handle, so that in
a busy process new connections would wait behind all that were queued before them."""

_TCP_NOTSENT_LOWAT: Final = 25


def limit_send_buffer(connection: socket.socket) -> None:
    """Let little lie unsent; on a listening socket every accepted one inherits it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
    if sys.platform == "linux":
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, NOTSENT_BYTES)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Take an address to listen on; ``shared`` with other processes (SO_REUSEPORT).

    Raises OSError where it cannot be had.
    """
    taken = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind((host, port))
        taken.setblocking(False)
    except OSError:
        taken.close()
        raise
    return taken


class Acceptor:
    """Accepts connections on a bound socket until it is closed."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []

    async def begin(
        self, listener: socket.socket, protocol: Callable[[], asyncio.Protocol], backlog: int
    ) -> None:
        """Make a ``protocol`` for each connection; ``listener`` is closed by ``close``."""
        loop = asyncio.get_running_loop()
        # Handles of one socket: the kernel's queue stays a single one.
        handles = [listener, *(listener.dup() for _ in range(ACCEPTS - 1))]
        for handle in handles:
            server = await loop.create_server(protocol, sock=handle, backlog=backlog)
            self._servers.append(server)

    def close(self) -> None:
        """Accept no more."""
        for server in self._servers:
            server.close()
        self._servers.clear()


def limit_buffers(listener: socket.socket) -> None:
    """Bound what the kernel keeps for a client of HTTP; accepted connections inherit it."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ANSWER_BYTES)
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def raise_open_files_limit(wanted: int) -> int:
    """Raise the limit on open files towards ``wanted``; return what the process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft
