"""Wait for a condition instead of sleeping.

A check returns a true value when the condition holds; until then it returns a false value or fails
an assertion. Any other exception is an error of the test and is raised at once.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

T = TypeVar("T")


def eventually(check: Callable[[], T], within_s: float = 30.0, every_s: float = 0.02) -> T:
    """Repeat ``check`` until it returns a true value; return that value.

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
    within_s: float = 30.0,
    every_s: float = 0.02,
) -> T:
    """Repeat ``check``, plain or async, until it returns a true value; return that value.

    Raises AssertionError with the last failure when ``within_s`` has passed, even if a check hangs.
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
    hint = " (a check must return a true value)" if failure is None and result is None else ""
    return AssertionError(f"{name} was not true within {within_s:g} s; last result: {last}{hint}")
