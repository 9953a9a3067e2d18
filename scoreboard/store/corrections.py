"""Sets scores in Redis to what PostgreSQL expects. Called by the flusher and by `repair`."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import redis.asyncio as aioredis
from msgspec import Struct

from scoreboard.errors import (
    Busy,
    ScriptFailed,
)
from scoreboard.model import (
    SLOT_COUNT,
    Partition,
    pack,
)
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.partitions import read_replication_id
from scoreboard.store.replies import checking_reply, read_reply
from scoreboard.store.scripts import Script, call
from scoreboard.store.uncommitted import ENTRIES_MAX, UncommittedDeltas

EXTENSIONS: Final = 5
"""Times a tail is read on because more came meanwhile than a script may add up."""
_Entry = tuple[bytes, dict[bytes, bytes]]
_REPAIR: Final = Script.load("repair")
STREAM_PAGE: Final = 1000
"""Stream entries of one read."""

REPAIR_MAX: Final = 64
"""Most users of one repair call; lua/repair.lua enforces the same limit."""


class ExpectedScore(Struct, frozen=True):
    """What PostgreSQL says of a user; ``score`` None where it has no score of theirs.

    ``equals`` are the users whom it knows at the score to be set, in order of arrival: with them
    the user gets the place that is due, else the last one.
    """

    user_id: str
    score: int | None
    equals: tuple[str, ...] = ()


class Repaired(Struct, frozen=True, array_like=True):
    """What was, or in a dry run would be, done about a user: ``score`` is the right one."""

    outcome: str
    change: int
    score: int
    seq: int


class Corrections:
    """Sets scores in Redis to what PostgreSQL expects. Called by the flusher and by `repair`."""

    def __init__(self, client: aioredis.Redis) -> None:
        """Take a client that decodes replies (store.client.make_client does)."""
        self._client = client

    async def read_uncommitted(
        self, partition: Partition, *, epoch: int, seq: int, stream_id: str
    ) -> UncommittedDeltas:
        """Sum up what the stream adds to a committed position, which may not move meanwhile.

        Raises Busy (more than ``ENTRIES_MAX`` actions), RedisUnavailable, UnexpectedReply.
        """
        replication_id = await read_replication_id(self._client)
        uncommitted = UncommittedDeltas(
            replication_id=replication_id, epoch=epoch, seq=seq, stream_id=stream_id
        )
        await self._extend(partition, uncommitted)
        return uncommitted

    async def repair(
        self,
        partition: Partition,
        expected_scores: Sequence[ExpectedScore],
        uncommitted: UncommittedDeltas,
        *,
        is_dry: bool = False,
    ) -> list[Repaired]:
        """Set up to 64 users' scores to what PostgreSQL has plus what the stream still adds.

        ``uncommitted`` belongs to the committed position, which may not move meanwhile: hold the
        partition's row of flush_state. A second run changes nothing.

        Raises Outdated (it moved all the same, or another history or epoch began), Busy (too many
        actions are not committed), ScoreOutOfRange, Fenced, Uninitialised, RedisUnavailable
        (repeat it), ScriptFailed.
        """
        for _ in range(EXTENSIONS):
            try:
                return await self._repair(partition, expected_scores, uncommitted, is_dry=is_dry)
            except Busy:
                await self._extend(partition, uncommitted)
        raise Busy("Actions come faster than they can be added up")

    async def _repair(
        self,
        partition: Partition,
        expected_scores: Sequence[ExpectedScore],
        uncommitted: UncommittedDeltas,
        *,
        is_dry: bool,
    ) -> list[Repaired]:
        keys = PartitionKeys(partition)
        names = [keys.board, keys.events, keys.meta, keys.changes]
        args: list[object] = [
            uncommitted.replication_id,
            uncommitted.epoch,
            uncommitted.seq,
            uncommitted.up_to,
            int(is_dry),
        ]
        for expected in expected_scores:
            due = uncommitted.due(expected.user_id, expected.score)
            args += [expected.user_id, due, len(expected.equals), *expected.equals]
        states = await call(self._client, _REPAIR, names, args, list[Repaired])
        if len(states) != len(expected_scores):
            raise ScriptFailed(
                f"{_REPAIR.name} answered {len(states)} of {len(expected_scores)} users"
            )
        return states

    async def _extend(self, partition: Partition, uncommitted: UncommittedDeltas) -> None:
        """Read a tail to the present end of the stream."""
        events = PartitionKeys(partition).events
        while True:
            page = self._client.execute_command(
                *("XRANGE", events, f"({uncommitted.up_to}", "+", "COUNT", STREAM_PAGE),
                NEVER_DECODE=True,
            )
            entries = await read_reply(page, list[_Entry], f"XRANGE {events}")
            with checking_reply(f"XRANGE {events}"):
                uncommitted.take(entries)
            if len(entries) < STREAM_PAGE:
                return
            if uncommitted.count > ENTRIES_MAX:
                raise Busy(f"More than {ENTRIES_MAX} actions are not committed yet")

    async def users_at_score(self, partition: Partition, score: int, *, most: int) -> list[str]:
        """Give up to ``most`` users of a partition who stand at a score, best first.

        Raises RedisUnavailable, UnexpectedReply.
        """
        low, high = pack(score, 0), pack(score, SLOT_COUNT - 1)
        board = PartitionKeys(partition).board
        reply = self._client.zrange(board, high, low, desc=True, byscore=True, offset=0, num=most)
        return await read_reply(reply, list[str], f"ZRANGE {board}")


EQUALS_MAX: Final = 512
"""Most users of one score whose places are dealt anew; lua/repair.lua says the same."""

ArrivalOrder = Callable[[Sequence[str], int], Awaitable[list[str]]]
"""Gives those of some users who have a score in PostgreSQL, in order of arrival."""


async def correct_scores(
    store: Corrections,
    partition: Partition,
    expected_scores: Sequence[ExpectedScore],
    uncommitted: UncommittedDeltas,
    arrivals: ArrivalOrder,
) -> list[Repaired]:
    """Set up to 64 users right; give what was done about each, in order.

    ``uncommitted`` belongs to the committed position, which may not move meanwhile.

    Raises what Live.repair raises.
    """
    states = await store.repair(partition, expected_scores, uncommitted, is_dry=True)
    coming: dict[int, list[int]] = defaultdict(list)
    for place, state in enumerate(states):
        if state.outcome != "unchanged":
            coming[state.score].append(place)
    due: dict[int, ExpectedScore] = {}
    for score, places in coming.items():
        standing = await store.users_at_score(partition, score, most=EQUALS_MAX)
        users = [*standing, *(expected_scores[place].user_id for place in places)]
        equals: tuple[str, ...] = ()
        # Of too many nobody knows the order: whoever comes takes the last place.
        if len(users) <= EQUALS_MAX:
            equals = tuple(uncommitted.order(users, await arrivals(users, score)))
        for place in places:
            due[place] = msgspec.structs.replace(expected_scores[place], equals=equals)
    if due:
        done = await store.repair(partition, list(due.values()), uncommitted)
        for place, state in zip(due, done, strict=True):
            states[place] = state
    return states
