"""A board's own partition of the ledger, and its detaching once the board is closed.

The rows of a detached board are kept in the schema ``detached``, their sums in score_sums. In their
place is a partition that refuses every row, so that an action that arrives late does not count
again. All of this needs the login that owns the tables. ``connection`` is in autocommit. Each
constant has the name of its query file; a test compares the two sets.
"""

from datetime import datetime
from typing import Any, Final

import psycopg
from msgspec import Struct
from psycopg import sql

from scoreboard.errors import OperatorMistake
from scoreboard.ledger.audit import AuditTrail, audited
from scoreboard.ledger.checks import check_sums
from scoreboard.ledger.load_tests import refuse_load_test_name
from scoreboard.ledger.pool import Connection, describe, translate_errors
from scoreboard.ledger.positions import lock_partitions
from scoreboard.model import Partition
from scoreboard.runtime import resources

_IS_LEDGER_DETACHED: Final = resources.query("is_ledger_detached")
_IS_SEPARATION_BEGUN: Final = resources.query("is_separation_begun")
_SELECT_PARTITIONS: Final = resources.query("select_ledger_partitions")
_HAS_BOARD: Final = resources.query("has_board")
_CAN_DELETE_EVENTS: Final = resources.query("can_delete_events")
_INSERT_PARTITION: Final = resources.query("insert_ledger_partition")
_SET_LEDGER_DETACHED: Final = resources.query("set_ledger_detached")
_REQUIRE_SCHEMA: Final = resources.query("require_detachable_schema")
_INSERT_SUMS: Final = resources.query("insert_score_sums")
_SELECT_SEASONS: Final = resources.query("select_counted_seasons")
_COUNT_DIFFERING: Final = resources.query("count_differing_sums")
_DELETE_SUMS: Final = resources.query("delete_score_sums")
_COUNT_OPEN_WORK: Final = resources.query("count_open_work")

DETACHED: Final = "ledger_is_detached"
"""The constraint that refuses the actions of a detached board."""

_LOCK_TIMEOUT: Final = sql.SQL("SET LOCAL lock_timeout = '2s'")
"""The writers of other boards wait as long as a statement here waits for a lock."""

_LOCK_BOARDS: Final = sql.SQL("LOCK TABLE boards IN SHARE MODE")
"""Waits for the boards that are being created, and holds up others."""

_EXISTS: Final = "Board {} exists already; a partition of its own is made before the board"

_HOLD_LEDGER: Final = sql.SQL("LOCK TABLE score_events IN ACCESS SHARE MODE")

# A new partition changes the constraint of the default one, whose rows PostgreSQL reads under an
# exclusive lock, unless a valid CHECK shows that none belongs to the new one.
_REFUSE_IN_OTHERS: Final = sql.SQL(
    "ALTER TABLE score_events_others ADD CONSTRAINT {check} "
    "CHECK (board IS NOT NULL AND board <> {board}) NOT VALID"
)
_VALIDATE: Final = sql.SQL("ALTER TABLE score_events_others VALIDATE CONSTRAINT {check}")
_ALLOW_IN_OTHERS: Final = sql.SQL("ALTER TABLE score_events_others DROP CONSTRAINT {check}")

# The second level has one partition, which can be detached without a lock on the other boards. It
# is attached, too: CREATE TABLE … PARTITION OF would lock the whole ledger exclusively.
_SEPARATE: Final = sql.SQL(
    "CREATE TABLE {own} (LIKE score_events INCLUDING DEFAULTS INCLUDING CONSTRAINTS) "
    "PARTITION BY HASH (user_id);"
    "CREATE TABLE {rows} PARTITION OF {own} FOR VALUES WITH (MODULUS 1, REMAINDER 0);"
    "CREATE TRIGGER score_events_no_truncate BEFORE TRUNCATE ON {own} "
    "FOR EACH STATEMENT EXECUTE FUNCTION score_events_is_append_only();"
    "CREATE TRIGGER score_events_no_truncate BEFORE TRUNCATE ON {rows} "
    "FOR EACH STATEMENT EXECUTE FUNCTION score_events_is_append_only();"
    "ALTER TABLE score_events ATTACH PARTITION {own} FOR VALUES IN ({board})"
)

