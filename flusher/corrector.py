"""Sets Redis right after late duplicates: actions repeated after the seen window.

Redis counted them again, the ledger did not. Called by the lane between batches. What stays true:
scores are set to what PostgreSQL and the stream say, never lowered by a difference, so a run that
is repeated after a crash changes nothing; nobody commits while it runs.
"""

from typing import Final

import msgspec

from flusher.writer import Writer
from scoreboard.live import Live, Repaired, Truth
from scoreboard.model import Partition
from scoreboard.telemetry import get_logger

EQUALS_MAX: Final = 512
"""Most users at one score whose places are dealt anew; lua/repair.lua says the same."""

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

        async def repair(users: list[Truth], *, is_dry: bool) -> list[Repaired]:
            return await live.repair(
                partition,
                users,
                epoch=epoch,
                seq=position.seq,
                stream_id=position.stream_id,
                is_dry=is_dry,
            )

        found = await repair(truths, is_dry=True)
        wanted: dict[int, list[Truth]] = {}
        for truth, state in zip(truths, found, strict=True):
            if state.outcome == "unchanged":
                await writer.close_duplicates(truth.user_id, position)
            else:
                wanted.setdefault(state.score, []).append(truth)
        differing: list[Truth] = []
        for score, group in wanted.items():
            equals = await _places(writer, live, partition, score, group)
            differing += [msgspec.structs.replace(truth, equals=equals) for truth in group]
        if differing:
            done = await repair(differing, is_dry=False)
            for truth, state in zip(differing, done, strict=True):
                _log.warning(
                    "score_corrected",
                    partition=str(partition),
                    user=truth.user_id,
                    change=state.change,
                    score=state.score,
                    seq=state.seq,
                )
        return True


async def _places(
    writer: Writer, live: Live, partition: Partition, score: int, coming: list[Truth]
) -> tuple[str, ...]:
    """Give who reached a score, in order: of those who stand there and those who will.

    Empty where they are too many: then whoever comes takes the last place.
    """
    standing = await live.standing_at(partition, score, most=EQUALS_MAX)
    candidates = [*standing, *(truth.user_id for truth in coming)]
    if len(candidates) > EQUALS_MAX:
        return ()
    return tuple(await writer.arrivals(candidates, score))
