"""Composes the streamer: listener, relay, hub, clock, health; and lets viewers go at the end.

``serve`` runs one process's whole life. Stopping has phases: not ready, stop listening, ``bye`` and
1012 in random order over the drain time (or 1001 to all at once, when the process is ended by
force), then hang up on whoever is left.
"""

import asyncio
import gc
import random
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Final

from scoreboard.broadcast.close_codes import CloseCode
from scoreboard.broadcast.watcher import BoardWatcher
from scoreboard.http.operator_port import OperatorPort, bind_operators
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.sockets import Acceptor
from scoreboard.runtime.telemetry import BUILD_INFO, get_logger
from scoreboard.runtime.workers import Worker
from scoreboard.security.credentials import refresh_secrets
from scoreboard.security.tokens import Verifier
from streamer import metrics
from streamer.fanout.venue import ConnectionManager
from streamer.handshake.greeting import Handshake
from streamer.handshake.listener import BACKLOG, capacity_of, make_listener

TURN_VIEWERS: Final = 500
TURN_S: Final = 0.005
"""A turn of a sweep ends at either, so that reads, pings and Redis get theirs in between."""

LATE_S: Final = 0.5
"""After a tick this late nobody is judged: their pongs may lie unread."""

LATE_TICKS_MOST: Final = 5
DUE_CHUNK: Final = 200
"""Deadlines met between two turns of the loop."""

ACCEPT_S: Final = 0.05
"""Time to take what the kernel has queued before the listener closes, or it would be reset."""

HANG_UP_S: Final = 2.5
FIRST_READ_S: Final = 2.0
"""Without Redis the process listens all the same, and says 503."""

RETURN_PER_S: Final = 300
"""How many returning viewers the remaining processes can greet a second."""

DRAIN_MOST_S: Final = 60.0
HURRY_PER_S: Final = 20
"""A few viewers need not be spread over the whole drain time: they are no storm."""

WORKER_STEP: Final = 10
"""Metrics of worker n are on the metrics port plus n times this."""

_log = get_logger(__name__)


class Streamer:
    """One process's streamer. ``run`` in a task group; ``drain`` to end."""

    def __init__(self, settings: Settings, *, tick_s: float = 1.0) -> None:
        """Take the settings; connects to nothing yet.

        Raises SettingInvalid where one cannot be read.
        """
        self.settings = settings
        self.verifier = Verifier(settings)
        self.venue = ConnectionManager(
            settings, self.verifier, capacity=capacity_of(settings), tick_s=tick_s
        )
        self.relay = BoardWatcher(settings, self.venue, name="streamer")
        self.is_draining = False
        self._listening = Acceptor()

    def state(self) -> tuple[bool, Mapping[str, str]]:
        """Tell whether new viewers should be sent here, and why."""
        feeds = self.relay.feeds.values()
        parts = {
            feed.board: feed.trouble or ("live" if feed.frame else "unknown") for feed in feeds
        }
        parts["draining"] = "yes" if self.is_draining else "no"
        return self.relay.is_ready and not self.is_draining, parts

    async def listen(self, listener: socket.socket) -> None:
        """Accept viewers."""
        await self._listening.begin(listener, lambda: Handshake(self.venue), BACKLOG)

    async def run(self) -> None:
        """Follow the boards and show them until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self.venue.use(tasks)
            tasks.create_task(self.verifier.run())
            tasks.create_task(self.relay.run())
            tasks.create_task(refresh_secrets())
            tasks.create_task(self._sweep())
            tasks.create_task(self._keep_time())

    async def stop_listening(self) -> None:
        """Take what waits in the kernel's queue, then accept nobody more."""
        self.is_draining = True
        await asyncio.sleep(ACCEPT_S)
        self._listening.close()

    async def drain(self) -> None:
        """Send everyone away, spread out, while boards go on; those left are hung up on."""
        await self.stop_listening()
        guests = list(self.venue.present)
        random.shuffle(guests)
        spread_s = drain_time_s(len(guests), self.settings.drain_s)
        _log.info("drain_started", viewers=len(guests), spread_s=round(spread_s, 1))
        loop = asyncio.get_running_loop()
        started_at_s = loop.time()
        for number, guest in enumerate(guests):
            wait_s = started_at_s + spread_s * number / len(guests) - loop.time()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            guest.leave(CloseCode.RESTART, (0, 1000))
        with suppress(TimeoutError):
            async with asyncio.timeout(HANG_UP_S):
                await self.venue.is_empty.wait()
        _log.info("drain_ended", left=len(self.venue.present))

    async def end(self) -> None:
        """Close what is still there, at once."""
        self._listening.close()
        for guest in tuple(self.venue.present):
            guest.leave(CloseCode.GOING_AWAY, (500, 5000))
        # One turn for the writes, one for the connections to notice.
        await asyncio.sleep(0)
        for guest in tuple(self.venue.present):
            guest.abort()
        await asyncio.sleep(0)

    async def _sweep(self) -> None:
        """Write what is new to everyone, a turn at a time."""
        venue = self.venue
        clock = venue.clock
        while True:
            await venue.work.wait()
            venue.work.clear()
            while venue.hub.is_busy:
                started_at_s = clock()
                rooms = venue.hub.turn(TURN_VIEWERS, clock, started_at_s + TURN_S)
                now_s = clock()
                metrics.SWEEP.observe(now_s - started_at_s)
                for room in rooms:
                    if room.noticed_at_s:
                        metrics.CHANGE_TO_WRITE.observe(now_s - room.noticed_at_s)
                        if not room.is_in_lap:
                            room.noticed_at_s = 0.0
                self._count()
                await asyncio.sleep(0)

    async def _keep_time(self) -> None:
        """Meet the deadlines of viewers and heartbeats, one timer for all."""
        venue, loop = self.venue, asyncio.get_running_loop()
        late_ticks = 0
        due_s = loop.time() + venue.wheel.width_s
        while True:
            await asyncio.sleep(max(due_s - loop.time(), 0.0))
            now_s = loop.time()
            late_s, due_s = now_s - due_s, now_s + venue.wheel.width_s
            metrics.LOOP_LAG.set(late_s)
            if late_s > LATE_S and late_ticks < LATE_TICKS_MOST:
                late_ticks += 1
                _log.warning("loop_lagged", late_s=round(late_s, 3))
                continue
            late_ticks = 0
            for number, guest in enumerate(venue.wheel.advance(now_s), 1):
                guest.due(now_s)
                if number % DUE_CHUNK == 0:
                    await asyncio.sleep(0)
            venue.beat(now_s)
            self._count()

    def _count(self) -> None:
        for room in self.venue.hub.rooms.values():
            if room.sent:
                metrics.FRAMES_SENT.inc(room.sent)
                room.sent = 0
            if room.skipped:
                metrics.FRAMES_SKIPPED.inc(room.skipped)
                room.skipped = 0


