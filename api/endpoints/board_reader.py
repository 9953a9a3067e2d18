"""Reads of a board for HTTP: coalesced, encoded once, with an ETag.

Equal reads that arrive in the same loop iteration share one call to Redis. A read joins only calls
that were not sent yet, so a caller whose update was answered sees it in the next read.
"""

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

import msgspec
from msgspec import UNSET, Struct

from api.documents.schemas import LeaderboardReply, RankedUser, StandingReply
from api.endpoints.name_cache import NameCache
from scoreboard.errors import Invalid, ScoreboardError
from scoreboard.model import Board, Row
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.boards import Boards

BOARD_TTL_S: Final = 5.0
"""How long a board's layout and visibility are cached."""

MERGED_DEPTH_MAX: Final = 10_000
"""Deepest row of a board of several partitions: every partition must read up to it."""

T = TypeVar("T")
_encode: Final = msgspec.json.Encoder().encode
_log = get_logger(__name__)


class Page(Struct, frozen=True):
    """An encoded reply and its ETag."""

    etag: str
    body: bytes


class _LeaderGone(Exception):  # noqa: N818 (says what happened)
    """The request that read for others was cancelled."""


class SingleFlight(Generic[T]):
    """Coalesces equal calls of one loop iteration: the first caller reads for all."""

    def __init__(self) -> None:
        self._gathering: dict[Hashable, asyncio.Future[T]] = {}

    async def get(self, key: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """Return or raise the result of ``read``; calls with the same ``key`` are equal."""
        joined = self._gathering.get(key)
        if joined is None:
            return await self._lead(key, read)
        try:
            return await asyncio.shield(joined)
        except _LeaderGone:
            return await read()

    async def _lead(self, key: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._gathering[key] = future
        try:
            try:
                await asyncio.sleep(0)  # other tasks of this iteration may join
            finally:
                del self._gathering[key]
            result = await read()
        except BaseException as error:
            future.set_exception(error if isinstance(error, Exception) else _LeaderGone())
            future.exception()  # mark it as retrieved: possibly no call has joined
            raise
        future.set_result(result)
        return result


class _CachedBoard(Struct):
    board: Board
    expires_at_s: float


class BoardReader:
    """Replies of the read endpoints."""

    def __init__(self, store: Boards, names: NameCache) -> None:
        self._store = store
        self._names = names
        self._cached: dict[str, _CachedBoard] = {}
        self._board_reads: SingleFlight[Board] = SingleFlight()
        self._page_reads: SingleFlight[Page] = SingleFlight()

    async def board(self, board: str) -> Board:
        """Return a board's layout and visibility; cached, also while Redis is unreachable.

        Raises Uninitialised, RedisUnavailable if it was never read.
        """
        known = self._cached.get(board)
        now_s = time.monotonic()
        if known is not None and now_s < known.expires_at_s:
            return known.board
        if known is not None:
            known.expires_at_s = now_s + BOARD_TTL_S  # concurrent reads use the cached value
        try:
            found = await self._board_reads.get(board, lambda: self._store.board(board))
        except ScoreboardError as error:
            if known is None:
                raise
            _log.warning("board_refresh_failed", board=board, code=error.code)
            return known.board
        self._cached[board] = _CachedBoard(found, time.monotonic() + BOARD_TTL_S)
        return found

    async def leaderboard(self, board: str, *, limit: int, offset: int, names: bool) -> Page:
        """Read and encode a page of the ranking.

        Raises Invalid for a window that is too deep, Uninitialised, RedisUnavailable.
        """
        found = await self.board(board)
        if found.layout.partitions > 1 and offset + limit > MERGED_DEPTH_MAX:
            raise Invalid(f"offset + limit is at most {MERGED_DEPTH_MAX} on this board")

        async def read() -> Page:
            window = await self._store.leaderboard(board, limit=limit, offset=offset)
            rows, mark = (
                await self._add_names(window.rows) if names else (_unnamed(window.rows), "")
            )
            reply = LeaderboardReply(rows, window.total, window.epoch, window.seq)
            return Page(f'W/"{window.epoch}-{window.seq}{mark}"', _encode(reply))

        return await self._page_reads.get((board, limit, offset, names), read)

    async def standing(self, board: str, user_id: str, *, around: int) -> Page:
        """Read and encode a user's standing.

        Raises UnknownUser, Uninitialised, RedisUnavailable.
        """

        async def read() -> Page:
            found = await self._store.standing(board, user_id, around=around)
            reply = StandingReply(
                found.user_id,
                found.rank,
                found.score,
                found.total,
                found.epoch,
                found.seq,
                _unnamed(found.neighbours),
            )
            return Page(f'W/"{found.epoch}-{found.seq}"', _encode(reply))

        return await self._page_reads.get((board, user_id, around), read)

    async def _add_names(self, rows: tuple[Row, ...]) -> tuple[tuple[RankedUser, ...], str]:
        """Add names; they change independently of ``seq``, so the ETag includes their checksum."""
        names = await self._names.of([row.user_id for row in rows])
        named = tuple(
            RankedUser(
                rank=row.rank,
                user_id=row.user_id,
                score=row.score,
                name=names.get(row.user_id, UNSET),
            )
            for row in rows
        )
        return named, f"-{zlib.crc32(repr(sorted(names.items())).encode()):08x}"


def _unnamed(rows: tuple[Row, ...]) -> tuple[RankedUser, ...]:
    return tuple(RankedUser(rank=row.rank, user_id=row.user_id, score=row.score) for row in rows)


def etag_matches(if_none_match: str | None, etag: str) -> bool:
    """Return whether If-None-Match matches an ETag (weak comparison, RFC 9110, 13.1.2)."""
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags
