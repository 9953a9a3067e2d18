"""Scores and counted actions in PostgreSQL, read in ranking order or page by page.

The caller owns the connection and its transaction. Each constant has the name of its query file; a
test compares the two sets.
"""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Final

from msgspec import Struct

from scoreboard.ledger.pool import Connection, pages, translate_errors
from scoreboard.runtime import resources

_SELECT_TOP: Final = resources.query("select_top")
_HAS_SCORES: Final = resources.query("has_scores")
_SELECT_RANKING: Final = resources.query("select_ranking")
_SELECT_TOTALS: Final = resources.query("select_totals")
_SELECT_DEDUP_RECORDS: Final = resources.query("select_dedup_records")
_COUNT_DEDUP_RECORDS: Final = resources.query("count_dedup_records")
_SELECT_CHANGES: Final = resources.query("select_changes")


class ScoreRow(Struct, frozen=True):
    """A user's row of ``scores``, with the external user id."""

    user_id: str
    score: int
    actions: int
    reached_at: datetime


class DedupRecord(Struct, frozen=True):
    """A counted or held action, as the dedup window stores it."""

    user_id: str
    action_id: str
    delta: int
    score_after: int
    seq: int
    occurred_at_ms: int
    is_held: bool = False


async def select_top(connection: Connection, board: str, limit: int) -> list[ScoreRow]:
    """Read the best scores in ranking order.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        parameters = {"board": board, "limit": limit}
        rows = await (await connection.execute(_SELECT_TOP, parameters)).fetchall()
    return [ScoreRow(*row) for row in rows]


async def select_ranking(
    connection: Connection, board: str, *, page: int
) -> AsyncIterator[list[tuple[str, int]]]:
    """Read (user, score) of a whole board in ranking order, ``page`` rows at a time.

    Raises DatabaseUnavailable.
    """
    async for rows in pages(connection, _SELECT_RANKING, {"board": board}, page):
        yield rows


async def has_scores(connection: Connection, board: str) -> bool:
    """Return whether a board has scores, in any season.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        row = await (await connection.execute(_HAS_SCORES, {"board": board})).fetchone()
    return bool(row and row[0])


async def select_totals(connection: Connection, board: str) -> tuple[int, int]:
    """Return the number of users of a board and the sum of their scores.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        row = await (await connection.execute(_SELECT_TOTALS, {"board": board})).fetchone()
    return (int(row[0]), int(row[1])) if row else (0, 0)


async def select_dedup_records(
    connection: Connection, board: str, *, since_s: float, page: int
) -> AsyncIterator[list[DedupRecord]]:
    """Read the actions, also held ones, of a board since a moment (s since 1970), a page at a time.

    Raises DatabaseUnavailable.
    """
    parameters = {"board": board, "since_s": since_s}
    async for rows in pages(connection, _SELECT_DEDUP_RECORDS, parameters, page):
        yield [DedupRecord(*row) for row in rows]


async def select_changes(
    connection: Connection, board: str, seqs: Mapping[int, int], *, since_s: float, page: int
) -> AsyncIterator[list[DedupRecord]]:
    """Read the actions, also held ones, of partitions above a seq of each, a page at a time.

    None of them is older than ``since_s`` (s since 1970). Raises DatabaseUnavailable.
    """
    parameters = {
        "board": board,
        "since_s": since_s,
        "parts": list(seqs),
        "seqs": list(seqs.values()),
    }
    async for rows in pages(connection, _SELECT_CHANGES, parameters, page):
        yield [DedupRecord(*row) for row in rows]


async def count_dedup_records(connection: Connection, board: str, *, since_s: float) -> int:
    """Count the actions, also held ones, of a board since a moment (seconds since 1970).

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        parameters = {"board": board, "since_s": since_s}
        row = await (await connection.execute(_COUNT_DEDUP_RECORDS, parameters)).fetchone()
    return int(row[0]) if row else 0
