"""Process life: signals, the stop event, the deadline, supervised tasks, back-off.

Every service runs as ``run(serve)``: the first SIGTERM or SIGINT sets ``stop`` and starts the
deadline, a second ends the process at once, a task that dies ends the group with its error.
"""

import asyncio
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import uvloop

from scoreboard.errors import ScoreboardError
from scoreboard.telemetry import get_logger

EXIT_FAILURE: Final = 1
EXIT_DEADLINE: Final = 75

_log = get_logger(__name__)


class DeadlinePassed(Exception):  # noqa: N818 (says what happened)
    """The process was asked to stop and did not within its grace."""


class Stop:
    """The stop event of a process, with the deadline that began when it was set."""

    def __init__(self, grace_s: float) -> None:
        self.grace_s = grace_s
        self._event = asyncio.Event()

    @property
    def is_set(self) -> bool:
        """Tell whether the process is asked to stop."""
        return self._event.is_set()

    def set(self) -> None:
        """Ask the process to stop; harmless when repeated."""
        self._event.set()

    async def wait(self) -> None:
        """Wait until the process is asked to stop."""
        await self._event.wait()

    async def sleep(self, seconds: float) -> bool:
        """Sleep, but no longer than until ``stop``; tell whether it was set."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            pass
        return self._event.is_set()


async def supervise(serve: Callable[[Stop], Awaitable[None]], *, grace_s: float) -> None:
    """Run ``serve`` until it returns, which it must within ``grace_s`` of the first signal.

    Raises DeadlinePassed when it does not, and whatever ``serve`` raises.
    """
    stop = Stop(grace_s)
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    deadline: asyncio.TimerHandle | None = None
    is_late = False

    def expire() -> None:
        nonlocal is_late
        is_late = True
        if task is not None:
            task.cancel()

    def on_signal(name: str) -> None:
        nonlocal deadline
        if stop.is_set:
            _log.warning("stop_forced", signal=name)
            expire()
            return
        _log.info("stop_requested", signal=name, grace_s=grace_s)
        stop.set()
        deadline = loop.call_later(grace_s, expire)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
    try:
        await serve(stop)
    except asyncio.CancelledError:
        if is_late:
            raise DeadlinePassed from None
        raise
    finally:
        if deadline is not None:
            deadline.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def run(serve: Callable[[Stop], Awaitable[None]], *, grace_s: float) -> int:
    """Run a service in this process to its end; give the exit code.

    The one place, with the command line, that turns an error into a line and a code.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(supervise(serve, grace_s=grace_s))
    except DeadlinePassed:
        _log.error("stop_deadline_passed", grace_s=grace_s)
        return EXIT_DEADLINE
    except Exception as error:  # noqa: BLE001 (process entry)
        for leaf in _leaves(error):
            if isinstance(leaf, ScoreboardError):
                _log.critical("process_failed", code=leaf.code, reason=leaf.detail)
            else:
                _log.critical("process_crashed", exc_info=leaf)
        return EXIT_FAILURE
    return 0


def fail_start(error: ScoreboardError) -> int:
    """Say in one plain line why the process does not start (before logging is set up)."""
    sys.stderr.write(f"scoreboard: {error.detail}\n")
    return EXIT_FAILURE


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def backoff_s(attempt: int, *, least_s: float = 0.1, most_s: float = 5.0) -> float:
    """Give the wait before try number ``attempt`` (from 0): exponential with full jitter."""
    ceiling = min(most_s, least_s * 2 ** min(attempt, 16))
    return random.uniform(least_s / 2, ceiling)  # noqa: S311 (jitter, no secret)
