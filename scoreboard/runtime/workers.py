"""Worker processes of a service on one port: starts, restarts and stops them, and merges metrics.

Each worker has its own listening socket (SO_REUSEPORT).

Invariants: a worker has its own session, so a signal to the supervisor's process group reaches it
once, from the supervisor; a worker stops when the supervisor dies, because their socket pair
closes; a worker that exits is restarted; a worker that fails its first start ends the service.
"""

import asyncio
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from urllib.error import HTTPError

import msgspec
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from scoreboard.errors import SettingInvalid
from scoreboard.runtime.lifecycle import StopEvent, backoff_s
from scoreboard.runtime.service_manager import READY, VARIABLES, notify
from scoreboard.runtime.telemetry import describe_metric, get_logger

WORKER_FLAG: Final = "--worker"
START_S: Final = 20.0
"""Time for a worker to start listening."""

STEADY_S: Final = 60.0
"""After this uptime, the restart backoff of a worker is reset."""

FORCED_S: Final = 1.0
"""Time between a forced stop and SIGKILL."""

SUPERVISOR_EXTRA_GRACE_S: Final = 2.0
"""Grace period of the supervisor beyond that of its workers."""

SCRAPE_S: Final = 1.0
"""Time for one answer of a worker."""

WORKER_UP: Final = "scoreboard_worker_up"
_WORKER_UP_ABOUT: Final = "1 if a worker process answered the scrape"
describe_metric(
    "gauge",
    WORKER_UP,
    f"{_WORKER_UP_ABOUT}; absent with one worker",
    ("worker",),
    unit="0 or 1",
    normal="1; 0 while a worker restarts",
)

_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Ignores the proxies of the environment."""

_log = get_logger(__name__)


def reserve_port(bind: Callable[..., socket.socket], port: int) -> socket.socket:
    """Return a socket bound to the port that workers share; ``bind`` takes ``port`` and ``shared``.

    The port is first bound without SO_REUSEPORT, with which a second service could share it
    unnoticed. Raises what ``bind`` raises.
    """
    with bind(port=port, shared=False) as probe:
        port = probe.getsockname()[1]
    return bind(port=port, shared=True)


class Supervisor:
    """Supervises the workers of one service, ``python -m MODULE --worker NUMBER DESCRIPTOR``."""

    def __init__(self, module: str, count: int, held: socket.socket, port_variable: str) -> None:
        """``held`` is bound to the shared port, which workers get in ``port_variable``."""
        port = str(held.getsockname()[1])
        self._module = module
        self._count = count
        self._held = held
        # Only this process talks to the service manager.
        inherited = {name: text for name, text in os.environ.items() if name not in VARIABLES}
        self._environ = {**inherited, port_variable: port}
        self._metrics_ports: dict[int, int] = {}
        self._has_started: set[int] = set()

    def metrics(self) -> CollectorRegistry:
        """Return the metrics of all workers, with the label ``worker``; slow to collect."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_WorkersCollector(self._count, self._metrics_ports))
        return registry

    async def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Return whether all workers that listen are ready, with the checks of one of them.

        They are those of a worker that is not ready, if there is one. A worker that is restarted
        does not count: the others have the port.
        """
        answers = await asyncio.to_thread(_ask_all, dict(self._metrics_ports), "/health/ready")
        failed = [one for one in answers.values() if one is None or one.status != HTTPStatus.OK]
        shown = next(filter(None, [*failed, *answers.values()]), None)
        facts: dict[str, Any] = msgspec.json.decode(shown.text) if shown else {}
        workers = {
            str(number): "ready" if one and one.status == HTTPStatus.OK else "not ready"
            for number, one in answers.items()
        }
        is_ready = bool(answers) and not failed
        status = {} if is_ready or None not in failed else {"status": "not ready"}
        return is_ready, {**facts, **status, "workers": workers}

    async def run(self, stop: StopEvent) -> None:
        """Supervise the workers until ``stop``, then let them finish.

        Raises SettingInvalid if a worker fails its first start.
        """
        with self._held:
            async with asyncio.TaskGroup() as tasks:
                for number in range(self._count):
                    tasks.create_task(self._supervise(number, stop))
        _log.info("workers_stopped")

    async def _supervise(self, number: int, stop: StopEvent) -> None:
        loop = asyncio.get_running_loop()
        attempt = 0
        while not stop.is_set:
            started_at_s = loop.time()
            has_started = await self._run_once(number, stop)
            self._metrics_ports.pop(number, None)
            if stop.is_set:
                return
            if not has_started and number not in self._has_started:
                raise SettingInvalid(f"worker {number} did not start; see its log")
            attempt = 0 if loop.time() - started_at_s > STEADY_S else attempt + 1
            _log.error("worker_exited", worker=number, attempt=attempt)
            await stop.sleep(backoff_s(attempt))

    async def _run_once(self, number: int, stop: StopEvent) -> bool:
        """Run one worker until it exits; return whether it started."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                child = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # the installed package, not a module in the current folder
                    *("-m", self._module, WORKER_FLAG, str(number), str(theirs.fileno())),
                    env=self._environ,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            try:
                return await self._watch(number, child, ours, stop)
            finally:
                await _end(child)

    async def _watch(
        self,
        number: int,
        child: asyncio.subprocess.Process,
        channel: socket.socket,
        stop: StopEvent,
    ) -> bool:
        channel.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            stopping = tasks.create_task(_stop(child, stop))
            try:
                # The socket closes when the worker exits, for any reason.
                async with asyncio.timeout(START_S):
                    message = await loop.sock_recv(channel, 64)
            except TimeoutError:
                _log.error("worker_start_timed_out", worker=number)
                message = b""
                child.kill()
            if message:
                if int(message):
                    self._metrics_ports[number] = int(message)
                self._note_start(number)
                _log.info("worker_started", worker=number, worker_pid=child.pid)
            await child.wait()
            stopping.cancel()
        return bool(message)

    def _note_start(self, number: int) -> None:
        """Remember that a worker has started; report readiness when all have for the first time."""
        if number not in self._has_started:
            self._has_started.add(number)
            if len(self._has_started) == self._count:
                notify(READY)


