"""Consistency checks of the ledger, for verify and repair.

The caller owns the connection and its transaction.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from msgspec import Struct

from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.ledger.positions import Position, where
from scoreboard.model import Partition, scores_name, user_uuid
from scoreboard.runtime import resources

_SELECT_SCORES_OF: Final = resources.query("select_scores_of")
_SELECT_SCORES_FROM: Final = resources.query("select_scores_from")
_SELECT_ARRIVAL_ORDER: Final = resources.query("select_arrival_order")
_SUM_LATE: Final = resources.query("sum_late_duplicates")
_CHECK_SUMS: Final = resources.query("check_sums")
_CHECK_SEASON_SUMS: Final = resources.query("check_season_sums")
_CHECK_SEASON_STANDINGS: Final = resources.query("check_season_standings")
_CHECK_CHAIN: Final = resources.query("check_chain")
_CHECK_DENSITY: Final = resources.query("check_density")
_SELECT_SHARED_ROWS: Final = resources.query("select_shared_rows")
_SELECT_SESSION: Final = resources.query("select_session")


class UserScore(Struct, frozen=True):
    """A user's score in PostgreSQL, with the columns that order equal scores."""

    score: int
    reached_at: datetime
    last_seq: int


class Imbalance(Struct, frozen=True):
    """A user whose score or count differs from the sum of the ledger (None: no row)."""

    user_id: str
    score: int | None
    total: int | None
    actions: int | None
    rows: int | None


class Misplaced(Struct, frozen=True):
    """A user whose final standing in a season does not follow from the scores (None: none)."""

    season: str
    user_id: str
    rank: int | None
    score: int | None
    due_rank: int | None
    due_score: int | None


class Break(Struct, frozen=True):
    """An action whose score is not the previous score plus its points."""

    user_id: str
    seq: int
    before: int
    delta: int
    score_after: int


class Span(Struct, frozen=True):
    """The number of recorded changes and the seqs they span; dense if the count equals the span."""

    count: int
    first: int
    last: int


class Durability(Struct, frozen=True):
    """The settings that decide whether a COMMIT of this session is durable."""

    synchronous_commit: str
    fsync: str
    is_standby: bool


async def read_scores(
    connection: Connection, board: str, user_ids: Sequence[str]
) -> dict[str, UserScore]:
    """Read the scores of users; users without a score are left out.

    Raises DatabaseUnavailable.
    """
    parameters = {"board": board, "users": _storable(user_ids)}
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_SCORES_OF, parameters)).fetchall()
    return {row[0]: UserScore(*row[1:]) for row in rows}


async def read_scores_from(
    connection: Connection, board: str, start: UUID, *, limit: int
) -> list[tuple[UUID, str, int]]:
    """Read (id, user, score) from a given id on, in order of ids.

    Raises DatabaseUnavailable.
    """
    parameters = {"board": board, "start": start, "limit": limit}
    async with translate_errors():
        return await (await connection.execute(_SELECT_SCORES_FROM, parameters)).fetchall()


async def select_arrival_order(
    connection: Connection, board: str, user_ids: Sequence[str], score: int
) -> list[str]:
    """Return the users who have a score, in the order in which they reached it.

    Raises DatabaseUnavailable.
    """
    parameters = {"board": board, "users": _storable(user_ids), "score": score}
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_ARRIVAL_ORDER, parameters)).fetchall()
    return [str(row[0]) for row in rows]


async def sum_late_duplicates(
    connection: Connection, partition: Partition, user_ids: Sequence[str]
) -> dict[str, int]:
    """Return, by user, the sum of late duplicates that the flusher has not corrected yet.

    Raises DatabaseUnavailable.
    """
    parameters = {**where(partition), "users": _storable(user_ids)}
    async with translate_errors():
        rows = await (await connection.execute(_SUM_LATE, parameters)).fetchall()
    return {str(user_id): int(total) for user_id, total in rows}