_LOCK_ROWS: Final = sql.SQL("LOCK TABLE {rows} IN SHARE ROW EXCLUSIVE MODE")
# DETACH removes the trigger that came with the ledger.
_DETACH: Final = sql.SQL(
    "ALTER TABLE {own} DETACH PARTITION {rows};"
    "ALTER TABLE {rows} SET SCHEMA detached;"
    "CREATE TRIGGER score_events_no_change BEFORE UPDATE OR DELETE ON {detached} "
    "FOR EACH ROW EXECUTE FUNCTION score_events_is_append_only();"
    "CREATE TABLE {none} PARTITION OF {own} (CONSTRAINT {refuse} CHECK (false)) "
    "FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
)
_ATTACH: Final = sql.SQL(
    "DROP TABLE {none};"
    "DROP TRIGGER score_events_no_change ON {detached};"
    "ALTER TABLE {detached} SET SCHEMA public;"
    "ALTER TABLE {own} ATTACH PARTITION {rows} FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
)


class LedgerPartition(Struct, frozen=True, kw_only=True):
    """A board with a partition of its own.

    ``size`` is that of its rows and indexes in bytes, 0 if the detached table was dropped.
    ``kept_users`` and ``kept_actions`` are those of the kept sums of a detached one.
    """

    board: str
    separated_at: datetime
    detached_at: datetime | None
    size: int
    kept_users: int
    kept_actions: int


async def list_partitions(
    connection: Connection, board: str | None = None
) -> list[LedgerPartition]:
    """List the boards with a partition of their own, or one of them, by name.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        cursor = await connection.execute(_SELECT_PARTITIONS, {"board": board})
        rows = await cursor.fetchall()
    names = LedgerPartition.__struct_fields__
    return [LedgerPartition(**dict(zip(names, row, strict=True))) for row in rows]


async def is_detached(connection: Connection, board: str) -> bool:
    """Return whether the ledger of a board is detached.

    Raises DatabaseUnavailable.
    """
    return await _ask(connection, _IS_LEDGER_DETACHED, board)


async def require_ledger(connection: Connection, board: str) -> None:
    """Check that the ledger of a board is not detached.

    Raises OperatorMistake, DatabaseUnavailable.
    """
    if await is_detached(connection, board):
        raise OperatorMistake(
            f"The ledger of board {board} is detached: its actions are not online, and its scores "
            "are final",
            hint=f"scoreboard ledger attach {board} reverses that",
        )


async def hold_ledger(connection: Connection) -> None:
    """Keep every ledger attached or detached until the transaction ends.

    Call it first in a transaction with a snapshot: one that is older than a detaching has neither
    the rows nor the kept sums.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        await connection.execute(_HOLD_LEDGER)


async def require_complete_separation(connection: Connection, board: str) -> None:
    """Check that the ledger will take actions of a new board.

    Raises OperatorMistake, DatabaseUnavailable.
    """
    if await _ask(connection, _IS_SEPARATION_BEGUN, board):
        raise OperatorMistake(
            f"The partition of board {board} is not complete",
            hint=f"first run scoreboard ledger separate {board} again",
        )


