"""Reads of boards for HTTP: coalesced, encoded once, with an ETag.

The top of each board is kept while it is known to be current (docs/decisions/0117): changes are
announced to this process, none was announced since it was read, no update was answered here since,
no other read has found another position, and it is younger than a second. Every other window is
read; equal ones that arrive in the same loop iteration share one call to Redis. A read joins only
calls that were not sent before it arrived, so a caller whose update was answered sees it in the
next read.
"""

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import partial
from typing import Final, Generic, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, field

from api.documents.schemas import (
    CutoffReply,
    LeaderboardReply,
    PlacedUser,
    RankedUser,
    ScoreRankReply,
    StandingReply,
    StandingsReply,
)
from scoreboard.broadcast.watcher import BoardWatcher
from scoreboard.errors import BoardArchived, Fenced, Invalid, ScoreboardError, Uninitialised
from scoreboard.ledger.name_cache import NameCache
from scoreboard.ledger.users import PublicProfile
from scoreboard.model import BOARDS_KEPT_MAX, WATCHED_TOP, Board, Partition, Row, Rules, Window
from scoreboard.runtime.recent import Recent
from scoreboard.runtime.telemetry import get_logger
from scoreboard.seasons import Season
from scoreboard.store.board_directory import BoardDirectory
from scoreboard.store.boards import Boards

TURNS_MAX: Final = 16
"""Partitions of a board whose season is ended at once."""

BOARD_TTL_S: Final = 1.0
"""How long a board's layout and visibility are cached: a board that becomes private, or is deleted,
is closed to readers within this time."""

TOP_TTL_S: Final = 1.0
"""How long the top of a board is kept. It bounds the effect of a lost notification, and of changes
below the watched rows, which are not announced and change ``total`` and ``seq``. It is max-age of
the responses."""

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
    """Coalesces equal calls of one loop iteration: the first caller reads for all.

    ``read`` must not send anything before the next iteration, as ReadBatcher and redis-py's client.
    """

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
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._gathering[key] = future
        loop.call_soon(self._gathering.pop, key)  # other tasks of this iteration may join
        try:
            result = await read()
        except BaseException as error:
            future.set_exception(error if isinstance(error, Exception) else _LeaderGone())
            future.exception()  # mark it as retrieved: possibly no call has joined
            raise
        future.set_result(result)
        return result


class _Top(Struct):
    """The watched rows of a board, and the pages encoded from them, by offset and limit."""

    window: Window
    generation: int
    expires_at_s: float
    pages: dict[tuple[int, int], Page] = field(default_factory=dict[tuple[int, int], Page])


class _Known(Struct):
    """What is kept of a board. All of it is dropped together, so that no part outlives another."""

    board: Board | None = None
    expires_at_s: float = 0.0
    top: _Top | None = None
    position: tuple[int, int] | None = None
    """Epoch and seq that the last read has found."""
    own_changes: int = 0
    """How often this process has learned of a change otherwise than by the watcher."""
    season: Season | None = None
    """The season in which all partitions were found to be."""
    turn_failure: str = ""
    """The code of the last error that kept a partition in a season that is over."""


