"""A timing wheel: one timer per process for every deadline of every viewer. No I/O, no clock.

Each entry waits in the slot of its next deadline. Moving an entry to an earlier slot leaves its old
place behind, which is passed over; a later deadline is found when the earlier slot comes. So a
viewer that pauses and resumes a hundred times a second costs nothing here.
"""

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Entry(Protocol):
    """Whatever has deadlines; ``slot`` belongs to the wheel, 0 while it is in none."""

    slot: int


T = TypeVar("T", bound=Entry)


class TimingWheel(Generic[T]):
    """Slots of ``width_s``; a deadline is met within one width after it."""

    def __init__(self, now_s: float, *, width_s: float = 1.0) -> None:
        self.width_s = width_s
        self._passed = int(now_s / width_s)
        self._slots: dict[int, list[T]] = {}

    def put(self, entry: T, due_s: float) -> None:
        """Have ``entry`` come up once ``due_s`` has passed, or earlier if it already waits so."""
        slot = max(int(due_s / self.width_s), self._passed) + 1
        if entry.slot and entry.slot <= slot:
            return
        entry.slot = slot
        self._slots.setdefault(slot, []).append(entry)

    def advance(self, now_s: float) -> Iterator[T]:
        """Give what is due; each entry must be ``put`` again if it has another deadline."""
        current = int(now_s / self.width_s)
        while self._passed < current:
            self._passed += 1
            for entry in self._slots.pop(self._passed, ()):
                if entry.slot == self._passed:
                    entry.slot = 0
                    yield entry

    def __len__(self) -> int:
        """Count places, those left behind included."""
        return sum(len(slot) for slot in self._slots.values())
