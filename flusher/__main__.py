"""`python -m flusher`: reads the settings and runs the service to its end."""

import os
import sys

from flusher.service import Flusher
from scoreboard import settings as settings_module
from scoreboard.errors import SettingInvalid
from scoreboard.lifecycle import fail_start, run
from scoreboard.telemetry import setup_logging


def main() -> int:
    """Run the flusher; give the exit code."""
    try:
        settings = settings_module.load(os.environ)
        if not settings.database_url:
            raise SettingInvalid("DATABASE_URL is not set; see .env.example")  # noqa: TRY301
    except SettingInvalid as error:
        return fail_start(error)
    setup_logging(
        "flusher",
        level=settings.log_level,
        form=settings.log_format,
        environment=settings.environment,
    )
    return run(Flusher(settings).serve, grace_s=settings.drain_s)


if __name__ == "__main__":
    sys.exit(main())
