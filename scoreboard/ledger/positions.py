"""How far each partition's stream is committed, and the lock of operators.

Callers bring a connection and own its transaction. A query's file name is its constant here; a
test compares the two sets.
"""

import zlib
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.model import Partition
from scoreboard.runtime import resources

_SELECT_POSITION: Final = resources.query("select_position")
_SELECT_PARTITIONS: Final = resources.query("select_partitions")
_BEGIN_EPOCH: Final = resources.query("begin_epoch")
_CLOSE_CORRECTIONS: Final = resources.query("close_corrections")
_LOCK_OPERATOR: Final = resources.query("lock_operator")
OPERATOR_LOCK: Final = 0x5B0A
"""Class of the advisory locks that let one operator at a time mend a partition."""


class Position(Struct, frozen=True):
    """How far a partition's stream is committed; all zero before the first event."""

    epoch: int = 0
    seq: int = 0
    stream_id: str = "0-0"


async def select_position(connection: Connection, partition: Partition) -> Position:
    """Read how far a partition's stream is committed.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        parameters = {"board": partition.board, "part": partition.number}
        row = await (await connection.execute(_SELECT_POSITION, parameters)).fetchone()
    return Position(*row) if row else Position()


async def select_partitions(connection: Connection, board: str) -> list[int]:
    """List the partitions of a board that were ever opened, whatever its layout is now.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_PARTITIONS, {"board": board})).fetchall()
    return [int(row[0]) for row in rows]


async def begin_epoch(connection: Connection, partition: Partition, position: Position) -> bool:
    """Begin a new epoch of a partition; tell whether it was newer than the one on record.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        done = await connection.execute(
            _BEGIN_EPOCH,
            {
                "board": partition.board,
                "part": partition.number,
                **msgspec.structs.asdict(position),
            },
        )
    return done.rowcount == 1


async def close_corrections(connection: Connection, board: str, parts: Sequence[int]) -> None:
    """Close what was still to be corrected in partitions that are rebuilt from PostgreSQL.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        await connection.execute(_CLOSE_CORRECTIONS, {"board": board, "parts": list(parts)})


async def lock_operator(connection: Connection, partition: Partition) -> bool:
    """Take the operators' lock on a partition until the connection ends; tell whether it was free.

    Raises DatabaseUnavailable.
    """
    # Advisory locks take two signed 32-bit numbers.
    key = zlib.crc32(str(partition).encode()) - 2**31
    async with translate_errors():
        parameters = {"class": OPERATOR_LOCK, "key": key}
        row = await (await connection.execute(_LOCK_OPERATOR, parameters)).fetchone()
    return bool(row and row[0])
