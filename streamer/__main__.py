"""Starts the streamer: ``python -m streamer``.

Settings, logs, then one process, or a parent of several where SCOREBOARD_WS_WORKERS asks for them.
Phases of a stop: not ready, stop listening, ``bye`` and 1012 spread over the drain time, hang up.
"""

import asyncio
import sys

from scoreboard import lifecycle
from scoreboard.lifecycle import Stop
from scoreboard.settings import Settings
from scoreboard.startup import start
from streamer import server
from streamer.workers import WORKER_OPTION, supervise_workers, watch_parent


def main(arguments: list[str]) -> int:
    """Run the service; give the exit code."""
    worker = int(arguments[1]) if arguments[:1] == [WORKER_OPTION] else None
    return start("streamer", lambda settings: _run(settings, worker))


def _run(settings: Settings, worker: int | None) -> int:
    async def serve(stop: Stop) -> None:
        if worker is not None:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(watch_parent(stop))
                await server.serve(settings, stop, worker=worker, shared=True)
                watching.cancel()
        elif settings.ws_workers > 1:
            await supervise_workers(settings, stop)
        else:
            await server.serve(settings, stop)

    return lifecycle.run(serve, grace_s=server.grace_s(settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
