"""Sets Redis right after late duplicates: actions repeated after the seen window.

Redis counted them again, the ledger did not. Called by the lane between batches. What stays true:
scores are set to what PostgreSQL and the stream say, never lowered by a difference, so a run that
is repeated after a crash changes nothing; nobody commits while it runs.
"""

from flusher.writer import Writer
from scoreboard.live import Live, Truth
from scoreboard.model import Partition
from scoreboard.settle import settle
from scoreboard.telemetry import get_logger

_log = get_logger(__name__)


async def correct(writer: Writer, live: Live, partition: Partition, epoch: int) -> bool:
    """Correct a page of users whose late duplicates are open; tell whether there were any.

    What is changed stays open until it is seen to be right: call again until there are none.

    Raises DatabaseUnavailable, RedisUnavailable, and Live.repair's refusals.
    """
    async with writer.holding(epoch) as position:
        if position is None:
            return False  # a reseed came between, and with it the right scores
        due = await writer.open_duplicates()
        if not due:
            return False
        owed = await writer.owed()
        truths = [Truth(user, score + owed.get(user, 0)) for user, score in due]
        tail = await live.tail(
            partition, epoch=epoch, seq=position.seq, stream_id=position.stream_id
        )
        states = await settle(live, partition, truths, tail, writer.arrivals)
        for truth, state in zip(truths, states, strict=True):
            if state.outcome == "unchanged":
                await writer.close_duplicates(truth.user_id, position)
            else:
                _log.warning(
                    "score_corrected",
                    partition=str(partition),
                    user=truth.user_id,
                    change=state.change,
                    score=state.score,
                    seq=state.seq,
                )
    return True
