"""Reads a partition's stream as the one consumer of its group; acknowledges what is committed.

Called by the lane of a partition. What stays true: entries left unacknowledged, by whichever
consumer, are taken over before new ones are read; acknowledgement and trimming come after COMMIT;
a vanished group is made again at the start of the stream, never at its end.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import redis.asyncio as aioredis
from msgspec import Struct
from redis.exceptions import RedisError, ResponseError

from flusher.batch import Entry
from scoreboard.archive import Position
from scoreboard.errors import RedisUnavailable, Unavailable
from scoreboard.keys import GROUP, PartitionKeys
from scoreboard.live import Live
from scoreboard.model import Partition
from scoreboard.redis_client import LOST
from scoreboard.scripts import first_word

RedisClient = aioredis.Redis
"""What the service makes and closes, so that it need not know the driver."""

CONSUMER: Final = "leader"
"""The same for every flusher process: the next leader inherits what the last one left."""

BLOCK_MS: Final = 500
"""Longest wait for new entries: a stop is noticed within it."""

NOWHERE: Final = Position()

CLAIM_PAGE: Final = 1000
"""Entries taken over per call."""


class GroupMissing(Unavailable):
    """The stream or its group is gone: Redis was emptied, or somebody destroyed the group."""

    code = "group-missing"
    title = "The consumer group is gone"


class Claimed(Struct, frozen=True):
    """A page of entries taken over; ``vanished`` are ids whose entries are gone unacknowledged."""

    entries: list[Entry]
    vanished: list[str]
    cursor: str

    @property
    def is_last(self) -> bool:
        """Tell whether there is no further page."""
        return self.cursor == "0-0"


class StreamFacts(Struct, frozen=True):
    """What a stream holds for the flusher; ``oldest_ms`` is None where nothing waits."""

    length: int = 0
    pending: int = 0
    oldest_ms: int | None = None


class Consumer:
    """One partition's stream. ``client`` gives bytes, ``live`` text; the caller owns both."""

    def __init__(
        self, client: RedisClient, live: Live, partition: Partition, *, timeout_s: float
    ) -> None:
        """Take the client's time-out: a read that outlasts it would lose its batch unseen."""
        self._block_ms = min(BLOCK_MS, int(timeout_s * 500))
        self._client = client
        self._live = live
        self._partition = partition
        self._events = PartitionKeys(partition).events

    async def ensure_group(self) -> bool:
        """Make the group where it is missing, at the start of the stream; tell whether it was.

        From the start, as ids may have gone back with a failover: the ledger drops what repeats.
        Call it only while the partition has an epoch.

        Raises RedisUnavailable.
        """
        try:
            await self._client.xgroup_create(self._events, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if first_word(error) == "BUSYGROUP":
                return False
            raise RedisUnavailable(str(error)) from error
        except (*LOST, RedisError) as error:
            raise RedisUnavailable from error
        return True

    async def claim(self, cursor: str = "0-0") -> Claimed:
        """Take over a page of entries that were delivered to anyone and not acknowledged.

        Raises GroupMissing, RedisUnavailable.
        """
        async with _reaching():
            reply: Any = await self._client.xautoclaim(
                self._events, GROUP, CONSUMER, min_idle_time=0, start_id=cursor, count=CLAIM_PAGE
            )
        following, entries, *rest = reply
        vanished = [stream_id.decode() for stream_id in (rest[0] if rest else [])]
        return Claimed(list(entries), vanished, following.decode())

    async def read(self, count: int, *, block: bool = True) -> list[Entry]:
        """Read up to ``count`` new entries, waiting for the first for at most ``BLOCK_MS``.

        Raises GroupMissing, RedisUnavailable: then ``claim`` first, as an answer may be lost.
        """
        async with _reaching():
            reply: Any = await self._client.xreadgroup(
                GROUP,
                CONSUMER,
                {self._events: ">"},
                count=count,
                block=self._block_ms if block else None,
            )
        return list(reply[0][1]) if reply else []

    async def acknowledge(
        self, ids: Sequence[bytes], last_id: str, position: Position = NOWHERE
    ) -> None:
        """Give up entries whose batch is committed, cut the stream, announce the position.

        Raises RedisUnavailable, ScriptFailed: the entries come again and are dropped by the ledger.
        """
        await self._live.trim(self._partition, last_id, ids, epoch=position.epoch, seq=position.seq)

    async def start_over(self) -> None:
        """Have everything in the stream delivered again.

        Raises GroupMissing, RedisUnavailable.
        """
        async with _reaching():
            await self._client.xgroup_setid(self._events, GROUP, id="0")

    async def before(self, stream_id: str, count: int = 100) -> list[Entry]:
        """Give the entries just before a stream id, nearest first.

        Raises RedisUnavailable.
        """
        async with _reaching():
            reply: Any = await self._client.xrevrange(
                self._events, max=f"({stream_id}", min="-", count=count
            )
        return list(reply)

    async def facts(self) -> StreamFacts:
        """Read what the stream holds; its first entry is the oldest not committed.

        (What is acknowledged is cut at once.)

        Raises GroupMissing, RedisUnavailable.
        """
        async with _reaching():
            length = int(await self._client.xlen(self._events))
            if not length:
                return StreamFacts()
            pending: Any = await self._client.xpending(self._events, GROUP)
            first: Any = await self._client.xrange(self._events, count=1)
        oldest_ms = int(first[0][0].partition(b"-")[0]) if first else None
        return StreamFacts(length, int(pending["pending"]), oldest_ms)


@asynccontextmanager
async def _reaching() -> AsyncIterator[None]:
    try:
        yield
    except ResponseError as error:
        if first_word(error) in {"NOGROUP", "UNBLOCKED"} or "no such key" in str(error):
            raise GroupMissing from error
        raise RedisUnavailable(str(error)) from error
    except (*LOST, RedisError) as error:
        raise RedisUnavailable from error
