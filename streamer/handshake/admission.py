"""Counts who is connected and enforces limits: per process, address, subject, second. No I/O.

One per process, used by its connections. An address is what is counted by: an IPv4 address or an
IPv6 network. The order of the checks is part of the rules: what concerns one address or user comes
first, and the rate of the process is charged last, only by handshakes that are granted otherwise,
so that nobody's refused attempts keep others out. What stays true: every count taken is given back
exactly once, so that after the last connection all of them are zero.
"""

from collections import Counter
from typing import Final

from msgspec import Struct

from scoreboard.broadcast.admission import ConnectionCounts, decrement, overloaded
from scoreboard.runtime.settings import Settings

ATTEMPTS_PER_VIEWER: Final = 6
"""How often a minute an address may try to connect, per viewer it may have. Who backs off as
docs/reference/websocket.md asks tries four times."""

REMEMBERED_MAX: Final = 50_000
"""Most addresses whose rates are remembered at a time."""


class Capacity(Struct, frozen=True):
    """How many connections of each kind a process may hold."""

    viewers: int
    handshakes: int


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


class Buckets:
    """A token bucket per name, for ``per_minute``, all of them at once if need be.

    An unused bucket is full again after a minute, so what was not used for one is forgotten.
    """

    def __init__(self, per_minute: int, now_s: float) -> None:
        self._per_minute = per_minute
        self._used: dict[str, Bucket] = {}
        self._older: dict[str, Bucket] = {}
        self._since_s = now_s

    def take(self, name: str, now_s: float) -> bool:
        """Take one of a name's if there is one."""
        if now_s - self._since_s >= 60.0 or len(self._used) >= REMEMBERED_MAX // 2:
            self._older, self._used, self._since_s = self._used, {}, now_s
        bucket = self._used.get(name)
        if bucket is None:
            bucket = self._older.pop(name, None) or Bucket(
                self._per_minute / 60, self._per_minute, now_s
            )
            self._used[name] = bucket
        return bucket.take(now_s)

    def __len__(self) -> int:
        """Count the names that are remembered."""
        return len(self._used) + len(self._older)


class Admission:
    """The counts of a process."""

    def __init__(self, settings: Settings, capacity: Capacity, now_s: float) -> None:
        self.capacity = capacity
        self.viewers = 0
        """Viewers that boards are sent to."""
        self._per_address = settings.viewers_per_address
        self._counts = ConnectionCounts(
            "viewers",
            capacity=capacity.viewers,
            per_address=settings.viewers_per_address,
            per_subject=settings.viewers_per_subject,
        )
        """Viewers, including those whose connection is about to end."""
        self._new = Bucket(settings.new_viewers_per_second, settings.new_viewers_burst, now_s)
        self._attempts = Buckets(ATTEMPTS_PER_VIEWER * self._per_address, now_s)
        self._expired = Buckets(settings.expired_per_minute, now_s)
        self._handshakes: Counter[str] = Counter()

    def may_try(self, address: str, now_s: float) -> bool:
        """Tell whether an address may try to connect once more; it counts whatever comes of it."""
        return self._attempts.take(address, now_s)

    def take_handshake(self, address: str) -> bool:
        """Count a connection of an address that is no viewer, unless it has its share of them."""
        if self._handshakes[address] >= self._per_address:
            return False
        self._handshakes[address] += 1
        return True

    def take_address(self, address: str) -> None:
        """Count a well-formed handshake, and what becomes of it, for its address.

        Raises TooManyConnections when the address has its share.
        """
        self._counts.add_address(address)

    def take_place(self, subject: str | None, now_s: float) -> None:
        """Count a viewer whose handshake nothing else stands against.

        ``subject`` is its token's, if it has one. Raises TooManyConnections when the subject has
        its share, Overloaded when the process is full or too many come at once.
        """
        self._counts.check(subject)
        if not self._new.take(now_s):
            raise overloaded("Too many viewers connect at once")
        self._counts.add(subject)

    def check_room(self) -> None:
        """Let pass while there is room for one more viewer.

        Raises Overloaded.
        """
        self._counts.check_capacity()

    def give_handshake(self, address: str) -> None:
        """Give a count of ``take_handshake`` back."""
        decrement(self._handshakes, address)

    def give_address(self, address: str) -> None:
        """Give a count of ``take_address`` back."""
        self._counts.remove_address(address)

    def give_place(self, subject: str | None) -> None:
        """Give a count of ``take_place`` back."""
        self._counts.remove(subject)

    def may_expire(self, address: str, now_s: float) -> bool:
        """Tell whether an expired token of this address is told so by close code.

        A browser cannot read the status of a refused handshake, so this costs a whole one.
        """
        return self._expired.take(address, now_s)

    @property
    def is_empty(self) -> bool:
        """Tell whether every count is zero."""
        return not self.viewers and not self._handshakes and self._counts.is_empty
