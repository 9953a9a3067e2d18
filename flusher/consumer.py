"""Reads a partition's stream as the only consumer of its group; acknowledges committed entries.

Invariants: pending entries are claimed before new ones are read; acknowledgement and trimming
follow the COMMIT, in stream order; a missing group is created at the start of the stream, never at
its end.
"""

import re
from collections.abc import Awaitable, Sequence
from typing import Any, Final, TypeVar

import redis.asyncio as aioredis
from msgspec import Struct
from redis.exceptions import ResponseError

from flusher.batch import Batch, Entry
from scoreboard.errors import Unavailable, UnexpectedReply
from scoreboard.model import STREAM_ID_PATTERN, Partition
from scoreboard.store.keys import GROUP, PartitionKeys
from scoreboard.store.partitions import Partitions
from scoreboard.store.replies import error_code, read_reply

CONSUMER: Final = "leader"
"""The same name in every process, so the next leader gets the pending entries of the last."""

BLOCK_MS: Final = 500
"""Longest wait for new entries, and so the longest delay of a stop."""

CLAIM_PAGE: Final = 1000
"""Entries claimed per call."""

_STREAM_ID: Final = re.compile(STREAM_ID_PATTERN.encode())
_Shape = TypeVar("_Shape")


class GroupMissing(Unavailable):
    """The stream or its group is missing: Redis was emptied, or the group was destroyed."""

    code = "group-missing"
    title = "The consumer group is missing"


class Claimed(Struct, frozen=True):
    """A page of claimed entries; ``vanished`` are pending ids whose entries were deleted."""

    entries: list[Entry]
    vanished: list[str]
    cursor: str

    @property
    def is_last(self) -> bool:
        """Return whether this is the last page."""
        return self.cursor == "0-0"


class Consumer:
    """The stream of one partition. ``client`` returns bytes; the caller owns and closes it."""

    def __init__(
        self, client: aioredis.Redis, store: Partitions, partition: Partition, *, timeout_s: float
    ) -> None:
        """Use the client's time-out ``timeout_s``: a longer blocking read would lose its batch."""
        self._block_ms = min(BLOCK_MS, int(timeout_s * 500))
        self._client = client
        self._store = store
        self._partition = partition
        self._events = PartitionKeys(partition).events
        self._starts_over = False

    async def ensure_group(self) -> bool:
        """Create the group at the start of the stream if it is missing; return whether it was.

        It starts at the beginning because a failover may have moved ids back; the ledger ignores
        repeated entries. Call it only while the partition has an epoch.

        Raises RedisUnavailable, UnexpectedReply.
        """
        create = self._client.xgroup_create(self._events, GROUP, id="0", mkstream=True)
        try:
            await read_reply(create, object, f"XGROUP CREATE {self._events}")
        except UnexpectedReply as error:
            cause = error.__cause__
            if isinstance(cause, ResponseError) and error_code(cause) == "BUSYGROUP":
                return False
            raise
        return True

    async def claim(self, cursor: str = "0-0") -> Claimed:
        """Claim a page of entries that were delivered to any consumer and not acknowledged.

        Raises GroupMissing, RedisUnavailable, UnexpectedReply.
        """
        claim = self._client.xautoclaim(
            self._events, GROUP, CONSUMER, min_idle_time=0, start_id=cursor, count=CLAIM_PAGE
        )
        following, entries, vanished = await self._ask(
            claim, tuple[bytes, list[Entry], list[bytes]], "XAUTOCLAIM"
        )
        _check_ids([following, *vanished, *(stream_id for stream_id, _ in entries)])
        return Claimed(entries, [one.decode() for one in vanished], following.decode())

    async def read(self, count: int, *, block: bool = True) -> list[Entry]:
        """Read up to ``count`` new entries, waiting for the first for at most ``BLOCK_MS``.

        Raises GroupMissing, RedisUnavailable, UnexpectedReply: then call ``claim`` first, because
        the reply may be lost.
        """
        read = self._client.xreadgroup(
            GROUP,
            CONSUMER,
            {self._events: ">"},
            count=count,
            block=self._block_ms if block else None,
        )
        streams = await self._ask(read, list[tuple[bytes, list[Entry]]], "XREADGROUP")
        entries = streams[0][1] if streams else []
        _check_ids([stream_id for stream_id, _ in entries])
        return entries

    async def acknowledge(
        self, batch: Batch, *, replication_id: str, epoch: int, skip_gaps: bool = False
    ) -> int:
        """Acknowledge a committed batch, trim the stream and publish the committed position.

        Returns the number of subscribers that received the position, -1 if it was not published.
        ``replication_id`` was read before the entries. ``skip_gaps``: entries before them may be
        missing.

        Raises Outdated (call ``start_over``), Uninitialised, RedisUnavailable, ScriptFailed: the
        entries are delivered again and ignored by the ledger.
        """
        seqs = [seq for _, seq in batch.steps if seq]
        # A record that cannot be decoded may be the seq before the first one, also in an earlier
        # batch; then this batch was refused once, and the stream is delivered again.
        is_whole = len(seqs) == len(batch.steps) and not skip_gaps and not self._starts_over
        trimmed = await self._store.trim(
            self._partition,
            batch.last_id,
            batch.ids,
            replication_id=replication_id,
            epoch=epoch,
            first_seq=min(seqs, default=0) if is_whole else 0,
            last_seq=max(seqs, default=0),
        )
        self._starts_over = False
        return trimmed.receivers

    async def start_over(self) -> None:
        """Reset the group, so that the whole stream is delivered again.

        Raises GroupMissing, RedisUnavailable, UnexpectedReply.
        """
        self._starts_over = True
        await self._ask(self._client.xgroup_setid(self._events, GROUP, id="0"), object, "XGROUP")

    async def entries_before(self, stream_id: str, count: int = 100) -> list[Entry]:
        """Return the entries just before a stream id, nearest first.

        Raises RedisUnavailable, UnexpectedReply.
        """
        before = self._client.xrevrange(self._events, max=f"({stream_id}", min="-", count=count)
        entries = await self._ask(before, list[Entry], "XREVRANGE")
        _check_ids([stream_id for stream_id, _ in entries])
        return entries

    async def _ask(self, waiting: Awaitable[Any], shape: type[_Shape], command: str) -> _Shape:
        try:
            return await read_reply(waiting, shape, f"{command} {self._events}")
        except UnexpectedReply as error:
            cause = error.__cause__
            if isinstance(cause, ResponseError) and (
                error_code(cause) in {"NOGROUP", "UNBLOCKED"} or "no such key" in str(cause)
            ):
                raise GroupMissing from cause
            raise


def _check_ids(stream_ids: Sequence[bytes]) -> None:
    """Raise UnexpectedReply unless all of them are stream ids."""
    if not all(map(_STREAM_ID.fullmatch, stream_ids)):
        raise UnexpectedReply("A stream id is malformed")
