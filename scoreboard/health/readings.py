"""Reads what the checks of `scoreboard.health.checks` describe.

The caller limits the time and handles the errors of an unreachable Redis.
"""

import time
from collections.abc import Sequence

from scoreboard.health.checks import Check, describe_backlog, describe_secret, secret_name
from scoreboard.model import Layout, Partition
from scoreboard.security.credentials import read_ages_s
from scoreboard.store.partitions import Backlog, Partitions, PartitionState


async def read_states(
    store: Partitions, board: str, layout: Layout | None = None
) -> list[PartitionState]:
    """Read the states of all partitions of a board, in order; ``layout`` None: Redis's own.

    Raises RedisUnavailable, UnexpectedReply.
    """
    first = await store.state(Partition(board, 0))
    count = (layout or first.layout or Layout()).partitions
    return [first, *[await store.state(Partition(board, number)) for number in range(1, count)]]


async def read_backlog(store: Partitions, board: str, partitions: int) -> Check:
    """Read how many actions of a board wait for PostgreSQL, and for how long.

    Raises RedisUnavailable, UnexpectedReply.
    """
    backlogs = [await store.backlog(Partition(board, number)) for number in range(partitions)]
    return describe_backlogs(backlogs)


def describe_backlogs(backlogs: Sequence[Backlog]) -> Check:
    """Return the check of the streams of a board. Committed entries are removed from them."""
    ages_ms = [one.oldest_ms for one in backlogs if one.oldest_ms is not None]
    oldest_s = max(0.0, time.time() - min(ages_ms) / 1000) if ages_ms else None
    return describe_backlog(sum(one.entries for one in backlogs), oldest_s)


def describe_secrets() -> dict[str, Check]:
    """Return the checks of the credentials of this process; none if its URLs contain them."""
    return {secret_name(owner): describe_secret(age_s) for owner, age_s in read_ages_s().items()}
