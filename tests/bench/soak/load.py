"""The load of `make soak`: updates at a rate that can change, and viewers. One event loop.

Open loop: each update is due at a fixed time, whatever the answers do, and its latency counts from
then. One user, the marker, is first on the board and is updated at short intervals; viewers see its
score, which tells how long its update took to reach them.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.bench.api.client import Connection
from tests.bench.api.tokens import trusted_token
from tests.support.clients.viewer import masked_frame, request_bytes

MARKER = b"marker"
MARKER_S = 0.2
"""The time between two updates of the marker."""
MARKER_FIRST, MARKER_POINTS = 1_000_000, 10
TICK_S = 0.002
"""Updates that are due are sent at these intervals; the delay is a part of their latency."""
QUEUE_S = 2.0
"""Updates that wait longer for a free connection are counted as unsent: it bounds the queue."""
RECONNECT_S = 0.1
PENDING_HANDSHAKES = 100
BOARD = b'{"type":"leaderboard"'
PONG = 10


@dataclass
class Window:
    """What happened in an interval."""

    latencies_s: list[float] = field(default_factory=list)
    delays_s: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    applied: int = 0
    unsent: int = 0

    def fail(self, what: str) -> None:
        self.failures[what] = self.failures.get(what, 0) + 1


class Load:
    """Sends updates and remembers which were acknowledged."""

    is_done = False
    last = float("inf")

    def __init__(self, port: int, request: Callable[[int], bytes]) -> None:
        self.window = Window()
        self.rate = 0.0
        self.sent = 0
        self.outcomes = bytearray()
        """For each update, 1 if it was acknowledged as applied."""
        self.markers: dict[int, float] = {}
        """Score of the marker → when its update was due."""
        self._port = port
        self._make = request
        self._due: deque[float] = deque()
        self._connections: deque[Updater] = deque()
        """They take turns: the api closes a connection that is idle for long."""
        self._marker: Updater | None = None
        self._marker_score = 0
        self._marker_head = (
            b"POST /api/scores/update HTTP/1.1\r\nHost: bench\r\n"
            b"Content-Type: application/json\r\nAuthorization: Bearer %s\r\n"
            % trusted_token().encode()
        )

    async def connect(self, count: int) -> None:
        for _ in range(count):
            self._connections.append(await self._connection(self._due))
        self._marker = await self._connection(deque())

    async def _connection(self, due: "deque[float]") -> "Updater":
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(lambda: Updater(self, due), "127.0.0.1", self._port)
        return made

    async def keep_connected(self) -> None:
        """Replace closed connections, until cancelled."""
        while True:
            await asyncio.sleep(RECONNECT_S)
            for _ in range(len(self._connections)):
                if self._connections[0].is_open:
                    self._connections.rotate(-1)
                    continue
                try:
                    made = await self._connection(self._due)
                except OSError:
                    break
                self._connections.popleft()
                self._connections.append(made)
            if self._marker is not None and not self._marker.is_open:
                with contextlib.suppress(OSError):
                    self._marker = await self._connection(deque())

    def take(self) -> Window:
        """Return what happened since the last call."""
        taken, self.window = self.window, Window()
        return taken

    def request(self) -> bytes:
        number = self.sent
        self.sent += 1
        self.outcomes.append(0)
        return self._make(number)

    def answered(self, updater: "Updater", data: bytes, latency_s: float) -> None:
        if data.startswith(b"HTTP/1.1 200") and b'"replayed":false' in data:
            self.window.applied += 1
            self.window.latencies_s.append(latency_s)
            if updater.number >= 0:
                self.outcomes[updater.number] = 1
        else:
            self.window.fail(data[9:12].decode())

    async def pace(self) -> None:
        """Send updates at the rate, and the marker's, until cancelled."""
        due_s = marker_s = time.perf_counter()
        while True:
            now_s = time.perf_counter()
            if self.rate:
                while due_s <= now_s:
                    self._due.append(due_s)
                    due_s += 1 / self.rate
            else:
                due_s = now_s
            while self._due and now_s - self._due[0] > QUEUE_S:
                self._due.popleft()
                self.window.unsent += 1
            for _ in range(len(self._connections)):
                if not self._due:
                    break
                updater = self._connections[0]
                self._connections.rotate(-1)
                if updater.is_ready:
                    updater.send(self._due.popleft())
            if marker_s <= now_s and self._marker is not None and self._marker.is_ready:
                self._send_marker(self._marker, now_s)
                marker_s = now_s + MARKER_S
            await asyncio.sleep(TICK_S)

    def _send_marker(self, updater: "Updater", now_s: float) -> None:
        points = MARKER_POINTS if self._marker_score else MARKER_FIRST
        self._marker_score += points
        self.markers[self._marker_score] = now_s
        self.markers.pop(self._marker_score - 1000 * MARKER_POINTS, None)
        body = b'{"userId":"%s","actionId":"win:marker-%d","points":%d}' % (
            MARKER,
            self._marker_score,
            points,
        )
        updater.send_request(
            b"%sContent-Length: %d\r\n\r\n%s" % (self._marker_head, len(body), body), now_s
        )

    @property
    def is_idle(self) -> bool:
        """Whether no update is due, and none waits for its answer; the marker's do not count."""
        return not self._due and all(one.is_idle or not one.is_open for one in self._connections)

    def close(self) -> None:
        self.is_done = True
        for updater in [*self._connections, self._marker]:
            if updater is not None:
                updater.transport.close()


