"""Names of all Redis keys, hash tags and channels. No I/O.

Every key of a partition has the hash tag ``{board:partition}``, so the keys of a script share one
slot, also on Redis Cluster.
"""

import re
from typing import Final

from scoreboard.model import PARTITIONS_MAX, Partition, is_board_name

GROUP: Final = "flusher"
"""The consumer group of every events stream."""

ACTIONS: Final = "sb:actions"
"""Hash kind → points, copied from PostgreSQL. It has no hash tag: scripts get points in ARGV."""

ACTIONS_CHANGED: Final = "sb:actions:changed"
"""Channel of catalogue changes; the message is the version."""

BOARDS: Final = "sb:boards"
"""Hash board → properties, copied from PostgreSQL: the list of boards."""

ACTIVE: Final = "sb:active"
"""Channel of partitions that have work again; the message is the name of a stream that was empty.

Every script that adds to a stream publishes it. Messages may be lost: the flusher also reads the
lengths of all streams from time to time.
"""

COMMITS_PREFIX: Final = "sb:commits:"
"""Channel of a board: PostgreSQL committed actions; the message is ``epoch:seq`` of a partition.

In a cluster each partition has a channel of its own: ``PartitionKeys.commits``.
"""

LIMIT_PREFIX: Final = "sb:limit"
"""Prefix of the api's own rate-limit counters (only with SCOREBOARD_RATE_LIMIT=app)."""

_EVENTS: Final = re.compile(r"sb:\{([^:]+):(0|[1-9]\d{0,2})\}:events", re.ASCII)

PULSE: Final = "sb:pulse"
"""Counter that the dispatcher increments before it waits for replicas (docs/decisions/0006)."""


def load_test_key(board: str) -> str:
    """Name the mark of a board that a load of the scripts made: when its run was last alive, s."""
    return f"sb:{{{board}:0}}:bench"


def viewers_key(board: str) -> str:
    """Name the hash process → viewers of a board, which expires with its last process."""
    return f"sb:{{{board}:0}}:viewers"


def limit_key(kind: str, caller: str, per_minute: int) -> str:
    """Name the list of a caller's updates in the last minute; another limit has another list."""
    return f"{LIMIT_PREFIX}:LIMITER/{kind}/{caller}/{per_minute}/1/minute"


def partition_of_events(key: str) -> Partition | None:
    """Return the partition of a stream; None if no partition has a stream of this name."""
    found = _EVENTS.fullmatch(key)
    if found is None or not is_board_name(found[1]) or int(found[2]) >= PARTITIONS_MAX:
        return None
    return Partition(found[1], int(found[2]))


def commits_channel(partition: Partition, *, is_cluster: bool) -> str:
    """Name the channel that announces commits of a partition."""
    if is_cluster:
        return PartitionKeys(partition).commits
    return COMMITS_PREFIX + partition.board


class PartitionKeys:
    """The keys of one partition."""

    __slots__ = (
        "banned",
        "board",
        "changes",
        "events",
        "gained",
        "meta",
        "pulse",
        "shadow",
        "tag",
    )

    def __init__(self, partition: Partition) -> None:
        self.tag = tag = f"sb:{{{partition.board}:{partition.number}}}"
        self.board = f"{tag}:board"
        self.events = f"{tag}:events"
        self.meta = f"{tag}:meta"
        self.changes = f"{tag}:changes"
        self.banned = f"{tag}:banned"
        """Hash user → score of those who are not on the board because they are banned."""
        self.gained = f"{tag}:gained"
        """Hash user → points gained in the current window, on a board with that limit."""
        self.pulse = f"{tag}:pulse"
        """In a cluster, the counter of a partition in place of ``PULSE``."""
        self.shadow = f"{tag}:shadow"
        """The board that a reseed loads; renamed to ``board`` when it is complete."""

    @property
    def commits(self) -> str:
        """The channel of commits in a cluster."""
        return f"{self.tag}:commits"

    @property
    def read(self) -> tuple[str, str]:
        """The keys of a reading script."""
        return self.board, self.meta

    def dedup_shard(self, generation: int, shard: int) -> str:
        """Return the key of one shard of the dedup window of one generation."""
        return f"{self.tag}:seen:{generation}:{shard}"