class BoardReader:
    """Replies of the read endpoints."""

    def __init__(
        self,
        store: Boards,
        directory: BoardDirectory,
        names: NameCache,
        watcher: BoardWatcher,
        watch: Callable[[], None],
    ) -> None:
        """``watch`` starts the watcher, which announces changes of the watched rows."""
        self._store = store
        self._directory = directory
        self._names = names
        self._watcher = watcher
        self._watch = watch
        self._known: Recent[_Known] = Recent(BOARDS_KEPT_MAX)
        self._board_reads: SingleFlight[Board] = SingleFlight()
        self._window_reads: SingleFlight[Window] = SingleFlight()
        self._top_reads: SingleFlight[_Top] = SingleFlight()

    def note_update(self, board: str) -> None:
        """Invalidate the kept top of a board, before an update of it is answered."""
        self._of(board).own_changes += 1

    async def find(self, named: str | None) -> Board:
        """Return a board by name, None for the default board; see ``board``.

        Raises UnknownBoard, and what ``board`` raises.
        """
        found = self._directory.known(named) or await self._directory.find(named)
        return await self.board(found.name)

    async def board(self, board: str) -> Board:
        """Return a board's layout and visibility; cached, also while Redis is unreachable.

        Raises Uninitialised, RedisUnavailable if it was never read.
        """
        known = self._of(board)
        now_s = time.monotonic()
        if known.board is not None:
            if now_s < known.expires_at_s:
                return known.board
            known.expires_at_s = now_s + BOARD_TTL_S  # concurrent reads use the cached value
        try:
            found = await self._board_reads.get(board, partial(self._read_board, board))
        except ScoreboardError as error:
            if isinstance(error, Uninitialised):
                self._directory.forget(board)
            if known.board is None:
                raise
            _log.warning("board_refresh_failed", board=board, code=error.code)
            return known.board
        known.board, known.expires_at_s = found, time.monotonic() + BOARD_TTL_S
        return found

    async def _read_board(self, name: str) -> Board:
        """Read a board; if its season is over, begin the next one first, as an update does.

        A flusher usually has, but readers must not depend on it.
        """
        board, season = await self._store.board_and_season(name)
        known = self._of(name)
        is_current = season == known.season and season is not None and time.time() < season.end_s
        if season is None or is_current or board.state == "archived":
            return board
        turned: list[Season | None] = []
        for start in range(0, board.layout.partitions, TURNS_MAX):
            numbers = range(start, min(start + TURNS_MAX, board.layout.partitions))
            turned += await asyncio.gather(*(self._turn(board, number) for number in numbers))
        known.season = turned[0] if all(turned) else None
        if known.season is not None:
            known.turn_failure = ""
        known.own_changes += 1
        return board

    async def _turn(self, board: Board, number: int) -> Season | None:
        """Turn a partition if its season is over; return its season, None if it was refused."""
        known = self._of(board.name)
        try:
            season = await self._store.turn(Partition(board.name, number), board.layout.rules)
        except (BoardArchived, Fenced, Uninitialised):
            return None
        except ScoreboardError as error:
            if known.turn_failure != error.code:
                known.turn_failure = error.code
                _log.warning("season_not_turned", board=board.name, reason=error.detail)
            return None
        return season

    def _of(self, board: str) -> _Known:
        return self._known.use(board) or self._known.keep(board, _Known())

    async def leaderboard(self, board: str, *, limit: int, offset: int, names: bool) -> Page:
        """Read and encode a page of the ranking.

        Raises Invalid for a window that is too deep, Uninitialised, RedisUnavailable, Overloaded.
        """
        if offset + limit > WATCHED_TOP:
            window = await self._read_window(board, limit, offset)
            return await self._encode_window(window, names=names)
        known = self._of(board)
        top = known.top
        if (
            top is None
            or top.generation != self._generation(board, known)
            or time.monotonic() >= top.expires_at_s
        ):
            top = await self._top_reads.get(board, partial(self._read_top, board))
        page = None if names else top.pages.get((offset, limit))
        if page is None:
            rows = top.window.rows[offset : offset + limit]
            window = msgspec.structs.replace(top.window, rows=rows)
            page = await self._encode_window(window, names=names)
            if not names:  # they change independently of the board
                top.pages[offset, limit] = page
        return page

    async def standing(self, board: str, user_id: str, *, around: int) -> Page:
        """Read and encode a user's standing.

        Raises UnknownUser, Uninitialised, RedisUnavailable, Overloaded.
        """
        found = await self._store.standing(board, user_id, around=around)
        self._note_position(board, found.epoch, found.seq)
        reply = StandingReply(
            found.user_id,
            found.rank,
            found.score,
            found.total,
            found.epoch,
            found.seq,
            unnamed(found.neighbours),
            percentile_of(found.rank, found.total),
        )
        return encode_page(reply)

    async def standings(self, board: str, user_ids: Sequence[str], *, names: bool) -> Page:
        """Read and encode the standings of some users, and their order.

        Raises Uninitialised, RedisUnavailable, Overloaded.
        """
        found = await self._store.standings(board, user_ids)
        self._note_position(board, found.epoch, found.seq)
        rows, mark = await self.add_names(found.rows) if names else (unnamed(found.rows), "")
        reply = StandingsReply(*placed(rows, user_ids), found.total, found.epoch, found.seq)
        return encode_page(reply, mark)

    async def rank_of_score(self, board: str, score: int) -> Page:
        """Read and encode the rank that a score would get.

        Raises Uninitialised, RedisUnavailable, Overloaded.
        """
        found = await self._store.rank_of_score(board, score)
        self._note_position(board, found.epoch, found.seq)
        return encode_page(
            ScoreRankReply(score, found.rank, found.equals, found.total, found.epoch, found.seq)
        )

    async def cutoff(self, board: str, rank: int) -> Page:
        """Read and encode the score at a rank, and the one that takes it.

        Raises Invalid for a rank that is too deep, Uninitialised, RedisUnavailable, Overloaded.
        """
        window = await self._read_window(board, 1, rank - 1, what="rank")
        score, needed = cutoff_of((await self.board(board)).layout.rules, window.rows)
        return encode_page(
            CutoffReply(rank, window.total, window.epoch, window.seq, score=score, needed=needed)
        )

    async def _read_window(
        self, board: str, limit: int, offset: int, *, what: str = "offset + limit"
    ) -> Window:
        found = await self.board(board)
        if found.layout.partitions > 1 and offset + limit > MERGED_DEPTH_MAX:
            raise Invalid(f"{what} is at most {MERGED_DEPTH_MAX} on this board")
        read = partial(self._store.leaderboard, board, limit=limit, offset=offset)
        window = await self._window_reads.get((board, limit, offset), read)
        self._note_position(board, window.epoch, window.seq)
        return window

    async def _read_top(self, board: str) -> _Top:
        """Read the top of a board; keep it if nothing has changed since the read was sent."""
        self._watch()
        known = self._of(board)
        before, now_s = self._generation(board, known), time.monotonic()
        window = await self._store.leaderboard(board, limit=WATCHED_TOP)
        is_unchanged = before == self._generation(board, known)
        self._note_position(board, window.epoch, window.seq)
        top = _Top(window, self._generation(board, known), now_s + TOP_TTL_S)
        if is_unchanged and self._watcher.hears(board, len(window.positions)):
            known.top = top
        return top

    def _generation(self, board: str, known: _Known) -> int:
        """Return a number that increases when the board may have changed."""
        return self._watcher.generation(board) + known.own_changes

    def _note_position(self, board: str, epoch: int, seq: int) -> None:
        """Invalidate the kept top if a read has found another position than the last one."""
        known = self._of(board)
        if known.position != (epoch, seq):
            known.position = (epoch, seq)
            known.own_changes += 1

    async def _encode_window(self, window: Window, *, names: bool) -> Page:
        rows, mark = await self.add_names(window.rows) if names else (unnamed(window.rows), "")
        reply = LeaderboardReply(rows, window.total, window.epoch, window.seq)
        if window.season:
            season, _, end_s = window.season.split(":")
            reply = msgspec.structs.replace(reply, season=season, ends_at=int(end_s) * 1000)
        return encode_page(reply, mark)

    async def season(self, board: str) -> str:
        """Return the id of the season that a board shows now; empty if it has none.

        Raises Uninitialised, RedisUnavailable, Overloaded.
        """
        return (await self._read_window(board, 1, 0)).season.partition(":")[0]

    async def add_names(self, rows: tuple[Row, ...]) -> tuple[tuple[RankedUser, ...], str]:
        """Add names and metadata.

        They change independently of ``seq``, so the ETag includes their checksum.
        """
        profiles = await self._names.of([row.user_id for row in rows])
        named = tuple(_named(row, profiles.get(row.user_id)) for row in rows)
        return named, f"-{zlib.crc32(repr(sorted(profiles.items())).encode()):08x}"


