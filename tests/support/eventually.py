"""Waiting for a state instead of sleeping and hoping.

A check says what must be true: it returns something true, or fails an assertion. Anything else it
raises is a fault of the test and goes through at once.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

T = TypeVar("T")


def eventually(check: Callable[[], T], within_s: float = 5.0, every_s: float = 0.02) -> T:
    """Repeat ``check`` until it returns something true, and give that.

    Raises AssertionError with the last failure when ``within_s`` has passed.
    """
    deadline = time.monotonic() + within_s
    while True:
        try:
            result = check()
        except AssertionError as error:
            result, failure = None, error
        else:
            failure = None
        if result:
            return result
        if time.monotonic() >= deadline:
            raise _too_late(check, within_s, result, failure) from failure
        time.sleep(every_s)


async def eventually_async(
    check: Callable[[], T | Awaitable[T]],
    within_s: float = 5.0,
    every_s: float = 0.02,
) -> T:
    """Repeat ``check``, plain or async, until it returns something true, and give that.

    Raises AssertionError with the last failure when ``within_s`` has passed, also while it hangs.
    """
    limit = asyncio.timeout(within_s)
    result: T | None = None
    failure: AssertionError | None = None
    try:
        async with limit:
            while True:
                try:
                    answer = check()
                    result = cast("T", await answer if inspect.isawaitable(answer) else answer)
                    failure = None
                except AssertionError as error:
                    result, failure = None, error
                if result:
                    return result
                await asyncio.sleep(every_s)
    except TimeoutError:
        if not limit.expired():
            raise
    raise _too_late(check, within_s, result, failure) from failure


def _too_late(
    check: Callable[[], object],
    within_s: float,
    result: object,
    failure: AssertionError | None,
) -> AssertionError:
    name = getattr(check, "__qualname__", repr(check))
    last = str(failure) if failure is not None else f"it returned {result!r}"
    hint = " (a check must return something true)" if failure is None and result is None else ""
    return AssertionError(f"{name} did not hold within {within_s:g} s; at last: {last}{hint}")
