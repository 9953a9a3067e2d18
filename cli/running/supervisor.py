"""Starts an embedded server again when it has ended: for as long as it takes, later and later.

Called by `cli.running.system`. Valkey ends when it cannot write its append-only file, PostgreSQL
when it cannot write its log: a full disk ends both, and they lose nothing that they have
acknowledged. What stays true: the services go on, and updates answer 503 while Valkey is away; a
server that keeps ending is started about every half minute.
"""

import time
from collections.abc import Callable
from typing import Final

from cli.embedded.server import EmbeddedServer
from cli.output import print_message
from scoreboard.errors import EmbeddedFailed
from scoreboard.runtime.lifecycle import backoff_s

LEAST_S: Final = 0.5
MOST_S: Final = 30.0
SETTLED_S: Final = 5.0
"""A server that ran this long is said to run again: a full disk ends it at its first write."""
STEADY_S: Final = 60.0
"""One that ran this long has recovered: the next wait is a short one."""
TELL_EVERY_S: Final = 60.0
"""Least time between two messages of a server that keeps ending."""


class ServerSupervisor:
    """Keeps one server, which is running when it is handed over."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self._attempt = 0
        self._started_at_s = time.monotonic()
        self._due_at_s: float | None = None
        """When to start the server again; None while it runs."""
        self._told_at_s: float | None = None
        """When the operator was last told that it had ended; None while it runs as it should."""

    def look(self, check: Callable[[], None]) -> bool:
        """Start the server again where it has ended and it is time; tell whether it was started.

        ``check`` is called again and again meanwhile, and may raise.
        """
        now_s = time.monotonic()
        if self.server.is_running:
            if self._told_at_s is not None and now_s - self._started_at_s > SETTLED_S:
                self._told_at_s = None
                print_message(f"{self.server.title} runs again")
            return False
        if self._due_at_s is None:
            if now_s - self._started_at_s > STEADY_S:
                self._attempt = 0
            self._wait(f"{self.server.title} ended: {self.server.folder.log_tail()}")
        if self._due_at_s is None or now_s < self._due_at_s:
            return False
        try:
            self.server.start(check)
        except EmbeddedFailed as error:
            self._wait(error.detail)
            return False
        self._due_at_s, self._started_at_s = None, time.monotonic()
        return True

    def _wait(self, why: str) -> None:
        now_s = time.monotonic()
        self._due_at_s = now_s + backoff_s(self._attempt, least_s=LEAST_S, most_s=MOST_S)
        self._attempt += 1
        if self._told_at_s is None or now_s - self._told_at_s > TELL_EVERY_S:
            self._told_at_s = now_s
            print_message(f"{why}\n{self.server.title} is started again until it runs")
