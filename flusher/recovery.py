"""What to make of where Redis and PostgreSQL stand, and the way back from an older Redis.

Called by the lane. What stays true: a fence in another's name is respected; the way back begins
with a fence and a drain through the ledger, so whatever survived anywhere is counted; it ends with
a reseed, which raises the epoch, and may be killed and begun again at any step.
"""

import asyncio
from enum import Enum
from typing import Final

from flusher.writer import Writer
from scoreboard.errors import DatabaseUnavailable, ScoreboardError
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.pool import connect
from scoreboard.ledger.positions import Position
from scoreboard.model import Partition
from scoreboard.recovery.reseed import SESSION, Reseeded, reseed
from scoreboard.runtime.settings import Settings
from scoreboard.store.partitions import PartitionState
from scoreboard.store.store import Store

REWIND_FENCE: Final = "flusher:rewind"  # no secret: in whose name a partition is stopped
"""Begins the token of a fence set because Redis came back older; whoever leads goes on from it."""

GAP_FENCE: Final = "flusher:gap"
"""The token of a fence set because entries vanished: only an operator can say what they were."""

KEEP_ALIVE_S: Final = 5.0


class Finding(Enum):
    """What the two positions mean together."""

    FINE = "fine"
    EMPTY = "empty"
    WAIT = "wait"
    REWOUND = "rewound"
    OLD_EPOCH = "old_epoch"
    RESUME = "resume"

    @property
    def is_rewind(self) -> bool:
        """Tell whether Redis lost what it had acknowledged."""
        return self in {Finding.REWOUND, Finding.OLD_EPOCH, Finding.RESUME}


def compare_positions(committed: Position, state: PartitionState) -> Finding:
    """Compare what is committed with where Redis stands; read the first before the second."""
    if not state.epoch:
        return Finding.EMPTY
    if not state.is_open and state.fence.startswith(REWIND_FENCE):
        return Finding.RESUME
    if state.epoch < committed.epoch:
        # Closed, it is a reseed between its two last steps.
        return Finding.OLD_EPOCH if state.is_open else Finding.WAIT
    if state.seq < committed.seq and state.is_open:
        return Finding.REWOUND
    return Finding.FINE


async def reseed_partition(
    settings: Settings, store: Store, partition: Partition, writer: Writer
) -> Reseeded:
    """Rebuild a drained partition from PostgreSQL under a new epoch; keep the lease meanwhile.

    Raises what scoreboard.recovery.reseed.reseed does; the partition then stays fenced.
    """
    connection = await connect(settings, name="flusher-reseed", **SESSION)  # pyright: ignore[reportArgumentType]
    try:
        board = await select_board(connection, partition.board)
        done: Reseeded | ScoreboardError
        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(_keep_alive(writer))
            try:
                done = await reseed(
                    store, connection, board, [partition.number], actor=REWIND_FENCE
                )
            except ScoreboardError as error:
                done = error  # raised below: a task group would wrap it
            keeper.cancel()
    finally:
        await connection.close()
    if isinstance(done, ScoreboardError):
        raise done
    return done


async def _keep_alive(writer: Writer) -> None:
    while True:
        await asyncio.sleep(KEEP_ALIVE_S)
        try:
            await writer.ping()
        except DatabaseUnavailable:
            return  # the reseed has a connection of its own, and its own lock
