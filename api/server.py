"""The HTTP server: uvicorn with what it lacks, and the way it stops.

What uvicorn lacks: a time limit on the head of a request, and errors of the parser as problems.
Phases of a stop: ready turns red and requests are still taken for a moment; the port closes;
requests under way are finished; the caller then closes what they needed.
"""

import asyncio
import contextlib
import errno
import math
import socket
from collections.abc import Callable, Generator
from typing import Any, Final, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from api.app import Api
from api.problems import MEDIA_TYPE, body_of
from scoreboard.errors import Malformed, SettingInvalid
from scoreboard.lifecycle import Stop
from scoreboard.settings import Settings
from scoreboard.telemetry import get_logger

KEEP_ALIVE_S: Final = 75
"""Longer than gateways keep an idle connection (60 s): theirs must be the side that closes it."""

BACKLOG: Final = 1024
SWEEP_S: Final = 1.0

_log = get_logger(__name__)


class Joined:
    """A transport that writes the head of an answer together with its body.

    uvicorn writes them one by one, which is two system calls and often two packets. Only heads
    that announce a length are held back: their body follows at once.
    """

    __slots__ = ("_head", "_transport", "abort", "get_extra_info", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.abort = transport.abort
        self.get_extra_info = transport.get_extra_info
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Write, or hold a head back until its body comes."""
        if self._head:
            data, self._head = self._head + data, b""
        elif data[:9] == b"HTTP/1.1 " and b"\r\ncontent-length: " in data:
            self._head = data
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Write a head whose body does not come: of an answer to HEAD."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def close(self) -> None:
        """Close behind what is held back."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever the transport has)
        return getattr(self._transport, name)


class Protocol(HttpToolsProtocol):
    """One connection; notes since when it has been sending a request."""

    sending_since_s: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to count: a connection that sends nothing is as slow as one that sends slowly."""
        super().connection_made(cast("asyncio.Transport", Joined(transport)))
        self.sending_since_s = self.loop.time()

    def on_response_complete(self) -> None:
        """Let go of a head without a body, and of the request."""
        cast("Joined", self.transport).flush()
        super().on_response_complete()

    def on_message_begin(self) -> None:
        """Begin to count for this request."""
        self.sending_since_s = self.loop.time()
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Stop counting: it is our turn."""
        self.sending_since_s = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser could not read with a problem, and close."""
        body = body_of(Malformed(f"{msg.rstrip('.')}: it is not HTTP/1.1"), "")
        head = (
            f"HTTP/1.1 400 Bad Request\r\ncontent-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        if not self.transport.is_closing():
            self.transport.write(head.encode() + body)
            self.transport.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            _log.info("api_listening", host=host, port=port)
        if self._on_started is not None:
            self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # signals are the lifecycle's


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Take the address to listen on; ``shared`` with other workers (SO_REUSEPORT).

    Raises SettingInvalid, naming the variable, where it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingInvalid(f"SCOREBOARD_API_PORT: port {port} is in use") from error
        raise SettingInvalid(
            f"SCOREBOARD_API_HOST: cannot listen on {host}:{port}: {error.strerror}"
        ) from error
    taken.setblocking(False)
    return taken


async def serve(
    app: Api,
    settings: Settings,
    listener: socket.socket,
    stop: Stop,
    *,
    started: Callable[[], None] | None = None,
) -> None:
    """Serve until ``stop``, then finish what is under way.

    ``started`` is called once requests are taken.
    """
    config = uvicorn.Config(
        cast("Any", app),
        http=Protocol,
        loop="none",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.drain_s),
    )
    server = _Server(config, started)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(server.serve(sockets=[listener]))
        sweeping = tasks.create_task(_sweep(server.server_state, settings.body_timeout_s))
        stopping = tasks.create_task(_stop(app, settings, server, stop))
        await serving
        sweeping.cancel()
        stopping.cancel()


async def _stop(app: Api, settings: Settings, server: uvicorn.Server, stop: Stop) -> None:
    await stop.wait()
    app.health.drain()
    await asyncio.sleep(min(settings.drain_notice_s, settings.drain_s / 2))
    server.should_exit = True


async def _sweep(state: ServerState, body_timeout_s: float) -> None:
    """Close connections that have been sending one request for too long.

    The body's own limit answers with a problem first; this is for heads, and for bodies that
    nobody reads any more.
    """
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP_S)
        oldest_s = loop.time() - 2 * body_timeout_s
        for connection in list(state.connections):
            since_s = getattr(connection, "sending_since_s", None)
            if since_s is not None and since_s < oldest_s:
                connection.transport.abort()
