"""Ends what takes too long, at the price of one append per wait.

``asyncio.timeout`` makes and cancels a timer each time, and in Python 3.11 asks the kernel for the
process's id at every step (docs/benchmarks.md, section API). Here all waits of one kind have the
same limit, so they end in the order in which they began, and a look at the oldest a few times a
second is enough. A limit is therefore kept to within TICK_S, never cut short.
"""

import asyncio
from collections import deque
from typing import Final, Self

TICK_S: Final = 0.25


class Wait:
    """One wait under a limit; an async-safe context manager that raises TimeoutError when late."""

    __slots__ = ("due_s", "is_late", "task")

    def __init__(self, task: "asyncio.Task[object]", due_s: float) -> None:
        self.task: asyncio.Task[object] | None = task
        self.due_s = due_s
        self.is_late = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        task, self.task = self.task, None
        is_cut = self.is_late and kind is asyncio.CancelledError and task is not None
        # As asyncio.timeout does: our own cancellation becomes an error, others' stay.
        if is_cut and task is not None and task.uncancel() == 0:
            raise TimeoutError


class Deadlines:
    """Waits that share a limit. Run ``run`` in a task group."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._waits: deque[Wait] = deque()

    def begin(self, task: "asyncio.Task[object]", loop: asyncio.AbstractEventLoop) -> Wait:
        """Begin a wait of ``task``, the running one; use it in a ``with``."""
        wait = Wait(task, loop.time() + self.limit_s)
        self._waits.append(wait)
        return wait

    async def run(self) -> None:
        """End what is late until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_S)
            self.end_late(loop.time())

    def end_late(self, now_s: float) -> None:
        """Cancel the waits whose limit has passed, and forget those that are over."""
        waits = self._waits
        while waits and (waits[0].task is None or waits[0].due_s <= now_s):
            wait = waits.popleft()
            if wait.task is not None:
                wait.is_late = True
                wait.task.cancel()
