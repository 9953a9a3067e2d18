"""Startup of a service process: settings, logging, and the error line if it fails.

Invariants: a process that cannot start prints the reason in one line on stderr and exits with 1;
no output contains a password, and no core dump is written.
"""

import gc
import os
from collections.abc import Callable

from scoreboard.errors import ScoreboardError
from scoreboard.runtime import settings
from scoreboard.runtime.audit import configure_audit
from scoreboard.runtime.core_dumps import disable_core_dumps
from scoreboard.runtime.lifecycle import EXIT_FAILURE, report_startup_error
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger, setup_logging

_log = get_logger(__name__)


def start(service: str, run: Callable[[Settings], int]) -> int:
    """Run a service with the settings of the environment; return the exit code."""
    disable_core_dumps()
    try:
        chosen = settings.load(os.environ)
    except ScoreboardError as error:
        return report_startup_error(error)
    start_logs(service, chosen)
    links = settings.service_links(os.environ)
    if links:
        _log.info("service_links_ignored", variables=links)
    for name, advice in settings.deprecated(os.environ).items():
        _log.warning("setting_deprecated", settings=[name], reason=advice)
    try:
        return run(chosen)
    except ScoreboardError as error:
        return report_startup_error(error)
    except Exception as error:  # noqa: BLE001 (entry point of the process)
        _log.critical("process_crashed", exc_info=error)
        return EXIT_FAILURE


def start_logs(service: str, chosen: Settings) -> None:
    """Set up the log and the audit stream of a process."""
    setup_logging(
        service,
        level=chosen.log_level,
        form=chosen.log_format,
        environment=chosen.environment,
        lines_max=chosen.log_lines,
    )
    configure_audit(chosen)


def freeze_garbage_collector() -> None:
    """Exclude the objects made so far, which live as long as the process, from collection."""
    gc.collect()
    gc.freeze()
