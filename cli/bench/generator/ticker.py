"""Calls a function at short, even intervals: by a timer of the kernel on Linux.

The timers of an event loop are rounded to a millisecond, as long as a whole request takes.
"""

import asyncio
import ctypes
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

_CLOCK_MONOTONIC: Final = 1
_CLOEXEC_NONBLOCK: Final = os.O_CLOEXEC | os.O_NONBLOCK
_ITIMERSPEC: Final = struct.Struct("=qqqq") if sys.maxsize > 2**32 else struct.Struct("=llll")


@contextmanager
def ticking(interval_s: float, call: Callable[[], None]) -> Iterator[None]:
    """Call ``call`` every ``interval_s`` while the block runs.

    Calls that would have happened while the loop was busy are not made up for.
    """
    timer = _make_timer(interval_s) if sys.platform == "linux" else -1
    if timer < 0:
        with _loop_ticking(interval_s, call):
            yield
        return
    loop = asyncio.get_running_loop()

    def on_tick() -> None:
        with suppress(BlockingIOError):
            os.read(timer, 8)
        call()

    loop.add_reader(timer, on_tick)
    try:
        yield
    finally:
        loop.remove_reader(timer)
        os.close(timer)


@contextmanager
def _loop_ticking(interval_s: float, call: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    handle: asyncio.TimerHandle

    def on_tick() -> None:
        nonlocal handle
        handle = loop.call_later(interval_s, on_tick)
        call()

    handle = loop.call_later(interval_s, on_tick)
    try:
        yield
    finally:
        handle.cancel()


def _make_timer(interval_s: float) -> int:
    """Return the descriptor of a timer, or -1 if there is none (os.timerfd_create needs 3.13)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "timerfd_create"):
        return -1
    timer = libc.timerfd_create(_CLOCK_MONOTONIC, _CLOEXEC_NONBLOCK)
    if timer < 0:
        return -1
    whole, rest = divmod(int(interval_s * 1e9), 1_000_000_000)
    if libc.timerfd_settime(timer, 0, _ITIMERSPEC.pack(whole, rest, whole, rest), None) < 0:
        os.close(timer)
        return -1
    return timer
