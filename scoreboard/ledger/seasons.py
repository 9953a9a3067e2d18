"""Seasons of boards in PostgreSQL, and their final standings.

A season is recorded before anything of it is counted. Its scores have a name of their own in the
table ``scores``; the ledger has the season of each action, and its key spans all seasons. The
standings are frozen once, when every partition has committed the end of the season; only a
revision computes them again, with a row in the audit log. What is counted in the season later asks
for a revision. The caller owns the connection and its transaction. Each constant has the name of
its query file; a test compares the two sets.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from msgspec import Struct

from scoreboard.errors import UnknownSeason
from scoreboard.ledger.audit import audited
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.model import Board, Row, is_season_id, scores_name
from scoreboard.runtime import resources
from scoreboard.seasons import Season

_OPEN_SEASON: Final = resources.query("open_season")
_SELECT_NEWEST: Final = resources.query("select_newest_season")
_SELECT_TO_FREEZE: Final = resources.query("select_seasons_to_freeze")
_FREEZE: Final = resources.query("freeze_season")
_SELECT_SEASONS: Final = resources.query("select_seasons")
_SELECT_SEASON: Final = resources.query("select_season")
_SELECT_STANDINGS: Final = resources.query("select_season_standings")
_SELECT_STANDING: Final = resources.query("select_season_standing")
_SELECT_STANDINGS_OF: Final = resources.query("select_season_standings_of")
_SELECT_SCORE_RANK: Final = resources.query("select_season_score_rank")
_ASK_REVISION: Final = resources.query("ask_season_revision")
_SELECT_TO_REVISE: Final = resources.query("select_seasons_to_revise")
_LOCK_SEASON: Final = resources.query("lock_season")
_REVISE: Final = resources.query("revise_season")

WINNERS: Final = 3
"""Number of winners in a list of seasons."""


class SeasonSummary(Struct, frozen=True):
    """A season of a board. ``users`` and ``winners`` are empty until it is frozen."""

    id: str
    starts_at: datetime
    ends_at: datetime
    is_frozen: bool
    users: int
    winners: tuple[Row, ...]
    revised_at: datetime | None
    """When the final standings were computed again last."""


class FrozenSeason(Struct, frozen=True):
    """Whether the standings of a season are final, how many users and how many revisions."""

    is_frozen: bool
    users: int
    revisions: int


async def open_season(connection: Connection, board: str, season: Season) -> None:
    """Record a season and the name of its scores; a repeat changes nothing.

    Raises psycopg.Error, which the caller translates.
    """
    times = {"start_s": season.start_s, "end_s": season.end_s}
    await connection.execute(_OPEN_SEASON, {"board": board, "season": season.id, **times})


async def select_newest_season(connection: Connection, board: str) -> Season | None:
    """Read the season of a board that began last; None for a board without seasons.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        row = await (await connection.execute(_SELECT_NEWEST, {"board": board})).fetchone()
    return Season(*row) if row else None


async def newest_season_id(connection: Connection, board: Board) -> str:
    """Return the id of the season of a board that began last; empty if it has none.

    Raises DatabaseUnavailable.
    """
    if not board.layout.rules.season:
        return ""
    season = await select_newest_season(connection, board.name)
    return season.id if season else ""


async def current_scores(connection: Connection, board: Board) -> str:
    """Return the name of the scores of a board, or of its newest season if it has seasons.

    Raises DatabaseUnavailable.
    """
    return scores_name(board.name, await newest_season_id(connection, board))


async def select_seasons_to_freeze(connection: Connection, *, limit: int) -> list[tuple[str, str]]:
    """List (board, season) that are over and not frozen yet.

    Every partition has left them, or the board was deleted, which needs all actions committed.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_TO_FREEZE, {"limit": limit})).fetchall()
    return [(str(board), str(season)) for board, season in rows]


async def freeze_season(connection: Connection, board: str, season: str) -> bool:
    """Freeze the standings of a season, once; return whether this call did.

    Raises DatabaseUnavailable.
    """
    parameters = {"board": board, "season": season, "name": scores_name(board, season)}
    async with translate_errors():
        row = await (await connection.execute(_FREEZE, parameters)).fetchone()
    return bool(row and row[0])


async def ask_revision(connection: Connection, board: str, season: str, reason: str) -> None:
    """Ask for a revision of a season, in the transaction that changes its scores.

    It waits for nothing; a season that is not frozen yet needs none when it is.

    Raises psycopg.Error, which the caller translates.
    """
    parameters = {"board": board, "season": season, "reason": reason}
    await connection.execute(_ASK_REVISION, parameters)


async def select_seasons_to_revise(connection: Connection, *, limit: int) -> list[tuple[str, str]]:
    """List (board, season) that are frozen and for which a revision was asked.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_TO_REVISE, {"limit": limit})).fetchall()
    return [(str(board), str(season)) for board, season in rows]


