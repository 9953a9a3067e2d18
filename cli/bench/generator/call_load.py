"""A load of calls within this process, such as of the dispatcher, with an open or a closed loop.

As for HTTP, an open loop starts calls at intended times and counts latency from these; the number
of calls in flight is bounded, and a call that waits too long is counted as unsent.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Final

from cli.bench.generator.clock import Course
from cli.bench.generator.measurement import LATE_S, Measurement, Snapshot
from cli.bench.generator.schedule import Schedule, Window
from cli.bench.generator.ticker import ticking

TIMEOUT_S: Final = 10.0


class CallLoad:
    """One load; ``run`` it once, at once. ``call`` gets a number and returns the outcome."""

    def __init__(
        self,
        call: Callable[[int], Awaitable[str]],
        *,
        in_flight: int,
        rate: float | None,
        warm_up_s: float,
        duration_s: float,
    ) -> None:
        self._call = call
        self._in_flight = in_flight
        self._rate = rate
        self._due: deque[float] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._sent = 0
        self._is_over = False
        self._schedule: Schedule | None = None
        self._start_s = time.perf_counter()
        begin_s = self._start_s + warm_up_s
        self.measurement = Measurement(Window(begin_s, begin_s + duration_s))

    async def run(
        self,
        snapshot: Callable[[], Awaitable[dict[str, float]]],
        stop: asyncio.Event,
        report: Callable[[float], None] = lambda _share: None,
    ) -> tuple[Snapshot, Snapshot]:
        """Make calls until the end or until ``stop``; see ``HttpLoad.run``."""
        start_s = self._start_s
        begin_s, end_s = self.measurement.window.begin_s, self.measurement.window.end_s
        if self._rate is not None:
            self._schedule = Schedule(self._rate, start_s, end_s)
        course = Course(start_s, end_s, stop, report)
        clock = ticking(self._schedule.tick_s, self._on_tick) if self._schedule else nullcontext()
        with clock:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._in_flight):
                    group.create_task(self._work())
                await course.wait_until(begin_s)
                first = Snapshot(time.perf_counter(), self.measurement.completed, await snapshot())
                await course.wait_until(end_s)
                last = Snapshot(time.perf_counter(), self.measurement.completed, await snapshot())
                if last.at_s < end_s:  # it was stopped
                    self.measurement.window = Window(begin_s, max(last.at_s, begin_s))
                    self._due.clear()
                self._end()
        while self._due:
            self.measurement.record_unsent(self._due.popleft())
        return first, last

    async def _work(self) -> None:
        """Make one call after another."""
        while True:
            now_s = time.perf_counter()
            if self._schedule is None:
                if self._is_over:
                    return
                intended_s = now_s
            else:
                while not self._due:
                    if self._is_over:
                        return
                    idle = asyncio.get_running_loop().create_future()
                    self._idle.append(idle)
                    await idle
                intended_s = self._due.popleft()
                if time.perf_counter() - intended_s > TIMEOUT_S:
                    self.measurement.record_unsent(intended_s)
                    continue
            number = self._sent
            self._sent += 1
            outcome = await self._call(number)
            self.measurement.record(number, intended_s, time.perf_counter(), outcome)

    def _on_tick(self) -> None:
        if self._schedule is None or self._is_over:
            return
        now_s = time.perf_counter()
        for intended_s in self._schedule.due(now_s):
            if self._idle:
                if now_s - intended_s > LATE_S:
                    self.measurement.record_late(intended_s)
                self._wake()
            self._due.append(intended_s)

    def _wake(self) -> None:
        idle = self._idle.pop()
        if not idle.done():
            idle.set_result(None)

    def _end(self) -> None:
        if self._schedule is not None and not self._schedule.is_over:
            self._on_tick()
        self._is_over = True
        while self._idle:
            self._wake()
