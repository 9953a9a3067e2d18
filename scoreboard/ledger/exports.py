"""Exports: standings, the ledger, and everything that is stored about a user.

The queries name the columns, and PostgreSQL describes their types. A server-side cursor keeps one
page in memory. The caller owns the connection and the snapshot. Each constant has the name of its
query file; a test compares the two sets.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from msgspec import Struct

from scoreboard.errors import UnknownBoard
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.model import scores_name
from scoreboard.runtime import resources

_EXPORT_STANDINGS: Final = resources.query("export_standings")
_EXPORT_SEASON_STANDINGS: Final = resources.query("export_season_standings")
_EXPORT_LEDGER: Final = resources.query("export_ledger")
_HAS_BOARD: Final = resources.query("has_board")
_COUNT_LEDGER: Final = resources.query("count_ledger")
_EXPORT_PROFILE: Final = resources.query("export_user_profile")
_EXPORT_SCORES: Final = resources.query("export_user_scores")
_EXPORT_USER_STANDINGS: Final = resources.query("export_user_standings")
_EXPORT_USER_LEDGER: Final = resources.query("export_user_ledger")
_EXPORT_KEPT_SUMS: Final = resources.query("export_user_kept_sums")
_EXPORT_REJECTED: Final = resources.query("export_user_rejected")
_EXPORT_DEAD: Final = resources.query("export_user_dead")
_EXPORT_ACTS: Final = resources.query("export_user_acts")
_EXPORT_VOIDED: Final = resources.query("export_user_voided")
_EXPORT_HELD: Final = resources.query("export_user_held")
_EXPORT_BANS: Final = resources.query("export_user_bans")
_EXPORT_AUDIT: Final = resources.query("export_user_audit")

ColumnType = Literal["text", "int32", "int64", "time"]

_TYPES: Final[Mapping[int, ColumnType]] = {
    20: "int64",
    23: "int32",
    25: "text",
    1043: "text",
    1184: "time",
}
"""Column types by PostgreSQL's type numbers: BIGINT, INT, TEXT, VARCHAR, TIMESTAMPTZ."""

AUDIT: Final = "audit"
"""Name of the table of administrative changes among those of a user."""

SESSION: Final = {
    "statement_timeout": "0",
    # A reader of a pipe may pause, but the snapshot must not stay forever: VACUUM waits for it.
    "idle_in_transaction_session_timeout": "10min",
    # All rows are read: without this, the plan is the one that returns the first rows early.
    "cursor_tuple_fraction": "1.0",
}
"""Session settings of a connection that exports."""


class Column(Struct, frozen=True):
    """A column of an export."""

    name: str
    type: ColumnType


class LedgerFilter(Struct, frozen=True, kw_only=True):
    """Which rows of the ledger to export; None means all. ``since`` is included, ``until`` not."""

    board: str
    user: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_whole(self) -> bool:
        """Return whether no time is given."""
        return self.since is None and self.until is None


class Export(Struct, frozen=True):
    """A query whose rows are exported, with its parameters."""

    query: bytes
    parameters: dict[str, Any]


class Rows(NamedTuple):
    """The columns of an export, and its rows page by page."""

    columns: list[Column]
    pages: AsyncIterator[list[tuple[Any, ...]]]


def standings(board: str, scores: str) -> Export:
    """Return the export of a board's ranking; ``scores`` is the name of its scores."""
    return Export(_EXPORT_STANDINGS, {"board": board, "scores": scores})


def season_standings(board: str, season: str) -> Export:
    """Return the export of the final standings of a season."""
    parameters = {"board": board, "season": season, "scores": scores_name(board, season)}
    return Export(_EXPORT_SEASON_STANDINGS, parameters)


def ledger(chosen: LedgerFilter) -> Export:
    """Return the export of the ledger of a board."""
    names = chosen.__struct_fields__
    return Export(_EXPORT_LEDGER, {name: getattr(chosen, name) for name in names})


def user_tables(user_id: str) -> dict[str, Export]:
    """Return the exports of everything that PostgreSQL stores about a user, by name."""
    queries = {
        "profile": _EXPORT_PROFILE,
        "scores": _EXPORT_SCORES,
        "standings": _EXPORT_USER_STANDINGS,
        "ledger": _EXPORT_USER_LEDGER,
        "kept-sums": _EXPORT_KEPT_SUMS,
        "rejected": _EXPORT_REJECTED,
        "dead-letters": _EXPORT_DEAD,
        "acts": _EXPORT_ACTS,
        "voided": _EXPORT_VOIDED,
        "held": _EXPORT_HELD,
        "bans": _EXPORT_BANS,
        AUDIT: _EXPORT_AUDIT,
    }
    return {name: Export(query, {"user": user_id}) for name, query in queries.items()}


async def require_board(connection: Connection, name: str) -> None:
    """Check that a board exists or has existed.

    Raises UnknownBoard, DatabaseUnavailable.
    """
    async with translate_errors():
        row = await (await connection.execute(_HAS_BOARD, {"board": name})).fetchone()
    if not row or not row[0]:
        raise UnknownBoard(f"Board {name} does not exist")


async def count_ledger(connection: Connection, chosen: LedgerFilter) -> int:
    """Count the rows of a whole ledger, for the progress of its export.

    Raises DatabaseUnavailable.
    """
    parameters = {"board": chosen.board, "user": chosen.user}
    async with translate_errors():
        row = await (await connection.execute(_COUNT_LEDGER, parameters)).fetchone()
    return int(row[0]) if row else 0


@asynccontextmanager
async def open_rows(connection: Connection, export: Export, *, page: int) -> AsyncIterator[Rows]:
    """Run an export within the caller's snapshot; yield its columns and rows.

    Raises DatabaseUnavailable.
    """
    async with translate_errors(), connection.cursor(name="export") as cursor:
        await cursor.execute(export.query, export.parameters)
        described = cursor.description or ()
        columns = [Column(column.name, _TYPES[column.type_code]) for column in described]

        async def read() -> AsyncIterator[list[tuple[Any, ...]]]:
            while rows := await cursor.fetchmany(page):
                yield rows

        yield Rows(columns, read())
