"""The server: accepts connections, limits their number and time, and drains them.

Invariants:

- connections are limited in total and per address; at a limit, a new connection replaces the one
  that has been idle for longest, so idle connections cannot block new ones;
- one sweep enforces all time limits, accurate to ``TICK_S``;
- no connection and no task outlives ``listening``.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Final

from msgspec import Struct

from scoreboard.errors import Overloaded, ScoreboardError, TooManyConnections
from scoreboard.http.connection import Connection
from scoreboard.http.request import Handler
from scoreboard.runtime.limits import HeadLimits
from scoreboard.runtime.sockets import Acceptor, limit_buffers
from scoreboard.runtime.telemetry import get_logger
from scoreboard.security.addresses import Network, client_address, is_trusted_hop

BACKLOG: Final = 1024
TICK_S: Final = 0.25

LATE_S: Final = 0.5
"""After a tick this late, no deadline is enforced: received data may be unread."""

RETRY_AFTER_S: Final = 5

REFUSED_MAX: Final = 64
"""Maximum number of refused connections that still read their response; the oldest is closed."""

_log = get_logger(__name__)


class ServerLimits(Struct, frozen=True, kw_only=True):
    """The limits on clients of a server."""

    head: HeadLimits = HeadLimits()
    body_bytes: int
    head_s: float
    """Time to send a head."""

    body_s: float
    """Time to send a body."""

    keep_alive_s: float
    """Time between two requests of a connection."""

    send_s: float
    """Time to read a slice of a response."""

    connections: int
    connections_per_address: int
    trusted_hops: tuple[Network, ...] = ()
    """Gateways, whose connections carry many clients: they count in total only."""


class Address:
    """The connections of one address."""

    __slots__ = ("count", "idle", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.idle: dict[Connection, None] = {}
        """Idle connections, the longest idle first."""


class Server:
    """One server. Create it in a running loop."""

    def __init__(self, handler: Handler, limits: ServerLimits) -> None:
        """Take the application that answers requests."""
        self.handler = handler
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.now_s = self.loop.time
        self.is_draining = False
        """Whether each response ends its connection."""
        self.date_line = _date_line()
        self.count = 0
        """The number of open connections."""
        self._addresses: dict[str, Address] = {}
        self._idle: dict[Connection, None] = {}
        """Idle connections, the longest idle first."""
        self._serving: set[Connection] = set()
        """Connections with a task, including those of disconnected peers."""
        self._refused: dict[Connection, None] = {}
        """Connections over the limits, which are not counted; the oldest first."""
        self._is_empty = asyncio.Event()
        self._listening = Acceptor()

    @asynccontextmanager
    async def listening(self, listener: socket.socket) -> AsyncIterator[None]:
        """Serve while the block runs; then abort the remaining connections."""
        limit_buffers(listener)
        await self._listening.begin(listener, lambda: Connection(self), BACKLOG)
        sweeping = self.loop.create_task(self._sweep())
        try:
            yield
        finally:
            self._listening.close()
            sweeping.cancel()
            await asyncio.gather(sweeping, *self._abort_all(), return_exceptions=True)

    async def drain(self, within_s: float) -> None:
        """Stop accepting, let requests in flight finish, and close every connection."""
        self.is_draining = True
        self._listening.close()
        for connection in tuple(self._idle):
            connection.retire()
        # It was set if there was no connection for a moment while the port was still open.
        self._is_empty.clear()
        self._note_if_empty()
        try:
            async with asyncio.timeout(within_s):
                await self._is_empty.wait()
        except TimeoutError:
            _log.warning("requests_aborted", requests=len(self._serving), connections=self.count)

    # Called by connections

    def add(self, connection: Connection) -> ScoreboardError | None:
        """Count a new connection, or return the error to refuse it with."""
        refusal = self._refusal_of(connection)
        if refusal is not None:
            if len(self._refused) >= REFUSED_MAX:
                _close_oldest(self._refused)
            self._refused[connection] = None
        return refusal

    def _refusal_of(self, connection: Connection) -> ScoreboardError | None:
        limits, address = self.limits, self._address_of(connection.peer[0])
        most = limits.connections_per_address
        if address is not None and address.count >= most and not _close_oldest(address.idle):
            return TooManyConnections(
                f"At most {most} connections per address", retry_after_s=RETRY_AFTER_S
            )
        if self.count >= limits.connections and not _close_oldest(self._idle):
            return Overloaded("This process is at its limit of connections")
        self.count += 1
        if address is not None:
            connection.address = address
            address.count += 1
            self._addresses[address.name] = address
        self.mark_idle(connection)
        return None

    def mark_idle(self, connection: Connection) -> None:
        """Note that a connection serves no request."""
        self._idle[connection] = None
        if connection.address is not None:
            connection.address.idle[connection] = None

    def mark_lingering(self, connection: Connection) -> None:
        """Note that a connection stays open only until its peer has read the last response."""
        if connection not in self._refused:
            self.mark_idle(connection)

    def mark_busy(self, connection: Connection) -> None:
        """Note that a connection serves a request."""
        self._remove_idle(connection)
        self._serving.add(connection)

    def request_ended(self, connection: Connection) -> None:
        """Note that the task of a request has ended."""
        self._serving.discard(connection)
        if self.is_draining:
            self._note_if_empty()

    def remove(self, connection: Connection) -> None:
        """Remove a closed connection."""
        if connection in self._refused:
            del self._refused[connection]
            return
        self._remove_idle(connection)
        self.count -= 1
        address = connection.address
        if address is not None:
            address.count -= 1
            if not address.count:
                del self._addresses[address.name]
        if self.is_draining:
            self._note_if_empty()

    def _address_of(self, peer: str) -> "Address | None":
        """Return the address a connection is counted for; None for a trusted hop."""
        if is_trusted_hop(peer, self.limits.trusted_hops):
            return None
        name = client_address(peer, (), ())
        return self._addresses.get(name) or Address(name)

    def _remove_idle(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        if connection.address is not None:
            connection.address.idle.pop(connection, None)

    def _note_if_empty(self) -> None:
        if not self.count and not self._serving:
            self._is_empty.set()

    def _abort_all(self) -> "list[asyncio.Task[None]]":
        """Abort every connection and cancel every task; return the tasks."""
        tasks = [one.task for one in self._serving if one.task is not None]
        for connection in (*self._refused, *self._idle, *self._serving):
            connection.abort()
        for task in tasks:
            task.cancel()
        return tasks

    async def _sweep(self) -> None:
        """Enforce the time limits until cancelled."""
        was_late = False
        while True:
            due_s = self.now_s() + TICK_S
            await asyncio.sleep(TICK_S)
            now_s = self.now_s()
            self.date_line = _date_line()
            was_late = now_s - due_s > LATE_S and not was_late
            if not was_late:
                self._enforce_deadlines(now_s)

    def _enforce_deadlines(self, now_s: float) -> None:
        for connection in (*self._refused, *self._idle, *self._serving):
            if connection.due_s <= now_s:
                connection.overdue()
            limit = connection.limit
            if limit is not None and limit.due_s <= now_s:
                limit.expire()


def _close_oldest(connections: dict[Connection, None]) -> bool:
    """Close the first connection; return whether there was one."""
    oldest = next(iter(connections), None)
    if oldest is None:
        return False
    oldest.abort()
    return True


def _date_line() -> bytes:
    return b"date: %b\r\n" % formatdate(usegmt=True).encode()
