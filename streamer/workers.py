"""Several streamer processes on one port, and the parent that starts, restarts and stops them.

The kernel spreads new viewers evenly over the listeners of a shared port (SO_REUSEPORT). Each
worker is a whole streamer with its own subscription. What stays true: no worker outlives the
parent (its standard input closes), and one that dies is started again, with back-off.
"""

import asyncio
import signal
import sys
from typing import Final

from scoreboard.lifecycle import Stop, backoff_s
from scoreboard.settings import Settings
from scoreboard.telemetry import get_logger
from streamer.listener import make_listener

WORKER_OPTION: Final = "--worker"
STEADY_S: Final = 60.0
"""A worker that lived this long is not failing to start: back-off begins anew."""

_log = get_logger(__name__)


async def supervise_workers(settings: Settings, stop: Stop) -> None:
    """Run ``settings.ws_workers`` processes until asked to stop, then wait for them to drain.

    Raises SettingInvalid when the viewers' address cannot be had.
    """
    # Alone first, so that a port in use is an error here and not a port shared with a stranger.
    make_listener(settings, shared=False).close()
    async with asyncio.TaskGroup() as tasks:
        for number in range(settings.ws_workers):
            tasks.create_task(_keep_worker(number, stop))


async def watch_parent(stop: Stop) -> None:
    """Set ``stop`` when the parent is gone: its end of our standard input closes."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        await reader.read(1)
    finally:
        transport.close()
    stop.set()


async def _keep_worker(number: int, stop: Stop) -> None:
    attempt = 0
    loop = asyncio.get_running_loop()
    while not stop.is_set:
        started_at_s = loop.time()
        worker = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # what is installed, not a streamer.py of the current folder
            "-m",
            "streamer",
            WORKER_OPTION,
            str(number),
            stdin=asyncio.subprocess.PIPE,
        )
        _log.info("worker_started", worker=number, pid=worker.pid)
        try:
            await _wait(worker, stop)
        finally:
            if worker.returncode is None:
                worker.kill()
                await worker.wait()
        if stop.is_set:
            return
        attempt = 0 if loop.time() - started_at_s > STEADY_S else attempt + 1
        _log.error("worker_died", worker=number, code=worker.returncode)
        await stop.sleep(backoff_s(attempt))


async def _wait(worker: asyncio.subprocess.Process, stop: Stop) -> None:
    """Wait for the worker's end, asking for it once the process is asked to stop."""
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(_ask(worker, stop))
        await worker.wait()
        asking.cancel()


async def _ask(worker: asyncio.subprocess.Process, stop: Stop) -> None:
    await stop.wait()
    if worker.returncode is None:
        worker.send_signal(signal.SIGTERM)
