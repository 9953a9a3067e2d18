"""Compares the positions of Redis and PostgreSQL, and recovers from a Redis that lost data.

Invariants: another component's fence is respected; recovery starts with a fence and a drain into
the ledger, so every surviving action is counted; it ends with a reseed, which raises the epoch; it
can be interrupted and restarted at any step.
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
from scoreboard.store.partitions import GAP_FENCE, REWIND_FENCE, PartitionState
from scoreboard.store.store import Store

KEEP_ALIVE_S: Final = 5.0


class Finding(Enum):
    """The result of comparing the two positions."""

    FINE = "fine"
    EMPTY = "empty"
    WAIT = "wait"
    REWOUND = "rewound"
    OLD_EPOCH = "old_epoch"
    RESUME = "resume"

    @property
    def is_rewind(self) -> bool:
        """Return whether Redis lost acknowledged actions."""
        return self in {Finding.REWOUND, Finding.OLD_EPOCH, Finding.RESUME}


def compare_positions(committed: Position, state: PartitionState) -> Finding:
    """Compare the committed position with the state of Redis, which was read after it."""
    if not state.epoch:
        return Finding.EMPTY
    if not state.is_open and state.fence.startswith(REWIND_FENCE):
        return Finding.RESUME
    if state.epoch < committed.epoch:
        # A closed partition is between the last two steps of a reseed.
        return Finding.OLD_EPOCH if state.is_open else Finding.WAIT
    if state.seq < committed.seq and state.is_open:
        return Finding.REWOUND
    return Finding.FINE


def is_own_fence(state: PartitionState) -> bool:
    """Return whether a flusher fenced the partition, because Redis lost data."""
    return state.fence == GAP_FENCE or state.fence.startswith(REWIND_FENCE)


async def reseed_partition(
    settings: Settings, store: Store, partition: Partition, writer: Writer
) -> Reseeded:
    """Reseed a drained partition under a new epoch while keeping the lease.

    Raises the errors of scoreboard.recovery.reseed.reseed; the partition then stays fenced.
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
                done = error  # raised below: the task group would wrap it
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
            return  # the reseed has its own connection and lock
