"""What a partition's stream adds to a committed position, summed up outside of any script. No I/O.

Live reads the pages; lua/repair.lua adds what came after the last one. So a correction needs no
more of Redis's time when thousands of actions wait for PostgreSQL, which is normal under load.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from scoreboard.events import CORRECTION, Event, decode

ENTRIES_MAX: Final = 100_000
"""Most entries summed up: a second or two, during which nobody may commit."""


class UncommittedDeltas:
    """The sums behind one position, valid as long as nobody commits and no failover happens."""

    def __init__(self, *, replication_id: str, epoch: int, seq: int, stream_id: str) -> None:
        """Take the committed position, and the history of writes read before any entry."""
        self.replication_id = replication_id
        self.epoch = epoch
        self.seq = seq
        self.up_to = stream_id
        """The last stream id taken into account."""
        self.count = 0
        self._sums: dict[str, int] = {}
        self._places: dict[str, int] = {}

    def take(self, entries: Iterable[tuple[bytes, Mapping[bytes, bytes]]]) -> None:
        """Add the next entries of the stream; what the flusher would park counts for nothing."""
        for stream_id, fields in entries:
            self.count += 1
            self.up_to = stream_id.decode()
            record = decode(stream_id, fields)
            if isinstance(record, Event) and record.kind != CORRECTION:
                self._sums[record.user_id] = self._sums.get(record.user_id, 0) + record.delta
                self._places[record.user_id] = self.count

    def has(self, user_id: str) -> bool:
        """Tell whether a user has acted since the position."""
        return user_id in self._sums

    def due(self, user_id: str, committed: int | None) -> int:
        """Give a user's score at the end of the tail; -1 where nobody knows the user.

        ``committed`` is the score in PostgreSQL, None for none.
        """
        added = self._sums.get(user_id)
        return -1 if committed is None and added is None else (committed or 0) + (added or 0)

    def order(self, users: Sequence[str], arrivals: Sequence[str]) -> list[str]:
        """Put users who stand at one score into the order of their arrival.

        ``arrivals`` are those who stood there at the committed position, in order. Who acted since
        then arrived after all of them.
        """
        recent = sorted(set(users) & self._places.keys(), key=self._places.__getitem__)
        return [user for user in arrivals if user not in self._places] + recent
