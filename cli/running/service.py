"""A service as a child process: environment, log, readiness and end.

Invariants: secrets reach a child in its environment only; a child ends when this process ends, even
if it is killed (`cli.embedded.child`); a child and its workers import installed modules only, and
nothing from the current folder.
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
from cli.embedded.log_tail import read_last_lines
from scoreboard.errors import ServiceExited, WaitTimeout
from scoreboard.runtime.telemetry import redact

READY_TIMEOUT_S: Final = 60.0
STOP_MARGIN_S: Final = 3.0
"""Time after a service's own deadline after which it is killed."""

_PROBE_TIMEOUT_S: Final = 2.0
_POLL_S: Final = 0.05
_TAIL_LINES: Final = 4
_REASON_FIELDS: Final = (
    "event.reason",
    "error.code",
    "error.type",
    "error.stack_trace",
)
"""Fields of a log line that explain its event."""


class Service:
    """One child process. ``start``, ``stop`` and ``kill`` may be repeated in any order."""

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
        """Take the arguments of ``python``; ``drain_s`` is the child's own deadline for a stop."""
        self.name = name
        self.log = log
        self._arguments = arguments
        self._environment = environment
        self._ready_url = ready_url
        self._drain_s = drain_s
        self._process: child.Process | None = None

    def start(self) -> None:
        """Start the child with a new log; the previous log is kept as `NAME.1`.

        Raises ServiceExited if it cannot be started.
        """
        if self.is_running:
            return
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.log.exists():
            self.log.replace(self.log.with_name(f"{self.log.name}.1"))
        try:
            self._process = self._spawn()
        except OSError as error:
            raise ServiceExited(f"The {self.name} cannot be started: {error.strerror}") from error

    def _spawn(self) -> child.Process:
        return child.spawn(
            [sys.executable, *self._arguments],
            on_parent_death=signal.SIGTERM,
            output=self.log,
            environment=_with_safe_path(self._environment),
        )

    def stop(self) -> bool:
        """Stop the child, with SIGKILL after its deadline; return whether it ended in time."""
        if self._process is None:
            return True
        within_s = self._drain_s + STOP_MARGIN_S
        return child.terminate(self._process, signal.SIGTERM, within_s=within_s)

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
        """The child's process id; None if it is not running."""
        return self._process.pid if self._process is not None and self.is_running else None

    @property
    def exit_code(self) -> int | None:
        """The child's exit code, negative for a signal; None while it runs or before its start."""
        return self._process.poll() if self._process is not None else None

    def check(self) -> None:
        """Check that the child is alive.

        Raises ServiceExited with the last lines of its log.
        """
        if not self.is_running:
            tail = summarize_log_tail(self.log) or "(none)"
            raise ServiceExited(
                f"The {self.name} {_describe_exit(self.exit_code)}; "
                f"last lines of its log {self.log}: {tail}"
            )

    def probe_ready(self) -> str:
        """Probe the child once; return why it is not ready, or an empty string if it is.

        With a `tcp://` address the child is ready when it listens there, without an address as
        soon as it runs.
        """
        if not self._ready_url:
            return ""
        parts = urlsplit(self._ready_url)
        try:
            if parts.scheme == "tcp":
                address = (parts.hostname or "", parts.port or 0)
                socket.create_connection(address, _PROBE_TIMEOUT_S).close()
                return ""
            with closing(
                http.client.HTTPConnection(
                    parts.hostname or "", parts.port, timeout=_PROBE_TIMEOUT_S
                )
            ) as connection:
                connection.request("GET", parts.path)
                response = connection.getresponse()
                body = response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            return f"it does not answer ({type(error).__name__})"
        return "" if response.status == 200 else " ".join(body.split())


def wait_until_ready(services: Sequence[Service], check: Callable[[], None]) -> None:
    """Wait until every service is ready; ``check`` is called between the probes and may raise.

    Raises ServiceExited, WaitTimeout.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    for service in services:
        while reason := service.probe_ready():
            check()
            service.check()
            if time.monotonic() > deadline:
                raise WaitTimeout(
                    f"The {service.name} is not ready after {READY_TIMEOUT_S:g} s: {reason} "
                    f"(see {service.log})"
                )
            time.sleep(_POLL_S)


def _with_safe_path(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which Python and its children do not import from the current folder.

    `python -m flusher` would run a `flusher.py` in that folder. PYTHONPATH keeps its absolute
    entries: an empty or relative entry refers to that folder, too.
    """
    entries = environment.get("PYTHONPATH", "").split(os.pathsep)
    return {
        **environment,
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(filter(os.path.isabs, entries)),
    }


def _describe_exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def summarize_log_tail(log: Path) -> str:
    """Return the last lines of a log as one line, without credentials."""
    lines = read_last_lines(log, _TAIL_LINES)
    return redact(" | ".join(_summarize(line) for line in lines))


def _summarize(line: str) -> str:
    """Return the event and the reason of a structured log line, or a plain line as it is."""
    try:
        event: Any = json.loads(line)
        words = [str(event["message"])]
    except (ValueError, KeyError, TypeError):
        return " ".join(line.split())
    reasons = [str(event[name]) for name in _REASON_FIELDS if event.get(name)]
    words += [reason.strip().splitlines()[-1] for reason in reasons]
    return ": ".join(words)
