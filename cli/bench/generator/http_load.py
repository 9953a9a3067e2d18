"""An HTTP/1.1 load generator on keep-alive connections, with an open or a closed loop.

Open loop: requests are due at the times of a schedule, whatever the answers do, and latency counts
from the intended time (no coordinated omission). Each connection has one request in flight; a
request that finds none free waits for one, and that wait is part of its latency. After
``TIMEOUT_S`` a waiting request is counted as unsent, which bounds the queue.

Closed loop: each connection sends its next request when the last one was answered, so a stalled
server receives fewer requests, and the latencies hide the stall.

Only what a load needs of HTTP is here: responses with Content-Length or in chunks.
"""

import asyncio
import ssl
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct

from cli.bench.generator.clock import Course
from cli.bench.generator.measurement import LATE_S, LOST, TIMEOUT, UNREADABLE, Measurement, Snapshot
from cli.bench.generator.schedule import Schedule, Window
from cli.bench.generator.ticker import ticking
from scoreboard.errors import Unavailable

TIMEOUT_S: Final = 10.0
"""Time for an answer, to find a free connection, and to finish after the end of the schedule."""

REPEAT_S: Final = 30.0
"""Time for repeating requests after the run, which a server that is away must not prolong."""

REPEAT_CONNECTIONS: Final = 8
NOT_REPEATED: Final = "not repeated"

CONNECT_S: Final = 5.0
RECONNECT_S: Final = 0.05
SWEEP_S: Final = 0.05
"""Interval of looking for requests that are not answered in time."""

HEAD_BYTES_MAX: Final = 65_536

_HEAD_END: Final = b"\r\n\r\n"


class Address(Struct, frozen=True):
    """Where to connect; ``host_header`` is the host as the URL has it."""

    host: str
    port: int
    host_header: str
    tls: ssl.SSLContext | None = None


class Plan(Struct, frozen=True):
    """How to load; ``rate`` None is the closed loop."""

    address: Address
    connections: int
    warm_up_s: float
    duration_s: float
    rate: float | None


class Work(Protocol):
    """Makes requests and says what the responses mean."""

    def request(self, number: int) -> bytes:
        """Return the request with a number; the same number is the same request."""
        ...

    def judge(self, status: int, body: bytes) -> str:
        """Return the outcome of a response."""
        ...


class _Connection(asyncio.Protocol):
    """A keep-alive connection with at most one request in flight."""

    __slots__ = ("_buffer", "_load", "intended_s", "number", "sent_s", "transport")

    def __init__(self, load: "HttpLoad") -> None:
        self._load = load
        self._buffer = b""
        self.transport: Any = None
        self.number = -1
        """The number of the request in flight; -1 if there is none."""
        self.intended_s = 0.0
        self.sent_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._load.on_lost(self)

    def send(self, number: int, intended_s: float, now_s: float) -> None:
        self.number, self.intended_s, self.sent_s = number, intended_s, now_s
        self.transport.write(self._load.work.request(number))

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        try:
            response = _parse(data)
        except ValueError:
            self._load.on_unreadable(self)
            self.transport.abort()
            return
        if response is None:
            self._buffer = data
            return
        self._buffer = b""
        status, body, is_last = response
        if self.number < 0:
            self.transport.abort()  # a response without a request
            return
        self._load.on_answer(self, self._load.work.judge(status, body), is_last=is_last)


class HttpLoad:
    """One load; ``run`` it once."""

    def __init__(self, plan: Plan, work: Work) -> None:
        self.work = work
        self._plan = plan
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._due: deque[float] = deque()
        self._sent = 0
        self._schedule: Schedule | None = None
        self._is_closing = False
        self._lost = asyncio.Event()
        start_s = time.perf_counter()
        begin_s = start_s + plan.warm_up_s
        self.measurement = Measurement(Window(begin_s, begin_s + plan.duration_s))

    async def run(
        self,
        snapshot: Callable[[], Awaitable[dict[str, float]]],
        stop: asyncio.Event,
        report: Callable[[float], None] = lambda _share: None,
    ) -> tuple[Snapshot, Snapshot]:
        """Load the server until the end of the plan or until ``stop``.

        ``snapshot`` reads the CPU times; it is called at the begin and the end of the measured
        window. ``report`` gets the elapsed share. Raises Unavailable if nothing listens at the
        address.
        """
        plan = self._plan
        await self._connect_all()
        start_s = time.perf_counter()
        begin_s = start_s + plan.warm_up_s
        window = self.measurement.window = Window(begin_s, begin_s + plan.duration_s)
        if plan.rate is not None:
            self._schedule = Schedule(plan.rate, start_s, window.end_s)
        else:
            for connection in self._take_idle():
                self._send_next(connection, start_s)
        course = Course(start_s, window.end_s, stop, report)
        clock = ticking(self._schedule.tick_s, self._on_tick) if self._schedule else nullcontext()
        with clock:
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self._keep_connections())
                await course.wait_until(window.begin_s)
                first = await self._snapshot(snapshot)
                await course.wait_until(window.end_s)
                last = await self._snapshot(snapshot)
                self._end_early(last.at_s)
                await self._finish()
                keeper.cancel()
        self._close()
        return first, last

    async def send_each(self, numbers: Sequence[int]) -> Counter[str]:
        """Send requests again and count their outcomes; end after ``REPEAT_S``."""
        outcomes: Counter[str] = Counter()
        waiting = iter(numbers)

        async def work() -> None:
            for number in waiting:
                outcomes[await self.send_once(number)] += 1

        with suppress(TimeoutError):
            async with asyncio.timeout(REPEAT_S), asyncio.TaskGroup() as group:
                for _ in range(REPEAT_CONNECTIONS):
                    group.create_task(work())
        if left := len(numbers) - outcomes.total():
            outcomes[NOT_REPEATED] = left
        return outcomes

    # Events of connections -------------------------------------------------------------------

    def on_answer(self, connection: _Connection, outcome: str, *, is_last: bool) -> None:
        """Record an answer and use the connection for the next request."""
        now_s = time.perf_counter()
        self.measurement.record(connection.number, connection.intended_s, now_s, outcome)
        connection.number = -1
        if is_last:
            connection.transport.close()
        else:
            self._send_next(connection, now_s)

    def on_unreadable(self, connection: _Connection) -> None:
        """Record that what answers does not speak HTTP; the connection is replaced."""
        if connection.number >= 0:
            now_s = time.perf_counter()
            self.measurement.record(connection.number, connection.intended_s, now_s, UNREADABLE)
            connection.number = -1

    def on_lost(self, connection: _Connection) -> None:
        """Record the request that was in flight; the connection is replaced."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.number >= 0 and not self._is_closing:
            self.measurement.record(
                connection.number, connection.intended_s, time.perf_counter(), LOST
            )
        self._lost.set()

    def _send_next(self, connection: _Connection, now_s: float) -> None:
        if self._schedule is None:
            if self._is_closing or now_s >= self.measurement.window.end_s:
                self._idle.append(connection)
            else:
                self._send(connection, now_s, now_s)
        elif self._due:
            self._send(connection, self._due.popleft(), now_s)
        else:
            self._idle.append(connection)

    def _send(self, connection: _Connection, intended_s: float, now_s: float) -> None:
        number = self._sent
        self._sent += 1
        connection.send(number, intended_s, now_s)

    def _on_tick(self) -> None:
        now_s = time.perf_counter()
        schedule = self._schedule
        due, idle = self._due, self._idle
        if schedule is None or (schedule.is_over and not due):
            return
        while due and now_s - due[0] > TIMEOUT_S:
            self.measurement.record_unsent(due.popleft())
        # Requests that no connection waits for are late by the server, the others by us.
        for intended_s in schedule.due(now_s):
            if idle and not due:
                if now_s - intended_s > LATE_S:
                    self.measurement.record_late(intended_s)
                self._send(idle.pop(), intended_s, now_s)
            else:
                due.append(intended_s)
        while due and idle:
            self._send(idle.pop(), due.popleft(), now_s)

    # Life of connections ---------------------------------------------------------------------

    async def _connect_all(self) -> None:
        try:
            await asyncio.gather(*[self._connect() for _ in range(self._plan.connections)])
        except (OSError, TimeoutError) as error:
            self._close()
            address = self._plan.address
            raise Unavailable(f"No connection to {address.host}:{address.port}") from error

    async def _connect(self) -> None:
        address = self._plan.address
        async with asyncio.timeout(CONNECT_S):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), address.host, address.port, ssl=address.tls
            )
        self._open.add(connection)
        self._idle.append(connection)

    async def _keep_connections(self) -> None:
        """Count unanswered requests as timeouts and replace lost connections."""
        while True:
            try:
                async with asyncio.timeout(SWEEP_S):
                    await self._lost.wait()
            except TimeoutError:
                self._give_up(time.perf_counter() - TIMEOUT_S)
                continue
            self._lost.clear()
            missing = self._plan.connections - len(self._open)
            made = await asyncio.gather(
                *[self._connect() for _ in range(missing)], return_exceptions=True
            )
            if any(isinstance(one, OSError | TimeoutError) for one in made):
                await asyncio.sleep(RECONNECT_S)
                self._lost.set()
            now_s = time.perf_counter()
            for connection in self._take_idle():
                self._send_next(connection, now_s)

    def _give_up(self, sent_before_s: float) -> None:
        now_s = time.perf_counter()
        for connection in [one for one in self._open if one.number >= 0]:
            if connection.sent_s < sent_before_s:
                self.measurement.record(connection.number, connection.intended_s, now_s, TIMEOUT)
                connection.number = -1
                connection.transport.abort()

    def _take_idle(self) -> list[_Connection]:
        idle, self._idle = self._idle, []
        return idle

    def _end_early(self, at_s: float) -> None:
        """End the window when it was left before its end, so that figures are of what ran."""
        window = self.measurement.window
        if at_s < window.end_s:
            self.measurement.window = msgspec.structs.replace(
                window, end_s=max(at_s, window.begin_s)
            )
            self._schedule = Schedule(1, 0, 0) if self._schedule else None
            self._due.clear()

    async def _finish(self) -> None:
        """Wait for what is due or in flight; what remains after the timeout is recorded."""
        until_s = time.perf_counter() + TIMEOUT_S
        while self._due or any(one.number >= 0 for one in self._open):
            if time.perf_counter() > until_s:
                self._give_up(until_s)
                break
            await asyncio.sleep(0.001)
        while self._due:
            self.measurement.record_unsent(self._due.popleft())

    def _close(self) -> None:
        self._is_closing = True
        for connection in list(self._open):
            connection.transport.abort()

    async def _snapshot(self, read: Callable[[], Awaitable[dict[str, float]]]) -> Snapshot:
        completed, at_s = self.measurement.completed, time.perf_counter()
        return Snapshot(at_s, completed, await read())

    async def send_once(self, number: int) -> str:
        """Send a request on a connection of its own and return its outcome."""
        address = self._plan.address
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = await asyncio.open_connection(
                    address.host, address.port, ssl=address.tls
                )
                try:
                    writer.write(self.work.request(number))
                    data = b""
                    while (response := _parse(data)) is None:
                        more = await reader.read(65_536)
                        if not more:
                            return LOST
                        data += more
                finally:
                    writer.close()
        except TimeoutError:
            return TIMEOUT
        except OSError:
            return LOST
        except ValueError:
            return UNREADABLE
        return self.work.judge(response[0], response[1])


def _parse(data: bytes) -> tuple[int, bytes, bool] | None:
    """Return status, body and whether the connection ends; None if the response is incomplete.

    Raises ValueError if it is not a response of HTTP/1.1.
    """
    end = data.find(_HEAD_END)
    if end < 0:
        if len(data) > HEAD_BYTES_MAX:
            raise ValueError("the head is too long")
        return None
    if not data.startswith(b"HTTP/1."):
        raise ValueError("not a response of HTTP")
    head = data[:end].lower()
    start = end + 4
    is_last = b"connection: close" in head
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        line_end = head.find(b"\r\n", at + 2)
        length = int(head[at + 17 : line_end if line_end >= 0 else end])
        if len(data) < start + length:
            return None
        return int(data[9:12]), data[start : start + length], is_last
    if b"transfer-encoding: chunked" in head:
        body = _join_chunks(data, start)
        return None if body is None else (int(data[9:12]), body, is_last)
    return int(data[9:12]), b"", is_last


def _join_chunks(data: bytes, at: int) -> bytes | None:
    """Return the body of a response in chunks; None if it is incomplete."""
    body = b""
    while (line_end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:line_end].partition(b";")[0], 16)
        start = line_end + 2
        if size == 0:
            return body if data.find(b"\r\n", start) >= 0 else None
        body += data[start : start + size]
        at = start + size + 2
    return None
