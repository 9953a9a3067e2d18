"""Sends the reads of boards that are asked for in one turn of the event loop together.

A read whose reply was lost is sent once more, then its caller gets RedisUnavailable.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from scoreboard.errors import Overloaded, RedisUnavailable, ScriptFailed
from scoreboard.model import BATCH_MAX, Partition
from scoreboard.runtime.collectors import LoopHistogram
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import BATCH_BUCKETS, gauge, get_logger
from scoreboard.store.batching import Batcher, Call, Entry, fail
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.pipelined_connection import Command
from scoreboard.store.reads import Reading, ReadScript
from scoreboard.store.replies import PARSE_ERRORS, convert
from scoreboard.store.scripts import script_command

WRITE_READS_MAX: Final = 4 * BATCH_MAX
"""Maximum reads of one write: a few ms of Redis's time."""

_BATCH_READS = LoopHistogram(
    "read_batch_reads",
    "Ranks or windows of one script call",
    BATCH_BUCKETS,
    unit="reads",
    normal="1 with little load; larger under load, at most 64",
).series()
_WAITING = gauge(
    "read_waiting",
    "Reads waiting for a connection to Redis",
    unit="reads",
    normal="0, or briefly some; SCOREBOARD_DISPATCH_WAITING is the limit",
)
_log = get_logger(__name__)


class _Read(Entry):
    """A queued read, or several of one moment; ``number`` is its place in the call."""

    __slots__ = ("args", "count", "number", "partition", "script")

    def __init__(
        self,
        script: ReadScript,
        partition: Partition,
        args: Sequence[Any],
        future: "asyncio.Future[Reading]",
    ) -> None:
        super().__init__(future)
        self.script = script
        self.partition = partition
        self.args = args
        self.count = len(args) // script.width
        self.number = 0


class _ReadCall(Call[_Read]):
    """A call for reads of one script."""

    __slots__ = ("count", "shape")

    def __init__(self, script: ReadScript, partition: Partition) -> None:
        super().__init__(script.script, partition)
        self.shape = script.shape
        self.count = 0


class ReadBatcher(Batcher[_Read, _ReadCall]):
    """Batches reads. Run ``run`` in a task group; it is a ``Reads`` for ``Boards``."""

    def __init__(self, settings: Settings, scripts: Sequence[ReadScript], *, name: str) -> None:
        super().__init__(
            settings,
            *(one.script for one in scripts),
            name=name,
            entries_max=WRITE_READS_MAX,
            lost=RedisUnavailable,
        )
        _WAITING.set_function(lambda: self.waiting)

    async def read(
        self, script: ReadScript, reads: Sequence[tuple[Partition, Sequence[Any]]]
    ) -> Sequence[Reading]:
        """Run reads of partitions, each with its arguments, in one round trip."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Reading]] = []
        for partition, args in reads:
            future: asyncio.Future[Reading] = loop.create_future()
            try:
                self.enqueue(_Read(script, partition, args, future))
            except Overloaded:
                for earlier in futures:
                    earlier.cancel()
                raise
            futures.append(future)
        if len(futures) == 1:
            return [await futures[0]]
        return await asyncio.gather(*futures)

    def plan(self, entries: Sequence[_Read]) -> list[_ReadCall]:
        """Group reads into calls of one script and partition, up to the script's limit."""
        calls: list[_ReadCall] = []
        open_calls: dict[tuple[str, Partition], _ReadCall] = {}
        for entry in entries:
            if entry.future.done():  # its caller is gone
                continue
            script, partition = entry.script, entry.partition
            call = open_calls.get((script.script.name, partition))
            if call is None or call.count + entry.count > script.reads_max:
                call = _ReadCall(script, partition)
                open_calls[script.script.name, partition] = call
                calls.append(call)
            entry.number = call.count
            call.count += entry.count
            call.entries.append(entry)
        return calls

    def partition_of(self, entry: _Read) -> Partition:
        """Return the partition of a read."""
        return entry.partition

    def commands(self, call: _ReadCall) -> Sequence[Command]:
        """Return the command of a call."""
        _BATCH_READS.observe(call.count)
        keys = PartitionKeys(call.partition).read
        args = [arg for entry in call.entries for arg in entry.args]
        return (script_command(call.script, keys, args, reads=True),)

    def resolve(self, call: _ReadCall, reply: Any) -> None:  # noqa: ANN401 (checked below)
        """Give each read the reply and its number in it."""
        try:
            found = convert(reply, call.shape)
        except PARSE_ERRORS as error:
            detail = f"{call.script.name}: the reply has another shape ({type(error).__name__})"
            _log.error("script_failed", script=call.script.name, reason=detail)
            fail(call.entries, ScriptFailed, detail)
            return
        for entry in call.entries:
            if not entry.future.done():
                entry.future.set_result((found, entry.number))