class Updater(Connection):
    """A connection that knows the number of its update; -1 is the marker's."""

    load: Load  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, load: Load, due: "deque[float]") -> None:
        super().__init__(load, due)  # pyright: ignore[reportArgumentType]
        self.number = -1
        self.is_open = True

    @property
    def is_ready(self) -> bool:
        return self.is_idle and self.is_open

    def send(self, since_s: float) -> None:
        self.number = self.load.sent
        self.send_request(self.load.request(), since_s)

    def send_request(self, request: bytes, since_s: float) -> None:
        self.since_s = since_s
        self.is_idle = False
        self.transport.write(request)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.is_open = False
        if not self.load.is_done and not self.is_idle:
            self.load.window.fail("lost")

    def answer(self, data: bytes, latency_s: float) -> None:
        self.load.answered(self, data, latency_s)


class Viewer(asyncio.Protocol):
    """A viewer of the board that notes when it sees each score of the marker."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._data = b""
        self._score = 0
        self._is_open = False
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.write(request_bytes())

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if not self._load.is_done:
            self._load.window.fail("viewer lost")

    def data_received(self, data: bytes) -> None:
        data = self._data + data if self._data else data
        at = 0
        if not self._is_open:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._data = data
                return
            self._is_open = True
            at = end + 4
        while len(data) - at >= 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            if len(data) < start + size:
                break
            if data[at] == 0x81 and data.startswith(BOARD, start):
                self._note(data, start, start + size)
            elif data[at] == 0x89:
                self.transport.write(masked_frame(PONG, data[start : start + size]))
            at = start + size
        self._data = data[at:]

    def _note(self, data: bytes, start: int, end: int) -> None:
        where = data.find(b'"%s","score":' % MARKER, start, end)
        if where < 0:
            return
        where += len(MARKER) + 11
        score = int(data[where : data.index(b"}", where)].split(b",", 1)[0])
        now_s = time.perf_counter()
        if self._score:
            for one in range(self._score + MARKER_POINTS, score + 1, MARKER_POINTS):
                due_s = self._load.markers.get(one)
                if due_s is not None:
                    self._load.window.delays_s.append(now_s - due_s)
        self._score = score


async def view(load: Load, port: int, count: int) -> list[Viewer]:
    """Connect viewers."""
    loop = asyncio.get_running_loop()
    viewers: list[Viewer] = []
    while len(viewers) < count:
        more = min(PENDING_HANDSHAKES, count - len(viewers))
        made = await asyncio.gather(
            *(loop.create_connection(lambda: Viewer(load), "127.0.0.1", port) for _ in range(more))
        )
        viewers += [viewer for _, viewer in made]
    return viewers
