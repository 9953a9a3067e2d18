"""The listening socket: where viewers connect, and what every accepted connection inherits.

Options are set before ``listen``: the kernel copies them to each accepted socket, which spares a
call and a socket object per viewer.
"""

import resource
import socket
from typing import Final

from scoreboard.errors import SettingInvalid
from scoreboard.settings import Settings
from scoreboard.sockets import bound_sending
from scoreboard.telemetry import get_logger

RECEIVE_BYTES: Final = 16_384
"""Bounds what one read can bring, and with it the work of one turn of the loop."""

BACKLOG: Final = 4096
"""A restart brings everyone back at once; the kernel cuts it to net.core.somaxconn."""

RESERVED_FILES: Final = 500
"""Descriptors kept for Redis, metrics, logs and connections not yet viewers."""

_log = get_logger(__name__)


def make_listener(settings: Settings, *, shared: bool, port: int | None = None) -> socket.socket:
    """Bind the viewers' port; ``shared`` lets other processes of this service bind it too.

    ``port`` is another one than that of the settings. Raises SettingInvalid, naming the variables,
    when the address cannot be had.
    """
    host = settings.ws_host
    port = settings.ws_port if port is None else port
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, number)
    except OSError as error:
        raise _unavailable(host, port, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound_sending(listener)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        listener.bind(address)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _unavailable(host, port, error) from error
    return listener


def capacity_of(settings: Settings) -> int:
    """Give how many viewers this process may hold: the setting, or what open files allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.viewers + 2 * RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return settings.viewers
    allowed = soft - RESERVED_FILES if soft >= 2 * RESERVED_FILES else soft // 2
    if allowed < settings.viewers:
        _log.warning("viewers_limited_by_open_files", viewers=allowed, open_files=soft)
    return min(settings.viewers, allowed)


def _unavailable(host: str, port: int, error: OSError) -> SettingInvalid:
    return SettingInvalid(
        f"SCOREBOARD_WS_HOST, SCOREBOARD_WS_PORT: cannot listen on {host}:{port}: {error.strerror}"
    )
