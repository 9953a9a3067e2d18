"""The streamer process: listener, board watcher, connection manager, timers, operator port.

``serve`` runs the whole life of one process. Shutdown has phases: report not ready, stop listening,
send ``bye`` and 1012 in random order over the drain time (or 1001 to all at once, if the process is
ended by force), then drop the remaining connections.
"""

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final

from scoreboard.broadcast.close_codes import CloseCode
from scoreboard.broadcast.viewer_counts import ViewerCounts
from scoreboard.broadcast.watcher import BoardWatcher
from scoreboard.health.checks import VIEWERS, describe_live, describe_viewers, live_name
from scoreboard.health.readings import describe_secrets
from scoreboard.http.operator_port import OperatorPort, bind_operators
from scoreboard.ledger.name_cache import NAMES_MAX, NameCache
from scoreboard.ledger.pool import POSTGRES_UP
from scoreboard.ledger.users import select_names
from scoreboard.model import PAGE_MAX, WATCHED_TOP
from scoreboard.runtime.audit import audit_start
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.service_manager import READY, notify
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.sockets import Acceptor, bind_listener
from scoreboard.runtime.startup import freeze_garbage_collector
from scoreboard.runtime.telemetry import get_logger
from scoreboard.runtime.tracing import make_tracing
from scoreboard.runtime.workers import Worker
from scoreboard.security.credentials import refresh_secrets, require_secrets
from scoreboard.security.tokens import Verifier
from scoreboard.store.board_directory import BoardDirectory
from scoreboard.store.board_list import BoardList
from scoreboard.store.client import make_client
from streamer import metrics
from streamer.fanout.frame_tracing import FrameTracing
from streamer.fanout.hub import Channel
from streamer.fanout.manager import ConnectionManager
from streamer.fanout.place_sampler import AROUND, PlaceSampler
from streamer.handshake.listener import BACKLOG, capacity_of, make_listener
from streamer.handshake.opening import OpeningHandshake

TURN_VIEWERS: Final = 500
TURN_S: Final = 0.005
"""A turn of a sweep ends at either limit, so that reads, pings and Redis run in between."""

LATE_S: Final = 0.5
"""After a tick this late no deadlines are enforced: pongs may be waiting unread."""

LATE_TICKS_MAX: Final = 5
DEADLINES_PER_TURN: Final = 200
"""Deadlines handled in one iteration of the loop."""

ACCEPT_S: Final = 0.05
"""Time to accept what the kernel has queued; closing the listener would reset it."""

DROP_AFTER_S: Final = 2.5
FIRST_READ_S: Final = 2.0
"""Without Redis the process starts listening after this time, and answers 503."""

LOOKUP_CONNECTIONS: Final = 4
"""Connections to look up boards that viewers ask for."""

RECONNECTS_PER_S: Final = 300
"""Reconnecting viewers that the remaining processes can accept per second."""

DRAIN_MAX_S: Final = 60.0
DRAIN_MIN_PER_S: Final = 20
"""A few viewers are drained at this rate instead of over the whole drain time."""

_log = get_logger(__name__)


