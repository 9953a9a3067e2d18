"""Restarts an embedded server that has ended, after growing waits.

Valkey ends when it cannot write its append-only file, PostgreSQL when it cannot write its log; a
full disk ends both, and neither loses acknowledged data. The services continue: without Valkey,
updates are answered with 503.

Invariants: restarts are tried without limit, at most about every 30 s if the server keeps ending.
"""

import time
from collections.abc import Callable
from typing import Final

from cli.embedded.server import EmbeddedServer
from cli.output import print_message
from scoreboard.errors import EmbeddedFailed
from scoreboard.runtime.lifecycle import backoff_s

WAIT_MIN_S: Final = 0.5
WAIT_MAX_S: Final = 30.0
RECOVERED_AFTER_S: Final = 5.0
"""Run time after which a restart is reported: a full disk ends a server at its first write."""
STABLE_AFTER_S: Final = 60.0
"""Run time after which the next wait is short again."""
MESSAGE_INTERVAL_S: Final = 60.0
"""Least time between two messages about a server that ends again and again."""


class ServerSupervisor:
    """Supervises one server, which must be running at first."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self._attempt = 0
        self._started_at_s = time.monotonic()
        self._restart_at_s: float | None = None
        """When to start the server again; None while it runs."""
        self._reported_at_s: float | None = None
        """When the end was last reported; None while the server runs normally."""

    def restart_if_due(self, check: Callable[[], None]) -> bool:
        """Start the server if it has ended and its wait is over; return whether it was started.

        ``check`` is called repeatedly during the start and may raise.
        """
        now_s = time.monotonic()
        if self.server.is_running:
            if self._reported_at_s is not None and now_s - self._started_at_s > RECOVERED_AFTER_S:
                self._reported_at_s = None
                print_message(f"{self.server.title} is running again")
            return False
        if self._restart_at_s is None:
            if now_s - self._started_at_s > STABLE_AFTER_S:
                self._attempt = 0
            self._schedule(
                f"{self.server.title} ended; last log lines: {self.server.folder.log_tail()}"
            )
        if self._restart_at_s is None or now_s < self._restart_at_s:
            return False
        try:
            self.server.start(check)
        except EmbeddedFailed as error:
            self._schedule(error.detail)
            return False
        self._restart_at_s, self._started_at_s = None, time.monotonic()
        return True

    def _schedule(self, reason: str) -> None:
        now_s = time.monotonic()
        wait_s = backoff_s(self._attempt, least_s=WAIT_MIN_S, most_s=WAIT_MAX_S)
        self._restart_at_s = now_s + wait_s
        self._attempt += 1
        if self._reported_at_s is None or now_s - self._reported_at_s > MESSAGE_INTERVAL_S:
            self._reported_at_s = now_s
            print_message(f"{reason}\nRestarting {self.server.title} until it runs")