def placed(
    rows: Sequence[RankedUser], user_ids: Sequence[str]
) -> tuple[tuple[PlacedUser, ...], tuple[str, ...]]:
    """Return the rows of some users with their places among them, and the users without a row."""
    ranked = {row.user_id for row in rows}
    return (
        tuple(
            PlacedUser(
                place=place,
                rank=row.rank,
                user_id=row.user_id,
                score=row.score,
                name=row.name,
                metadata=row.metadata,
            )
            for place, row in enumerate(rows, 1)
        ),
        tuple(user_id for user_id in user_ids if user_id not in ranked),
    )


def cutoff_of(rules: Rules, rows: Sequence[Row]) -> tuple[int | UnsetType, int | UnsetType]:
    """Return the score at a rank, and the one that takes it; ``rows`` is empty without such a rank.

    The score is UNSET without one, and the other if no score suffices.
    """
    best, worst, step = rules.score_max, rules.score_min, 1
    if rules.order == "lowest":
        best, worst, step = worst, best, -1
    if not rows:
        return UNSET, worst
    score = rows[0].score
    # A new arrival ranks last among equals.
    return score, score + step if score != best else UNSET


def percentile_of(rank: int, total: int) -> float:
    """Return the share of the other users that rank below, in percent, rounded down to 0.01.

    It is 100 for the first user only, also without others, and 0 for the last of several.
    """
    others = total - 1
    if others < 1:
        return 100.0
    # Partitions are read one after the other, so a rank can exceed the total for a moment.
    return max(0, total - rank) * 10_000 // others / 100


def encode_page(
    reply: LeaderboardReply | StandingReply | StandingsReply | ScoreRankReply | CutoffReply,
    mark: str = "",
) -> Page:
    """Encode a reply. Its ETag is the position of the board, and ``mark`` for what else changes."""
    return Page(f'W/"{reply.epoch}-{reply.seq}{mark}"', _encode(reply))


def _named(row: Row, profile: PublicProfile | None) -> RankedUser:
    name = metadata = UNSET
    if profile is not None:
        name = profile.name or UNSET
        metadata = Raw(profile.metadata) if profile.metadata else UNSET
    return RankedUser(row.rank, row.user_id, row.score, name, metadata)


def unnamed(rows: tuple[Row, ...]) -> tuple[RankedUser, ...]:
    """Return rows without names."""
    return tuple(RankedUser(rank=row.rank, user_id=row.user_id, score=row.score) for row in rows)


def etag_matches(if_none_match: str | None, etag: str) -> bool:
    """Return whether If-None-Match matches an ETag (weak comparison, RFC 9110, 13.1.2)."""
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags
