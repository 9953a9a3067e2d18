"""Limits on what is logged: so many lines of one kind in a time, and so much of a value. No I/O.

Used by scoreboard.runtime.telemetry for every line of every process. What stays true: whoever can
cause a line cannot cause many; what is dropped is counted, and the count is logged.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

LINES_MAX: Final = 20
"""Lines of one kind in one window; the rest are counted."""

WINDOW_S: Final = 10.0
KINDS_MAX: Final = 256
"""Kinds told apart in one window; further ones share a limit."""

OTHERS: Final = "(others)"

VALUE_LENGTH_MAX: Final = 2000
STACK_LENGTH_MAX: Final = 16_000


class LineRateLimiter:
    """Admits lines by their kind. ``report`` is called with the kind and number of dropped ones.

    It may be used from any thread.
    """

    def __init__(
        self,
        report: Callable[[str, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._report = report
        self._clock = clock
        # Reentrant, as logging's own: collecting garbage may log amid anything.
        self._lock = threading.RLock()
        self._counts: Counter[str] = Counter()
        self._ends_at_s = 0.0
        self._timer: threading.Timer | None = None

    def admits(self, kind: str) -> bool:
        """Count a line; tell whether it may be written."""
        ended: Counter[str] = Counter()
        with self._lock:
            now_s = self._clock()
            if now_s >= self._ends_at_s:
                ended, self._counts = self._counts, Counter()
                self._ends_at_s = now_s + WINDOW_S
            if kind not in self._counts and len(self._counts) >= KINDS_MAX:
                kind = OTHERS
            self._counts[kind] += 1
            is_admitted = self._counts[kind] <= LINES_MAX
            if not is_admitted and self._timer is None:
                self._timer = self._start_timer(self._ends_at_s - now_s)
        self._tell(ended)
        return is_admitted

    def flush(self) -> None:
        """End the window, and report what was dropped in it."""
        with self._lock:
            ended, self._counts = self._counts, Counter()
            self._ends_at_s = 0.0
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._tell(ended)

    def _start_timer(self, wait_s: float) -> threading.Timer | None:
        """Have the count reported where no further line comes."""
        timer = threading.Timer(wait_s, self.flush)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:
            return None  # no thread is to be had: the next line reports it
        return timer

    def _tell(self, ended: Counter[str]) -> None:
        for kind, count in ended.items():
            if count > LINES_MAX:
                self._report(kind, count - LINES_MAX)


def event_kind(event: Mapping[str, Any]) -> str:
    """Give the kind of a line: its event, and the status and code that tell its cases apart."""
    return " ".join(str(event[name]) for name in ("event", "status", "code") if name in event)


def truncate(key: str, text: str) -> str:
    """Give a value without what is too long: the end of a text, the beginning of a stack trace."""
    if key == "exception":
        return text if len(text) <= STACK_LENGTH_MAX else "… " + text[-STACK_LENGTH_MAX:]
    return text if len(text) <= VALUE_LENGTH_MAX else text[:VALUE_LENGTH_MAX] + " …"
