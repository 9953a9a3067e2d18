"""What a run measured: latencies, outcomes, and how far the generator kept to its schedule."""

from collections import Counter
from typing import Final

from msgspec import Struct

from cli.bench.generator.latencies import Latencies
from cli.bench.generator.schedule import Window

TIMEOUT: Final = "timeout"
LOST: Final = "connection error"
UNREADABLE: Final = "unreadable response"
SUCCESSES: Final = frozenset({"applied", "replayed", "ok"})
UNKNOWN: Final = frozenset({TIMEOUT, LOST, UNREADABLE, "503 outcome-unknown"})
"""Outcomes after which it is not known whether an action counts; the action may be repeated."""

UNKNOWN_MAX: Final = 10_000
"""Maximum number of unknown outcomes that are looked up after the run."""

LATE_S: Final = 0.010
"""A request that the generator itself sent this late shows that the generator is the limit."""

LATE_SHARE: Final = 0.01
"""Share of late requests above which a run is marked."""


class Measurement:
    """The results of one load, for requests that were intended within its window.

    The histogram has the requests that succeeded and those that were not answered, which count
    with the time after which they were given up. Refusals are only counted: they are fast, and
    would make a server look better the more it refuses.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        self.latencies = Latencies()
        self.outcomes: Counter[str] = Counter()
        self.unknown: list[int] = []
        """Numbers of the requests with unknown outcomes, also of those of the warm-up."""
        self.unsent = 0
        """Requests that were due and for which no connection became free in time."""
        self.late = 0
        """Requests that the generator itself sent late, although a connection was free."""
        self.completed = 0
        """Requests answered so far, whether they are measured or not; CPU time is shared by it."""

    def record(self, number: int, intended_s: float, now_s: float, outcome: str) -> None:
        """Add the end of a request."""
        self.completed += 1
        if outcome in UNKNOWN and len(self.unknown) < UNKNOWN_MAX:
            self.unknown.append(number)
        if intended_s not in self.window:
            return
        self.outcomes[outcome] += 1
        if outcome in SUCCESSES or outcome in {TIMEOUT, LOST}:
            self.latencies.record(now_s - intended_s)

    def record_unsent(self, intended_s: float) -> None:
        """Add a request that was never sent."""
        self.unsent += intended_s in self.window

    def record_late(self, intended_s: float) -> None:
        """Add a request that the generator sent late."""
        self.late += intended_s in self.window

    @property
    def total(self) -> int:
        """How many requests were measured, sent or not."""
        return self.outcomes.total() + self.unsent

    @property
    def succeeded(self) -> int:
        """How many measured requests succeeded."""
        return sum(self.outcomes[outcome] for outcome in SUCCESSES)

    @property
    def error_share(self) -> float:
        """The share of measured requests that did not succeed, including unsent ones."""
        return 1 - self.succeeded / self.total if self.total else 1.0

    @property
    def is_schedule_missed(self) -> bool:
        """Return whether the generator itself could not keep to the schedule."""
        return self.late > LATE_SHARE * max(self.total, 1)


class Snapshot(Struct, frozen=True):
    """How many requests were answered at a moment, and CPU seconds used until then by part."""

    at_s: float
    completed: int
    cpu_s: dict[str, float]