class Streamer:
    """The streamer of one process. Start ``run`` in a task group; stop with ``drain``."""

    def __init__(self, settings: Settings, *, tick_s: float = 1.0) -> None:
        """Read the settings; connect to nothing yet.

        Raises SettingInvalid if a setting is invalid.
        """
        self.settings = settings
        self.verifier = Verifier(settings)
        self.manager = ConnectionManager(
            settings, self.verifier, capacity=capacity_of(settings), tick_s=tick_s
        )
        self._tracing = make_tracing(settings, "streamer")
        self._frames = FrameTracing(self._tracing, self.manager.hub) if self._tracing else None
        self._client = make_client(settings, name="streamer-boards", connections=LOOKUP_CONNECTIONS)
        self.names = NameCache(
            settings if has_database(settings) else None,
            name="streamer",
            select=select_names,
            most=names_most(settings),
        )
        self.watcher = BoardWatcher(
            settings,
            self.manager,
            name="streamer",
            directory=BoardDirectory(settings, BoardList(self._client)),
            names=self.names,
            on_traced=self._frames.board_traced if self._frames else None,
            windows=self.manager,
        )
        self.viewer_counts = ViewerCounts(
            self._client,
            viewers_here=self.manager.viewers_by_board,
            on_counted=self.manager.hub.set_viewers,
        )
        manager = self.manager
        self._sampler = PlaceSampler(
            settings, manager.places, manager.users_watched, manager.hub, self.names
        )
        self.is_draining = False
        self._listening = Acceptor()

    def readiness(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether new viewers should be sent here, and the checks of this process."""
        admission = self.manager.admission
        checks = {
            live_name(state.board): describe_live(state.why_stale, is_read=bool(state.message))
            for state in self.watcher.states.values()
        }
        checks[VIEWERS] = describe_viewers(admission.viewers, admission.capacity.viewers)
        is_ready = self.watcher.is_ready and self._listening.is_open and not self.is_draining
        status = "draining" if self.is_draining else "ready" if is_ready else "not ready"
        return is_ready, {"status": status, "checks": checks | describe_secrets()}

    async def listen(self, listener: socket.socket) -> None:
        """Start accepting viewers."""
        await self._listening.begin(listener, lambda: OpeningHandshake(self.manager), BACKLOG)

    async def run(self) -> None:
        """Follow the boards and send them to viewers until cancelled."""
        async with AsyncExitStack() as stack:
            if self._tracing is not None:
                await stack.enter_async_context(self._tracing.running())
            stack.push_async_callback(self._client.aclose)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self.manager.use(tasks, self.watcher)
            tasks.create_task(self.verifier.run())
            tasks.create_task(self.watcher.run())
            tasks.create_task(self.viewer_counts.run())
            tasks.create_task(self.names.run())
            tasks.create_task(self._sampler.run())
            tasks.create_task(refresh_secrets())
            tasks.create_task(self._sweep())
            tasks.create_task(self._run_timers())

    async def stop_listening(self) -> None:
        """Accept what waits in the kernel's queue, then close the listener."""
        self.is_draining = True
        await asyncio.sleep(ACCEPT_S)
        self._listening.close()

    async def drain(self) -> None:
        """Close all connections spread over the drain time, while boards are still sent."""
        await self.stop_listening()
        connections = list(self.manager.connections)
        random.shuffle(connections)
        spread_s = drain_time_s(len(connections), self.settings.drain_s)
        _log.info("drain_started", viewers=len(connections), spread_s=round(spread_s, 1))
        loop = asyncio.get_running_loop()
        started_at_s = loop.time()
        for number, connection in enumerate(connections):
            wait_s = started_at_s + spread_s * number / len(connections) - loop.time()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            connection.shut_down(CloseCode.RESTART, (0, 1000))
        with suppress(TimeoutError):
            async with asyncio.timeout(DROP_AFTER_S):
                await self.manager.is_empty.wait()
        _log.info("drain_ended", left=len(self.manager.connections))

    async def close(self) -> None:
        """Close all remaining connections at once."""
        self._listening.close()
        for connection in tuple(self.manager.connections):
            connection.shut_down(CloseCode.GOING_AWAY, (500, 5000))
        # One iteration of the loop for the writes, one for connection_lost.
        await asyncio.sleep(0)
        for connection in tuple(self.manager.connections):
            connection.abort()
        await asyncio.sleep(0)

    async def _sweep(self) -> None:
        """Send new boards to all viewers, one bounded turn at a time."""
        manager = self.manager
        clock = manager.clock
        while True:
            await manager.sweep_needed.wait()
            manager.sweep_needed.clear()
            while manager.hub.is_sweeping:
                started_at_s, cpu_s = clock(), time.thread_time()
                channels = manager.hub.run_turn(TURN_VIEWERS, clock, started_at_s + TURN_S)
                now_s, used_s = clock(), time.thread_time() - cpu_s
                metrics.SWEEP.observe(now_s - started_at_s)
                metrics.SWEEP_CPU.inc(used_s)
                for channel in channels:
                    _observe_delays(channel, now_s)
                manager.hub.note_turn(channels, now_s, used_s)
                if self._frames is not None:
                    self._frames.turn_ended(channels)
                manager.count_frames(channels)
                await asyncio.sleep(0)

    async def _run_timers(self) -> None:
        """Handle the deadlines of all connections and send heartbeats."""
        manager, loop = self.manager, asyncio.get_running_loop()
        late_ticks = 0
        due_s = loop.time() + manager.wheel.width_s
        while True:
            await asyncio.sleep(max(due_s - loop.time(), 0.0))
            now_s = loop.time()
            late_s, due_s = now_s - due_s, now_s + manager.wheel.width_s
            metrics.LOOP_LAG.set(late_s)
            if late_s > LATE_S and late_ticks < LATE_TICKS_MAX:
                late_ticks += 1
                _log.warning("loop_lagged", late_s=round(late_s, 3))
                continue
            late_ticks = 0
            for number, connection in enumerate(manager.wheel.advance(now_s), 1):
                connection.on_deadline(now_s)
                if number % DEADLINES_PER_TURN == 0:
                    await asyncio.sleep(0)
            manager.send_heartbeats(now_s)
            manager.count_frames(manager.hub.every_channel)


def _observe_delays(channel: Channel, now_s: float) -> None:
    """Observe the delays of a board after a turn that wrote it."""
    if channel.noticed_at_s:
        metrics.CHANGE_TO_WRITE.observe(now_s - channel.noticed_at_s)
    if channel.accepted_at_s:
        metrics.ACCEPT_TO_VIEWER.observe(now_s - channel.accepted_at_s)


def has_database(settings: Settings) -> bool:
    """Return whether this streamer has a login of PostgreSQL, and so can show names.

    DATABASE_URL without a login may be a setting of all services.
    """
    return bool(settings.database_url) and (
        settings.secrets == "env" or bool(settings.database_secret)
    )


def names_most(settings: Settings) -> int:
    """Return how many names to cache: at least those that all viewers together may be shown."""
    beside = 1 + 2 * AROUND
    boards = len(settings.boards) + settings.watched_boards
    shown = settings.watched_users * beside + settings.windows * PAGE_MAX + boards * WATCHED_TOP
    return max(NAMES_MAX, shown)


def drain_time_s(viewers: int, drain_s: float) -> float:
    """Return the time over which to close viewers, so that their reconnects are spread out."""
    needed_s = min(max(drain_s, viewers / RECONNECTS_PER_S), DRAIN_MAX_S)
    return min(needed_s, viewers / DRAIN_MIN_PER_S)


def grace_s(settings: Settings) -> float:
    """Return the most time a process needs from the first signal to its end."""
    longest_s = min(max(settings.drain_s, settings.viewers / RECONNECTS_PER_S), DRAIN_MAX_S)
    return longest_s + DROP_AFTER_S + 2.5


def register_gauges(streamer: Streamer) -> None:
    """Make the gauges read the manager's counts, and whether names can be read, at each scrape."""
    manager, names = streamer.manager, streamer.names
    POSTGRES_UP.set_function(lambda: names.is_up)
    metrics.CONNECTIONS["open"].set_function(lambda: manager.admission.viewers)
    metrics.CONNECTIONS["other"].set_function(
        lambda: len(manager.connections) - manager.admission.viewers
    )
    metrics.WATCHED_USERS.set_function(lambda: manager.places.count)
    metrics.ACK_PACED.set_function(
        lambda: sum(connection.is_ack_paced for connection in manager.connections)
    )


def bind_metrics(settings: Settings) -> socket.socket | None:
    """Bind the metrics port; return None if there is none.

    Raises SettingInvalid if the address cannot be bound.
    """
    return bind_operators(
        settings.metrics_host,
        settings.ws_metrics_port,
        variables="SCOREBOARD_METRICS_HOST, SCOREBOARD_WS_METRICS_PORT",
    )


@asynccontextmanager
async def running(streamer: Streamer) -> AsyncIterator[None]:
    """Run a streamer in a task until the block ends; an error in either ends both."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(streamer.run())
        try:
            yield
        finally:
            await streamer.close()
            task.cancel()


async def serve(settings: Settings, stop: StopEvent, *, worker: Worker | None = None) -> None:
    """Serve viewers until asked to stop, then drain.

    ``worker`` is this process if it is one of several. Raises SettingInvalid if an address cannot
    be bound, SecretsUnavailable if the login of Redis cannot be read.
    """
    await require_secrets(settings, "redis")
    streamer = Streamer(settings)
    listener = make_listener(settings, shared=worker is not None)
    if worker is None or not settings.ws_metrics_port:
        operators = bind_metrics(settings)
    else:
        operators = bind_listener("127.0.0.1", 0)  # read by the supervisor only
    register_gauges(streamer)
    async with (
        OperatorPort(operators, streamer.readiness),
        running(streamer),
    ):
        # On a shared port viewers arrive at once, so read the boards first.
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_READ_S):
                await streamer.watcher.wait_for_first_reads()
        await streamer.listen(listener)
        freeze_garbage_collector()
        host, port = listener.getsockname()[:2]
        _log.info("streamer_listening", host=host, port=port, worker=worker.number if worker else 0)
        audit_start(settings)
        if worker is not None:
            worker.notify_started(operators.getsockname()[1] if operators is not None else 0)
        else:
            notify(READY)
        await stop.wait()
        await streamer.drain()
