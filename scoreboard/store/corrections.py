"""Sets scores in Redis to the expected ones while updates continue."""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from scoreboard.errors import Busy, Outdated, ScriptFailed
from scoreboard.model import SLOT_COUNT, Partition, Rules
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.partitions import Partitions
from scoreboard.store.replies import checking_reply, read_reply
from scoreboard.store.scripts import Script, call
from scoreboard.store.uncommitted import ENTRIES_MAX, UncommittedDeltas

EXTENSIONS_MAX: Final = 5
"""Maximum reads of new entries while there are more than a script adds up."""

STREAM_PAGE: Final = 1000
"""Stream entries of one read."""

REPAIR_MAX: Final = 64
"""Maximum number of users of one repair call; lua/repair.lua enforces the same limit."""

EQUALS_MAX: Final = 512
"""Maximum users of one score that are put in order; lua/repair.lua enforces the same limit."""

_Entry = tuple[bytes, dict[bytes, bytes]]
_REPAIR: Final = Script.load("repair")


class ExpectedScore(Struct, frozen=True):
    """A user's score according to PostgreSQL, dead letters included; None for no score.

    ``is_banned``: the user is to be kept off the board. ``equals`` are the users with the score to
    be set, in order of arrival, the user among them.
    Without them the user is placed last.
    """

    user_id: str
    score: int | None
    is_banned: bool = False
    equals: tuple[str, ...] = ()


class Repaired(Struct, frozen=True, array_like=True):
    """What was done for a user, or would be in a dry run; ``score`` is the expected one."""

    outcome: str
    change: int
    score: int
    seq: int


class Corrections(Partitions):
    """Sets scores in Redis to the expected ones while updates continue."""

    async def read_uncommitted(
        self, partition: Partition, *, epoch: int, seq: int, stream_id: str, season: str = ""
    ) -> UncommittedDeltas:
        """Sum up the deltas behind a committed position, which must not move meanwhile.

        Raises Busy (more than ``ENTRIES_MAX`` actions), RedisUnavailable, UnexpectedReply.
        """
        uncommitted = UncommittedDeltas(
            replication_id=await self.replication_id(partition),
            epoch=epoch,
            seq=seq,
            stream_id=stream_id,
            season=season,
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
        """Set up to ``REPAIR_MAX`` users' scores to the expected ones; return what was done.

        ``uncommitted`` starts at the committed position, which must not move meanwhile: hold the
        lock on the partition's row of flush_state. ``expected_scores`` are those of its season. A
        second run changes nothing.

        Raises Outdated (the position moved, or another replication id or epoch began), Busy (too
        many uncommitted actions), ScoreOutOfRange, Fenced, Uninitialised, RedisUnavailable
        (repeat the call), ScriptFailed.
        """
        season = uncommitted.season
        for _ in range(EXTENSIONS_MAX):
            if uncommitted.season != season:  # the expected scores are those of the one before
                raise Outdated("another season began")
            try:
                return await self._repair(partition, expected_scores, uncommitted, is_dry=is_dry)
            except Busy:
                await self._extend(partition, uncommitted)
        raise Busy("Actions arrive faster than they can be added up")

    async def _repair(
        self,
        partition: Partition,
        expected_scores: Sequence[ExpectedScore],
        uncommitted: UncommittedDeltas,
        *,
        is_dry: bool,
    ) -> list[Repaired]:
        keys = PartitionKeys(partition)
        names = [keys.board, keys.events, keys.meta, keys.changes, keys.banned]
        args: list[object] = [
            uncommitted.replication_id,
            uncommitted.epoch,
            uncommitted.seq,
            uncommitted.up_to,
            int(is_dry),
            uncommitted.season,
        ]
        for expected in expected_scores:
            score = uncommitted.expected_score(expected.user_id, expected.score)
            args += [expected.user_id, score, int(expected.is_banned)]
            args += [len(expected.equals), *expected.equals]
        results = await call(self._client, _REPAIR, names, args, list[Repaired])
        if len(results) != len(expected_scores):
            raise ScriptFailed(
                f"{_REPAIR.name} answered {len(results)} of {len(expected_scores)} users"
            )
        return results

    async def _extend(self, partition: Partition, uncommitted: UncommittedDeltas) -> None:
        """Read on to the current end of the stream."""
        events = PartitionKeys(partition).events
        while True:
            page = self._client.execute_command(
                *("XRANGE", events, f"({uncommitted.up_to}", "+", "COUNT", STREAM_PAGE),
                NEVER_DECODE=True,
            )
            entries = await read_reply(page, list[_Entry], f"XRANGE {events}")
            with checking_reply(f"XRANGE {events}"):
                uncommitted.add(entries)
            if len(entries) < STREAM_PAGE:
                return
            if uncommitted.count > ENTRIES_MAX:
                raise Busy(f"More than {ENTRIES_MAX} actions are not committed yet")

    async def users_at_score(
        self, partition: Partition, rules: Rules, score: int, *, limit: int
    ) -> list[str]:
        """Read up to ``limit`` users of a partition with a score, in ranking order.

        Raises RedisUnavailable, UnexpectedReply.
        """
        low, high = rules.pack(score, 0), rules.pack(score, SLOT_COUNT - 1)
        board = PartitionKeys(partition).board
        reply = self._client.zrange(board, high, low, desc=True, byscore=True, offset=0, num=limit)
        return await read_reply(reply, list[str], f"ZRANGE {board}")
