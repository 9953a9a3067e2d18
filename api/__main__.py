"""Starts the api: ``python -m api``.

One process serves; with several workers, it supervises them. api.server describes the shutdown.
"""

import gc
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from api.app import create_app
from api.server import bind, serve
from scoreboard.http.operator_port import OperatorPort, bind_operators
from scoreboard.runtime import lifecycle, sockets
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.service_manager import READY, notify
from scoreboard.runtime.settings import Settings, variable_name
from scoreboard.runtime.startup import freeze_garbage_collector, start
from scoreboard.runtime.workers import (
    SUPERVISOR_EXTRA_GRACE_S,
    Supervisor,
    Worker,
    parse_worker_arguments,
    reserve_port,
)

GC_THRESHOLDS: Final = (20_000, 20, 20)
"""Requests create few reference cycles, so the garbage collector runs less often."""


def main(arguments: Sequence[str]) -> int:
    """Run the service; return the exit code."""

    def run(chosen: Settings) -> int:
        worker = parse_worker_arguments(list(arguments))
        if worker is None and chosen.api_workers > 1:
            return _supervise(chosen)
        return _serve(chosen, worker)

    return start("api", run)


def _serve(chosen: Settings, worker: Worker | None) -> int:
    app = create_app(chosen)
    listener = bind(chosen.api_host, chosen.api_port, shared=worker is not None)
    if worker is None or not chosen.api_metrics_port:
        operators = _bind_metrics(chosen)
    else:
        operators = sockets.bind_listener("127.0.0.1", 0)  # scraped by the supervisor only

    async def run(stop: StopEvent) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(OperatorPort(operators, app.health.readiness))
            await stack.enter_async_context(app.running())
            started = partial(notify, READY)
            if worker is not None:
                await stack.enter_async_context(worker.supervised(stop))
                metrics_port = operators.getsockname()[1] if operators is not None else 0
                started = partial(worker.notify_started, metrics_port)
            _tune_garbage_collector()
            await serve(app, chosen, listener, stop, started=started)

    return lifecycle.run(run, grace_s=chosen.drain_s)


def _supervise(chosen: Settings) -> int:
    held = reserve_port(partial(bind, chosen.api_host), chosen.api_port)
    supervisor = Supervisor("api", chosen.api_workers, held, variable_name("api_port"))
    operators = _bind_metrics(chosen)

    async def run(stop: StopEvent) -> None:
        async with OperatorPort(
            operators, supervisor.readiness, registry=supervisor.metrics(), is_slow=True
        ):
            await supervisor.run(stop)

    return lifecycle.run(run, grace_s=chosen.drain_s + SUPERVISOR_EXTRA_GRACE_S)


def _bind_metrics(chosen: Settings) -> socket.socket | None:
    return bind_operators(
        chosen.metrics_host,
        chosen.api_metrics_port,
        variables="SCOREBOARD_METRICS_HOST, SCOREBOARD_API_METRICS_PORT",
    )


def _tune_garbage_collector() -> None:
    """Reduce the work of the garbage collector.

    This saves about 7 % of the CPU time of an update (docs/explanation/benchmarks.md, section API).
    """
    freeze_garbage_collector()
    gc.set_threshold(*GC_THRESHOLDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
