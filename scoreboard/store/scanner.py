"""Reads whole partitions of Redis in pages, without blocking the server. Used by verify.

The pages are read at different moments, so verify checks each difference again under a lock.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Final

from scoreboard.errors import UnexpectedReply
from scoreboard.model import PACKED_MAX, Layout, Partition
from scoreboard.store.cluster import send_many
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.replies import checking_reply, read_replies, read_reply
from scoreboard.store.store_client import StoreClient

PAGE: Final = 1000
"""Members of one read."""

EXTRA_SCANS_MAX: Final = 1000
"""Maximum number of ZSCAN calls beyond one per member: more than a growing board needs."""

INVALID_SCORE: Final = -1
"""Returned for a value that is not a packed score: out of range, or not a whole number."""

NO_EXPIRY: Final = -1
"""PTTL's reply for a key without an expiry."""


class Scanner(StoreClient):
    """Reads of whole partitions."""

    async def count(self, partition: Partition) -> int:
        """Count the members of a partition.

        Raises RedisUnavailable, UnexpectedReply.
        """
        board = PartitionKeys(partition).board
        return await read_reply(self._client.zcard(board), int, f"ZCARD {board}")

    async def packed_scores(self, partition: Partition, users: Sequence[str]) -> list[int | None]:
        """Read the packed scores of users: None for a non-member, INVALID_SCORE for a bad value.

        Raises RedisUnavailable, UnexpectedReply.
        """
        if not users:
            return []
        board = PartitionKeys(partition).board
        reply = self._client.zmscore(board, list(users))
        found = await read_reply(reply, list[float | None], f"ZMSCORE {board}")
        if len(found) != len(users):
            raise UnexpectedReply(f"ZMSCORE {board} answered {len(found)} of {len(users)} users")
        return [None if packed is None else _whole(packed) for packed in found]

    async def members(self, partition: Partition) -> AsyncIterator[list[str]]:
        """Iterate over all members in pages; a member may be returned twice.

        Raises RedisUnavailable, UnexpectedReply.
        """
        cursor = 0
        for _ in range(await self.count(partition) + EXTRA_SCANS_MAX):
            cursor, users = await self.page(partition, cursor, count=PAGE)
            yield users
            if not cursor:
                return
        raise UnexpectedReply(f"ZSCAN {PartitionKeys(partition).board} did not end")

    async def page(self, partition: Partition, cursor: int, *, count: int) -> tuple[int, list[str]]:
        """Read about ``count`` members; return the next cursor, 0 after the last page, and them.

        Start with cursor 0. A member may be returned twice.

        Raises RedisUnavailable, UnexpectedReply.
        """
        board = PartitionKeys(partition).board
        cursor, pairs = await read_reply(
            self._client.zscan(board, cursor, count=count),
            tuple[int, list[tuple[str, float]]],
            f"ZSCAN {board}",
        )
        return cursor, [user for user, _ in pairs]

    async def random_members(self, partition: Partition, count: int) -> list[str]:
        """Return up to ``count`` different members, chosen at random.

        Raises RedisUnavailable, UnexpectedReply.
        """
        board = PartitionKeys(partition).board
        return await read_reply(
            self._client.zrandmember(board, count), list[str], f"ZRANDMEMBER {board}"
        )

    async def keys_without_expiry(
        self, partition: Partition, layout: Layout, generation: int
    ) -> list[str]:
        """List the dedup shards around a generation that have no expiry and would never be deleted.

        Raises RedisUnavailable, UnexpectedReply.
        """
        keys = PartitionKeys(partition)
        names = [
            keys.dedup_shard(near, shard)
            for near in (generation - 1, generation, generation + 1)
            for shard in range(layout.seen_shards)
        ]
        sent = send_many(self._client, [("PTTL", name) for name in names])
        replies = await read_replies(sent, list[int], f"PTTL {keys.tag}:seen")
        with checking_reply(f"PTTL {keys.tag}:seen"):
            return [name for name, left in zip(names, replies, strict=True) if left == NO_EXPIRY]


def _whole(packed: float) -> int:
    return int(packed) if packed.is_integer() and 0 <= packed <= PACKED_MAX else INVALID_SCORE