async def revise_season(
    connection: Connection,
    board: str,
    season: str,
    *,
    actor: str,
    reason: str,
    is_forced: bool = False,
) -> int | None:
    """Compute the final standings of a season again from its scores, with a row in the audit log.

    Returns the number of users; None, and changes nothing, if the season is not frozen, if another
    process revises it or, unless ``is_forced``, if nobody asked for it. Users who were banned when
    it was frozen stay out. ``connection`` is in autocommit. It takes seconds for a large season,
    and blocks no commit.

    Raises DatabaseUnavailable.
    """
    place = {"board": board, "season": season}
    parameters = {**place, "name": scores_name(board, season), "is_forced": is_forced}
    async with audited(connection) as trail:
        if not await (await connection.execute(_LOCK_SEASON, place)).fetchall():
            return None
        row = await (await connection.execute(_REVISE, parameters)).fetchone()
        if row is None:
            return None
        detail = {"season": season, "users": row[0], "reason": reason}
        await trail.insert(actor=actor, action="season revise", board=board, detail=detail)
    return int(row[0])


async def select_seasons(
    connection: Connection, board: str, *, limit: int, before: str | None = None
) -> list[SeasonSummary]:
    """List the seasons of a board, latest first; ``before`` is the last one of the page before.

    Raises DatabaseUnavailable.
    """
    parameters = {"board": board, "limit": limit, "before": before}
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_SEASONS, parameters)).fetchall()
    return [
        SeasonSummary(
            season,
            starts_at,
            ends_at,
            is_frozen,
            users,
            tuple(
                Row(rank, user, score)
                for rank, (user, score) in enumerate(zip(names, scores, strict=True), 1)
            ),
            revised_at,
        )
        for season, starts_at, ends_at, is_frozen, users, names, scores, revised_at in rows
    ]


async def read_season(connection: Connection, board: str, season: str) -> FrozenSeason:
    """Read whether the standings of a season are final; ``season`` may have any form.

    Raises UnknownSeason, DatabaseUnavailable.
    """
    if is_season_id(season):
        parameters = {"board": board, "season": season}
        async with translate_errors():
            row = await (await connection.execute(_SELECT_SEASON, parameters)).fetchone()
        if row:
            return FrozenSeason(*row)
    if not await select_seasons(connection, board, limit=1):
        raise UnknownSeason(f"Board {board} has no seasons")
    hint = f"see scoreboard season list {board}"
    raise UnknownSeason(f"Board {board} has no season {season}", hint=hint)


async def select_season_standings(
    connection: Connection, board: str, season: str, *, offset: int, limit: int
) -> tuple[Row, ...]:
    """Read a page of the final standings of a season; empty until it is frozen.

    Raises DatabaseUnavailable.
    """
    parameters = {"board": board, "season": season, "offset": offset, "limit": limit}
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_STANDINGS, parameters)).fetchall()
    return tuple(Row(*row) for row in rows)


async def select_season_standing(
    connection: Connection, board: str, season: str, user_id: str
) -> Row | None:
    """Read the final standing of a user in a season; None without one.

    Raises DatabaseUnavailable.
    """
    parameters = {"board": board, "season": season, "user_id": user_id}
    async with translate_errors():
        row = await (await connection.execute(_SELECT_STANDING, parameters)).fetchone()
    return Row(row[0], user_id, row[1]) if row else None


async def select_season_standings_of(
    connection: Connection, board: str, season: str, user_ids: Sequence[str]
) -> tuple[Row, ...]:
    """Read the final standings of some users in a season, best first; without those who have none.

    Raises DatabaseUnavailable.
    """
    parameters = {"board": board, "season": season, "users": list(user_ids)}
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_STANDINGS_OF, parameters)).fetchall()
    return tuple(Row(*row) for row in rows)


async def count_season_scores(
    connection: Connection, board: Board, season: str, score: int
) -> tuple[int, int]:
    """Count the users of a frozen season with a better score, and with this score or a better one.

    Raises DatabaseUnavailable.
    """
    is_lowest = board.layout.rules.order == "lowest"
    place = {"board": board.name, "season": season}
    parameters = {**place, "score": score, "is_lowest_best": is_lowest}
    async with translate_errors():
        row = await (await connection.execute(_SELECT_SCORE_RANK, parameters)).fetchone()
    return (int(row[0]), int(row[1])) if row else (0, 0)
