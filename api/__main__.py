"""Starts the api: ``python -m api``.

Settings, logs, metrics, then the server under the lifecycle. Phases of a stop stand in api.server.
"""

import os
import sys
from importlib.metadata import version

from api.app import create_app
from api.server import bind, serve
from scoreboard import lifecycle, settings
from scoreboard.errors import ScoreboardError, SettingInvalid
from scoreboard.lifecycle import Stop
from scoreboard.telemetry import serve_metrics, setup_logging


def main() -> int:
    """Run the service; give the exit code."""
    try:
        chosen = settings.load(os.environ)
        setup_logging(
            "api", level=chosen.log_level, form=chosen.log_format, environment=chosen.environment
        )
        app = create_app(chosen)
        listener = bind(chosen.api_host, chosen.api_port)
        try:
            serve_metrics(
                chosen.metrics_host, chosen.api_metrics_port, "api", version("scoreboard")
            )
        except OSError as error:
            raise SettingInvalid(
                f"SCOREBOARD_API_METRICS_PORT: port {chosen.api_metrics_port}: {error.strerror}"
            ) from error
    except ScoreboardError as error:
        return lifecycle.fail_start(error)

    async def run(stop: Stop) -> None:
        async with app.running():
            await serve(app, chosen, listener, stop)

    return lifecycle.run(run, grace_s=chosen.drain_s)


if __name__ == "__main__":
    sys.exit(main())
