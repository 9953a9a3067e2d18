"""Boards in PostgreSQL.

The caller owns the connection and its transaction. Each constant has the name of its query file; a
test compares the two sets.
"""

from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from scoreboard.errors import OperatorMistake, UnknownBoard
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.model import Board, Layout, Limits, Rules
from scoreboard.runtime import resources

_INSERT_BOARD: Final = resources.query("insert_board")
_SELECT_BOARD: Final = resources.query("select_board")
_SELECT_BOARDS: Final = resources.query("select_boards")
_SELECT_AFTER: Final = resources.query("select_boards_after")
_LOCK_VERIFICATION: Final = resources.query("lock_verification")
_SELECT_EXISTING: Final = resources.query("select_existing_boards")
_PUBLISH_BOARD: Final = resources.query("publish_board")
_SET_BOARD_STATE: Final = resources.query("set_board_state")
_SET_BOARD_LIMITS: Final = resources.query("set_board_limits")
_SET_BOARD_PARTITIONS: Final = resources.query("set_board_partitions")
_SELECT_DELETED_BOARD: Final = resources.query("select_deleted_board")
_LOCK_BOARDS: Final = resources.query("lock_boards")
BOARDS_LOCK: Final = 0x5B0D
"""Class of the advisory lock that serialises copies of the list of boards."""


VERIFICATION_LOCK: Final = 0x5B0E
"""Class of the advisory lock of the process that verifies idle boards."""


def _board(row: tuple[Any, ...]) -> Board:
    name, partitions, seen_seconds, seen_shards, is_public, *rest = row
    *rules, state, per_action, per_window, window_s = rest
    layout = Layout(partitions, seen_seconds, seen_shards, Rules(*rules))
    limits = Limits(per_action or 0, per_window or 0, window_s or 0)
    return Board(name, layout, is_public, state, limits)


async def insert_board(connection: Connection, board: Board) -> bool:
    """Create a board; return whether it is new.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        layout = msgspec.structs.asdict(board.layout)
        rules = msgspec.structs.asdict(layout.pop("rules"))
        done = await connection.execute(
            _INSERT_BOARD,
            {
                "board": board.name,
                "is_public": board.is_public,
                **layout,
                **rules,
                **msgspec.structs.asdict(board.limits),
            },
        )
    return done.rowcount == 1


async def select_board(connection: Connection, name: str) -> Board:
    """Read one board.

    Raises UnknownBoard, DatabaseUnavailable.
    """
    async with translate_errors():
        row = await (await connection.execute(_SELECT_BOARD, {"board": name})).fetchone()
    if row is None:
        hint = f"create it with: scoreboard board create {name}"
        raise UnknownBoard(f"Board {name} does not exist", hint=hint)
    return _board(row)


async def select_boards(connection: Connection) -> list[Board]:
    """List all boards by name.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_BOARDS)).fetchall()
    return [_board(row) for row in rows]


async def select_boards_after(connection: Connection, *, after: str, limit: int) -> list[Board]:
    """List up to ``limit`` boards with names above ``after``, in order.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        parameters = {"after": after, "limit": limit}
        cursor = await connection.execute(_SELECT_AFTER, parameters)
        return [_board(row) for row in await cursor.fetchall()]


async def lock_verification(connection: Connection) -> bool:
    """Try to become the process that verifies idle boards; return whether this one is.

    The lock is held until the connection ends. Raises DatabaseUnavailable.
    """
    async with translate_errors():
        cursor = await connection.execute(_LOCK_VERIFICATION, {"class": VERIFICATION_LOCK})
        row = await cursor.fetchone()
    return bool(row and row[0])


async def select_existing_boards(connection: Connection, names: Iterable[str]) -> set[str]:
    """Return which of some names are those of boards.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        cursor = await connection.execute(_SELECT_EXISTING, {"names": list(names)})
        return {str(name) for (name,) in await cursor.fetchall()}


async def publish_board(connection: Connection, name: str, *, is_public: bool) -> None:
    """Set whether a board is public; the caller updates Redis, or the next reseed does.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        await connection.execute(_PUBLISH_BOARD, {"board": name, "is_public": is_public})


async def set_board_state(
    connection: Connection, name: str, state: Literal["open", "archived", "deleted"]
) -> None:
    """Set whether a board accepts actions. Of a deleted board, the row and the ledger stay.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        await connection.execute(_SET_BOARD_STATE, {"board": name, "state": state})


async def set_board_limits(connection: Connection, name: str, limits: Limits) -> None:
    """Set the limits of a board; the caller updates Redis, or the next reseed does.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        parameters = {"board": name, **msgspec.structs.asdict(limits)}
        await connection.execute(_SET_BOARD_LIMITS, parameters)


async def set_board_partitions(connection: Connection, name: str, partitions: int) -> None:
    """Set the number of partitions of a board; the caller opens them in Redis.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        parameters = {"board": name, "partitions": partitions}
        await connection.execute(_SET_BOARD_PARTITIONS, parameters)


async def select_deleted_board(connection: Connection, name: str) -> Board | None:
    """Read the properties that a deleted board had; None if it is not deleted.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        row = await (await connection.execute(_SELECT_DELETED_BOARD, {"board": name})).fetchone()
    return _board(row) if row else None


async def require_free_name(connection: Connection, name: str) -> None:
    """Check that no board of this name was deleted.

    Raises OperatorMistake, DatabaseUnavailable.
    """
    if await select_deleted_board(connection, name):
        raise OperatorMistake(
            f"Board {name} was deleted. Its ledger is kept, so its name cannot be used again: "
            "choose another name"
        )


async def lock_boards(connection: Connection) -> None:
    """Lock the list of boards against other copies until the transaction ends.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        await connection.execute(_LOCK_BOARDS, {"class": BOARDS_LOCK})
