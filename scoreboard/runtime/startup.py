"""Starts a service process: settings, logs, and one line where it cannot start.

Called by the `__main__` of api, streamer and flusher. What stays true: a process that cannot start
says why in one line on stderr and exits 1; nothing it prints holds a password.
"""

import os
from collections.abc import Callable

from scoreboard.errors import ScoreboardError
from scoreboard.runtime import settings
from scoreboard.runtime.lifecycle import EXIT_FAILURE, report_startup_error
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger, setup_logging

_log = get_logger(__name__)


def start(service: str, run: Callable[[Settings], int]) -> int:
    """Run a service with the settings of this process's environment; return the exit code."""
    try:
        chosen = settings.load(os.environ)
    except ScoreboardError as error:
        return report_startup_error(error)
    setup_logging(
        service, level=chosen.log_level, form=chosen.log_format, environment=chosen.environment
    )
    links = settings.service_links(os.environ)
    if links:
        _log.info("service_links_ignored", variables=links)
    try:
        return run(chosen)
    except ScoreboardError as error:
        return report_startup_error(error)
    except Exception as error:  # noqa: BLE001 (process entry)
        _log.critical("process_crashed", exc_info=error)
        return EXIT_FAILURE
