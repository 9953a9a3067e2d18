"""What PostgreSQL knows, for good: one typed function per query of sql/queries/.

Callers bring a connection and own its transaction. A query's file name is its constant here; a
test compares the two sets.
"""

import zlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
import psycopg
from msgspec import Struct
from psycopg import IsolationLevel
from psycopg.types.json import Jsonb

from scoreboard import resources
from scoreboard.errors import DatabaseUnavailable, UnknownBoard, UnknownUser
from scoreboard.model import Board, Layout, Partition, user_uuid
from scoreboard.postgres import Connection, describe

_INSERT_BOARD: Final = resources.query("insert_board")
_SELECT_BOARD: Final = resources.query("select_board")
_SELECT_BOARDS: Final = resources.query("select_boards")
_SELECT_TOP: Final = resources.query("select_top")
_INSERT_AUDIT: Final = resources.query("insert_audit")
_SELECT_NAMES: Final = resources.query("select_names")

_SELECT_RANKING: Final = resources.query("select_ranking")
_SELECT_TOTALS: Final = resources.query("select_totals")
_SELECT_MEMORIES: Final = resources.query("select_memories")
_COUNT_MEMORIES: Final = resources.query("count_memories")
_SELECT_POSITION: Final = resources.query("select_position")
_SELECT_PARTITIONS: Final = resources.query("select_partitions")
_MOVE_POSITION: Final = resources.query("move_position")
_CLOSE_CORRECTIONS: Final = resources.query("close_corrections")
_LOCK_OPERATOR: Final = resources.query("lock_operator")
_PUBLISH_BOARD: Final = resources.query("publish_board")
_SELECT_POINTS: Final = resources.query("select_points")

_SELECT_ACTIONS: Final = resources.query("select_actions")
_UPSERT_ACTION: Final = resources.query("upsert_action")
_INSERT_ACTION: Final = resources.query("insert_action")
_DISABLE_ACTION: Final = resources.query("disable_action")
_LOCK_CATALOGUE: Final = resources.query("lock_catalogue")
_SELECT_USER: Final = resources.query("select_user")
_ADOPT_USER: Final = resources.query("adopt_user")
_UPDATE_USER: Final = resources.query("update_user")
_CREATE_USER_IMPORT: Final = resources.query("create_user_import")
_COPY_USER_IMPORT: Final = resources.query("copy_user_import")
_ADOPT_USER_IMPORT: Final = resources.query("adopt_user_import")
_RESOLVE_USER_IMPORT: Final = resources.query("resolve_user_import")
_MERGE_USER_IMPORT: Final = resources.query("merge_user_import")

CATALOGUE_LOCK: Final = 0x5B0C
"""Class of the advisory lock that orders copies of the catalogue."""

OPERATOR_LOCK: Final = 0x5B0A
"""Class of the advisory locks that let one operator at a time mend a partition."""


class ScoreRow(Struct, frozen=True):
    """A user's row of ``scores``, with the id the api speaks."""

    user_id: str
    score: int
    actions: int
    reached_at: datetime


class Memory(Struct, frozen=True):
    """A counted action, as the seen window remembers it."""

    user_id: str
    action_id: str
    delta: int
    score_after: int
    seq: int
    occurred_at_ms: int


class Position(Struct, frozen=True):
    """How far a partition's stream is committed; all zero before the first event."""

    epoch: int = 0
    seq: int = 0
    stream_id: str = "0-0"


class Kind(Struct, frozen=True):
    """A kind of action in the catalogue."""

    kind: str
    points: int
    enabled: bool
    updated_at: datetime


class User(Struct, frozen=True, kw_only=True):
    """Who a user is, and what PostgreSQL has of it on a board (None: nothing)."""

    id: UUID
    name: str | None
    email: str | None
    created_at: datetime
    score: int | None
    actions: int | None
    reached_at: datetime | None


class Profile(Struct, frozen=True):
    """What an operator says of a user; None leaves a field as it is."""

    user_id: str
    name: str | None = None
    email: str | None = None


@asynccontextmanager
async def reaching() -> AsyncIterator[None]:
    """Turn a lost or refused connection into DatabaseUnavailable; other errors pass."""
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseUnavailable(describe(error)) from error