def drain_time_s(viewers: int, drain_s: float) -> float:
    """Give the time over which to send viewers away, so that nobody is stormed by them."""
    needed_s = min(max(drain_s, viewers / RETURN_PER_S), DRAIN_MOST_S)
    return min(needed_s, viewers / HURRY_PER_S)


def grace_s(settings: Settings) -> float:
    """Give the most time a process needs from the first signal to its end."""
    longest_s = min(max(settings.drain_s, settings.viewers / RETURN_PER_S), DRAIN_MOST_S)
    return longest_s + HANG_UP_S + 2.5


def watch_counts(venue: ConnectionManager) -> None:
    """Have the gauges read their counts when they are asked for."""
    metrics.CONNECTIONS.labels("open").set_function(lambda: venue.admission.viewers)
    metrics.CONNECTIONS.labels("other").set_function(
        lambda: len(venue.present) - venue.admission.viewers
    )
    metrics.ACK_PACED.set_function(lambda: sum(guest.is_watched for guest in venue.present))


@asynccontextmanager
async def running(streamer: Streamer) -> AsyncIterator[None]:
    """Run a streamer beside the caller's block; whatever ends the block ends it too."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(streamer.run())
        try:
            yield
        finally:
            await streamer.end()
            task.cancel()


async def serve(settings: Settings, stop: StopEvent, *, worker: Worker | None = None) -> None:
    """Serve viewers until asked to stop, then let them go.

    ``worker`` is this process, where it is one of several. Raises SettingInvalid when an address
    cannot be had.
    """
    streamer = Streamer(settings)
    listener = make_listener(settings, shared=worker is not None)
    number = 0 if worker is None else worker.number
    metrics_port = settings.ws_metrics_port and settings.ws_metrics_port + number * WORKER_STEP
    operators = bind_operators(
        settings.metrics_host,
        metrics_port,
        variables="SCOREBOARD_METRICS_HOST, SCOREBOARD_WS_METRICS_PORT",
    )
    BUILD_INFO.labels(version("scoreboard"), "streamer").set(1)
    watch_counts(streamer.venue)
    async with (
        OperatorPort(operators, streamer.state),
        running(streamer),
    ):
        # A port shared with other processes brings viewers at once: know the boards first.
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_READ_S):
                await streamer.relay.settle()
        await streamer.listen(listener)
        _calm_garbage_collector()
        host, port = listener.getsockname()[:2]
        _log.info("streamer_listening", host=host, port=port, worker=number)
        if worker is not None:
            worker.notify_started(metrics_port)
        await stop.wait()
        await streamer.drain()


def _calm_garbage_collector() -> None:
    # What start-up made lives for ever: collections need not look at it again.
    gc.collect()
    gc.freeze()
