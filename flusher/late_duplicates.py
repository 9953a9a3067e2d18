"""Corrects Redis after late duplicates: actions repeated after the dedup window.

Redis counted such an action again, the ledger did not. Invariants: commits are blocked during a
correction; a run repeated after a crash changes nothing.
"""

from typing import Final

from flusher.writer import Writer
from scoreboard.events import BIGINT_MAX
from scoreboard.ledger.positions import Position
from scoreboard.model import Partition
from scoreboard.recovery.corrections import correct_users
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.store import Store

LATEST: Final = Position(BIGINT_MAX, BIGINT_MAX)
"""Closes every recorded late duplicate: while commits are blocked, a correct score covers all."""

_log = get_logger(__name__)


async def correct_late_duplicates(
    writer: Writer, store: Store, partition: Partition, epoch: int
) -> bool:
    """Correct a page of users with open late duplicates; return whether there were any.

    A duplicate is closed only when its user's score was found correct: call this again until it
    returns False.

    Raises DatabaseUnavailable, RedisUnavailable, and the refusals of Store.repair.
    """
    async with writer.locked(epoch) as position:
        if position is None:
            return False  # a reseed began another epoch, with the correct scores
        users = await writer.select_open_duplicates()
        if not users:
            return False
        results = await correct_users(store, writer.connection, partition, users, position)
        for user, result in zip(users, results, strict=True):
            if result.outcome == "unchanged":
                await writer.close_late_duplicates(user, LATEST)
            else:
                _log.warning(
                    "score_corrected",
                    partition=str(partition),
                    user_id=user,
                    change=result.change,
                    score=result.score,
                    seq=result.seq,
                )
    return True
