"""The server: accepts connections, bounds their number and their time, and lets them finish.

Used by the api and by the development issuer. What stays true:

- there are no more connections than the limits allow, in total and from one address; for one more,
  the connection that has been without a request for longest is closed, so silence keeps nobody out;
- one sweep enforces all limits of time, to within ``TICK_S``;
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
"""After a tick this late nobody is judged: what they sent may lie unread."""

RETRY_AFTER_S: Final = 5

REFUSED_MAX: Final = 64
"""Most connections beyond the limits that still read their refusal. One more ends the oldest."""

_log = get_logger(__name__)


class ServerLimits(Struct, frozen=True, kw_only=True):
    """What peers may take of a server."""

    head: HeadLimits = HeadLimits()
    body_bytes: int
    head_s: float
    """Time to send a head."""

    body_s: float
    """Time to send a body."""

    keep_alive_s: float
    """Time between two requests of a connection."""

    send_s: float
    """Time to take a piece of an answer."""

    connections: int
    connections_per_address: int
    trusted_hops: tuple[Network, ...] = ()
    """Gateways, whose connections are those of many clients: they count in total only."""


class Address:
    """The connections of one address."""

    __slots__ = ("count", "name", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.waiting: dict[Connection, None] = {}
        """Those without a request under way, the longest waiting first."""


class Server:
    """One server. Make it in a running loop."""

    def __init__(self, handler: Handler, limits: ServerLimits) -> None:
        """Take the application behind it."""
        self.handler = handler
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.now_s = self.loop.time
        self.is_draining = False
        """Whether each answer ends its connection."""
        self.date_line = _date_line()
        self.count = 0
        """Connections that are open."""
        self._addresses: dict[str, Address] = {}
        self._waiting: dict[Connection, None] = {}
        """Connections without a request under way, the longest waiting first."""
        self._serving: set[Connection] = set()
        """Connections with a task, also of peers that have gone."""
        self._refused: dict[Connection, None] = {}
        """Connections beyond the limits, which are not counted; the oldest first."""
        self._is_empty = asyncio.Event()
        self._listening = Acceptor()

    @asynccontextmanager
    async def listening(self, listener: socket.socket) -> AsyncIterator[None]:
        """Serve while the block runs; then end whatever is left, at once."""
        limit_buffers(listener)
        await self._listening.begin(listener, lambda: Connection(self), BACKLOG)
        sweeping = self.loop.create_task(self._sweep())
        try:
            yield
        finally:
            self._listening.close()
            sweeping.cancel()
            await asyncio.gather(sweeping, *self._cut(), return_exceptions=True)

    async def drain(self, within_s: float) -> None:
        """Accept no more, let the requests under way finish, and close every connection."""
        self.is_draining = True
        self._listening.close()
        for connection in tuple(self._waiting):
            connection.retire()
        self._note_if_empty()
        try:
            async with asyncio.timeout(within_s):
                await self._is_empty.wait()
        except TimeoutError:
            _log.warning("requests_cut", requests=len(self._serving), connections=self.count)

    # For connections

    def enter(self, connection: Connection) -> ScoreboardError | None:
        """Count a new connection; return the error by which it is refused instead."""
        refusal = self._refusal_of(connection)
        if refusal is not None:
            if len(self._refused) >= REFUSED_MAX:
                _make_room(self._refused)
            self._refused[connection] = None
        return refusal

    def _refusal_of(self, connection: Connection) -> ScoreboardError | None:
        limits, address = self.limits, self._address_of(connection.peer[0])
        most = limits.connections_per_address
        if address is not None and address.count >= most and not _make_room(address.waiting):
            return TooManyConnections(
                f"One address may have {most} connections", retry_after_s=RETRY_AFTER_S
            )
        if self.count >= limits.connections and not _make_room(self._waiting):
            return Overloaded("This process has all the connections it may hold")
        self.count += 1
        if address is not None:
            connection.address = address
            address.count += 1
            self._addresses[address.name] = address
        self.wait(connection)
        return None

    def wait(self, connection: Connection) -> None:
        """Note that a connection has no request under way."""
        self._waiting[connection] = None
        if connection.address is not None:
            connection.address.waiting[connection] = None

    def linger(self, connection: Connection) -> None:
        """Note that a connection has had its last answer, and stays until its peer has read it."""
        if connection not in self._refused:
            self.wait(connection)

    def begin(self, connection: Connection) -> None:
        """Note that a connection has a request under way."""
        self._forget_waiting(connection)
        self._serving.add(connection)

    def end(self, connection: Connection) -> None:
        """Note that the task of a request has ended."""
        self._serving.discard(connection)
        if self.is_draining:
            self._note_if_empty()

    def leave(self, connection: Connection) -> None:
        """Forget a connection."""
        if connection in self._refused:
            del self._refused[connection]
            return
        self._forget_waiting(connection)
        self.count -= 1
        address = connection.address
        if address is not None:
            address.count -= 1
            if not address.count:
                del self._addresses[address.name]
        if self.is_draining:
            self._note_if_empty()

    def _address_of(self, peer: str) -> "Address | None":
        """Return by what a connection is counted; None for a trusted hop's."""
        if is_trusted_hop(peer, self.limits.trusted_hops):
            return None
        name = client_address(peer, (), ())
        return self._addresses.get(name) or Address(name)

    def _forget_waiting(self, connection: Connection) -> None:
        self._waiting.pop(connection, None)
        if connection.address is not None:
            connection.address.waiting.pop(connection, None)

    def _note_if_empty(self) -> None:
        if not self.count and not self._serving:
            self._is_empty.set()

    def _cut(self) -> "list[asyncio.Task[None]]":
        """Abort every connection and cancel every task; return the tasks."""
        tasks = [one.task for one in self._serving if one.task is not None]
        for connection in (*self._refused, *self._waiting, *self._serving):
            connection.abort()
        for task in tasks:
            task.cancel()
        return tasks

    async def _sweep(self) -> None:
        """Enforce the limits of time until cancelled."""
        was_late = False
        while True:
            due_s = self.now_s() + TICK_S
            await asyncio.sleep(TICK_S)
            now_s = self.now_s()
            self.date_line = _date_line()
            was_late = now_s - due_s > LATE_S and not was_late
            if not was_late:
                self._end_overdue(now_s)

    def _end_overdue(self, now_s: float) -> None:
        for connection in (*self._refused, *self._waiting, *self._serving):
            if connection.due_s <= now_s:
                connection.overdue()
            limit = connection.limit
            if limit is not None and limit.due_s <= now_s:
                limit.expire()


def _make_room(waiting: dict[Connection, None]) -> bool:
    """Close the connection that waits longest; tell whether there is one."""
    longest = next(iter(waiting), None)
    if longest is None:
        return False
    longest.abort()
    return True


def _date_line() -> bytes:
    return b"date: %b\r\n" % formatdate(usegmt=True).encode()
