"""What a partition of Redis says of itself, and its stream of events."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final

import redis.asyncio as aioredis
from msgspec import Meta, Struct, field
from redis.exceptions import RedisError

from scoreboard.model import (
    COUNT_MAX,
    PARTITIONS_MAX,
    Layout,
    Partition,
    StreamId,
)
from scoreboard.store.keys import COMMITS_PREFIX, GROUP, PartitionKeys
from scoreboard.store.replies import checking_reply, convert, read_reply, translate_error
from scoreboard.store.scripts import Script, call

_WHOLE: Final = re.compile(r"\d{1,16}", re.ASCII)
_FENCE_TOKEN: Final = re.compile(r"[!-~]+")
_COMMITTED: Final = re.compile(r"(\d{1,16}):(\d{1,16})", re.ASCII)
_Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
_TRIM: Final = Script.load("trim")
_HISTORY: Final = Script.load("history")


class _Stream(Struct, frozen=True):
    """What XINFO STREAM says."""

    length: _Count
    last_id: StreamId = field(name="last-generated-id")


class _Group(Struct, frozen=True):
    """What XINFO GROUPS says of one group."""

    name: str
    pending: _Count
    delivered_id: StreamId = field(name="last-delivered-id")


class PartitionState(Struct, frozen=True):
    """What a partition's meta hash says. ``epoch`` 0: emptied, nothing is accepted.

    A field that cannot be read counts as missing, as it does in the scripts. ``layout`` None: it is
    missing, and nothing is accepted either.
    """

    epoch: int = 0
    seq: int = 0
    is_open: bool = False
    layout: Layout | None = None
    is_public: bool = False
    fence: str = ""
    is_retired: bool = False
    """Whether the board no longer has this partition; then ``epoch`` is 0."""
    committed_seq: int = 0
    """What PostgreSQL is known to have committed of this epoch."""


class Backlog(Struct, frozen=True):
    """What a partition's stream still holds for the flusher."""

    entries: int = 0
    pending: int = 0
    last_id: str = "0-0"
    delivered_id: str = ""

    @property
    def is_drained(self) -> bool:
        """Tell whether everything was delivered and acknowledged, which follows its COMMIT."""
        return not self.entries or (not self.pending and self.delivered_id == self.last_id)


def _whole(text: str | None) -> int | None:
    """Read a whole number as the scripts do; None where it is none, or beyond a double."""
    number = int(text) if text is not None and _WHOLE.fullmatch(text) else None
    return number if number is None or number <= COUNT_MAX else None


def _state_of(facts: Mapping[str, str]) -> PartitionState:
    epoch, seq = _whole(facts.get("epoch")), _whole(facts.get("seq"))
    fence = facts.get("fence", "")
    fence = fence if _FENCE_TOKEN.fullmatch(fence) else ""
    if not epoch or seq is None:
        return PartitionState(fence=fence, is_retired=facts.get("state") == "retired")
    committed = _COMMITTED.fullmatch(facts.get("committed", ""))
    layout: Layout | None = None
    with suppress(ValueError):
        layout = Layout.parse(facts.get("layout", ""))
    return PartitionState(
        epoch=epoch,
        seq=seq,
        is_open=facts.get("state") == "open" and layout is not None,
        layout=layout,
        is_public=facts.get("public") == "1",
        fence=fence,
        committed_seq=_whole(committed[2]) or 0
        if committed and _whole(committed[1]) == epoch
        else 0,
    )


async def read_replication_id(client: aioredis.Redis) -> str:
    """Name the history of writes that the server continues: another after each failover.

    Raises RedisUnavailable, ScriptFailed.
    """
    return await call(client, _HISTORY, [], [], str, reads=True)


async def read_state(client: aioredis.Redis, partition: Partition) -> PartitionState:
    """Read where a partition stands.

    Raises RedisUnavailable, UnexpectedReply.
    """
    meta = PartitionKeys(partition).meta
    return _state_of(await read_reply(client.hgetall(meta), dict[str, str], f"HGETALL {meta}"))


class Partitions:
    """What a partition of Redis says of itself, and its stream of events."""

    def __init__(self, client: aioredis.Redis) -> None:
        """Take a client that decodes replies (store.client.make_client does)."""
        self._client = client

    async def state(self, partition: Partition) -> PartitionState:
        """Read where a partition stands.

        Raises RedisUnavailable, UnexpectedReply.
        """
        return await read_state(self._client, partition)

    async def states(self, board: str) -> dict[int, PartitionState]:
        """Read where every partition stands that Redis knows of a board, whatever its layout.

        Raises RedisUnavailable, UnexpectedReply.
        """
        metas = [PartitionKeys(Partition(board, number)).meta for number in range(PARTITIONS_MAX)]
        async with self._client.pipeline(transaction=False) as pipe:
            for meta in metas:
                pipe.hgetall(meta)
            replies = await read_reply(
                pipe.execute(raise_on_error=False), list[Any], f"HGETALL {board}"
            )
        states: dict[int, PartitionState] = {}
        for number, (meta, reply) in enumerate(zip(metas, replies, strict=False)):
            if isinstance(reply, RedisError):
                raise translate_error(reply, f"HGETALL {meta}") from reply
            with checking_reply(f"HGETALL {meta}"):
                facts = convert(reply, dict[str, str])
            if facts:
                states[number] = _state_of(facts)
        return states

    async def backlog(self, partition: Partition) -> Backlog:
        """Read what the stream of a partition still holds for the flusher.

        Raises RedisUnavailable, UnexpectedReply.
        """
        events = PartitionKeys(partition).events
        if not await read_reply(self._client.exists(events), int, f"EXISTS {events}"):
            return Backlog()
        stream = await read_reply(
            self._client.xinfo_stream(events), _Stream, f"XINFO STREAM {events}"
        )
        groups = await read_reply(
            self._client.xinfo_groups(events), list[_Group], f"XINFO GROUPS {events}"
        )
        group = next((one for one in groups if one.name == GROUP), None)
        return Backlog(
            entries=stream.length,
            pending=group.pending if group else 0,
            last_id=stream.last_id,
            delivered_id=group.delivered_id if group else "",
        )

    async def replication_id(self) -> str:
        """Name the history of writes that the server continues: another after each failover.

        Read it before what is later acted on: trim and repair refuse where it has changed.

        Raises RedisUnavailable, ScriptFailed.
        """
        return await read_replication_id(self._client)

    async def now_s(self) -> float:
        """Read Redis's clock, which names the generations of the seen window (seconds since 1970).

        Raises RedisUnavailable, UnexpectedReply.
        """
        seconds, microseconds = await read_reply(self._client.time(), tuple[_Count, _Count], "TIME")
        return seconds + microseconds / 1_000_000

    async def trim(
        self,
        partition: Partition,
        last_id: str,
        acknowledged: Sequence[bytes],
        *,
        replication_id: str,
        epoch: int,
        first_seq: int,
        last_seq: int,
    ) -> int:
        """Acknowledge a committed batch and cut the stream behind it; give how many entries went.

        ``last_id`` is the id of its last entry, ``first_seq`` and ``last_seq`` are the seqs it
        spans: the last one becomes the committed position, told to whoever waits for it.
        ``first_seq`` is 0 where entries before it are known to be missing, both are 0 where no seq
        of the batch can be read.

        Raises Outdated (other history or epoch, or something before the batch is not committed:
        read from the start of the stream again), Uninitialised, RedisUnavailable, ScriptFailed.
        """
        keys = PartitionKeys(partition)
        names = [keys.events, keys.meta]
        channel = COMMITS_PREFIX + partition.board
        args: list[object] = [GROUP, replication_id, epoch, last_id, first_seq, last_seq, channel]
        args += acknowledged
        return await call(self._client, _TRIM, names, args, int)
