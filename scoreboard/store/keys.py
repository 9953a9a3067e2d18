"""The only place where a Redis key, hash tag or channel is spelled.

Every key of a partition carries the hash tag ``{board:partition}``: one script, one slot, also on
Redis Cluster. Strings only; no I/O.
"""

from typing import Final

from scoreboard.model import Partition

GROUP: Final = "flusher"
"""The consumer group of every events stream."""

ACTIONS: Final = "sb:actions"
"""Hash kind → points, mirrored from PostgreSQL. Not a partition's: its values travel in ARGV."""

ACTIONS_CHANGED: Final = "sb:actions:changed"
"""Channel: the catalogue was written; the message is its version."""

COMMITS_PREFIX: Final = "sb:commits:"
"""Channel of a board: PostgreSQL committed actions; the message is ``epoch:seq`` of a partition."""

LIMIT_PREFIX: Final = "sb:limit"
"""Prefix of the api's own rate-limit counters (only with SCOREBOARD_RATE_LIMIT=app)."""

PULSE: Final = "sb:pulse"
"""Counter that the dispatcher raises before it waits for replicas (docs/decisions/0006)."""


def limit_key(kind: str, caller: str, per_minute: int) -> str:
    """Name the list of a caller's updates in the last minute; another limit has another list."""
    return f"{LIMIT_PREFIX}:LIMITER/{kind}/{caller}/{per_minute}/1/minute"


class PartitionKeys:
    """The keys of one partition."""

    __slots__ = ("board", "changes", "events", "meta", "shadow", "tag")

    def __init__(self, partition: Partition) -> None:
        self.tag = tag = f"sb:{{{partition.board}:{partition.number}}}"
        self.board = f"{tag}:board"
        self.events = f"{tag}:events"
        self.meta = f"{tag}:meta"
        self.changes = f"{tag}:changes"
        self.shadow = f"{tag}:shadow"
        """The board a reseed is loading; renamed to ``board`` when it is complete."""

    def dedup_shard(self, generation: int, shard: int) -> str:
        """Name the hash that remembers actions of one generation and shard."""
        return f"{self.tag}:seen:{generation}:{shard}"