async def check_sums(
    connection: Connection,
    board: str,
    user_ids: Sequence[str] | None,
    *,
    season: str = "",
    limit: int,
) -> list[Imbalance]:
    """List users (of all if None) whose score is not the sum of their ledger rows.

    ``season`` is the id of the season that is checked, empty for a board without seasons.

    Raises DatabaseUnavailable.
    """
    users = None if user_ids is None else list(user_ids)
    parameters = {
        "board": board,
        "scores": scores_name(board, season),
        "season": season or None,
        "users": users,
        "limit": limit,
    }
    async with translate_errors():
        rows = await (await connection.execute(_CHECK_SUMS, parameters)).fetchall()
    return [Imbalance(*row) for row in rows]


async def check_season_sums(
    connection: Connection, board: str, *, newest: str, season: str | None, limit: int
) -> list[tuple[str, Imbalance]]:
    """List, with its season, each user whose score in an ended season is not its ledger's sum.

    ``season`` is the one to check; None means all that began before ``newest``.

    Raises DatabaseUnavailable.
    """
    parameters = {"board": board, "newest": newest, "season": season, "limit": limit}
    async with translate_errors():
        rows = await (await connection.execute(_CHECK_SEASON_SUMS, parameters)).fetchall()
    return [(str(row[0]), Imbalance(*row[1:])) for row in rows]


async def check_season_standings(
    connection: Connection, board: str, *, season: str | None, limit: int
) -> list[Misplaced]:
    """List users whose final standing does not follow from the scores of the season.

    ``season`` is the one to check; None means all whose standings are final.

    Raises DatabaseUnavailable.
    """
    parameters = {"board": board, "season": season, "limit": limit}
    async with translate_errors():
        rows = await (await connection.execute(_CHECK_SEASON_STANDINGS, parameters)).fetchall()
    return [Misplaced(*row) for row in rows]


async def check_chain(
    connection: Connection, partition: Partition, epoch: int, *, excluded: Sequence[str], limit: int
) -> list[Break]:
    """List actions of an epoch whose score is not the previous score plus their points.

    ``excluded`` are users with dead letters, which have no row in the ledger.

    Raises DatabaseUnavailable.
    """
    parameters = {
        **where(partition),
        "epoch": epoch,
        "excluded": list(excluded),
        "limit": limit,
    }
    async with translate_errors():
        rows = await (await connection.execute(_CHECK_CHAIN, parameters)).fetchall()
    return [Break(*row) for row in rows]


async def check_density(connection: Connection, partition: Partition, position: Position) -> Span:
    """Count the recorded changes of an epoch and the seqs they span.

    Raises DatabaseUnavailable.
    """
    parameters = {**where(partition), "epoch": position.epoch, "seq": position.seq}
    async with translate_errors():
        row: Any = await (await connection.execute(_CHECK_DENSITY, parameters)).fetchone()
    return Span(*row)


async def shared_rows(
    connection: Connection, user_ids: Sequence[str], *, limit: int
) -> list[tuple[str, str]]:
    """List (user, owner) for users without a row whose actions were counted for another user.

    Raises DatabaseUnavailable.
    """
    storable = _storable(user_ids)
    parameters = {
        "users": storable,
        "ids": [user_uuid(user_id) for user_id in storable],
        "limit": limit,
    }
    async with translate_errors():
        return await (await connection.execute(_SELECT_SHARED_ROWS, parameters)).fetchall()


async def read_durability(connection: Connection) -> Durability:
    """Read the settings that decide whether a COMMIT of this session is durable.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        row: Any = await (await connection.execute(_SELECT_SESSION)).fetchone()
    return Durability(*row)


def _storable(user_ids: Sequence[str]) -> list[str]:
    """Return the ids that PostgreSQL can hold; a member of Redis may be any text."""
    return [user_id for user_id in user_ids if "\0" not in user_id]
