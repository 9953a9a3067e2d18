"""Sets scores in Redis to what is due. Called by the flusher's corrector and by `repair`.

What stays true: a score is set to a state, never moved by a difference, so a second run changes
nothing; each user gets the place among equals that is due.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from scoreboard.live import Live, Repaired, Truth
from scoreboard.model import Partition
from scoreboard.tail import Tail

EQUALS_MAX: Final = 512
"""Most users of one score whose places are dealt anew; lua/repair.lua says the same."""

Arrivals = Callable[[Sequence[str], int], Awaitable[list[str]]]
"""Gives those of some users who have a score in PostgreSQL, in order of arrival."""


async def settle(
    live: Live, partition: Partition, truths: Sequence[Truth], tail: Tail, arrivals: Arrivals
) -> list[Repaired]:
    """Set up to 64 users right; give what was done about each, in order.

    ``tail`` belongs to the committed position, which may not move meanwhile.

    Raises what Live.repair raises.
    """
    states = await live.repair(partition, truths, tail, is_dry=True)
    coming: dict[int, list[int]] = defaultdict(list)
    for place, state in enumerate(states):
        if state.outcome != "unchanged":
            coming[state.score].append(place)
    due: dict[int, Truth] = {}
    for score, places in coming.items():
        standing = await live.standing_at(partition, score, most=EQUALS_MAX)
        users = [*standing, *(truths[place].user_id for place in places)]
        equals: tuple[str, ...] = ()
        # Of too many nobody knows the order: whoever comes takes the last place.
        if len(users) <= EQUALS_MAX:
            equals = tuple(tail.order(users, await arrivals(users, score)))
        for place in places:
            due[place] = msgspec.structs.replace(truths[place], equals=equals)
    if due:
        done = await live.repair(partition, list(due.values()), tail)
        for place, state in zip(due, done, strict=True):
            states[place] = state
    return states
