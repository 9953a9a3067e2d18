"""Starts the api: ``python -m api``.

Settings, logs, metrics, then the server under the lifecycle; with several workers, their keeper.
The phases of a stop stand in api.server.
"""

import asyncio
import gc
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

from api.app import create_app
from api.server import bind, serve
from api.workers import LONGER_THAN_WORKERS_S, WORKER_FLAG, Line, Supervisor
from scoreboard import lifecycle
from scoreboard.errors import SettingInvalid
from scoreboard.lifecycle import Stop
from scoreboard.settings import Settings
from scoreboard.startup import start
from scoreboard.telemetry import BUILD_INFO, serve_metrics

GC_THRESHOLDS: Final = (20_000, 20, 20)
"""Requests leave little that only the collector can free; let it look less often."""


def main(arguments: Sequence[str]) -> int:
    """Run the service; give the exit code."""

    def run(chosen: Settings) -> int:
        if arguments[:1] == [WORKER_FLAG]:
            line = Line(int(arguments[1]), has_metrics=bool(chosen.api_metrics_port))
            return _serve(chosen, line)
        return _keep(chosen) if chosen.api_workers > 1 else _serve(chosen, None)

    return start("api", run)


def _serve(chosen: Settings, line: Line | None) -> int:
    app = create_app(chosen)
    listener = bind(chosen.api_host, chosen.api_port, shared=line is not None)
    if line is None:
        try:
            serve_metrics(
                chosen.metrics_host, chosen.api_metrics_port, "api", version("scoreboard")
            )
        except OSError as error:
            raise _taken(chosen, error) from error
    else:
        BUILD_INFO.labels(version("scoreboard"), "api").set(1)

    async def run(stop: Stop) -> None:
        async with app.running(), asyncio.TaskGroup() as tasks:
            _leave_start_to_rest()
            ending = tasks.create_task(_stop_with_keeper(line, stop)) if line else None
            started = line.tell_started if line else None
            await serve(app, chosen, listener, stop, started=started)
            if ending is not None:
                ending.cancel()

    return lifecycle.run(run, grace_s=chosen.drain_s)


def _keep(chosen: Settings) -> int:
    supervisor = Supervisor(chosen)
    try:
        supervisor.serve_metrics()
    except OSError as error:
        raise _taken(chosen, error) from error
    return lifecycle.run(supervisor.run, grace_s=chosen.drain_s + LONGER_THAN_WORKERS_S)


def _leave_start_to_rest() -> None:
    """Keep the collector from going over all that starting has made, again and again.

    It saves about 7 % of the CPU of an update (docs/benchmarks.md, section API).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _stop_with_keeper(line: Line, stop: Stop) -> None:
    await line.wait_for_end()
    stop.set()


def _taken(chosen: Settings, error: OSError) -> SettingInvalid:
    return SettingInvalid(
        f"SCOREBOARD_API_METRICS_PORT: port {chosen.api_metrics_port}: {error.strerror}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
