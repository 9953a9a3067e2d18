"""Applies administrators' acts to scores, each exactly once."""

from typing import Final

from msgspec import Struct

from scoreboard.model import Count, Layout, Partition, digest_of, shard_of
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.partitions import Partitions
from scoreboard.store.replies import read_reply
from scoreboard.store.scripts import Script, call

_ACT: Final = Script.load("act")


class Acted(Struct, frozen=True, array_like=True):
    """The reply of act.lua; with ``range``, ``moved`` and ``closed`` nothing was changed.

    ``closed``: another season has begun. ``score`` is the one after the act, or the present one if
    nothing was changed.
    """

    outcome: str
    delta: int
    score: Count
    seq: Count


class Acts(Partitions):
    """Applies administrators' acts to scores."""

    async def act(
        self,
        partition: Partition,
        layout: Layout,
        *,
        user_id: str,
        action_id: str,
        delta: int,
        stream_cap: int,
        moved_from: int | None = None,
        season: str = "",
    ) -> Acted:
        """Change a user's score, once for each ``action_id``, if it stays in the board's bounds.

        ``moved_from`` is the score from which ``delta`` was computed, None for any: with another
        score nothing is changed. ``season`` is the id of the season in which the act was decided,
        empty for none; the act changes nothing in another one.

        Raises Fenced, Uninitialised, SeasonEnded, Outdated (another layout), Busy (the stream is
        full), RedisUnavailable (it may be applied), ScriptFailed: repeat it with the same
        ``action_id``.
        """
        await self.turn(partition, layout.rules)
        keys = PartitionKeys(partition)
        digest = digest_of(partition.board, user_id, action_id)
        shard = shard_of(digest, layout.seen_shards)
        generation = int(await self.now_s(partition) // layout.seen_seconds)
        names = [keys.board, keys.events, keys.meta, keys.changes, keys.banned]
        names += [keys.dedup_shard(generation + step, shard) for step in (1, 0, -1)]
        rules = layout.rules
        bounds = (rules.act_min, rules.score_max)
        args = [
            *(generation, str(layout), stream_cap, user_id, action_id, digest, delta),
            *bounds,
            -1 if moved_from is None else moved_from,
            season,
        ]
        return await call(self._client, _ACT, names, args, Acted)

    async def count_from(self, board: str, layout: Layout, score: int) -> int:
        """Count the users of a board who have a score or a better one.

        Raises RedisUnavailable, UnexpectedReply.
        """
        total = 0
        for number in range(layout.partitions):
            name = PartitionKeys(Partition(board, number)).board
            reply = self._client.zcount(name, layout.rules.pack(score, 0), "+inf")
            total += await read_reply(reply, int, f"ZCOUNT {name}")
        return total
