"""Reads seasons and their final standings from PostgreSQL, few at once and with a time limit.

Invariant: standings that are not final are never shown as such.
"""

import zlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Final

import msgspec
from msgspec import UNSET
from psycopg_pool import AsyncConnectionPool

from api.documents.schemas import (
    CutoffReply,
    LeaderboardReply,
    RankedUser,
    ScoreRankReply,
    SeasonsReply,
    SeasonSummary,
    StandingReply,
    StandingsReply,
)
from api.endpoints.board_reader import (
    BoardReader,
    Page,
    cutoff_of,
    encode_page,
    percentile_of,
    placed,
    unnamed,
)
from api.endpoints.bounded_reads import BoundedReads
from scoreboard.errors import Invalid, SeasonEnded, UnknownSeason, UnknownUser
from scoreboard.ledger.pool import Connection
from scoreboard.ledger.seasons import (
    FrozenSeason,
    count_season_scores,
    read_season,
    select_season_standing,
    select_season_standings,
    select_season_standings_of,
    select_seasons,
)
from scoreboard.ledger.seasons import SeasonSummary as SeasonRow
from scoreboard.model import Row

_encode: Final = msgspec.json.Encoder().encode


class SeasonReader:
    """Replies about seasons."""

    def __init__(self, pool: AsyncConnectionPool[Connection] | None, reads: BoardReader) -> None:
        """``pool`` is open, or None without a database; ``reads`` has the current season."""
        self._final = BoundedReads(pool, "seasons")
        self._reads = reads

    async def leaderboard(
        self, board: str, season: str, *, limit: int, offset: int, names: bool
    ) -> Page:
        """Read and encode a page of the ranking of a season.

        Raises UnknownSeason, SeasonEnded, Overloaded, DatabaseUnavailable, and what
        BoardReader.leaderboard raises.
        """
        page = await self._read_current(
            board,
            season,
            partial(self._reads.leaderboard, board, limit=limit, offset=offset, names=names),
        )
        if page is not None:
            return page

        async def read(connection: Connection) -> tuple[FrozenSeason, tuple[Row, ...]]:
            frozen = await _require_final(connection, board, season)
            rows = await select_season_standings(
                connection, board, season, offset=offset, limit=limit
            )
            return frozen, rows

        frozen, rows = await self._final.run(read)
        named, mark = await self._reads.add_names(rows) if names else (unnamed(rows), "")
        reply = LeaderboardReply(named, frozen.users, 0, 0, season)
        return encode_page(reply, f"-{season}.{frozen.revisions}{mark}")

    async def standing(self, board: str, season: str, user_id: str, *, around: int) -> Page:
        """Read and encode a user's standing in a season.

        Raises UnknownUser, UnknownSeason, SeasonEnded, Overloaded, DatabaseUnavailable, and what
        BoardReader.standing raises.
        """
        page = await self._read_current(
            board, season, partial(self._reads.standing, board, user_id, around=around)
        )
        if page is not None:
            return page

        async def read(connection: Connection) -> tuple[FrozenSeason, Row, tuple[Row, ...]]:
            frozen = await _require_final(connection, board, season)
            row = await select_season_standing(connection, board, season, user_id)
            if row is None:
                raise UnknownUser(f"The user has no score in season {season}")
            near: tuple[Row, ...] = ()
            if around:
                first = max(0, min(row.rank - 1 - around, frozen.users - 1 - 2 * around))
                near = await select_season_standings(
                    connection, board, season, offset=first, limit=2 * around + 1
                )
            return frozen, row, near

        frozen, row, near = await self._final.run(read)
        percentile = percentile_of(row.rank, frozen.users)
        facts = (user_id, row.rank, row.score, frozen.users, 0, 0)
        reply = StandingReply(*facts, unnamed(near), percentile, season)
        return encode_page(reply, f"-{season}.{frozen.revisions}")

    async def standings(
        self, board: str, season: str, user_ids: Sequence[str], *, names: bool
    ) -> Page:
        """Read and encode the standings of some users in a season, and their order.

        Raises UnknownSeason, SeasonEnded, Overloaded, DatabaseUnavailable, and what
        BoardReader.standings raises.
        """
        page = await self._read_current(
            board, season, partial(self._reads.standings, board, user_ids, names=names)
        )
        if page is not None:
            return page

        async def read(connection: Connection) -> tuple[FrozenSeason, tuple[Row, ...]]:
            frozen = await _require_final(connection, board, season)
            return frozen, await select_season_standings_of(connection, board, season, user_ids)

        frozen, rows = await self._final.run(read)
        named, mark = await self._reads.add_names(rows) if names else (unnamed(rows), "")
        reply = StandingsReply(*placed(named, user_ids), frozen.users, 0, 0, season)
        return encode_page(reply, f"-{season}.{frozen.revisions}{mark}")

    async def rank_of_score(self, board: str, season: str, score: int) -> Page:
        """Read and encode the rank that a score would have got in a season.

        Raises UnknownSeason, SeasonEnded, Overloaded, DatabaseUnavailable, and what
        BoardReader.rank_of_score raises.
        """
        page = await self._read_current(
            board, season, partial(self._reads.rank_of_score, board, score)
        )
        if page is not None:
            return page
        found = await self._reads.board(board)

        async def read(connection: Connection) -> tuple[FrozenSeason, int, int]:
            frozen = await _require_final(connection, board, season)
            return frozen, *await count_season_scores(connection, found, season, score)

        frozen, better, reached = await self._final.run(read)
        reply = ScoreRankReply(score, reached + 1, reached - better, frozen.users, 0, 0, season)
        return encode_page(reply, f"-{season}.{frozen.revisions}")

    async def cutoff(self, board: str, season: str, rank: int) -> Page:
        """Read and encode the score at a rank of a season, and the one that would have taken it.

        Raises UnknownSeason, SeasonEnded, Overloaded, DatabaseUnavailable, and what
        BoardReader.cutoff raises.
        """
        page = await self._read_current(board, season, partial(self._reads.cutoff, board, rank))
        if page is not None:
            return page

        async def read(connection: Connection) -> tuple[FrozenSeason, tuple[Row, ...]]:
            frozen = await _require_final(connection, board, season)
            return frozen, await select_season_standings(
                connection, board, season, offset=rank - 1, limit=1
            )

        frozen, rows = await self._final.run(read)
        found = await self._reads.board(board)
        score, needed = cutoff_of(found.layout.rules, rows)
        reply = CutoffReply(rank, frozen.users, 0, 0, score=score, needed=needed, season=season)
        return encode_page(reply, f"-{season}.{frozen.revisions}")

    async def seasons(self, board: str, *, limit: int, before: str | None) -> Page:
        """Read and encode a page of the seasons of a board, latest first.

        Raises Invalid if ``before`` is no season of the board, Overloaded, DatabaseUnavailable.
        """

        async def read(connection: Connection) -> list[SeasonRow]:
            # A row more than asked for tells whether there is another page.
            found = await select_seasons(connection, board, limit=limit + 1, before=before)
            if before is not None and not found:
                await read_season(connection, board, before)
            return found

        try:
            found = await self._final.run(read)
        except UnknownSeason:
            raise Invalid("before: use `next` of the page before it") from None
        seasons = tuple(
            SeasonSummary(
                one.id,
                _ms(one.starts_at),
                _ms(one.ends_at),
                "final" if one.is_frozen else "open",
                one.users,
                tuple(RankedUser(row.rank, row.user_id, row.score) for row in one.winners),
                UNSET if one.revised_at is None else _ms(one.revised_at),
            )
            for one in found[:limit]
        )
        next_ = seasons[-1].id if len(found) > limit else UNSET
        body = _encode(SeasonsReply(seasons, next_))
        return Page(f'W/"{zlib.crc32(body):08x}"', body)

    async def _read_current(
        self, board: str, season: str, read: Callable[[], Awaitable[Page]]
    ) -> Page | None:
        """Read a page if a season is the current one; return None if it is not.

        Raises SeasonEnded if it ended during the read, and what ``read`` raises.
        """
        if season != await self._reads.season(board):
            return None
        page = await read()
        if season != await self._reads.season(board):
            raise SeasonEnded
        return page


async def _require_final(connection: Connection, board: str, season: str) -> FrozenSeason:
    """Return a season whose standings are final.

    Raises UnknownSeason, SeasonEnded, DatabaseUnavailable.
    """
    found = await read_season(connection, board, season)
    if not found.is_frozen:
        raise SeasonEnded("The last actions of the season are being counted")
    return found


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
