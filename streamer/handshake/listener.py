"""The listening socket of the streamer, and how many connections the process may hold.

Socket options are set before ``listen``: accepted sockets inherit them, which saves a system call
and a socket object per viewer.
"""

import socket
from typing import Final

from scoreboard.runtime.settings import Settings
from scoreboard.runtime.sockets import bind_listener, limit_send_buffer, raise_open_files_limit
from scoreboard.runtime.telemetry import get_logger
from streamer.handshake.admission import Capacity

RECEIVE_BYTES: Final = 16_384
"""Limits the size of one read, and with it the work of one iteration of the loop."""

BACKLOG: Final = 4096
"""After a restart all viewers reconnect at once; the kernel caps this at net.core.somaxconn."""

RESERVED_FILES: Final = 100
"""File descriptors reserved for Redis, probes, the issuer, logs and Python itself."""

HANDSHAKES_SHARE: Final = 4
"""With few open files allowed, one in this many is for connections that are not viewers."""

_log = get_logger(__name__)


def make_listener(settings: Settings, *, shared: bool, port: int | None = None) -> socket.socket:
    """Bind the viewers' port.

    ``shared`` lets other processes of this service bind it too. ``port`` overrides the settings.
    Raises SettingInvalid, naming the variables, if the address cannot be bound.
    """
    host = settings.ws_host
    port = settings.ws_port if port is None else port
    variables = "SCOREBOARD_WS_HOST, SCOREBOARD_WS_PORT"
    listener = bind_listener(host, port, variables=variables, shared=shared)
    limit_send_buffer(listener)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    return listener


def capacity_of(settings: Settings) -> Capacity:
    """Return the limits of the settings, reduced to what the open files limit allows."""
    wanted = settings.viewers + settings.handshakes + RESERVED_FILES
    files = raise_open_files_limit(wanted)
    if files >= wanted:
        return Capacity(settings.viewers, settings.handshakes)
    free = files - min(RESERVED_FILES, files // 2)
    handshakes = min(settings.handshakes, free // HANDSHAKES_SHARE)
    viewers = min(settings.viewers, free - handshakes)
    if viewers < settings.viewers:
        _log.warning("viewers_limited_by_open_files", viewers=viewers, files=files)
    return Capacity(viewers, handshakes)
