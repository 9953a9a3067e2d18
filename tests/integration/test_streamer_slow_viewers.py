"""Slow viewers skip boards, get the newest one, and do not affect others (I7, I8)."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from scoreboard.broadcast.messages import Leaderboard
from scoreboard.model import Row
from scoreboard.runtime.telemetry import REGISTRY
from streamer.connection.viewer import Viewer
from tests.support.clients.viewer import Closed, Connect, RawViewer, RunningStreamer, StartStreamer
from tests.support.eventually import eventually_async
from tests.support.fakes.proxy import MakeProxy

pytestmark = pytest.mark.slow

KERNEL_BYTES = 100_000
"""The size of the kernel's buffers of both ends, for a viewer that does not read."""


def closes(code: int) -> float:
    labels = {"code": str(code), "by": "server"}
    return REGISTRY.get_sample_value("scoreboard_ws_closes_total", labels) or 0.0


class Publisher:
    """Publishes boards on a channel at any rate, without Redis."""

    def __init__(self, running: RunningStreamer) -> None:
        self.channel = running.streamer.manager.hub.channel("main")
        self.clock = running.streamer.manager.clock
        self.seq = 1000
        self.published_at_s: dict[int, float] = {}

    def next(self) -> int:
        self.seq += 1
        rows = tuple(Row(n, "u" * 124 + str(n), self.seq) for n in range(1, 11))
        board = Leaderboard("main", 1, self.seq, time.time_ns() // 1_000_000, rows)
        self.published_at_s[self.seq] = self.clock()
        self.channel.publish(board, self.clock(), self.clock())
        return self.seq

    @asynccontextmanager
    async def at(self, per_s: float) -> AsyncIterator[None]:
        async def run() -> None:
            while True:
                self.next()
                await asyncio.sleep(1 / per_s)  # pace: rate of the link

        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(run())
            try:
                yield
            finally:
                task.cancel()


def viewers_of(running: RunningStreamer) -> list[Viewer]:
    return [one for one in running.streamer.manager.connections if isinstance(one, Viewer)]


def seqs(viewer: RawViewer) -> list[int]:
    return [one["seq"] for one in viewer.messages if one["type"] == "leaderboard"]


async def latencies(viewer: RawViewer, publisher: Publisher, count: int) -> list[float]:
    """Read boards; return the delay of each."""
    viewer.checks_messages = False  # validation takes longer than what is measured
    found = []
    while len(found) < count:
        board = await viewer.next("leaderboard")
        if board["seq"] in publisher.published_at_s:
            found.append(publisher.clock() - publisher.published_at_s[board["seq"]])
    return found


def check_delays(delays: list[float]) -> None:
    """Check with tolerances for a busy machine; `make bench-ws` measures it exactly."""
    delays.sort()
    assert delays[len(delays) // 2] < 0.1
    assert delays[len(delays) * 9 // 10] < 0.3


async def test_viewers_that_never_read_use_little_memory_and_close_with_4450(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(slow_viewer_s=1.5)
    healthy = [await connect(running.port) for _ in range(20)]
    stalled = [await connect(running.port, receive_bytes=4096) for _ in range(20)]
    publisher = Publisher(running)
    before = closes(4450)
    held: list[int] = []

    async with publisher.at(100.0):
        reading = [asyncio.ensure_future(latencies(one, publisher, 250)) for one in healthy]

        def is_paused() -> bool:
            sizes = [one._transport.get_write_buffer_size() for one in viewers_of(running)]
            held.append(max(sizes, default=0))
            return sum(one._flow.is_held for one in viewers_of(running)) == len(stalled)

        await eventually_async(is_paused)
        await eventually_async(lambda: running.viewers == len(healthy))
        delays = [value for one in await asyncio.gather(*reading) for value in one]

    assert closes(4450) == before + len(stalled)
    assert max(held) <= len(publisher.channel.frame_with_ping), "at most one board waits"
    check_delays(delays)
    for viewer in stalled:
        got = b"" if not viewer.buffer else bytes(viewer.buffer)
        assert len(got) < KERNEL_BYTES


async def test_viewer_that_resumes_gets_rising_boards_and_the_newest_last(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port, receive_bytes=4096)
    publisher = Publisher(running)
    await viewer.next("leaderboard")

    async with publisher.at(100.0):
        await eventually_async(lambda: any(one._flow.is_held for one in viewers_of(running)))
        first_held = publisher.seq
        await eventually_async(lambda: publisher.seq > first_held + 50)
    newest = publisher.seq
    while not seqs(viewer) or seqs(viewer)[-1] < newest:
        await viewer.next("leaderboard")

    found = seqs(viewer)
    assert found == sorted(set(found))
    assert found[-1] == newest
    assert newest - found[-2] > 40, "the boards between were skipped, not queued"
    assert any(one.is_ack_paced for one in viewers_of(running))


async def test_half_the_viewers_stalling_does_not_delay_the_other_half(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    healthy = [await connect(running.port) for _ in range(30)]
    for _ in range(30):
        await connect(running.port, receive_bytes=4096)
    publisher = Publisher(running)

    async with publisher.at(50.0):
        found = await asyncio.gather(*(latencies(one, publisher, 100) for one in healthy))

    check_delays([value for one in found for value in one])


async def test_long_round_trip_makes_boards_wait_for_pongs(
    start_streamer: StartStreamer, make_proxy: MakeProxy
) -> None:
    # A proxy accepts everything at once, so only the pong shows what the viewer has received.
    running = await start_streamer(ping_s=0.2, pong_timeout_s=20)
    proxy = await make_proxy(running.port)
    from tests.support.clients.viewer import request_bytes

    viewer = await RawViewer.open(proxy.port)
    await viewer.send(request_bytes())
    await viewer.answer()
    await viewer.next("leaderboard")
    proxy.delay(0.6)
    publisher = Publisher(running)
    reading = asyncio.ensure_future(read_all(viewer))
    await eventually_async(lambda: any(one.is_ack_paced for one in viewers_of(running)))

    viewer.messages.clear()
    async with publisher.at(50.0):
        first = publisher.seq
        await eventually_async(lambda: publisher.seq > first + 150)

    assert 1 <= len(seqs(viewer)) <= 5, "one board per round trip, at any rate"
    newest = publisher.seq
    await eventually_async(lambda: seqs(viewer)[-1] == newest)
    viewer.close()
    reading.cancel()


async def read_all(viewer: RawViewer) -> None:
    try:
        while True:
            await viewer.frame(60)
    except Closed:
        pass


async def test_slow_link_is_never_dropped_and_never_far_behind(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(slow_viewer_s=2.0, ping_s=0.5)
    viewer = await connect(running.port, receive_bytes=4096)
    publisher = Publisher(running)
    loop = asyncio.get_running_loop()
    ages: list[float] = []

    async with publisher.at(50.0):
        until_s = loop.time() + 6.0
        while loop.time() < until_s:
            # 56 kbit/s: 700 bytes per 100 ms.
            viewer.buffer += await loop.sock_recv(viewer.connection, 700)
            while (found := viewer._parse()) is not None:
                await answer(viewer, found.opcode, found.payload)
                if found.opcode == 1 and found.message["seq"] in publisher.published_at_s:
                    ages.append(loop.time() - publisher.published_at_s[found.message["seq"]])
            await asyncio.sleep(0.1)  # pace: interval of the sampling

        assert running.viewers == 1
        assert len(ages) >= 10
        assert max(ages[-3:]) < 4.0, ages


async def answer(viewer: RawViewer, opcode: int, payload: bytes) -> None:
    from tests.support.clients.viewer import PING, PONG, masked_frame

    if opcode == PING:
        await viewer.send(masked_frame(PONG, payload))


async def test_close_within_a_frame_sends_no_mixed_bytes(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port, receive_bytes=4096)
    publisher = Publisher(running)
    async with publisher.at(200.0):
        await eventually_async(lambda: any(one._flow.is_held for one in viewers_of(running)))

    for one in viewers_of(running):
        one.shut_down(1012, (0, 0))

    # Whole boards, perhaps a partial one, then the end; the client validates every frame.
    assert await viewer.closed() == 1006
    assert seqs(viewer) == sorted(set(seqs(viewer)))
    viewer.close()
    await running.wait_until_empty()


async def test_kernel_buffers_little_per_viewer(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port)
    await viewer.next("leaderboard")
    connection = viewers_of(running)[0]._transport.get_extra_info("socket")

    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 16_384
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 16_384
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert connection.getsockopt(socket.IPPROTO_TCP, 25) == 8192
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000


async def test_fast_viewer_is_never_ack_paced(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(ping_s=0.2)
    viewer = await connect(running.port)
    publisher = Publisher(running)

    async with publisher.at(50.0):
        await latencies(viewer, publisher, 60)

    assert viewer.pings
    assert all(ping == b"k" for ping in viewer.pings)
    assert not any(one.is_ack_paced for one in viewers_of(running))


@pytest.mark.parametrize("kind", ["heartbeat", "status"])
async def test_held_viewer_gets_the_missed_status_but_not_the_heartbeats(
    start_streamer: StartStreamer, connect: Connect, kind: str
) -> None:
    from scoreboard.broadcast.messages import Status

    running = await start_streamer(heartbeat_s=0.2 if kind == "heartbeat" else 60)
    viewer = await connect(running.port, receive_bytes=4096)
    publisher = Publisher(running)
    async with publisher.at(200.0):
        await eventually_async(lambda: any(one._flow.is_held for one in viewers_of(running)))
    if kind == "status":
        publisher.channel.publish_status(Status("stale", "unreachable"))
        publisher.channel.publish_status(Status("live"))
        publisher.channel.publish_status(Status("stale", "rewound"))
    else:
        began_s = publisher.channel.frame_at_s
        await eventually_async(lambda: publisher.channel.frame_at_s > began_s + 0.5)

    newest = publisher.seq
    while seqs(viewer)[-1:] != [newest]:
        await viewer.next("leaderboard")

    if kind == "status":
        assert (await viewer.next("status"))["reason"] == "rewound"
        assert len([one for one in viewer.messages if one["type"] == "status"]) == 1
    else:
        assert not [one for one in viewer.messages if one["type"] == "heartbeat"]
