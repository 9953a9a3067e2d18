"""`python -m flusher`: reads the settings and runs the service."""

import sys

from flusher.service import Flusher
from scoreboard.errors import SettingInvalid
from scoreboard.runtime.lifecycle import run
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.startup import start


def _run(settings: Settings) -> int:
    if not settings.database_url:
        raise SettingInvalid("DATABASE_URL is not set; see .env.example")
    return run(Flusher(settings).serve, grace_s=settings.drain_s)


if __name__ == "__main__":
    sys.exit(start("flusher", _run))
