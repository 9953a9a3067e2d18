"""Several processes of a service on one port: starts them, keeps them, stops them, adds up metrics.

Used by the api and the streamer where their settings ask for more than one worker. Each worker
listens for itself (SO_REUSEPORT). What stays true: a worker is in a session of its own, so that a
signal to the keeper's process group reaches it once, through the keeper; none outlives the keeper,
because it is told of the keeper's death by the end of the line between them; one that dies is
replaced, and one that never came up ends the whole, as its cause would not go away.
"""

import asyncio
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from scoreboard.errors import SettingInvalid
from scoreboard.runtime.lifecycle import StopEvent, backoff_s
from scoreboard.runtime.telemetry import get_logger

WORKER_FLAG: Final = "--worker"
START_S: Final = 20.0
"""Time for a worker to listen."""

STEADY_S: Final = 60.0
"""A worker that lived this long is not failing: its back-off begins anew."""

FORCED_S: Final = 1.0
"""Time for a worker to end by force before it is killed."""

SUPERVISOR_EXTRA_GRACE_S: Final = 2.0
"""Grace of the keeper beyond that of its workers, to see them end."""

SCRAPE_S: Final = 1.0
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""No proxy stands between a keeper and its workers, whatever the environment says."""

_log = get_logger(__name__)


class Supervisor:
    """Keeps the workers of one service, ``python -m MODULE --worker NUMBER LINE``."""

    def __init__(self, module: str, count: int, held: socket.socket, port_variable: str) -> None:
        """``held`` is bound to the shared port, which workers are told in ``port_variable``."""
        port = str(held.getsockname()[1])
        self._module = module
        self._count = count
        self._held = held
        self._environ = {**os.environ, port_variable: port}
        self._metrics_ports: dict[int, int] = {}
        self._has_started: set[int] = set()

    def metrics(self) -> CollectorRegistry:
        """Give the metrics of all workers, with the label ``worker``; slow to collect."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_WorkersCollector(self._metrics_ports))
        return registry

    async def run(self, stop: StopEvent) -> None:
        """Keep the workers until ``stop``, then let them finish.

        Raises SettingInvalid where a worker does not come up the first time.
        """
        with self._held:
            async with asyncio.TaskGroup() as tasks:
                for number in range(self._count):
                    tasks.create_task(self._keep(number, stop))
        _log.info("workers_stopped")

    async def _keep(self, number: int, stop: StopEvent) -> None:
        loop = asyncio.get_running_loop()
        attempt = 0
        while not stop.is_set:
            started_at_s = loop.time()
            has_come_up = await self._live_once(number, stop)
            self._metrics_ports.pop(number, None)
            if stop.is_set:
                return
            if not has_come_up and number not in self._has_started:
                raise SettingInvalid(f"worker {number} did not start; its log says why")
            attempt = 0 if loop.time() - started_at_s > STEADY_S else attempt + 1
            _log.error("worker_died", worker=number, attempt=attempt)
            await stop.sleep(backoff_s(attempt))

    async def _live_once(self, number: int, stop: StopEvent) -> bool:
        """Run one worker to its end; tell whether it came up."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                child = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # what is installed, not a module of the current folder
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
        self, number: int, child: asyncio.subprocess.Process, line: socket.socket, stop: StopEvent
    ) -> bool:
        line.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            stopping = tasks.create_task(_stop(child, stop))
            try:
                # The line ends with the worker, however it ends.
                async with asyncio.timeout(START_S):
                    told = await loop.sock_recv(line, 64)
            except TimeoutError:
                _log.error("worker_start_timed_out", worker=number)
                told = b""
                child.kill()
            if told:
                if int(told):
                    self._metrics_ports[number] = int(told)
                self._has_started.add(number)
                _log.info("worker_started", worker=number, pid=child.pid)
            await child.wait()
            stopping.cancel()
        return bool(told)


async def _stop(child: asyncio.subprocess.Process, stop: StopEvent) -> None:
    await stop.wait()
    with suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)


async def _end(child: asyncio.subprocess.Process) -> None:
    """End a worker that still runs, because this process is ended by force: so is the worker."""
    if child.returncode is not None:
        return
    try:
        with suppress(TimeoutError, ProcessLookupError):
            # Its second one, as a rule, at which it says goodbye in an instant.
            child.send_signal(signal.SIGTERM)
            async with asyncio.timeout(FORCED_S):
                await child.wait()
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()


class _WorkersCollector(Collector):
    """Asks every worker at each scrape."""

    def __init__(self, ports: dict[int, int]) -> None:
        self._ports = ports

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for number, port in sorted(dict(self._ports).items()):
            for family in _scrape(port):
                together = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                together.samples += [
                    sample._replace(labels={**sample.labels, "worker": str(number)})
                    for sample in family.samples
                ]
        return families.values()


def _scrape(port: int) -> Iterator[Metric]:
    try:
        with _OPENER.open(f"http://127.0.0.1:{port}/metrics", timeout=SCRAPE_S) as answer:
            text: str = answer.read().decode()
    except OSError:
        return  # it is just ending; the next scrape finds its successor
    yield from text_string_to_metric_families(text)


class Worker:
    """A worker's own view: its number, and the line to its keeper."""

    def __init__(self, number: str, descriptor: str) -> None:
        """Take the two arguments behind WORKER_FLAG."""
        self.number = int(number)
        self._line = socket.socket(fileno=int(descriptor))
        self._line.setblocking(False)

    def notify_started(self, metrics_port: int = 0) -> None:
        """Tell the keeper that this process listens, and where its metrics are; 0: nowhere."""
        with suppress(OSError):  # a keeper that is gone ends this process in its own way
            self._line.send(str(metrics_port).encode())

    @asynccontextmanager
    async def kept(self, stop: StopEvent) -> AsyncIterator[None]:
        """Set ``stop`` when the keeper is gone, as long as the caller's block runs."""
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._wait_for_end(stop))
            try:
                yield
            finally:
                watching.cancel()

    async def _wait_for_end(self, stop: StopEvent) -> None:
        with suppress(OSError):
            await asyncio.get_running_loop().sock_recv(self._line, 1)
        stop.set()


def parse_worker_arguments(arguments: list[str]) -> Worker | None:
    """Read the command line of a service; None where it is no worker."""
    match arguments:
        case [flag, number, descriptor] if flag == WORKER_FLAG:
            return Worker(number, descriptor)
        case _:
            return None
