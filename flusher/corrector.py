"""Sets Redis right after late duplicates: actions repeated after the seen window.

Redis counted them again, the ledger did not. Called by the lane between batches. What stays true:
scores are set to what PostgreSQL and the stream say, never lowered by a difference, so a run that
is repeated after a crash changes nothing; nobody commits while it runs.
"""

from typing import Final

from flusher.writer import Writer
from scoreboard.events import BIGINT_MAX
from scoreboard.ledger import dead_letters
from scoreboard.ledger.positions import Position
from scoreboard.model import Partition
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.corrections import ExpectedScore, correct_scores
from scoreboard.store.store import Store

LATEST: Final = Position(BIGINT_MAX, BIGINT_MAX)
"""Every late duplicate on record: while nobody commits, what is right now is right for all."""

_log = get_logger(__name__)


async def correct(writer: Writer, store: Store, partition: Partition, epoch: int) -> bool:
    """Correct a page of users whose late duplicates are open; tell whether there were any.

    What is changed stays open until it is seen to be right: call again until there are none.

    Raises DatabaseUnavailable, RedisUnavailable, and Live.repair's refusals.
    """
    async with writer.locked(epoch) as position:
        if position is None:
            return False  # a reseed came between, and with it the right scores
        due = await writer.open_late_duplicates()
        if not due:
            return False
        owed = await writer.owed()
        expected_scores = [
            ExpectedScore(user, dead_letters.expected_score(score, owed.get(user)))
            for user, score in due
        ]
        uncommitted = await store.read_uncommitted(
            partition, epoch=epoch, seq=position.seq, stream_id=position.stream_id
        )
        states = await correct_scores(
            store, partition, expected_scores, uncommitted, writer.arrivals
        )
        for expected, state in zip(expected_scores, states, strict=True):
            if state.outcome == "unchanged":
                await writer.close_late_duplicates(expected.user_id, LATEST)
            else:
                _log.warning(
                    "score_corrected",
                    partition=str(partition),
                    user=expected.user_id,
                    change=state.change,
                    score=state.score,
                    seq=state.seq,
                )
    return True
