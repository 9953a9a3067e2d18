"""Starts the api: ``python -m api``.

Settings, logs, metrics, then the server under the lifecycle; with several workers, their keeper.
The phases of a stop stand in api.server.
"""

import gc
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version
from typing import Final

from api.app import create_app
from api.server import bind, serve
from scoreboard.http.operator_port import OperatorPort, bind_operators
from scoreboard.runtime import lifecycle, sockets
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.settings import Settings, variable_name
from scoreboard.runtime.startup import start
from scoreboard.runtime.telemetry import BUILD_INFO
from scoreboard.runtime.workers import (
    SUPERVISOR_EXTRA_GRACE_S,
    Supervisor,
    Worker,
    parse_worker_arguments,
)

GC_THRESHOLDS: Final = (20_000, 20, 20)
"""Requests leave little that only the collector can free; let it look less often."""


def main(arguments: Sequence[str]) -> int:
    """Run the service; give the exit code."""

    def run(chosen: Settings) -> int:
        worker = parse_worker_arguments(list(arguments))
        if worker is None and chosen.api_workers > 1:
            return _keep(chosen)
        return _serve(chosen, worker)

    return start("api", run)


def _serve(chosen: Settings, worker: Worker | None) -> int:
    app = create_app(chosen)
    listener = bind(chosen.api_host, chosen.api_port, shared=worker is not None)
    if worker is None or not chosen.api_metrics_port:
        operators = _bind_metrics(chosen)
    else:
        operators = sockets.bind("127.0.0.1", 0)  # asked by the keeper alone
    BUILD_INFO.labels(version("scoreboard"), "api").set(1)

    async def run(stop: StopEvent) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(OperatorPort(operators))
            await stack.enter_async_context(app.running())
            started = None
            if worker is not None:
                await stack.enter_async_context(worker.kept(stop))
                metrics_port = operators.getsockname()[1] if operators is not None else 0
                started = partial(worker.notify_started, metrics_port)
            _leave_start_to_rest()
            await serve(app, chosen, listener, stop, started=started)

    return lifecycle.run(run, grace_s=chosen.drain_s)


def _keep(chosen: Settings) -> int:
    # Without SO_REUSEPORT first: with it, a second api would share the port unnoticed.
    with bind(chosen.api_host, chosen.api_port) as probe:
        port: int = probe.getsockname()[1]
    held = bind(chosen.api_host, port, shared=True)
    supervisor = Supervisor("api", chosen.api_workers, held, variable_name("api_port"))
    operators = _bind_metrics(chosen)

    async def run(stop: StopEvent) -> None:
        async with OperatorPort(operators, registry=supervisor.metrics(), is_slow=True):
            await supervisor.run(stop)

    return lifecycle.run(run, grace_s=chosen.drain_s + SUPERVISOR_EXTRA_GRACE_S)


def _bind_metrics(chosen: Settings) -> socket.socket | None:
    return bind_operators(
        chosen.metrics_host,
        chosen.api_metrics_port,
        variables="SCOREBOARD_METRICS_HOST, SCOREBOARD_API_METRICS_PORT",
    )


def _leave_start_to_rest() -> None:
    """Keep the collector from going over all that starting has made, again and again.

    It saves about 7 % of the CPU of an update (docs/explanation/benchmarks.md, section API).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
