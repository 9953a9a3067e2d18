"""Reads of the board for HTTP: shared within a turn of the loop, encoded once, tagged.

Equal reads that arrive in one turn share one call to Redis. Only reads not yet sent are joined: a
caller whose update was answered sees it in the read that follows.
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
from scoreboard.errors import Invalid, ScoreboardError, UnknownBoard
from scoreboard.model import Board, Row
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.store import Store

FACTS_S: Final = 5.0
"""How long it is believed whether a board is public."""

MERGED_DEPTH_MAX: Final = 10_000
"""Deepest row of a board of several partitions: each of them must read as far."""

T = TypeVar("T")
_encode: Final = msgspec.json.Encoder().encode
_log = get_logger(__name__)


class Page(Struct, frozen=True):
    """An encoded answer and the tag by which a client recognises it."""

    etag: str
    body: bytes


class _LeaderGone(Exception):  # noqa: N818 (says what happened)
    """The request that was reading for others went away."""


class SingleFlight(Generic[T]):
    """Joins equal calls of one turn of the loop: the first to ask reads for all."""

    def __init__(self) -> None:
        self._gathering: dict[Hashable, asyncio.Future[T]] = {}

    async def get(self, key: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """Give what ``read`` gives, or raise what it raises; ``key`` says which calls are equal."""
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
                await asyncio.sleep(0)  # whoever else runs in this turn may join
            finally:
                del self._gathering[key]
            result = await read()
        except BaseException as error:
            future.set_exception(error if isinstance(error, Exception) else _LeaderGone())
            future.exception()  # nobody may have joined: that is no unseen error
            raise
        future.set_result(result)
        return result


class _Facts(Struct):
    board: Board
    until_s: float


class BoardReader:
    """Answers of the read endpoints."""

    def __init__(self, settings: Settings, store: Store, names: NameCache) -> None:
        self._boards = settings.boards
        self._store = store
        self._names = names
        self._facts: dict[str, _Facts] = {}
        self._shared_facts: SingleFlight[Board] = SingleFlight()
        self._shared_pages: SingleFlight[Page] = SingleFlight()

    def choose(self, board: str | None) -> str:
        """Give the board that a request means.

        Raises UnknownBoard for one that is not served here.
        """
        if board is None:
            return self._boards[0]
        if board not in self._boards:
            raise UnknownBoard(f"There is no board of that name; {self._boards[0]} is one")
        return board

    async def facts(self, board: str) -> Board:
        """Give what was fixed when a board was made; the last answer holds while Redis is away.

        Raises Uninitialised, RedisUnavailable where it was never read.
        """
        known = self._facts.get(board)
        now_s = time.monotonic()
        if known is not None and now_s < known.until_s:
            return known.board
        if known is not None:
            known.until_s = now_s + FACTS_S  # others go on with what is known
        try:
            found = await self._shared_facts.get(board, lambda: self._store.board(board))
        except ScoreboardError as error:
            if known is None:
                raise
            _log.warning("board_facts_kept", board=board, code=error.code)
            return known.board
        self._facts[board] = _Facts(found, time.monotonic() + FACTS_S)
        return found

    async def leaderboard(self, board: str, *, limit: int, offset: int, names: bool) -> Page:
        """Read and encode a window of the ranking.

        Raises Invalid for a window too deep, Uninitialised, RedisUnavailable.
        """
        facts = await self.facts(board)
        if facts.layout.partitions > 1 and offset + limit > MERGED_DEPTH_MAX:
            raise Invalid(f"offset + limit is at most {MERGED_DEPTH_MAX} on this board")

        async def read() -> Page:
            window = await self._store.leaderboard(board, limit=limit, offset=offset)
            rows, mark = await self._named(window.rows) if names else (_plain(window.rows), "")
            reply = LeaderboardReply(rows, window.total, window.epoch, window.seq)
            return Page(f'W/"{window.epoch}-{window.seq}{mark}"', _encode(reply))

        return await self._shared_pages.get((board, limit, offset, names), read)

    async def standing(self, board: str, user_id: str, *, around: int) -> Page:
        """Read and encode a user's place.

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
                _plain(found.neighbours),
            )
            return Page(f'W/"{found.epoch}-{found.seq}"', _encode(reply))

        return await self._shared_pages.get((board, user_id, around), read)

    async def _named(self, rows: tuple[Row, ...]) -> tuple[tuple[RankedUser, ...], str]:
        """Add names; they change without ``seq``, so the tag gets a mark of theirs."""
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


def _plain(rows: tuple[Row, ...]) -> tuple[RankedUser, ...]:
    return tuple(RankedUser(rank=row.rank, user_id=row.user_id, score=row.score) for row in rows)


def etag_matches(if_none_match: str | None, etag: str) -> bool:
    """Tell whether a client already has what a tag names (weak comparison, RFC 9110)."""
    if if_none_match is None:
        return False
    tags = [tag.strip() for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags or etag.removeprefix("W/") in tags
