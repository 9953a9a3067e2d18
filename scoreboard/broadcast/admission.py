"""Limits on live connections and boards: per process, per address, per token subject. No I/O.

The streamer counts WebSocket connections, the api counts event streams. An address is an IPv4
address or an IPv6 network (scoreboard.security.addresses).

Invariant: every count taken is released exactly once, so after the last connection all are zero.
"""

import random
from collections import Counter
from typing import Final

from scoreboard.errors import Overloaded, ScoreboardError, TooManyConnections

RETRY_S: Final = 10
"""Upper bound of Retry-After when the process is full; jittered, so that clients spread out."""

RETRY_ADDRESS_S: Final = 30


class TokenBucket:
    """A token bucket that refills ``rate`` tokens per second, up to ``burst``."""

    __slots__ = ("_at_s", "_burst", "_left", "_rate")

    def __init__(self, rate: float, burst: int, now_s: float) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._left = float(burst)
        self._at_s = now_s

    def take(self, now_s: float) -> bool:
        """Take a token; return False if there is none."""
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class ConnectionCounts:
    """The connections of one process; ``kind`` names them in messages, such as "viewers"."""

    def __init__(self, kind: str, *, capacity: int, per_address: int, per_subject: int) -> None:
        self.total = 0
        self._kind = kind
        self._capacity = capacity
        self._per_address = per_address
        self._per_subject = per_subject
        self._addresses: Counter[str] = Counter()
        self._subjects: Counter[str] = Counter()

    def add_address(self, address: str) -> None:
        """Count a connection for its address.

        Raises TooManyConnections at the limit per address.
        """
        if self._addresses[address] >= self._per_address:
            raise _too_many("address", self._per_address, self._kind)
        self._addresses[address] += 1

    def remove_address(self, address: str) -> None:
        """Release a count of ``add_address``."""
        decrement(self._addresses, address)

    def check(self, subject: str | None) -> None:
        """Check the limits that ``add`` counts towards; ``subject`` is the token's, if any.

        Raises TooManyConnections at the limit per subject, Overloaded when the process is full.
        """
        if subject is not None and self._subjects[subject] >= self._per_subject:
            raise _too_many("user", self._per_subject, self._kind)
        self.check_capacity()

    def check_capacity(self) -> None:
        """Raise Overloaded when the process is full."""
        if self.total >= self._capacity:
            raise overloaded(f"This server is at its limit of {self._kind}")

    def add(self, subject: str | None) -> None:
        """Count a connection for the process and its subject."""
        self.total += 1
        if subject is not None:
            self._subjects[subject] += 1

    def remove(self, subject: str | None) -> None:
        """Release a count of ``add``."""
        self.total -= 1
        if subject is not None:
            decrement(self._subjects, subject)

    def admit(self, address: str, subject: str | None) -> None:
        """Check every limit and count a connection; ``release`` is its counterpart.

        Raises TooManyConnections, Overloaded.
        """
        self.add_address(address)
        try:
            self.check(subject)
        except ScoreboardError:
            self.remove_address(address)
            raise
        self.add(subject)

    def release(self, address: str, subject: str | None) -> None:
        """Release the counts of ``admit``."""
        self.remove(subject)
        self.remove_address(address)

    @property
    def is_empty(self) -> bool:
        """Return whether every count is zero."""
        return not (self.total or self._addresses or self._subjects)


def decrement(counts: Counter[str], name: str) -> None:
    """Subtract one, and drop a count that reaches zero."""
    counts[name] -= 1
    if counts[name] <= 0:
        del counts[name]


def overloaded(detail: str) -> Overloaded:
    """Make the error of a full process, with a jittered Retry-After."""
    return Overloaded(detail, retry_after_s=random.randint(1, RETRY_S))  # noqa: S311 (jitter)


def _too_many(holder: str, limit: int, kind: str) -> TooManyConnections:
    return TooManyConnections(f"At most {limit} {kind} per {holder}", retry_after_s=RETRY_ADDRESS_S)
