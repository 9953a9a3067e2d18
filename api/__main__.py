"""Starts the api: ``python -m api``.

Settings, logs, metrics, then the server under the lifecycle; with several workers, their keeper.
The phases of a stop stand in api.server.
"""

import gc
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import Final

from prometheus_client import start_http_server

from api.app import create_app
from api.server import bind, serve
from scoreboard import lifecycle
from scoreboard.errors import SettingInvalid
from scoreboard.lifecycle import Stop
from scoreboard.settings import Settings, variable_of
from scoreboard.startup import start
from scoreboard.telemetry import BUILD_INFO, REGISTRY, serve_metrics
from scoreboard.workers import LONGER_THAN_WORKERS_S, Keeper, Worker, worker_of

GC_THRESHOLDS: Final = (20_000, 20, 20)
"""Requests leave little that only the collector can free; let it look less often."""


def main(arguments: Sequence[str]) -> int:
    """Run the service; give the exit code."""

    def run(chosen: Settings) -> int:
        worker = worker_of(list(arguments))
        if worker is None and chosen.api_workers > 1:
            return _keep(chosen)
        return _serve(chosen, worker)

    return start("api", run)


def _serve(chosen: Settings, worker: Worker | None) -> int:
    app = create_app(chosen)
    listener = bind(chosen.api_host, chosen.api_port, shared=worker is not None)
    if worker is None:
        try:
            serve_metrics(
                chosen.metrics_host, chosen.api_metrics_port, "api", version("scoreboard")
            )
        except OSError as error:
            raise _taken(chosen, error) from error

        async def run(stop: Stop) -> None:
            async with app.running():
                _leave_start_to_rest()
                await serve(app, chosen, listener, stop)
    else:
        BUILD_INFO.labels(version("scoreboard"), "api").set(1)
        metrics_port = 0
        if chosen.api_metrics_port:
            metrics, _ = start_http_server(0, "127.0.0.1", REGISTRY)  # asked by the keeper alone
            metrics_port = int(metrics.server_port)

        async def run(stop: Stop) -> None:
            async with app.running(), worker.kept(stop):
                _leave_start_to_rest()
                started = partial(worker.tell_started, metrics_port)
                await serve(app, chosen, listener, stop, started=started)

    return lifecycle.run(run, grace_s=chosen.drain_s)


def _keep(chosen: Settings) -> int:
    # Without SO_REUSEPORT first: with it, a second api would share the port unnoticed.
    with bind(chosen.api_host, chosen.api_port) as probe:
        port: int = probe.getsockname()[1]
    held = bind(chosen.api_host, port, shared=True)
    keeper = Keeper("api", chosen.api_workers, held, variable_of("api_port"))
    try:
        keeper.serve_metrics(chosen.metrics_host, chosen.api_metrics_port)
    except OSError as error:
        raise _taken(chosen, error) from error
    return lifecycle.run(keeper.run, grace_s=chosen.drain_s + LONGER_THAN_WORKERS_S)


def _leave_start_to_rest() -> None:
    """Keep the collector from going over all that starting has made, again and again.

    It saves about 7 % of the CPU of an update (docs/benchmarks.md, section API).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _taken(chosen: Settings, error: OSError) -> SettingInvalid:
    return SettingInvalid(
        f"SCOREBOARD_API_METRICS_PORT: port {chosen.api_metrics_port}: {error.strerror}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