@asynccontextmanager
async def snapshot(connection: Connection) -> AsyncIterator[None]:
    """Let everything read inside be of one moment, without holding anybody up.

    ``connection`` is in autocommit. Raises DatabaseUnavailable.
    """
    await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    try:
        async with reaching(), connection.transaction():
            yield
    finally:
        if not connection.closed:
            await connection.set_isolation_level(None)


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


async def select_names(connection: Connection, user_ids: Sequence[str]) -> dict[str, str]:
    """Read the names of those users who have one.

    Raises DatabaseUnavailable.
    """
    async with reaching():
        parameters = {"user_ids": list(user_ids)}
        rows = await (await connection.execute(_SELECT_NAMES, parameters)).fetchall()
    return dict(rows)


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


# What a reseed reads and writes. The readers of pages need a transaction around them: a server-side
# cursor keeps one snapshot and never more than a page in memory.


async def select_ranking(
    connection: Connection, board: str, *, page: int
) -> AsyncIterator[list[tuple[str, int]]]:
    """Read (user, score) of a whole board in ranking order, ``page`` rows at a time.

    Raises DatabaseUnavailable.
    """
    async for rows in _pages(connection, _SELECT_RANKING, {"board": board}, page):
        yield rows


async def select_totals(connection: Connection, board: str) -> tuple[int, int]:
    """Count the users of a board and sum their scores.

    Raises DatabaseUnavailable.
    """
    async with reaching():
        row = await (await connection.execute(_SELECT_TOTALS, {"board": board})).fetchone()
    return (int(row[0]), int(row[1])) if row else (0, 0)


async def select_memories(
    connection: Connection, board: str, *, since_s: float, page: int
) -> AsyncIterator[list[Memory]]:
    """Read the actions of a board since a moment (seconds since 1970), a page at a time.

    Raises DatabaseUnavailable.
    """
    parameters = {"board": board, "since_s": since_s}
    async for rows in _pages(connection, _SELECT_MEMORIES, parameters, page):
        yield [Memory(*row) for row in rows]


async def count_memories(connection: Connection, board: str, *, since_s: float) -> int:
    """Count the actions of a board since a moment (seconds since 1970).

    Raises DatabaseUnavailable.
    """
    async with reaching():
        parameters = {"board": board, "since_s": since_s}
        row = await (await connection.execute(_COUNT_MEMORIES, parameters)).fetchone()
    return int(row[0]) if row else 0


async def select_position(connection: Connection, partition: Partition) -> Position:
    """Read how far a partition's stream is committed.

    Raises DatabaseUnavailable.
    """
    async with reaching():
        parameters = {"board": partition.board, "part": partition.number}
        row = await (await connection.execute(_SELECT_POSITION, parameters)).fetchone()
    return Position(*row) if row else Position()


async def select_partitions(connection: Connection, board: str) -> list[int]:
    """List the partitions of a board that were ever opened, whatever its layout is now.

    Raises DatabaseUnavailable.
    """
    async with reaching():
        rows = await (await connection.execute(_SELECT_PARTITIONS, {"board": board})).fetchall()
    return [int(row[0]) for row in rows]


