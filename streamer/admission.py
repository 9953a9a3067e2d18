"""Counts who is connected, and says no to one too many: per process, address, subject, second.

One per process, used by its viewers. Bookkeeping without I/O; what stays true: every count taken is
given back exactly once, so that after the last viewer all of them are zero.
"""

import random
from collections import Counter
from typing import Final

from scoreboard.errors import Overloaded, TooManyConnections
from scoreboard.settings import Settings

EXPIRED_WINDOW_S: Final = 60.0
RETRY_S: Final = 10
"""Ceiling of the wait told to whom there was no room for; jittered, or they come back as one."""

HANDSHAKES_EXTRA: Final = 1000
"""Connections beyond the viewers' limit that are still answered; more are dropped unheard."""


class Bucket:
    """A token bucket: ``rate`` a second, ``burst`` at once."""

    __slots__ = ("_at_s", "_burst", "_left", "_rate")

    def __init__(self, rate: float, burst: int, now_s: float) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._left = float(burst)
        self._at_s = now_s

    def take(self, now_s: float) -> bool:
        """Take one if there is one."""
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Admission:
    """The counts of a process. ``capacity`` is the most viewers it may hold."""

    def __init__(self, settings: Settings, capacity: int, now_s: float) -> None:
        self.capacity = capacity
        self.connections = 0
        self.viewers = 0
        self._per_address = settings.viewers_per_address
        self._per_subject = settings.viewers_per_subject
        self._expired_most = settings.expired_per_minute
        self._new = Bucket(settings.new_viewers_per_second, settings.new_viewers_burst, now_s)
        self._addresses: Counter[str] = Counter()
        self._subjects: Counter[str] = Counter()
        self._expired: Counter[str] = Counter()
        self._expired_since_s = now_s

    @property
    def is_flooded(self) -> bool:
        """Tell whether there are too many connections even to answer them."""
        return self.connections >= self.capacity + HANDSHAKES_EXTRA

    def check_room(self) -> None:
        """Let pass while there is room for one more viewer.

        Raises Overloaded.
        """
        if self.viewers >= self.capacity:
            raise _overloaded("This server has all the viewers it may hold")

    def take_address(self, address: str, now_s: float) -> None:
        """Count a new connection of an address.

        Raises Overloaded when the process is full or too busy, TooManyConnections when the address
        has its share.
        """
        self.check_room()
        if not self._new.take(now_s):
            raise _overloaded("Too many viewers connect at once")
        if self._addresses[address] >= self._per_address:
            raise _too_many(f"One address may have {self._per_address} viewers")
        self._addresses[address] += 1

    def take_subject(self, subject: str) -> None:
        """Count a viewer of a token's subject.

        Raises TooManyConnections when the subject has its share.
        """
        if self._subjects[subject] >= self._per_subject:
            raise _too_many(f"One user may have {self._per_subject} viewers")
        self._subjects[subject] += 1

    def give_address(self, address: str) -> None:
        """Give a count of ``take_address`` back."""
        _give(self._addresses, address)

    def give_subject(self, subject: str) -> None:
        """Give a count of ``take_subject`` back."""
        _give(self._subjects, subject)

    def may_expire(self, address: str, now_s: float) -> bool:
        """Tell whether an expired token of this address is told so by close code.

        A browser cannot read the status of a refused handshake, so this costs a whole one.
        """
        if now_s - self._expired_since_s >= EXPIRED_WINDOW_S:
            self._expired.clear()
            self._expired_since_s = now_s
        self._expired[address] += 1
        return self._expired[address] <= self._expired_most

    @property
    def is_empty(self) -> bool:
        """Tell whether every count is zero."""
        return not (self.connections or self.viewers or self._addresses or self._subjects)


def _overloaded(detail: str) -> Overloaded:
    return Overloaded(detail, retry_after_s=random.randint(1, RETRY_S))  # noqa: S311 (jitter)


def _give(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if counts[name] <= 0:
        del counts[name]


def _too_many(detail: str) -> TooManyConnections:
    return TooManyConnections(detail, retry_after_s=30)
