"""A timing wheel: one timer per process for all deadlines of all connections. No I/O, no clock.

An entry waits in the slot of its next deadline. Moving it to an earlier slot leaves a stale
reference in the old slot, which ``advance`` skips. Moving it to a later slot costs nothing: the
entry checks its deadline when the earlier slot comes up. A viewer that pauses and resumes a hundred
times a second therefore adds no work.
"""

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Entry(Protocol):
    """An object with deadlines. The wheel owns ``slot``; 0 means not scheduled."""

    slot: int


T = TypeVar("T", bound=Entry)


class TimingWheel(Generic[T]):
    """Slots of ``width_s``; an entry comes up within one width after its deadline."""

    def __init__(self, now_s: float, *, width_s: float = 1.0) -> None:
        self.width_s = width_s
        self._passed = int(now_s / width_s)
        self._slots: dict[int, list[T]] = {}

    def schedule(self, entry: T, deadline_s: float) -> None:
        """Make ``entry`` come up after ``deadline_s``, or earlier if it is already scheduled so."""
        slot = max(int(deadline_s / self.width_s), self._passed) + 1
        if entry.slot and entry.slot <= slot:
            return
        entry.slot = slot
        self._slots.setdefault(slot, []).append(entry)

    def advance(self, now_s: float) -> Iterator[T]:
        """Yield the entries that are due; schedule each again if it has another deadline."""
        current = int(now_s / self.width_s)
        while self._passed < current:
            self._passed += 1
            for entry in self._slots.pop(self._passed, ()):
                if entry.slot == self._passed:
                    entry.slot = 0
                    yield entry

    def __len__(self) -> int:
        """Count the references held, including stale ones."""
        return sum(len(slot) for slot in self._slots.values())