async def move_position(connection: Connection, partition: Partition, position: Position) -> bool:
    """Begin a new epoch of a partition; tell whether it was newer than the one on record.

    Raises DatabaseUnavailable.
    """
    async with reaching():
        done = await connection.execute(
            _MOVE_POSITION,
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
    async with reaching():
        await connection.execute(_CLOSE_CORRECTIONS, {"board": board, "parts": list(parts)})


async def lock_operator(connection: Connection, partition: Partition) -> bool:
    """Take the operators' lock on a partition until the connection ends; tell whether it was free.

    Raises DatabaseUnavailable.
    """
    # Advisory locks take two signed 32-bit numbers.
    key = zlib.crc32(str(partition).encode()) - 2**31
    async with reaching():
        parameters = {"class": OPERATOR_LOCK, "key": key}
        row = await (await connection.execute(_LOCK_OPERATOR, parameters)).fetchone()
    return bool(row and row[0])


async def publish_board(connection: Connection, name: str, *, is_public: bool) -> None:
    """Say whether everybody may read a board; Redis learns it at the next reseed.

    Raises DatabaseUnavailable.
    """
    async with reaching():
        await connection.execute(_PUBLISH_BOARD, {"board": name, "is_public": is_public})


async def select_points(connection: Connection) -> dict[str, int]:
    """Read the catalogue as Redis mirrors it: points per kind, 0 where the kind is disabled.

    Raises DatabaseUnavailable.
    """
    async with reaching():
        rows = await (await connection.execute(_SELECT_POINTS)).fetchall()
    return {str(kind): int(points) for kind, points in rows}


async def _pages(
    connection: Connection, query: bytes, parameters: dict[str, Any], page: int
) -> AsyncIterator[list[Any]]:
    async with reaching(), connection.cursor(name="pages") as cursor:
        await cursor.execute(query, parameters)
        while rows := await cursor.fetchmany(page):
            yield rows


# The catalogue and the users, as operators keep them.


async def select_actions(connection: Connection) -> list[Kind]:
    """List the catalogue with what is disabled.

    Raises DatabaseUnavailable.
    """
    async with reaching():
        rows = await (await connection.execute(_SELECT_ACTIONS)).fetchall()
    return [Kind(*row) for row in rows]


async def upsert_action(connection: Connection, kind: str, points: int) -> None:
    """Set what a kind of action is worth; a disabled kind counts again.

    Raises DatabaseUnavailable.
    """
    async with reaching():
        await connection.execute(_UPSERT_ACTION, {"kind": kind, "points": points})


async def insert_action(connection: Connection, kind: str, points: int) -> bool:
    """Set what a kind of action is worth unless the catalogue has it; tell whether it is new.

    Raises DatabaseUnavailable.
    """
    async with reaching():
        done = await connection.execute(_INSERT_ACTION, {"kind": kind, "points": points})
    return done.rowcount == 1


async def disable_action(connection: Connection, kind: str) -> bool:
    """Let a kind of action earn nothing any more; tell whether there is such a kind.

    Raises DatabaseUnavailable.
    """
    async with reaching():
        done = await connection.execute(_DISABLE_ACTION, {"kind": kind})
    return done.rowcount == 1


async def lock_catalogue(connection: Connection) -> None:
    """Wait until nobody else copies the catalogue; held until the transaction ends.

    Raises DatabaseUnavailable.
    """
    async with reaching():
        await connection.execute(_LOCK_CATALOGUE, {"class": CATALOGUE_LOCK})


async def select_user(connection: Connection, user_id: str, *, board: str) -> User:
    """Read who a user is, and what PostgreSQL has of it on a board.

    Raises UnknownUser, DatabaseUnavailable.
    """
    async with reaching():
        parameters = {"user_id": user_id, "board": board}
        row = await (await connection.execute(_SELECT_USER, parameters)).fetchone()
    if row is None:
        raise UnknownUser(f"PostgreSQL knows no user {user_id}")
    names = User.__struct_fields__
    return User(**dict(zip(names, row, strict=True)))


async def adopt_user(connection: Connection, user_id: str) -> None:
    """Make a user's row where there is none; run it in a transaction.

    Raises DatabaseUnavailable.
    """
    async with reaching():
        await connection.execute(
            _ADOPT_USER, {"user_id": user_id, "preferred_id": user_uuid(user_id)}
        )


async def upsert_user(connection: Connection, profile: Profile) -> None:
    """Say who a user is; what is None stays as it is. Run it in a transaction.

    Raises DatabaseUnavailable.
    """
    await adopt_user(connection, profile.user_id)
    async with reaching():
        await connection.execute(_UPDATE_USER, msgspec.structs.asdict(profile))


async def import_users(connection: Connection, profiles: Iterable[Profile]) -> int:
    """Say who many users are, all or none: run it in a transaction. Give how many.

    Raises DatabaseUnavailable.
    """
    async with reaching():
        await connection.execute(_CREATE_USER_IMPORT)
        async with connection.cursor() as cursor:
            async with cursor.copy(_COPY_USER_IMPORT) as copy:
                for one in profiles:
                    await copy.write_row((user_uuid(one.user_id), one.user_id, one.name, one.email))
            await cursor.execute(_ADOPT_USER_IMPORT)
            await cursor.execute(_RESOLVE_USER_IMPORT)
            await cursor.execute(_MERGE_USER_IMPORT)
            return cursor.rowcount
