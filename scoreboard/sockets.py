"""Keeps the kernel from hoarding boards for peers that do not read. No state."""

import socket
import sys
from typing import Final

SEND_BYTES: Final = 16_384
"""A peer that never reads swallows 68 KiB of boards so; by default nearly 4 MB."""

NOTSENT_BYTES: Final = 8192
"""Boards the kernel holds back for a slow peer are boards too old; the newest should be next."""

USER_TIMEOUT_MS: Final = 20_000
"""A peer that vanished with data in flight is given up after this."""

_TCP_NOTSENT_LOWAT: Final = 25


def bound_sending(connection: socket.socket) -> None:
    """Let little lie unsent; on a listening socket every accepted one inherits it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
    if sys.platform == "linux":
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, NOTSENT_BYTES)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
