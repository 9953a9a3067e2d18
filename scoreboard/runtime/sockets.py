"""Sockets: addresses, binding, accepting, buffer limits, and the limit on open files."""

import asyncio
import resource
import socket
import sys
from collections.abc import Callable
from typing import Final

from scoreboard.errors import SettingInvalid

SEND_BYTES: Final = 16_384
"""With this, 68 KiB are buffered for a peer that never reads; by default nearly 4 MB."""

NOTSENT_BYTES: Final = 8192
"""Data the kernel buffers for a slow peer becomes outdated; the newest board should be next."""

RECEIVE_BYTES: Final = 32_768
"""Bounds one read of requests, and so the memory of a connection; the kernel doubles it."""

ANSWER_BYTES: Final = 65_536
"""Bounds the response data buffered for a client that never reads; the kernel doubles it."""

USER_TIMEOUT_MS: Final = 20_000
"""A connection whose sent data is not acknowledged for this long is closed."""

ACCEPTS: Final = 4
"""Connections accepted per loop iteration. uvloop accepts one per listening handle, so in a busy
process a new connection would wait behind all connections queued before it. A connection wakes all
handles, and all but one find nothing: 16 handles made a handshake a fifth more expensive."""

_TCP_NOTSENT_LOWAT: Final = 25
_LOOPBACK: Final = "127.0.0.1"
_WILDCARDS: Final = {"": _LOOPBACK, "0.0.0.0": _LOOPBACK, "::": "::1"}  # noqa: S104 (compared)


def connect_host(host: str) -> str:
    """Return the host to connect to for a service that listens on ``host``."""
    return _WILDCARDS.get(host, host)


def netloc(host: str, port: int) -> str:
    """Return host and port in the form of a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def limit_send_buffer(connection: socket.socket) -> None:
    """Limit the send buffer of a socket; accepted connections inherit it from a listening one."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
    if sys.platform == "linux":
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, NOTSENT_BYTES)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def bind_listener(
    host: str, port: int, *, variables: str = "the address", shared: bool = False
) -> socket.socket:
    """Bind a non-blocking TCP socket; ``shared`` with other processes (SO_REUSEPORT).

    Raises SettingInvalid, naming the settings in ``variables``, if the address cannot be bound.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.setblocking(False)
    # Python raises TypeError for a host that IDNA cannot encode, ValueError for one with a NUL.
    except (OSError, TypeError, ValueError) as error:
        listener.close()
        why = error.strerror if isinstance(error, OSError) else "not a host name"
        reason = f"cannot listen on {host}:{port}: {why}"
        raise SettingInvalid(f"{variables}: {reason}") from error
    return listener


class Acceptor:
    """Accepts connections on a bound socket until it is closed."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []

    @property
    def is_open(self) -> bool:
        """Whether connections are accepted."""
        return bool(self._servers)

    async def begin(
        self, listener: socket.socket, protocol: Callable[[], asyncio.Protocol], backlog: int
    ) -> None:
        """Accept connections, each with a new ``protocol``; ``close`` closes ``listener``."""
        loop = asyncio.get_running_loop()
        # Duplicates of one socket share its accept queue.
        handles = [listener, *(listener.dup() for _ in range(ACCEPTS - 1))]
        for handle in handles:
            server = await loop.create_server(protocol, sock=handle, backlog=backlog)
            self._servers.append(server)

    def close(self) -> None:
        """Stop accepting connections."""
        for server in self._servers:
            server.close()
        self._servers.clear()


def limit_buffers(listener: socket.socket) -> None:
    """Limit the buffers of the HTTP connections that ``listener`` accepts."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ANSWER_BYTES)
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def raise_open_files_limit(wanted: int) -> int:
    """Raise the limit on open files up to ``wanted``; return the resulting limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft
