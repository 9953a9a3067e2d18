"""Sends requests over keep-alive connections, in its own process; prints one line of JSON.

Closed loop: each connection sends the next request when the last was answered (coordinated omission
applies). Open loop (``rate``): requests are due at fixed times, and latency counts from then.
Every update is another action of one of many users in turn, so each of them is applied.
"""

import asyncio
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from tests.bench.api.tokens import user_id

WARM_CONNECTIONS = 64
"""At least as many connections warm the server, so that long warm-ups end soon."""
STRIDE = 7919
"""Reads go through the users in steps of this prime, so that neighbours are not read in turn."""


class Plan(msgspec.Struct):
    port: int
    connections: int
    seconds: float
    run: str
    work: str = "update"
    users: int = 1
    boards: list[str] = []
    """Boards to which updates go in turn; reads are of the first. Empty: the default board."""
    tokens: str = ""
    """A file with a token per line."""
    warm_s: float = 1.0
    warm_requests: int = 0
    is_once: bool = False
    """End when every user has sent one request."""
    rate: float = 0.0
    core: int | None = None


def updates(plan: Plan) -> Callable[[int], bytes]:
    """Return a function that makes the update with a number."""
    with Path(plan.tokens).open("rb") as lines:
        heads = [
            (
                b" HTTP/1.1\r\nHost: bench\r\n"
                b"Content-Type: application/json\r\nAuthorization: Bearer %s\r\n" % line[:-1]
            )
            for line in islice(lines, plan.users)
        ]
    users = [user_id(number).encode() for number in range(plan.users)]
    queries = [f"?board={name}".encode() for name in plan.boards] or [b""]
    run = plan.run.encode()

    def request(number: int) -> bytes:
        index = number % len(users)
        body = b'{"userId":"%s","actionId":"win:%s-%d"}' % (users[index], run, number)
        query = queries[number % len(queries)]
        return b"POST /api/scores/update%s%sContent-Length: %d\r\n\r\n%s" % (
            *(query, heads[index]),
            *(len(body), body),
        )

    return request


def leaderboards(plan: Plan) -> Callable[[int], bytes]:
    """Return a function that makes the same read of the leaderboard every time."""
    query = _query(plan)
    made = b"GET /api/scores/leaderboard%s HTTP/1.1\r\nHost: bench\r\n\r\n" % query
    return lambda _: made


def unkept_leaderboards(plan: Plan) -> Callable[[int], bytes]:
    """Return a function that reads eleven rows, which the api does not keep, every time."""
    query = _query(plan, "limit=11")
    made = b"GET /api/scores/leaderboard%s HTTP/1.1\r\nHost: bench\r\n\r\n" % query
    return lambda _: made


def standings(plan: Plan, parameter: str = "") -> Callable[[int], bytes]:
    """Return a function that reads the standings of many users."""
    query = _query(plan, parameter)

    def request(number: int) -> bytes:
        user = user_id(number * STRIDE % plan.users).encode()
        return b"GET /api/scores/users/%s%s HTTP/1.1\r\nHost: bench\r\n\r\n" % (user, query)

    return request


def neighbours(plan: Plan) -> Callable[[int], bytes]:
    """Return a function that reads many users with five neighbours on each side."""
    return standings(plan, "around=5")


def _query(plan: Plan, parameter: str = "") -> bytes:
    """Return the query of a read."""
    words = [f"board={plan.boards[0]}"] if plan.boards else []
    words += [parameter] if parameter else []
    return f"?{'&'.join(words)}".encode() if words else b""


REQUESTS = {
    "update": updates,
    "leaderboard": leaderboards,
    "leaderboard-unkept": unkept_leaderboards,
    "user": standings,
    "around": neighbours,
}
EXPECTED = {
    "update": b'"replayed":false',
    "leaderboard": b'"total"',
    "leaderboard-unkept": b'"total"',
    "user": b'"rank"',
    "around": b'"neighbours"',
}


class Load:
    """The state that all connections share: the next request, and the results."""

    def __init__(self, plan: Plan) -> None:
        self.make = REQUESTS[plan.work](plan)
        self.expected = EXPECTED[plan.work]
        self.last = plan.users if plan.is_once else sys.maxsize
        self.sent = 0
        self.is_measuring = False
        self.is_done = False
        self.ended = asyncio.Event()
        self.latencies_s: list[float] = []
        self.failures: dict[str, int] = {}
        self.done = 0

    def request(self) -> bytes:
        number = self.sent
        self.sent += 1
        if self.sent >= self.last:
            self.ended.set()
        return self.make(number)

    def answered(self, data: bytes, latency_s: float) -> None:
        if not self.is_measuring:
            return
        if data.startswith(b"HTTP/1.1 200") and self.expected in data:
            self.done += 1
            self.latencies_s.append(latency_s)
        else:
            what = data[9:12].decode()
            self.failures[what] = self.failures.get(what, 0) + 1


class Connection(asyncio.Protocol):
    """A keep-alive connection with at most one request in progress."""

    def __init__(self, load: Load, due: "deque[float] | None") -> None:
        self.load = load
        self.due = due
        self.transport: Any = None
        self.buffer = b""
        self.since_s = 0.0
        self.is_idle = True
        self.is_extra = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        if self.due is None:
            self.send(time.perf_counter())

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.load.is_done and not self.is_extra:
            self.load.failures["lost"] = self.load.failures.get("lost", 0) + 1

    def send(self, since_s: float) -> None:
        self.since_s = since_s
        self.is_idle = False
        self.transport.write(self.load.request())

    def answer(self, data: bytes, latency_s: float) -> None:
        self.load.answered(data, latency_s)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        start = self.buffer.lower().find(b"content-length: ")
        length = int(self.buffer[start + 16 : self.buffer.find(b"\r\n", start)])
        if len(self.buffer) < head + 4 + length:
            return
        now_s = time.perf_counter()
        self.answer(self.buffer, now_s - self.since_s)
        self.buffer = b""
        self.is_idle = True
        if self.is_extra:
            self.transport.close()
        elif self.load.is_done or self.load.sent >= self.load.last:
            return
        elif self.due is None:
            self.send(now_s)
        elif self.due:
            self.send(self.due.popleft())


async def pace(plan: Plan, connections: list[Connection], due: "deque[float]") -> None:
    """Make requests due at a fixed rate; idle connections take them in turn."""
    start_s, number = time.perf_counter(), 0
    while True:
        now_s = time.perf_counter()
        while start_s + number / plan.rate <= now_s:
            due.append(start_s + number / plan.rate)
            number += 1
        # They take turns: the api closes a connection that is idle for long.
        for _ in range(len(connections)):
            if not due:
                break
            connections.append(connections.pop(0))
            if connections[-1].is_idle:
                connections[-1].send(due.popleft())
        await asyncio.sleep(0.0005)


async def warm(plan: Plan, load: Load, connections: list[Connection]) -> None:
    """Wait until the server has had its warm-up, then keep the connections of the plan only."""
    await asyncio.sleep(plan.warm_s)
    while load.sent < plan.warm_requests:
        await asyncio.sleep(0.05)
    for connection in connections[plan.connections :]:
        connection.is_extra = True
        if connection.is_idle:
            connection.transport.close()
    del connections[plan.connections :]


async def main() -> None:
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    if plan.core is not None:
        os.sched_setaffinity(0, {plan.core})
    load = Load(plan)
    due: deque[float] | None = deque() if plan.rate else None
    loop = asyncio.get_running_loop()
    connections: list[Connection] = []
    count = max(plan.connections, WARM_CONNECTIONS if plan.warm_requests else 0)
    for _ in range(count):
        _, connection = await loop.create_connection(
            lambda: Connection(load, due), "127.0.0.1", plan.port
        )
        connections.append(connection)
    pacing = asyncio.ensure_future(pace(plan, connections, due)) if due is not None else None
    await warm(plan, load, connections)
    sys.stdout.write("measuring\n")
    sys.stdout.flush()
    load.is_measuring = True
    began_s, cpu_s = time.perf_counter(), time.process_time()
    if plan.is_once:
        with_end = asyncio.wait_for(load.ended.wait(), plan.seconds)
        await asyncio.gather(with_end, return_exceptions=True)
    else:
        await asyncio.sleep(plan.seconds)
    load.is_measuring, load.is_done = False, True
    took_s = time.perf_counter() - began_s
    cpu_s = time.process_time() - cpu_s
    sys.stdout.write("measured\n")
    sys.stdout.flush()
    if pacing is not None:
        pacing.cancel()
    for connection in connections:
        connection.transport.close()
    ordered = sorted(load.latencies_s)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000 if ordered else 0.0

    result = {
        "done": load.done,
        "seconds": took_s,
        "failures": load.failures,
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        "client_cpu_share": cpu_s / took_s,
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    uvloop.run(main())