async def separate(connection: Connection, board: str, *, actor: str) -> bool:
    """Give a board that does not exist yet a partition of its own; return whether it is new.

    Writers of other boards go on, except for some milliseconds. Repeat it if it was interrupted.

    Raises OperatorMistake (the board exists, was deleted or has rows, another operator works on it,
    or another login than the owner's), DatabaseUnavailable (a lock was not granted in time: repeat
    it).
    """
    await _require_owner(connection)
    refuse_load_test_name(board)
    await _lock(connection, board)
    if await list_partitions(connection, board):
        return False
    names = _names(board)
    async with translate_errors():
        # The check makes dead letters of the board's actions, so it must not exist.
        async with connection.transaction():
            await connection.execute(_LOCK_TIMEOUT)
            await connection.execute(_LOCK_BOARDS)
            exists = await _ask(connection, _HAS_BOARD, board)
            is_begun = await _ask(connection, _IS_SEPARATION_BEGUN, board)
            if exists and is_begun:  # a version that does not know separations has created it
                await connection.execute(_ALLOW_IN_OTHERS.format(**names))
            elif not exists and not is_begun:
                await connection.execute(_REFUSE_IN_OTHERS.format(**names))
        if exists:
            raise OperatorMistake(_EXISTS.format(board))
        # Now a board of this name cannot be created, see require_complete_separation.
        try:
            await connection.execute(_VALIDATE.format(**names))
        except psycopg.errors.CheckViolation:
            async with connection.transaction():
                await connection.execute(_LOCK_TIMEOUT)
                await connection.execute(_ALLOW_IN_OTHERS.format(**names))
            raise OperatorMistake(_EXISTS.format(board)) from None
        async with audited(connection) as trail:
            await connection.execute(_LOCK_TIMEOUT)
            await connection.execute(_SEPARATE.format(**names))
            await connection.execute(_ALLOW_IN_OTHERS.format(**names))
            await connection.execute(_INSERT_PARTITION, {"board": board})
            await trail.insert(actor=actor, action="ledger separate", board=board, detail={})
    return True


async def detach(connection: Connection, board: str, *, actor: str) -> LedgerPartition:
    """Detach the rows of a closed board, keep their sums; return what was kept.

    The caller has checked that the board is closed and that all its actions are committed.

    Raises OperatorMistake (no partition of its own, detached already, open dead letters or acts,
    scores that are not the sums of the ledger, or another operator works on the board),
    DatabaseUnavailable: nothing was changed.
    """
    await _lock(connection, board)
    await _require_partition(connection, board, is_detached=False)
    names = _names(board)
    async with audited(connection) as trail:
        await connection.execute(_LOCK_TIMEOUT)
        await connection.execute(_LOCK_ROWS.format(**names))
        await _require_no_open_work(connection, board)
        await _require_equal_scores(connection, board)
        await connection.execute(_INSERT_SUMS, {"board": board})
        # Last: from here on, a list of acts waits for the end of the transaction.
        await connection.execute(_DETACH.format(**names))
        await connection.execute(_SET_LEDGER_DETACHED, {"board": board, "is_detached": True})
        await connection.execute(_REQUIRE_SCHEMA)
        return await _record(connection, trail, board, actor=actor, action="ledger detach")


async def attach(connection: Connection, board: str, *, actor: str) -> LedgerPartition:
    """Attach the detached rows of a board again and remove their sums; return what was kept.

    Raises OperatorMistake (not detached, the rows were dropped or changed, a later version added
    columns to the ledger, or another operator works on the board), DatabaseUnavailable: nothing was
    changed.
    """
    await _lock(connection, board)
    found = await _require_partition(connection, board, is_detached=True)
    if not found.size:
        raise OperatorMistake(f"The detached rows of board {board} were dropped")
    named = {"board": board}
    async with audited(connection) as trail:
        await connection.execute(_LOCK_TIMEOUT)
        try:
            await connection.execute(_ATTACH.format(**_names(board)))
        except (psycopg.ProgrammingError, psycopg.IntegrityError) as error:
            raise OperatorMistake(
                f"The detached rows of board {board} do not fit the ledger: {describe(error)}"
            ) from error
        differing = await (await connection.execute(_COUNT_DIFFERING, named)).fetchone() or (0,)
        if differing[0]:
            raise OperatorMistake(
                f"The detached rows of board {board} have changed: {differing[0]} sums of users "
                "differ from the kept ones"
            )
        kept = await _record(connection, trail, board, actor=actor, action="ledger attach")
        await connection.execute(_DELETE_SUMS, named)
        await connection.execute(_SET_LEDGER_DETACHED, {**named, "is_detached": False})
    return kept


