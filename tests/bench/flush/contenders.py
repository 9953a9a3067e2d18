"""The compared ways to write a batch: the flusher's COPY, and one statement per row.

Both run in the flusher's loop and transaction, with the same checks; only the writing of the rows
differs.
"""

from collections.abc import Sequence

from flusher.batch import Event, Row
from flusher.spare_sessions import SpareSessions
from flusher.writer import Writer, _Tally
from scoreboard.model import Partition
from scoreboard.runtime.settings import Settings

INSERT_USER = b"INSERT INTO users (id, external_id) VALUES (%s, %s) ON CONFLICT DO NOTHING"
INSERT_EVENT = b"""
    INSERT INTO score_events (
        board, part, user_id, action_id, epoch, seq, delta, score_after, kind, request_id,
        occurred_at
    )
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT DO NOTHING
    RETURNING user_id, seq, delta, occurred_at
"""
ADD_SCORE = b"""
    INSERT INTO scores AS s (board, user_id, score, actions, reached_at, last_seq)
    VALUES (%s, %s, %s, 1, %s, %s)
    ON CONFLICT (board, user_id) DO UPDATE
    SET score = s.score + excluded.score,
        actions = s.actions + 1,
        reached_at = greatest(s.reached_at, excluded.reached_at),
        last_seq = greatest(s.last_seq, excluded.last_seq)
"""


class ExecutemanyWriter(Writer):
    """One statement per row, with psycopg's ``executemany``, which pipelines them."""

    async def _count(
        self, actions: Sequence[Event], staged: Sequence[Row], committed: int
    ) -> _Tally:
        del actions, committed
        if not staged:
            return _Tally()
        board, part = self.partition.board, self.partition.number
        async with self.connection.cursor() as cursor:
            await cursor.executemany(INSERT_USER, sorted({row[:2] for row in staged}))
            await cursor.executemany(
                INSERT_EVENT,
                [(board, part, row[0], *row[2:10]) for row in staged],
                returning=True,
            )
            counted = []
            async for result in cursor.results():
                counted += await result.fetchall()
            counted.sort()
            await cursor.executemany(
                ADD_SCORE, [(board, user, delta, at, seq) for user, seq, delta, at in counted]
            )
        return _Tally(len(counted))


CONTENDERS: dict[str, type[Writer]] = {"copy": Writer, "executemany": ExecutemanyWriter}


class ContenderSessions(SpareSessions):
    """Opens sessions that write as a contender does, and counts them."""

    def __init__(self, settings: Settings, writer: type[Writer]) -> None:
        super().__init__(settings)
        self._writer = writer
        self.opened = 0

    async def open(self, partition: Partition) -> Writer:
        self.opened += 1
        return await self._writer.open(self._settings, partition)
