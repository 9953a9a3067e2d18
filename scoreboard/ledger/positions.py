"""The committed position of each partition's stream, and the operators' lock.

The caller owns the connection and its transaction. Each constant has the name of its query file; a
test compares the two sets.
"""

import asyncio
import time
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from scoreboard.errors import OperatorMistake
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.model import Partition
from scoreboard.runtime import resources

_SELECT_POSITION: Final = resources.query("select_position")
_LOCK_POSITION_SHARED: Final = resources.query("lock_position_shared")
_SELECT_PARTITIONS: Final = resources.query("select_partitions")
_SELECT_BOARD_POSITIONS: Final = resources.query("select_board_positions")
_SELECT_TO_CORRECT: Final = resources.query("select_partitions_to_correct")
_BEGIN_EPOCH: Final = resources.query("begin_epoch")
_CLOSE_CORRECTIONS: Final = resources.query("close_corrections")
_LOCK_OPERATOR: Final = resources.query("lock_operator")
OPERATOR_LOCK: Final = 0x5B0A
"""Class of the advisory locks that admit one operator at a time to a partition."""

LOCK_S: Final = 3.0
"""Longest wait for another operator. Most acts take milliseconds, and PostgreSQL releases the lock
of an operator that has ended a moment after its connection was closed."""

LOCK_POLL_S: Final = 0.05


class Position(Struct, frozen=True):
    """How far a partition's stream is committed; all zero before the first event."""

    epoch: int = 0
    seq: int = 0
    stream_id: str = "0-0"
    season: str = ""
    """The season there, as id:start:end; empty for a board without seasons."""


def where(partition: Partition) -> dict[str, Any]:
    """Return the parameters by which queries name a partition."""
    return {"board": partition.board, "part": partition.number}


async def find_position(connection: Connection, partition: Partition) -> Position | None:
    """Read the committed position of a partition; None if it has none yet.

    Raises DatabaseUnavailable.
    """
    return await _position(connection, _SELECT_POSITION, partition)


async def select_position(connection: Connection, partition: Partition) -> Position:
    """Read the committed position of a partition; all zero if it has none yet.

    Raises DatabaseUnavailable.
    """
    return await find_position(connection, partition) or Position()


async def lock_position_shared(connection: Connection, partition: Partition) -> Position | None:
    """Read the committed position and block commits until the transaction ends.

    Returns None if the partition has no position yet. Raises DatabaseUnavailable.
    """
    return await _position(connection, _LOCK_POSITION_SHARED, partition)


def no_position(partition: Partition) -> OperatorMistake:
    """Return the error of a partition that has no position yet."""
    hint = f"run scoreboard reseed --board {partition.board}"
    return OperatorMistake(f"PostgreSQL has no position of {partition}", hint=hint)


async def _position(connection: Connection, query: bytes, partition: Partition) -> Position | None:
    async with translate_errors():
        row = await (await connection.execute(query, where(partition))).fetchone()
    return Position(*row) if row else None


class BoardPartitions(Struct, frozen=True, array_like=True):
    """The partitions of a board."""

    board: str
    count: int
    """How many its layout has."""
    left_over: list[int]
    """Further ones that were opened with an earlier layout."""


async def select_partitions(connection: Connection, boards: Sequence[str]) -> list[BoardPartitions]:
    """List the partitions of boards; those that do not exist are omitted.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        parameters = {"boards": list(boards)}
        rows = await (await connection.execute(_SELECT_PARTITIONS, parameters)).fetchall()
    return [BoardPartitions(*row) for row in rows]


async def select_board_positions(
    connection: Connection, *, after: str, limit: int
) -> dict[str, dict[Partition, Position | None]]:
    """Read the committed positions of up to ``limit`` boards with names above ``after``, by board.

    The position of a partition that was never flushed is None. A stream id is not read.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        parameters = {"after": after, "limit": limit}
        cursor = await connection.execute(_SELECT_BOARD_POSITIONS, parameters)
        rows = await cursor.fetchall()
    found: dict[str, dict[Partition, Position | None]] = {}
    for board, count, parts, epochs, seqs in rows:
        positions = found[board] = dict.fromkeys(
            (Partition(board, number) for number in range(count)), None
        )
        for part, epoch, seq in zip(parts, epochs, seqs, strict=True):
            positions[Partition(board, part)] = Position(epoch, seq)
    return found


async def select_partitions_to_correct(connection: Connection, *, limit: int) -> list[Partition]:
    """List partitions that have open corrections, at most ``limit``.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_TO_CORRECT, {"limit": limit})).fetchall()
    return [Partition(*row) for row in rows]


async def begin_epoch(connection: Connection, partition: Partition, position: Position) -> bool:
    """Begin a new epoch of a partition; return whether it is newer than the recorded one.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        done = await connection.execute(
            _BEGIN_EPOCH, {**where(partition), **msgspec.structs.asdict(position)}
        )
    return done.rowcount == 1


async def close_corrections(connection: Connection, board: str, parts: Sequence[int]) -> None:
    """Close the open corrections of partitions that are rebuilt from PostgreSQL.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        await connection.execute(_CLOSE_CORRECTIONS, {"board": board, "parts": list(parts)})


async def lock_operator(connection: Connection, partition: Partition) -> bool:
    """Try to take the operators' lock on a partition; return whether it was free.

    The lock is held until the connection ends. Raises DatabaseUnavailable.
    """
    # Advisory locks take two signed 32-bit numbers.
    key = zlib.crc32(str(partition).encode()) - 2**31
    async with translate_errors():
        parameters = {"class": OPERATOR_LOCK, "key": key}
        row = await (await connection.execute(_LOCK_OPERATOR, parameters)).fetchone()
    return bool(row and row[0])


async def lock_partitions(connection: Connection, partitions: Iterable[Partition]) -> None:
    """Take the operators' lock on partitions, until the connection ends.

    Waits up to LOCK_S in all. Raises OperatorMistake if another operator still holds one then,
    DatabaseUnavailable.
    """
    deadline_s = time.monotonic() + LOCK_S
    for partition in partitions:
        while not await lock_operator(connection, partition):
            if time.monotonic() > deadline_s:
                raise OperatorMistake(f"Another operator is working on {partition}")
            await asyncio.sleep(LOCK_POLL_S)
