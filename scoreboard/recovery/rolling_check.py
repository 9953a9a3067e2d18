"""Compares the users of a board in small steps, so that it can run all the time. The flusher's.

A pass reads all users of PostgreSQL in order of ids, then all members of Redis, one page in a step.
Users that differ are compared again while commits are blocked (scoreboard.recovery.drift).

Invariants: a step reads one page and takes a bounded number of short locks; no lock is taken while
the flusher is behind; users that differ are compared again in the following steps, so a repair is
noticed within seconds.
"""

import uuid
from collections.abc import Iterable
from typing import Final
from uuid import UUID

import redis.asyncio as aioredis

from scoreboard.errors import Busy
from scoreboard.ledger import checks
from scoreboard.ledger.pool import Connection
from scoreboard.ledger.positions import select_position
from scoreboard.ledger.seasons import current_scores
from scoreboard.model import Board, Partition, partition_of
from scoreboard.recovery.drift import Drift, find_drift
from scoreboard.store.corrections import REPAIR_MAX
from scoreboard.store.scanner import Scanner
from scoreboard.store.store import Store

LOCKS_MAX: Final = 4
"""Maximum number of locks of a step; each is held for the comparison of ``REPAIR_MAX`` users."""

LAG_MAX: Final = 2000
"""Maximum number of uncommitted actions of a partition whose commits are blocked for a moment."""

DRIFTED_MAX: Final = 1000
"""Maximum number of differing users that are remembered; `scoreboard verify --full` lists more."""

_ID_MAX: Final = 2**128 - 1


class RollingCheck:
    """The comparison of one board with one layout; ``drifted`` may be read at any time."""

    def __init__(self, client: aioredis.Redis, board: Board, *, is_whole: bool = False) -> None:
        """With ``is_whole`` the first pass has all users; it takes a process that completes it."""
        self.board = board
        self.drifted: dict[str, Drift] = {}
        """Users that differed when they were last compared, at most ``DRIFTED_MAX``."""
        self.passes = 0
        """Number of passes that have ended."""
        self._store = Store(client)
        self._scanner = Scanner(client)
        self._suspects: dict[Partition, list[str]] = {}
        # A random start, so that processes that never run for a whole pass compare all users, too.
        self._next_id: UUID | None = UUID(int=0) if is_whole else uuid.uuid4()
        """Where the next page of PostgreSQL begins; None while the members of Redis are read."""
        self._scanned = 0
        """The partition whose members are read."""
        self._cursor = 0

    async def step(self, connection: Connection, count: int) -> None:
        """Compare the next ``count`` users, and users that differed before.

        ``connection`` is in autocommit.

        Raises Busy (the flusher is behind: the same users are compared in the next step), Outdated,
        Fenced, Uninitialised, OperatorMistake, RedisUnavailable, DatabaseUnavailable.
        """
        if self.drifted:
            first = next(iter(self.drifted.values()))
            again = [one.user_id for one in self.drifted.values()
                     if one.partition == first.partition]  # fmt: skip
            await self._compare(
                connection, Partition(self.board.name, first.partition), again[:REPAIR_MAX]
            )
        if not self._suspects:
            if self._next_id is None:
                await self._read_redis(connection, count)
            else:
                await self._read_postgres(connection, self._next_id, count)
        for _ in range(LOCKS_MAX):
            if not self._suspects:
                return
            partition, users = next(iter(self._suspects.items()))
            await self._compare(connection, partition, users[:REPAIR_MAX])
            if len(users) > REPAIR_MAX:
                self._suspects[partition] = users[REPAIR_MAX:]
            else:
                del self._suspects[partition]

    def add_drifted(self, found: Iterable[Drift]) -> None:
        """Remember users that another verification found to differ."""
        for drift in found:
            if len(self.drifted) < DRIFTED_MAX:
                self.drifted[drift.user_id] = drift

    async def _read_postgres(self, connection: Connection, start: UUID, count: int) -> None:
        """Read a page of PostgreSQL; collect the users with another score in Redis."""
        name = await current_scores(connection, self.board)
        rows = await checks.read_scores_from(connection, name, start, limit=count)
        pages: dict[Partition, dict[str, int]] = {}
        for _, user, score in rows:
            pages.setdefault(self._partition_of(user), {})[user] = score
        score_of = self.board.layout.rules.unpack_score
        for partition, scores in pages.items():
            packed_scores = await self._scanner.packed_scores(partition, list(scores))
            self._suspect(
                partition,
                [
                    user
                    for (user, score), packed in zip(scores.items(), packed_scores, strict=True)
                    if packed is None or score_of(packed) != score
                ],
            )
        last_id = rows[-1][0].int if rows else _ID_MAX
        is_last = len(rows) < count or last_id == _ID_MAX
        self._next_id = None if is_last else UUID(int=last_id + 1)

    async def _read_redis(self, connection: Connection, count: int) -> None:
        """Read a page of members; collect those that PostgreSQL does not have."""
        partition = Partition(self.board.name, self._scanned)
        self._cursor, members = await self._scanner.page(partition, self._cursor, count=count)
        name = await current_scores(connection, self.board)
        known = await checks.read_scores(connection, name, members)
        self._suspect(partition, [user for user in members if user not in known])
        if self._cursor:
            return
        self._scanned += 1
        if self._scanned == self.board.layout.partitions:
            self._scanned = 0
            self._next_id = UUID(int=0)
            self.passes += 1

    def _partition_of(self, user: str) -> Partition:
        return Partition(self.board.name, partition_of(user, self.board.layout.partitions))

    def _suspect(self, partition: Partition, users: list[str]) -> None:
        if users:
            self._suspects[partition] = list(dict.fromkeys(users))  # a scan may repeat members

    async def _compare(
        self, connection: Connection, partition: Partition, users: list[str]
    ) -> None:
        """Compare users while commits are blocked; update ``drifted``.

        Raises Busy if the flusher is behind.
        """
        position = await select_position(connection, partition)
        state = await self._store.state(partition)
        if state.seq - position.seq > LAG_MAX:
            raise Busy(f"{state.seq - position.seq} actions of {partition} wait for PostgreSQL")
        found, _ = await find_drift(self._store, connection, partition, users)
        for user in users:
            self.drifted.pop(user, None)
        self.add_drifted(found)
