"""What PostgreSQL knows, for good: one typed function per query of sql/queries/.

Callers bring a connection and own its transaction. A query's file name is its constant here; a
test compares the two sets.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

import msgspec
import psycopg
from msgspec import Struct
from psycopg.types.json import Jsonb

from scoreboard import resources
from scoreboard.errors import DatabaseUnavailable, UnknownBoard
from scoreboard.model import Board, Layout
from scoreboard.postgres import Connection

_INSERT_BOARD: Final = resources.query("insert_board")
_SELECT_BOARD: Final = resources.query("select_board")
_SELECT_BOARDS: Final = resources.query("select_boards")
_SELECT_TOP: Final = resources.query("select_top")
_INSERT_AUDIT: Final = resources.query("insert_audit")


class ScoreRow(Struct, frozen=True):
    """A user's row of ``scores``, with the id the api speaks."""

    user_id: str
    score: int
    actions: int
    reached_at: datetime


@asynccontextmanager
async def reaching() -> AsyncIterator[None]:
    """Turn a lost or refused connection into DatabaseUnavailable; other errors pass."""
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseUnavailable from error


def _board(row: tuple[Any, ...]) -> Board:
    name, partitions, seen_seconds, seen_shards, is_public = row
    return Board(name, Layout(partitions, seen_seconds, seen_shards), is_public)


async def insert_board(connection: Connection, board: Board) -> bool:
    """Make a board; tell whether it is new.

    Raises DatabaseUnavailable.
    """
    async with reaching():
        done = await connection.execute(
            _INSERT_BOARD,
            {
                "board": board.name,
                "is_public": board.is_public,
                **msgspec.structs.asdict(board.layout),
            },
        )
    return done.rowcount == 1


async def select_board(connection: Connection, name: str) -> Board:
    """Read one board.

    Raises UnknownBoard, DatabaseUnavailable.
    """
    async with reaching():
        row = await (await connection.execute(_SELECT_BOARD, {"board": name})).fetchone()
    if row is None:
        raise UnknownBoard(f"There is no board {name}: scoreboard board create {name}")
    return _board(row)


async def select_boards(connection: Connection) -> list[Board]:
    """List all boards by name.

    Raises DatabaseUnavailable.
    """
    async with reaching():
        rows = await (await connection.execute(_SELECT_BOARDS)).fetchall()
    return [_board(row) for row in rows]


async def select_top(connection: Connection, board: str, limit: int) -> list[ScoreRow]:
    """Read the best scores in ranking order.

    Raises DatabaseUnavailable.
    """
    async with reaching():
        parameters = {"board": board, "limit": limit}
        rows = await (await connection.execute(_SELECT_TOP, parameters)).fetchall()
    return [ScoreRow(*row) for row in rows]


async def insert_audit(
    connection: Connection, *, actor: str, action: str, board: str | None, detail: dict[str, Any]
) -> None:
    """Record an administrative change; run it in the transaction of the change.

    Raises DatabaseUnavailable.
    """
    async with reaching():
        await connection.execute(
            _INSERT_AUDIT,
            {"actor": actor, "action": action, "board": board, "detail": Jsonb(detail)},
        )
