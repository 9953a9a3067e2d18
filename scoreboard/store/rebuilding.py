"""The steps of a reseed: fence, restore, remember, open, retire."""

from collections.abc import Sequence
from typing import Annotated, Final

import redis.asyncio as aioredis
from msgspec import Meta

from scoreboard.model import (
    COUNT_MAX,
    Board,
    Layout,
    Partition,
)
from scoreboard.store.keys import GROUP, PartitionKeys
from scoreboard.store.partitions import PartitionState
from scoreboard.store.scripts import Script, call

PAGE: Final = 1000
"""Most scores or dedup records of one call."""
_Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
_FENCE: Final = Script.load("fence")
_RESTORE: Final = Script.load("restore")
_REMEMBER: Final = Script.load("remember")
_RETIRE: Final = Script.load("retire")
_OPEN: Final = Script.load("open")


class Rebuilding:
    """The steps of a reseed: fence, restore, remember, open, retire."""

    def __init__(self, client: aioredis.Redis) -> None:
        """Take a client that decodes replies (store.client.make_client does)."""
        self._client = client

    async def fence(
        self, partition: Partition, token: str, seen: PartitionState, *, committed: int = -1
    ) -> tuple[int, int]:
        """Stop accepting, in the name of ``token``; give epoch and seq (0, 0 on an emptied Redis).

        ``seen`` is the state that the caller saw while it was sure that it alone may do this;
        ``committed`` the highest committed seq that it knows of, -1 where that does not matter.

        Raises Outdated (the partition has changed since), RedisUnavailable, ScriptFailed.
        """
        args: list[object] = [token, seen.epoch, seen.fence, committed]
        meta = PartitionKeys(partition).meta
        return await call(self._client, _FENCE, [meta], args, tuple[_Count, _Count])

    async def restore(
        self, partition: Partition, token: str, page: Sequence[tuple[int, str]], *, first: bool
    ) -> int:
        """Put a page of (packed, user) into the shadow board; give its size.

        Raises OperatorMistake if another operator holds the fence, RedisUnavailable, ScriptFailed.
        """
        keys = PartitionKeys(partition)
        flat = [value for pair in page for value in pair]
        args = [token, int(first), *flat]
        return await call(self._client, _RESTORE, [keys.meta, keys.shadow], args, int)

    async def remember(
        self,
        partition: Partition,
        token: str,
        seen: tuple[int, int],
        page: Sequence[tuple[bytes, str]],
        *,
        expires_at_s: int,
        first: bool,
    ) -> int:
        """Put (digest, ``delta:score:seq``) into the seen hash (generation, shard); give its size.

        Raises OperatorMistake if another operator holds the fence, RedisUnavailable, ScriptFailed.
        """
        keys = PartitionKeys(partition)
        flat = [value for pair in page for value in pair]
        args = [token, int(first), expires_at_s, *flat]
        return await call(self._client, _REMEMBER, [keys.meta, keys.dedup_shard(*seen)], args, int)

    async def retire(self, partition: Partition, token: str, layout: Layout) -> None:
        """Empty a fenced partition that its board no longer has; callers learn ``layout`` there.

        Raises OperatorMistake if another operator holds the fence, Busy if actions of the stream
        are not committed, RedisUnavailable (repeat it), ScriptFailed.
        """
        keys = PartitionKeys(partition)
        names = [keys.meta, keys.board, keys.shadow, keys.events]
        await call(self._client, _RETIRE, names, [token, str(layout), GROUP], int)

    async def open(
        self,
        partition: Partition,
        token: str,
        board: Board,
        *,
        epoch: int,
        seq: int,
        stream_id: str,
        members: int,
    ) -> int:
        """Make the shadow the board, under a new epoch, and accept again; give its members.

        Raises OperatorMistake if the fence was lost or the shadow is incomplete, RedisUnavailable
        (it may have happened: read ``state``), ScriptFailed.
        """
        keys = PartitionKeys(partition)
        names = [keys.board, keys.shadow, keys.events, keys.meta, keys.changes]
        args = [
            token,
            epoch,
            seq,
            stream_id,
            GROUP,
            str(board.layout),
            int(board.is_public),
            members,
        ]
        return await call(self._client, _OPEN, names, args, int)
