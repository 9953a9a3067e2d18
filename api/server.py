"""Serves the api by scoreboard.http: the address, the limits, the shutdown.

Shutdown phases: the api is not ready, still accepts requests for a moment, and closes each
connection after its response; the port closes; requests in flight finish; the caller then closes
their dependencies.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from api.app import Api
from api.metrics import CONNECTIONS
from scoreboard.http.server import Server, ServerLimits
from scoreboard.runtime import sockets
from scoreboard.runtime.audit import audit_start
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger
from scoreboard.runtime.tracing import FLUSH_S
from scoreboard.security.addresses import trusted_networks

KEEP_ALIVE_S: Final = 75.0
"""Longer than the idle timeout of gateways (60 s), so that the gateway closes the connection."""

SEND_S: Final = 20.0
"""Time for a client to read 64 KiB: 26 kbit/s."""

RESERVED_FILES: Final = 200
"""File descriptors reserved for Redis, PostgreSQL, metrics and logs."""

CLOSE_S: Final = 0.5
"""Part of the drain time reserved for closing dependencies after the last request."""

_log = get_logger(__name__)


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Bind the address of the api; ``shared`` with other workers (SO_REUSEPORT).

    Raises SettingInvalid, naming the settings, if the address cannot be bound.
    """
    variables = "SCOREBOARD_API_HOST, SCOREBOARD_API_PORT"
    return sockets.bind_listener(host, port, variables=variables, shared=shared)


async def serve(
    app: Api,
    settings: Settings,
    listener: socket.socket,
    stop: StopEvent,
    *,
    started: Callable[[], None],
) -> None:
    """Serve until ``stop``, then finish the requests in flight.

    ``started`` is called once requests are accepted.
    """
    server = Server(app.router, limits_of(settings))
    CONNECTIONS.set_function(lambda: server.count)
    notice_s = min(settings.drain_notice_s, settings.drain_s / 2)
    async with server.listening(listener):
        app.health.is_listening = True
        host, port = listener.getsockname()[:2]
        _log.info("api_listening", host=host, port=port)
        audit_start(settings)
        started()
        await stop.wait()
        app.health.drain()
        server.is_draining = True
        await asyncio.sleep(notice_s)
        close_s = CLOSE_S + (FLUSH_S if settings.tracing != "off" else 0.0)
        within_s = max(settings.drain_s - notice_s - close_s, 0.0)
        _log.info(
            "drain_started", requests=app.router.in_flight + app.router.waiting, within_s=within_s
        )
        await server.drain(within_s)


def limits_of(settings: Settings) -> ServerLimits:
    """Return the limits on clients, as far as the limit on open files allows."""
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