async def _stop(child: asyncio.subprocess.Process, stop: StopEvent) -> None:
    await stop.wait()
    with suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)


async def _end(child: asyncio.subprocess.Process) -> None:
    """Stop a worker that still runs because the supervisor was forced to stop."""
    if child.returncode is not None:
        return
    try:
        with suppress(TimeoutError, ProcessLookupError):
            # Usually its second SIGTERM, which stops it immediately.
            child.send_signal(signal.SIGTERM)
            async with asyncio.timeout(FORCED_S):
                await child.wait()
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()


class _WorkersCollector(Collector):
    """Collects from every worker at each scrape."""

    def __init__(self, count: int, ports: dict[int, int]) -> None:
        self._count = count
        self._ports = ports

    def collect(self) -> Iterable[Metric]:
        answers = _ask_all(dict(self._ports), "/metrics")
        is_up = GaugeMetricFamily(WORKER_UP, _WORKER_UP_ABOUT, labels=["worker"])
        families: dict[str, Metric] = {is_up.name: is_up}
        for number in range(self._count):
            answer = answers.get(number)
            is_up.add_metric([str(number)], float(answer is not None))
            for family in text_string_to_metric_families(answer.text if answer else ""):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                merged.samples += [
                    sample._replace(labels={**sample.labels, "worker": str(number)})
                    for sample in family.samples
                ]
        return families.values()


class _Answer(NamedTuple):
    status: int
    text: str


def _ask_all(ports: dict[int, int], path: str) -> dict[int, _Answer | None]:
    """Return the answer of each worker by its number; None if it does not answer."""

    def ask(port: int) -> _Answer | None:
        try:
            with _OPENER.open(f"http://127.0.0.1:{port}{path}", timeout=SCRAPE_S) as response:
                return _Answer(response.status, response.read().decode())
        except HTTPError as error:
            with error:
                return _Answer(error.code, error.read().decode())
        except OSError:  # it hangs, or it is exiting
            return None

    # At the same time, so that workers that hang delay a scrape once.
    with ThreadPoolExecutor(max(1, len(ports))) as threads:
        return dict(zip(ports, threads.map(ask, ports.values()), strict=True))


class Worker:
    """A worker process: its number, and the socket to its supervisor."""

    def __init__(self, number: str, descriptor: str) -> None:
        """Take the two arguments after WORKER_FLAG."""
        self.number = int(number)
        self._channel = socket.socket(fileno=int(descriptor))
        self._channel.setblocking(False)

    def notify_started(self, metrics_port: int = 0) -> None:
        """Tell the supervisor that this process listens, and its metrics port; 0 for none."""
        with suppress(OSError):  # if the supervisor has died, ``supervised`` stops this process
            self._channel.send(str(metrics_port).encode())

    @asynccontextmanager
    async def supervised(self, stop: StopEvent) -> AsyncIterator[None]:
        """Set ``stop`` if the supervisor dies while the block runs."""
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._wait_for_end(stop))
            try:
                yield
            finally:
                watching.cancel()

    async def _wait_for_end(self, stop: StopEvent) -> None:
        with suppress(OSError):
            await asyncio.get_running_loop().sock_recv(self._channel, 1)
        stop.set()


def parse_worker_arguments(arguments: list[str]) -> Worker | None:
    """Parse the command line of a service; return None if it is not a worker's."""
    match arguments:
        case [flag, number, descriptor] if flag == WORKER_FLAG:
            return Worker(number, descriptor)
        case _:
            return None