def _names(board: str) -> dict[str, sql.Composable]:
    # Names of boards have no colon, so no name here is that of another board or of an index.
    own = f"score_events_b_{board}"
    return {
        "board": sql.Literal(board),
        "check": sql.Identifier(f"not_{board}"),
        "own": sql.Identifier("public", f"{own}:board"),
        "rows": sql.Identifier("public", f"{own}:rows"),
        "detached": sql.Identifier("detached", f"{own}:rows"),
        "none": sql.Identifier("public", f"{own}:none"),
        "refuse": sql.Identifier(DETACHED),
    }


async def _lock(connection: Connection, board: str) -> None:
    """Exclude other operators who work on the board, until the connection ends.

    Raises OperatorMistake, DatabaseUnavailable.
    """
    await lock_partitions(connection, [Partition(board)])


async def _ask(connection: Connection, query: bytes, board: str) -> bool:
    async with translate_errors():
        row = await (await connection.execute(query, {"board": board})).fetchone()
    return bool(row and row[0])


async def _require_owner(connection: Connection) -> None:
    async with translate_errors():
        row = await (await connection.execute(_CAN_DELETE_EVENTS)).fetchone()
    if not row or not row[0]:
        raise OperatorMistake(
            "Only the owner of the tables can change the partitions of the ledger: set "
            "DATABASE_URL to the login of `scoreboard db migrate`"
        )


async def _require_partition(
    connection: Connection, board: str, *, is_detached: bool
) -> LedgerPartition:
    await _require_owner(connection)
    found = await list_partitions(connection, board)
    if not found:
        raise OperatorMistake(
            f"Board {board} has no partition of its own: that is made before the board, with "
            "scoreboard ledger separate"
        )
    if is_detached != (found[0].detached_at is not None):
        raise OperatorMistake(
            f"The ledger of board {board} is {'not ' if is_detached else ''}detached"
        )
    return found[0]


async def _require_no_open_work(connection: Connection, board: str) -> None:
    cursor = await connection.execute(_COUNT_OPEN_WORK, {"board": board})
    dead, late, acts = await cursor.fetchone() or (0, 0, 0)
    hints = {
        f"{dead} dead letters (scoreboard dead list)": dead,
        f"{late} late duplicates that the flusher has to correct": late,
        f"{acts} acts that are not applied (scoreboard act list)": acts,
    }
    if dead or late or acts:
        open_work = " and ".join(text for text, number in hints.items() if number)
        raise OperatorMistake(f"Board {board} has {open_work}; nothing was detached")


async def _require_equal_scores(connection: Connection, board: str) -> None:
    """Check that every score is the sum of the ledger, and so the sum that is kept."""
    cursor = await connection.execute(_SELECT_SEASONS, {"board": board})
    for (season,) in await cursor.fetchall():
        found = await check_sums(connection, board, None, season=season, limit=1)
        if found:
            of_season = f" in season {season}" if season else ""
            raise OperatorMistake(
                f"The score of {found[0].user_id} on board {board}{of_season} is not the sum of "
                f"the ledger; nothing was detached. Run scoreboard verify --full --board {board}"
            )


async def _record(
    connection: Connection, trail: AuditTrail, board: str, *, actor: str, action: str
) -> LedgerPartition:
    """Record a change in the audit log; return the partition."""
    async with translate_errors():
        [found] = await list_partitions(connection, board)
    detail: dict[str, Any] = {"users": found.kept_users, "actions": found.kept_actions}
    await trail.insert(actor=actor, action=action, board=board, detail=detail)
    return found
