"""Runs the api behind scoreboard.http: the address, the limits, and the way it stops.

Phases of a stop: ready turns red, and requests are still taken for a moment, each answer ending its
connection; the port closes; requests under way are finished; the caller then closes what they
needed.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final

from api.app import Api
from api.metrics import CONNECTIONS
from scoreboard.errors import SettingInvalid
from scoreboard.http.server import Server, ServerLimits
from scoreboard.runtime import sockets
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger
from scoreboard.security.addresses import trusted_networks

KEEP_ALIVE_S: Final = 75.0
"""Longer than gateways keep an idle connection (60 s): theirs must be the side that closes it."""

SEND_S: Final = 20.0
"""Time for a client to take 64 KiB: 26 kbit/s."""

RESERVED_FILES: Final = 200
"""Descriptors kept for Redis, PostgreSQL, metrics and logs."""

END_S: Final = 0.5
"""Part of the drain time that is kept for what comes behind the last request."""

_log = get_logger(__name__)


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Take the address to listen on; ``shared`` with other workers (SO_REUSEPORT).

    Raises SettingInvalid, naming the variable, where it cannot be had.
    """
    try:
        return sockets.bind(host, port, shared=shared)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingInvalid(f"SCOREBOARD_API_PORT: port {port} is in use") from error
        raise SettingInvalid(
            f"SCOREBOARD_API_HOST: cannot listen on {host}:{port}: {error.strerror}"
        ) from error


async def serve(
    app: Api,
    settings: Settings,
    listener: socket.socket,
    stop: StopEvent,
    *,
    started: Callable[[], None] | None = None,
) -> None:
    """Serve until ``stop``, then finish what is under way.

    ``started`` is called once requests are taken.
    """
    server = Server(app.edge, limits_of(settings))
    CONNECTIONS.set_function(lambda: server.count)
    notice_s = min(settings.drain_notice_s, settings.drain_s / 2)
    async with server.listening(listener):
        host, port = listener.getsockname()[:2]
        _log.info("api_listening", host=host, port=port)
        if started is not None:
            started()
        await stop.wait()
        app.health.drain()
        server.is_draining = True
        await asyncio.sleep(notice_s)
        within_s = max(settings.drain_s - notice_s - END_S, 0.0)
        _log.info(
            "drain_started", requests=app.edge.under_way + app.edge.waiting, within_s=within_s
        )
        await server.drain(within_s)


def limits_of(settings: Settings) -> ServerLimits:
    """Return what clients may take of the api."""
    wanted = settings.connections
    files = sockets.raise_open_files_limit(wanted + RESERVED_FILES)
    connections = min(wanted, max(files - RESERVED_FILES, files // 2))
    if connections < wanted:
        _log.warning("connections_limited_by_open_files", connections=connections, files=files)
    return ServerLimits(
        head=settings.head_limits(),
        body_bytes=settings.body_bytes,
        head_s=settings.body_timeout_s,
        body_s=settings.body_timeout_s,
        keep_alive_s=KEEP_ALIVE_S,
        send_s=SEND_S,
        connections=connections,
        connections_per_address=settings.connections_per_address,
        trusted_hops=trusted_networks(settings.trusted_hops),
    )
