"""Host and port of listeners on this machine: formatting, and checks whether a port is free."""

import os
import random
import socket
import sys
from collections import deque
from typing import Final

from scoreboard.errors import EmbeddedFailed

HOST: Final = "127.0.0.1"
"""The default host of all listeners."""


def check_port_free(host: str, port: int, name: str) -> None:
    """Check that a port can be listened on; port 0 is not checked.

    Raises EmbeddedFailed, which names the setting ``name``.
    """
    if not port:
        return
    try:
        try_bind(host, port)
    except OSError as error:
        raise EmbeddedFailed(
            f"Cannot listen on port {port} ({name}) of {host}: {error.strerror}"
        ) from error
    except UnicodeError as error:
        raise EmbeddedFailed(f"{host!r} ({name}) is not an address") from error


_RESERVATIONS: Final = 64
"""How many ports one process keeps reserved; an older port has a listener by then."""
_reserved: Final[deque[int]] = deque()
"""Descriptors of the reservations, oldest first; they end with the process."""


def find_free_port() -> int:
    """Return a free loopback port that no other call gets, in this process or another.

    It is below the ports that the kernel assigns to outgoing connections, so that none of these
    takes it before the server starts or while it restarts.
    """
    for _ in range(200):
        port = random.randint(15_000, 32_000)  # noqa: S311 - not a secret
        try:
            try_bind(HOST, port)
            _reserve(port)
        except OSError:
            continue
        return port
    raise EmbeddedFailed("There is no free port between 15000 and 32000")


def _reserve(port: int) -> None:
    """Keep other calls from choosing a port between its choice and the start of its listener.

    The reservation is a name among Linux's abstract Unix sockets, which the kernel removes with
    the process. Other systems have none; there the port is only checked.

    Raises OSError if the port is reserved.
    """
    if sys.platform != "linux":
        return
    with socket.socket(socket.AF_UNIX) as holder:
        holder.bind(f"\0scoreboard-port-{port}")
        _reserved.append(holder.detach())
    if len(_reserved) > _RESERVATIONS:
        os.close(_reserved.popleft())


def try_bind(host: str, port: int) -> None:
    """Bind a socket to an address and close it.

    Raises OSError, or UnicodeError for a host that is not a name.
    """
    family, kind, number, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, number) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
