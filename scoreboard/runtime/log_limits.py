"""Limits on logging: lines of one kind per window, and the length of values. No I/O.

Invariants: clients that cause log lines cannot flood the log; dropped lines are counted, and the
count is logged.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

LINES_MAX: Final = 20
"""Maximum lines of one kind per window (default); further lines are counted."""

WINDOW_S: Final = 10.0
KINDS_MAX: Final = 256
"""Maximum kinds per window; further kinds share one limit."""

KIND_FIELDS: Final = ("event", "status", "code", "outcome")
"""The fields that determine the kind of a line; their values are from closed sets."""

OTHERS: Final = "(others)"

VALUE_LENGTH_MAX: Final = 2000
STACK_LENGTH_MAX: Final = 16_000


class LineRateLimiter:
    """Limits lines by kind. ``report`` is called with the kind and the number of dropped lines.

    Thread-safe.
    """

    def __init__(
        self,
        report: Callable[[str, int], None],
        clock: Callable[[], float] = time.monotonic,
        lines_max: int = LINES_MAX,
    ) -> None:
        self.lines_max = lines_max
        self._report = report
        self._clock = clock
        # Reentrant, like the lock of logging: garbage collection may log at any point.
        self._lock = threading.RLock()
        self._counts: Counter[str] = Counter()
        self._ends_at_s = 0.0
        self._timer: threading.Timer | None = None

    def allow(self, kind: str) -> bool:
        """Count a line; return whether it may be written."""
        ended: Counter[str] = Counter()
        with self._lock:
            now_s = self._clock()
            if now_s >= self._ends_at_s:
                ended, self._counts = self._counts, Counter()
                self._ends_at_s = now_s + WINDOW_S
            if kind not in self._counts and len(self._counts) >= KINDS_MAX:
                kind = OTHERS
            self._counts[kind] += 1
            is_allowed = self._counts[kind] <= self.lines_max
            if not is_allowed and self._timer is None:
                self._timer = self._start_timer(self._ends_at_s - now_s)
        self._report_dropped(ended)
        return is_allowed

    def flush(self) -> None:
        """End the window and report the dropped lines."""
        with self._lock:
            ended, self._counts = self._counts, Counter()
            self._ends_at_s = 0.0
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._report_dropped(ended)

    def _start_timer(self, wait_s: float) -> threading.Timer | None:
        """Start a timer that reports the count if no further line is logged."""
        timer = threading.Timer(wait_s, self.flush)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:
            return None  # no thread can be started: the next line reports the count
        return timer

    def _report_dropped(self, ended: Counter[str]) -> None:
        for kind, count in ended.items():
            if count > self.lines_max:
                self._report(kind, count - self.lines_max)


def event_kind(event: Mapping[str, Any]) -> str:
    """Return the kind of a line: its event, status and code."""
    return " ".join(str(event[name]) for name in KIND_FIELDS if name in event)


def truncate(key: str, text: str) -> str:
    """Truncate a long value: the end of a text, the beginning of a stack trace."""
    if key == "exception":
        return text if len(text) <= STACK_LENGTH_MAX else "… " + text[-STACK_LENGTH_MAX:]
    return text if len(text) <= VALUE_LENGTH_MAX else text[:VALUE_LENGTH_MAX] + " …"
