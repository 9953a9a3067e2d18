"""Several api processes on one port: starts them, keeps them, stops them, adds up their metrics.

Only with SCOREBOARD_API_WORKERS above 1. Each worker listens for itself (SO_REUSEPORT) and is told
of this process's death by the end of the line between them, so that none is left behind. A worker
that dies is replaced; one that never came up ends the whole, as its cause would not go away.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from api.server import bind
from scoreboard.errors import SettingInvalid
from scoreboard.lifecycle import Stop, backoff_s
from scoreboard.settings import Settings
from scoreboard.telemetry import REGISTRY, get_logger

WORKER_FLAG: Final = "--worker"
START_S: Final = 20.0
"""Time for a worker to listen."""

LONGER_THAN_WORKERS_S: Final = 2.0
"""Grace of this process beyond that of its workers, to see them end."""

SCRAPE_S: Final = 1.0
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""No proxy stands between a keeper and its workers, whatever the environment says."""

_log = get_logger(__name__)


class Supervisor:
    """Keeps the workers of one api."""

    def __init__(self, settings: Settings) -> None:
        """Take the port, so that it is known and free before any worker starts.

        Raises SettingInvalid where it is in use.
        """
        self._settings = settings
        # Without SO_REUSEPORT first: with it, a second api would share the port unnoticed.
        probe = bind(settings.api_host, settings.api_port)
        port: int = probe.getsockname()[1]
        probe.close()
        self._held = bind(settings.api_host, port, shared=True)
        self._environ = {**os.environ, "SCOREBOARD_API_PORT": str(port)}
        self._metrics_ports: dict[int, int] = {}
        self._has_started: set[int] = set()
        self.port = port

    def serve_metrics(self) -> None:
        """Serve the workers' metrics together, told apart by the label ``worker``.

        Raises OSError where the port is in use.
        """
        if self._settings.api_metrics_port:
            registry = CollectorRegistry(auto_describe=False)
            registry.register(_Together(self._metrics_ports))
            start_http_server(
                self._settings.api_metrics_port, self._settings.metrics_host, registry
            )

    async def run(self, stop: Stop) -> None:
        """Keep the workers until ``stop``, then let them finish.

        Raises SettingInvalid where a worker does not come up the first time.
        """
        with self._held:
            async with asyncio.TaskGroup() as tasks:
                for number in range(self._settings.api_workers):
                    tasks.create_task(self._keep(number, stop))
        _log.info("workers_stopped")

    async def _keep(self, number: int, stop: Stop) -> None:
        attempt = 0
        while not stop.is_set:
            has_come_up = await self._live_once(number, stop)
            self._metrics_ports.pop(number, None)
            if stop.is_set:
                return
            if not has_come_up and number not in self._has_started:
                raise SettingInvalid(f"worker {number} did not start; its log says why")
            attempt = 0 if has_come_up else attempt + 1
            _log.error("worker_died", worker=number, attempt=attempt)
            await stop.sleep(backoff_s(attempt))

    async def _live_once(self, number: int, stop: Stop) -> bool:
        """Run one worker to its end; tell whether it came up."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                child = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # what is installed, not an api.py of the current folder
                    "-m",
                    "api",
                    WORKER_FLAG,
                    str(theirs.fileno()),
                    env=self._environ,
                    pass_fds=[theirs.fileno()],
                    # The terminal's Ctrl-C must reach a worker once, through us.
                    start_new_session=True,
                )
            try:
                return await self._watch(number, child, ours, stop)
            finally:
                if child.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        child.kill()
                    await child.wait()

    async def _watch(
        self, number: int, child: asyncio.subprocess.Process, line: socket.socket, stop: Stop
    ) -> bool:
        line.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            # The line ends with the worker, however it ends.
            stopping = tasks.create_task(self._stop_child(child, stop))
            try:
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

    async def _stop_child(self, child: asyncio.subprocess.Process, stop: Stop) -> None:
        await stop.wait()
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)


class _Together(Collector):
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


class Line:
    """A worker's end of the line to the process that keeps it."""

    def __init__(self, descriptor: int, *, has_metrics: bool) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._metrics_port = 0
        if has_metrics:
            server, _ = start_http_server(0, "127.0.0.1", REGISTRY)
            self._metrics_port = int(server.server_port)

    def tell_started(self) -> None:
        """Say that requests are taken, and where the metrics are; 0: nowhere."""
        self._socket.send(str(self._metrics_port).encode())

    async def wait_for_end(self) -> None:
        """Wait until the keeper is gone."""
        await asyncio.get_running_loop().sock_recv(self._socket, 1)
