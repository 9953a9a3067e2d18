"""The lifecycle of a process: signals, the stop event, the deadline, exit codes, backoff, jitter.

Every service runs as ``run(serve)``: the first SIGTERM or SIGINT sets ``stop`` and starts the
deadline, a second one ends the process immediately, a failed task ends the group with its error.
"""

import asyncio
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import uvloop

from scoreboard.errors import ScoreboardError
from scoreboard.runtime.service_manager import STOPPING, notify, watched
from scoreboard.runtime.telemetry import get_logger

EXIT_FAILURE: Final = 1
EXIT_DEADLINE: Final = 75

_log = get_logger(__name__)


class DeadlinePassed(Exception):  # noqa: N818 (the name is the event)
    """The process did not stop within its grace period."""


class StopEvent:
    """The stop event of a process."""

    def __init__(self, grace_s: float, on_set: Callable[[], None] | None = None) -> None:
        """``on_set`` is called on the first ``set``: it starts the deadline."""
        self.grace_s = grace_s
        self._on_set = on_set
        self._event = asyncio.Event()

    @property
    def is_set(self) -> bool:
        """Return whether the process should stop."""
        return self._event.is_set()

    def set(self) -> None:
        """Ask the process to stop; idempotent."""
        if not self._event.is_set():
            self._event.set()
            if self._on_set is not None:
                self._on_set()

    async def wait(self) -> None:
        """Wait until the process is asked to stop."""
        await self._event.wait()

    async def sleep(self, seconds: float) -> bool:
        """Sleep until the time has passed or ``stop`` is set; return whether it is set."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            pass
        return self._event.is_set()


class _Deadline:
    """Cancels the task that created it when the time has passed."""

    def __init__(self, grace_s: float) -> None:
        self.is_over = False
        self._grace_s = grace_s
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._grace_s, self.expire)

    def expire(self) -> None:
        self.is_over = True
        if self._task is not None:
            self._task.cancel()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


async def supervise(serve: Callable[[StopEvent], Awaitable[None]], *, grace_s: float) -> None:
    """Run ``serve`` until it returns, at most ``grace_s`` after the first signal set ``stop``.

    Raises DeadlinePassed if it does not return in time, and the exceptions of ``serve``.
    """
    deadline = _Deadline(grace_s)
    stop = StopEvent(grace_s, deadline.start)
    loop = asyncio.get_running_loop()

    def on_signal(name: str) -> None:
        if stop.is_set:
            _log.warning("stop_forced", signal=name)
            deadline.expire()
            return
        _log.info("stop_requested", signal=name, grace_s=grace_s)
        notify(STOPPING)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
    try:
        with watched():
            await serve(stop)
    except asyncio.CancelledError:
        if deadline.is_over:
            raise DeadlinePassed from None
        raise
    finally:
        deadline.end()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def run(serve: Callable[[StopEvent], Awaitable[None]], *, grace_s: float) -> int:
    """Run a service in this process; return the exit code.

    Besides the command line, only this function maps errors to log lines and exit codes.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(supervise(serve, grace_s=grace_s))
    except DeadlinePassed:
        _log.error("stop_deadline_passed", grace_s=grace_s)
        return EXIT_DEADLINE
    except Exception as error:  # noqa: BLE001 (entry point of the process)
        for leaf in _leaves(error):
            if isinstance(leaf, ScoreboardError):
                _log.critical("process_failed", code=leaf.code, reason=leaf.detail)
            else:
                _log.critical("process_crashed", exc_info=leaf)
        return EXIT_FAILURE
    return 0


def report_startup_error(error: ScoreboardError) -> int:
    """Print why the process does not start, in one line; logging is not set up yet."""
    sys.stderr.write(f"scoreboard: {error.detail}\n")
    return EXIT_FAILURE


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def backoff_s(attempt: int, *, least_s: float = 0.1, most_s: float = 5.0) -> float:
    """Return the delay before attempt number ``attempt`` (from 0): exponential, with jitter."""
    ceiling = min(most_s, least_s * 2 ** min(attempt, 16))
    return random.uniform(least_s / 2, ceiling)  # noqa: S311 (jitter)


def jitter(value_s: float, share: float = 0.1) -> float:
    """Return a random time within ``share`` of ``value_s``, to spread out simultaneous events."""
    return value_s * random.uniform(1 - share, 1 + share)  # noqa: S311 (jitter)
