"""A service of ours as a child process: its environment, its log, whether it is ready, its end.

Called by `cli.commands.up`. What stays true: secrets reach a child in its environment only; a child
ends with us, however we end (`cli.embedded.child`); it and its workers import what is installed,
and nothing that lies in the current folder.
"""

import http.client
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from cli.embedded import child
from scoreboard.errors import ServiceExited, WaitTimeout
from scoreboard.runtime.telemetry import redact

READY_TIMEOUT_S: Final = 60.0
STOP_MARGIN_S: Final = 3.0
"""What a service may take beyond its own deadline before it is killed."""

_ASK_TIMEOUT_S: Final = 2.0
_POLL_S: Final = 0.05
_TAIL_BYTES: Final = 8192
_TAIL_LINES: Final = 4
_SHOWN: Final = ("scoreboard.reason", "scoreboard.code", "scoreboard.error", "error.stack_trace")
"""Fields of a log line that say why."""


class Service:
    """One child. ``start``, ``stop`` and ``kill`` may be repeated in any order."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        ready_url: str = "",
        drain_s: float = 5.0,
    ) -> None:
        """Take the ``python`` ``arguments`` of the child; ``drain_s`` is its own deadline."""
        self.name = name
        self.log = log
        self._arguments = arguments
        self._environment = environment
        self._ready_url = ready_url
        self._drain_s = drain_s
        self._process: child.Process | None = None

    def start(self) -> None:
        """Start the child with a new log; the one before is kept once.

        Raises ServiceExited when it cannot be started.
        """
        if self.is_running:
            return
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.log.exists():
            self.log.replace(self.log.with_name(f"{self.log.name}.1"))
        try:
            self._process = child.spawn(
                [sys.executable, *self._arguments],
                on_parent_death=signal.SIGTERM,
                output=self.log,
                environment=_with_safe_path(self._environment),
            )
        except OSError as error:
            raise ServiceExited(f"The {self.name} cannot be started: {error.strerror}") from error

    def stop(self) -> bool:
        """Stop the child in its orderly way, by force past its deadline; say which it was."""
        if self._process is None:
            return True
        within_s = self._drain_s + STOP_MARGIN_S
        return child.end(self._process, signal.SIGTERM, within_s=within_s)

    def kill(self) -> None:
        """Kill the child with SIGKILL."""
        if self._process is not None:
            child.kill(self._process)

    @property
    def is_running(self) -> bool:
        """Whether the child is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The child's process id; None where it does not run."""
        return self._process.pid if self._process is not None and self.is_running else None

    @property
    def exit_code(self) -> int | None:
        """How the child ended; None while it runs or before it was started."""
        return self._process.poll() if self._process is not None else None

    def check(self) -> None:
        """Make sure the child is alive.

        Raises ServiceExited with its last words.
        """
        if not self.is_running:
            raise ServiceExited(
                f"The {self.name} ended with code {self.exit_code}: "
                f"{summarize_log_tail(self.log) or 'it said nothing'} (see {self.log})"
            )

    def ask_ready(self) -> str:
        """Ask the child once; give what still lacks, empty when it is ready.

        A child whose address is `tcp://` is ready when it listens there, one without any when it
        lives.
        """
        if not self._ready_url:
            return ""
        parts = urlsplit(self._ready_url)
        try:
            if parts.scheme == "tcp":
                address = (parts.hostname or "", parts.port or 0)
                socket.create_connection(address, _ASK_TIMEOUT_S).close()
                return ""
            with closing(
                http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_ASK_TIMEOUT_S)
            ) as connection:
                connection.request("GET", parts.path)
                answer = connection.getresponse()
                body = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            return f"it does not answer ({type(error).__name__})"
        return "" if answer.status == 200 else " ".join(body.split())


def wait_until_ready(services: Sequence[Service], check: Callable[[], None]) -> None:
    """Wait until every service says that it is ready; ``check`` runs in between and may raise.

    Raises ServiceExited, WaitTimeout.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    for service in services:
        while lack := service.ask_ready():
            check()
            service.check()
            if time.monotonic() > deadline:
                raise WaitTimeout(
                    f"The {service.name} is not ready within {READY_TIMEOUT_S:g} s: {lack} "
                    f"(see {service.log})"
                )
            time.sleep(_POLL_S)


def _with_safe_path(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which Python and its children do not import from the current folder.

    `python -m flusher` would run a `flusher.py` that lies there. PYTHONPATH keeps its absolute
    entries: an empty or relative one means that folder, too.
    """
    entries = environment.get("PYTHONPATH", "").split(os.pathsep)
    return {
        **environment,
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(filter(os.path.isabs, entries)),
    }


def summarize_log_tail(log: Path) -> str:
    """Give the end of a log as one line, without anything that looks like a credential."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line for line in text.splitlines() if line.strip()]
    return redact(" | ".join(_short(line) for line in lines[-_TAIL_LINES:]))


def _short(line: str) -> str:
    """Give what a line says: of a structured one the event and the reason."""
    try:
        event: Any = json.loads(line)
        words = [str(event["message"])]
    except (ValueError, KeyError, TypeError):
        return " ".join(line.split())
    words += [str(event[name]).strip().splitlines()[-1] for name in _SHOWN if event.get(name)]
    return ": ".join(words)
