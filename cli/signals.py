"""Signals that stop `scoreboard up` and `scoreboard bench`."""

import queue
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopFlag:
    """A flag that a signal handler can set while the main thread waits for it.

    ``threading.Event`` cannot: a handler that runs while its thread holds the event's lock waits
    for that lock for ever. ``SimpleQueue.put`` is documented as safe there.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Set the flag and wake all who wait."""
        self._is_set = True
        self._wakes.put(None)

    def is_set(self) -> bool:
        """Return whether the flag is set."""
        return self._is_set

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the flag is set or the time is over; return whether it is set."""
        if not self._is_set:
            with suppress(queue.Empty):
                self._wakes.get(timeout=timeout_s)
                self._wakes.put(None)  # for others who wait
        return self._is_set


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Yield a flag that the first signal sets; the second raises KeyboardInterrupt.

    SIGHUP stays ignored if it was, so that nohup works.
    """
    stop = StopFlag()

    def on_signal(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    is_kept = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [number for number in SIGNALS if not (is_kept and number == signal.SIGHUP)]
    previous = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
