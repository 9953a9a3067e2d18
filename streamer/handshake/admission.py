"""Limits on viewers: per process, per address, per token subject, per second. No I/O.

One per process. Connections are counted per address: an IPv4 address or an IPv6 network. The order
of the checks matters: limits of one address or user are checked first, and the rate of the process
is charged last, only by handshakes that pass all other checks. Rejected attempts therefore do not
keep other viewers out.

Invariants: every count taken is released exactly once, so after the last connection all are zero.
"""

from collections import Counter
from typing import Final

from msgspec import Struct

from scoreboard.broadcast.admission import (
    ConnectionCounts,
    TokenBucket,
    decrement,
    overloaded,
)
from scoreboard.runtime.settings import Settings

ATTEMPTS_PER_VIEWER: Final = 6
"""Attempts to connect per minute and address, for each viewer that the address may have. A client
that backs off as docs/reference/websocket.md says makes four."""

REMEMBERED_MAX: Final = 50_000
"""Maximum number of addresses whose rates are remembered."""


class Capacity(Struct, frozen=True):
    """How many connections of each kind a process may hold."""

    viewers: int
    handshakes: int


class TokenBuckets:
    """A token bucket per name, with ``per_minute`` tokens per minute and the same burst.

    A bucket unused for a minute is full again, so it is forgotten.
    """

    def __init__(self, per_minute: int, now_s: float) -> None:
        self._per_minute = per_minute
        self._used: dict[str, TokenBucket] = {}
        self._older: dict[str, TokenBucket] = {}
        self._since_s = now_s

    def take(self, name: str, now_s: float) -> bool:
        """Take a token of a name; return False if there is none."""
        if now_s - self._since_s >= 60.0 or len(self._used) >= REMEMBERED_MAX // 2:
            self._older, self._used, self._since_s = self._used, {}, now_s
        bucket = self._used.get(name)
        if bucket is None:
            bucket = self._older.pop(name, None) or TokenBucket(
                self._per_minute / 60, self._per_minute, now_s
            )
            self._used[name] = bucket
        return bucket.take(now_s)

    def __len__(self) -> int:
        """Count the remembered names."""
        return len(self._used) + len(self._older)


class Admission:
    """The limits and counts of one process."""

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
        """Viewers, including those whose connection is closing."""
        self._new = TokenBucket(settings.new_viewers_per_second, settings.new_viewers_burst, now_s)
        self._attempts = TokenBuckets(ATTEMPTS_PER_VIEWER * self._per_address, now_s)
        self._expired = TokenBuckets(settings.expired_per_minute, now_s)
        self._handshakes: Counter[str] = Counter()

    def allow_attempt(self, address: str, now_s: float) -> bool:
        """Count an attempt to connect, of any result; return False above the rate limit."""
        return self._attempts.take(address, now_s)

    def add_handshake(self, address: str) -> bool:
        """Count a connection that is not a viewer yet; return False at the limit per address."""
        if self._handshakes[address] >= self._per_address:
            return False
        self._handshakes[address] += 1
        return True

    def remove_handshake(self, address: str) -> None:
        """Release a count of ``add_handshake``."""
        decrement(self._handshakes, address)

    def add_address(self, address: str) -> None:
        """Count a valid handshake, and the viewer that it becomes, for its address.

        Raises TooManyConnections at the limit per address.
        """
        self._counts.add_address(address)

    def remove_address(self, address: str) -> None:
        """Release a count of ``add_address``."""
        self._counts.remove_address(address)

    def check_capacity(self) -> None:
        """Raise Overloaded when the process is full."""
        self._counts.check_capacity()

    def add_viewer(self, subject: str | None, now_s: float) -> None:
        """Count a viewer whose handshake has passed all other checks.

        ``subject`` is that of its token, if any. Raises TooManyConnections at the limit per
        subject, Overloaded when the process is full or too many viewers connect at once.
        """
        self._counts.check(subject)
        if not self._new.take(now_s):
            raise overloaded("Too many viewers connect at once")
        self._counts.add(subject)

    def remove_viewer(self, subject: str | None) -> None:
        """Release a count of ``add_viewer``."""
        self._counts.remove(subject)

    def allow_expired(self, address: str, now_s: float) -> bool:
        """Return whether to accept a handshake with an expired token, to close it with 4401.

        Browsers hide the status of a rejected handshake, but not a close code. The rate per address
        is limited, because each of these handshakes is completed.
        """
        return self._expired.take(address, now_s)

    @property
    def is_empty(self) -> bool:
        """Return whether every count is zero."""
        return not self.viewers and not self._handshakes and self._counts.is_empty
