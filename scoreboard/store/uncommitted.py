"""The changes that a stream holds behind the committed position, summed up by user. No I/O.

The store reads the pages of the stream; lua/repair.lua adds the entries that came after the last
page. A correction therefore takes little of Redis's time even when thousands of actions are not
committed yet, which is normal under load.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from scoreboard.events import Event, decode

ENTRIES_MAX: Final = 100_000
"""Maximum number of entries summed up: one or two seconds, during which commits are blocked."""


class UncommittedDeltas:
    """Sums of deltas since one committed position; valid until a commit or a failover."""

    def __init__(
        self, *, replication_id: str, epoch: int, seq: int, stream_id: str, season: str = ""
    ) -> None:
        """Start at the committed position; ``replication_id`` was read before any entry."""
        self.replication_id = replication_id
        self.epoch = epoch
        self.seq = seq
        self.up_to = stream_id
        """The last stream id that is included."""
        self.season = season
        """The season at that id, as id:start:end; the sums are those of this season."""
        self.count = 0
        self._sums: dict[str, int] = {}
        self._values: dict[str, list[Event]] = {}
        """By user, the first value and everything after it."""
        self._places: dict[str, int] = {}

    def add(self, entries: Iterable[tuple[bytes, Mapping[bytes, bytes]]]) -> None:
        """Add the next entries of the stream; ignore those the flusher makes dead letters."""
        for stream_id, fields in entries:
            self.count += 1
            self.up_to = stream_id.decode()
            record = decode(stream_id, fields)
            if isinstance(record, Event) and record.season != self.season:
                self._begin(record.season)
            if isinstance(record, Event) and record.is_action:
                if record.keeps or record.user_id in self._values:
                    self._values.setdefault(record.user_id, []).append(record)
                else:
                    self._sums[record.user_id] = self._sums.get(record.user_id, 0) + record.delta
                self._places[record.user_id] = self.count

    def _begin(self, season: str) -> None:
        """Begin another season: what was before it does not count in Redis any more."""
        self.season = season
        self._sums.clear()
        self._values.clear()
        self._places.clear()

    def has(self, user_id: str) -> bool:
        """Return whether a user has acted since the position."""
        return user_id in self._places

    def expected_score(self, user_id: str, committed: int | None) -> int:
        """Return a user's score after the last entry; -1 if the user has none.

        ``committed`` is the score in PostgreSQL, None for none.
        """
        score = committed
        if user_id in self._sums:
            score = (committed or 0) + self._sums[user_id]
        for event in self._values.get(user_id, ()):
            score = event.applied_to(score)
        return -1 if score is None else score

    def order(self, users: Sequence[str], committed_order: Sequence[str]) -> list[str]:
        """Sort users with the same score by arrival.

        ``committed_order`` are the users who had the score at the committed position, in order.
        Users who acted since then arrived after all of them.
        """
        recent = sorted(set(users) & self._places.keys(), key=self._places.__getitem__)
        return [user for user in committed_order if user not in self._places] + recent
