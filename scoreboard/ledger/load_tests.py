"""Boards for load tests: how they are recognised, and how their rows are deleted.

The ledger is append only. Only `scoreboard bench` deletes rows of it, and only those of a board
whose name begins with ``PREFIX`` and whose last creation in the audit log is ``CREATED``: a board
that was created when the prefix had no meaning is never touched. It needs the owner's login,
because no login of a service may delete from the ledger. Each constant has the name of its query
file.
"""

from collections.abc import Sequence
from typing import Final

from scoreboard.errors import OperatorMistake
from scoreboard.ledger.audit import audited
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.runtime import resources

PREFIX: Final = "bench-"
"""The names of boards for load tests begin with it, and the ids of their users with the name."""

CREATED: Final = "bench create"
"""Action of the audit log that marks a board for load tests, written with the row of the board."""

LOAD_TEST_LOCK: Final = 0x5B0B
"""Class of the advisory locks that make one load test per board run at a time."""

PAGE: Final = 5000
"""Rows of one transaction: the flusher waits for it for some milliseconds."""

_LOCK_LOAD_TEST: Final = resources.query("lock_load_test")
_SELECT_LOAD_TEST_BOARDS: Final = resources.query("select_load_test_boards")
_COUNT_BOARD_ROWS: Final = resources.query("count_board_rows")
_CAN_DELETE_EVENTS: Final = resources.query("can_delete_events")
_RELEASE_EVENTS: Final = resources.query("release_events")
_KEEP_EVENTS: Final = resources.query("keep_events")
_DELETE_BOARD_EVENTS: Final = resources.query("delete_board_events")
_DELETE_BOARD_SCORES: Final = resources.query("delete_board_scores")
_DELETE_BOARD_REJECTS: Final = resources.query("delete_board_rejects")
_DELETE_BOARD_DEAD_LETTERS: Final = resources.query("delete_board_dead_letters")
_DELETE_BOARD_POSITIONS: Final = resources.query("delete_board_positions")
_DELETE_BOARD: Final = resources.query("delete_board")
_SELECT_PARAMETERS: Final = resources.query("select_parameters")


def is_load_test_name(name: str) -> bool:
    """Return whether a board could be one for load tests."""
    return name.startswith(PREFIX) and len(name) > len(PREFIX)


def refuse_load_test_name(name: str) -> None:
    """Refuse a name of boards for load tests for a board of players.

    Raises OperatorMistake.
    """
    if is_load_test_name(name):
        raise OperatorMistake(
            f"Boards whose names begin with {PREFIX} are for `scoreboard bench`, which deletes "
            f"their data; give {name} another name"
        )


async def lock_load_test(connection: Connection, board: str) -> bool:
    """Try to take the lock on a board until the connection ends; return whether it was free.

    Raises DatabaseUnavailable.
    """
    parameters = {"class": LOAD_TEST_LOCK, "board": board}
    async with translate_errors():
        row = await (await connection.execute(_LOCK_LOAD_TEST, parameters)).fetchone()
    return bool(row and row[0])


async def require_owner(connection: Connection) -> None:
    """Check that this login may delete rows of the ledger.

    Raises OperatorMistake, DatabaseUnavailable.
    """
    async with translate_errors():
        row = await (await connection.execute(_CAN_DELETE_EVENTS)).fetchone()
    if not row or not row[0]:
        raise OperatorMistake(
            "A load test deletes its rows from the ledger afterwards, which needs the login that "
            "owns the tables: set DATABASE_URL to that of `scoreboard db migrate`"
        )


async def select_load_test_boards(connection: Connection) -> list[str]:
    """List the boards for load tests.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        parameters = {"prefix": PREFIX, "created": CREATED}
        cursor = await connection.execute(_SELECT_LOAD_TEST_BOARDS, parameters)
        return [str(row[0]) for row in await cursor.fetchall()]


async def has_rows(connection: Connection, board: str) -> bool:
    """Return whether any table has data of a board.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        row = await (await connection.execute(_COUNT_BOARD_ROWS, {"board": board})).fetchone()
    return any(row or ())


async def delete_rows(connection: Connection, board: str) -> int:
    """Delete everything that load tests stored on a board; return the number of its actions.

    The board, its positions and its mark stay. Repeat it if it was interrupted. No service may be
    writing to the board.

    Raises OperatorMistake if the board is not one for load tests, DatabaseUnavailable.
    """
    if board not in await select_load_test_boards(connection):
        raise OperatorMistake(f"Board {board} is not one for load tests")
    named = {"board": board, "limit": PAGE, "prefix": f"{board}."}
    actions = 0
    async with translate_errors():
        while True:
            # The trigger is disabled within one transaction, whose lock excludes all others.
            async with connection.transaction():
                await connection.execute(_RELEASE_EVENTS)
                deleted = (await connection.execute(_DELETE_BOARD_EVENTS, named)).rowcount
                await connection.execute(_KEEP_EVENTS)
            actions += deleted
            if not deleted:
                break
        while True:
            row = await (await connection.execute(_DELETE_BOARD_SCORES, named)).fetchone()
            if not row or not row[0]:
                break
        await connection.execute(_DELETE_BOARD_REJECTS, named)
        await connection.execute(_DELETE_BOARD_DEAD_LETTERS, named)
    return actions


async def delete_board(connection: Connection, board: str, *, actor: str) -> None:
    """Delete a board for load tests whose rows are deleted, with its positions; audit it.

    Raises DatabaseUnavailable.
    """
    async with audited(connection) as trail:
        await connection.execute(_DELETE_BOARD_POSITIONS, {"board": board})
        await connection.execute(_DELETE_BOARD, {"board": board})
        await trail.insert(actor=actor, action="bench remove", board=board, detail={})


async def read_parameters(connection: Connection, names: Sequence[str]) -> dict[str, str]:
    """Return the values of parameters of the server.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        cursor = await connection.execute(_SELECT_PARAMETERS, {"names": list(names)})
        return {str(name): str(value) for name, value in await cursor.fetchall()}
