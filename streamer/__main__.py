"""Entry point of the streamer: ``python -m streamer``.

Runs one process, or a supervisor of several if SCOREBOARD_WS_WORKERS is greater than 1. Shutdown
has phases: report not ready, stop listening, send ``bye`` and 1012 spread over the drain time, drop
the remaining connections.
"""

import sys
from functools import partial

from scoreboard.http.operator_port import OperatorPort
from scoreboard.runtime import lifecycle
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.settings import Settings, variable_name
from scoreboard.runtime.startup import start
from scoreboard.runtime.workers import (
    SUPERVISOR_EXTRA_GRACE_S,
    Supervisor,
    Worker,
    parse_worker_arguments,
    reserve_port,
)
from streamer import server
from streamer.handshake.listener import make_listener


def main(arguments: list[str]) -> int:
    """Run the service; return the exit code."""

    def run(settings: Settings) -> int:
        worker = parse_worker_arguments(arguments)
        if worker is None and settings.ws_workers > 1:
            return _supervise(settings)
        return _serve(settings, worker)

    return start("streamer", run)


def _serve(settings: Settings, worker: Worker | None) -> int:
    async def run(stop: StopEvent) -> None:
        if worker is None:
            await server.serve(settings, stop)
            return
        async with worker.supervised(stop):
            await server.serve(settings, stop, worker=worker)

    return lifecycle.run(run, grace_s=server.grace_s(settings))


def _supervise(settings: Settings) -> int:
    held = reserve_port(partial(make_listener, settings), settings.ws_port)
    supervisor = Supervisor("streamer", settings.ws_workers, held, variable_name("ws_port"))
    operators = server.bind_metrics(settings)

    async def run(stop: StopEvent) -> None:
        async with OperatorPort(
            operators, supervisor.readiness, registry=supervisor.metrics(), is_slow=True
        ):
            await supervisor.run(stop)

    return lifecycle.run(run, grace_s=server.grace_s(settings) + SUPERVISOR_EXTRA_GRACE_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
