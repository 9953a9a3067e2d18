"""Reads of boards: layout, leaderboard, standing.

The partitions of a board are merged here, by packed score and then partition number. Each
partition is read at a moment of its own.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from heapq import merge
from itertools import islice
from typing import Annotated, Any, Final, TypeVar

import redis.asyncio as aioredis
from msgspec import Meta, Struct, field

from scoreboard.errors import Uninitialised, UnknownUser
from scoreboard.model import (
    BATCH_MAX,
    BOARDS_KEPT_MAX,
    COUNT_MAX,
    PACKED_MAX,
    Board,
    Count,
    Layout,
    Partition,
    Row,
    Rules,
    Standing,
    Window,
    partition_of,
)
from scoreboard.runtime.recent import Recent
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.partitions import Partitions
from scoreboard.store.reads import ClientReads, Reading, Reads, ReadScript
from scoreboard.store.replies import checking_reply, convert, parse_whole, read_reply
from scoreboard.store.scripts import Script

COUNTS_MAX: Final = 1000
"""Partitions of one round trip of counts: it must not hold Redis."""

READS_MAX: Final = 3
"""Maximum reads of a board whose partitions begin new epochs."""

_Reply = TypeVar("_Reply")
_Epoch = Annotated[int, Meta(ge=1, le=COUNT_MAX)]


class _Page(Struct, frozen=True, array_like=True):
    """The reply of leaderboard.lua."""

    epoch: _Epoch
    seq: Count
    total: Count
    rows: list[str]
    changed_ms: Count
    now_ms: Count

    def __post_init__(self) -> None:
        _check_rows(self.rows)


class _Place(Struct, frozen=True, array_like=True):
    """A user's place in the reply of standing.lua."""

    index: Annotated[int, Meta(ge=-1, le=COUNT_MAX)]
    packed: Annotated[int, Meta(ge=-1, le=PACKED_MAX)]
    first: Count
    rows: list[str]

    def __post_init__(self) -> None:
        if self.rows:
            _check_rows(self.rows)


class _Places(Struct, frozen=True, array_like=True):
    """The reply of standing.lua.

    Each place is converted by the read that it answers, so that an invalid one fails only that
    read.
    """

    epoch: _Epoch
    seq: Count
    total: Count
    places: list[Any]
    """Each a _Place."""


class _Near(Struct, frozen=True, array_like=True):
    """What neighbours.lua returns for one packed score."""

    count_above: Count
    above: list[str]
    below: list[str]

    def __post_init__(self) -> None:
        _check_rows(self.above)
        _check_rows(self.below)


class _Nears(Struct, frozen=True, array_like=True):
    """The reply of neighbours.lua. Each part is converted by the read that it answers."""

    epoch: _Epoch
    seq: Count
    total: Count
    near: list[Any]
    """Each a _Near."""


_LEADERBOARD: Final = ReadScript(Script.load("leaderboard"), _Page)
"""One window per call, because one of several partitions may have thousands of rows."""

_STANDING: Final = ReadScript(Script.load("standing"), _Places, BATCH_MAX)
_NEIGHBOURS: Final = ReadScript(Script.load("neighbours"), _Nears, BATCH_MAX)
BOARD_SCRIPTS: Final = (_LEADERBOARD, _STANDING, _NEIGHBOURS)
"""The scripts that a sender of reads runs."""


class _Member(Struct, frozen=True, order=True):
    """A member of a board; members sort in ranking order."""

    negative_packed: int
    partition: int
    user_id: str

    @property
    def packed(self) -> int:
        return -self.negative_packed


def _check_rows(rows: Sequence[str]) -> None:
    """Raise ValueError unless users and packed scores alternate."""
    scores = [parse_whole(packed) for packed in rows[1::2]]
    if len(rows) % 2 or not all(score is not None and score <= PACKED_MAX for score in scores):
        raise ValueError("rows are not alternating users and packed scores")


def _members(flat: Sequence[str], partition: int) -> list[_Member]:
    return [
        _Member(-int(packed), partition, user)
        for user, packed in zip(flat[::2], flat[1::2], strict=True)
    ]


def _rows(rules: Rules, members: Sequence[_Member], first_index: int) -> tuple[Row, ...]:
    return tuple(
        Row(rank, member.user_id, rules.unpack_score(member.packed))
        for rank, member in enumerate(members, first_index + 1)
    )


class _Known(Struct):
    """What is known of a board: its layout, and the epoch that each partition had under it.

    A read works with the one that it began with. After a change, all reads that began before notice
    it, not only the first one.
    """

    layout: Layout
    epochs: dict[int, int] = field(default_factory=dict[int, int])


class _EpochChanged(Uninitialised):
    """A partition began a new epoch, so the layout of its board may have changed."""


class Boards(Partitions):
    """Reads of boards: layout, leaderboard, standing."""

    def __init__(self, client: aioredis.Redis, reads: Reads | None = None) -> None:
        """Use a client that decodes replies, as ``store.client.make_client`` returns it.

        ``reads`` sends the reads of leaderboards and standings, by default with the client.
        """
        super().__init__(client)
        self._reads = reads or ClientReads(client)
        self._known: Recent[_Known] = Recent(BOARDS_KEPT_MAX)

    async def board(self, name: str) -> Board:
        """Read the properties of a board from its partition 0.

        Raises Uninitialised if Redis is empty or the layout is missing, RedisUnavailable,
        UnexpectedReply.
        """
        state = await self.state(Partition(name))
        if not state.epoch or state.layout is None:
            raise Uninitialised
        known = self._known.get(name)
        if known is None or known.layout != state.layout:
            self._known.keep(name, _Known(state.layout))
        return Board(
            name, state.layout, state.is_public, "archived" if state.is_archived else "open"
        )

    async def count_users(self, boards: Sequence[Board]) -> list[int]:
        """Count the users of boards, in pages of one round trip; 0 for a board that is not loaded.

        Raises RedisUnavailable, UnexpectedReply.
        """
        keys = [
            (index, PartitionKeys(Partition(board.name, number)).board)
            for index, board in enumerate(boards)
            for number in range(board.layout.partitions)
        ]
        counts = [0] * len(boards)
        for start in range(0, len(keys), COUNTS_MAX):
            page = keys[start : start + COUNTS_MAX]
            async with self._client.pipeline(transaction=False) as pipe:
                for _, key in page:
                    pipe.zcard(key)
                replies = await read_reply(pipe.execute(), list[Count], "ZCARD")
            for (index, _), count in zip(page, replies, strict=True):
                counts[index] += count
        return counts

    async def leaderboard(self, board: str, *, offset: int = 0, limit: int = 10) -> Window:
        """Read rows offset…offset+limit of a board, with the total, epoch and seq.

        All partitions are read in one round trip.

        Raises Uninitialised, RedisUnavailable, ScriptFailed.
        """
        return await self._with_layout(
            board, lambda known: self._leaderboard(board, known, offset, limit)
        )

    async def _leaderboard(self, board: str, known: _Known, offset: int, limit: int) -> Window:
        layout = known.layout
        numbers = range(layout.partitions)
        if layout.partitions == 1:
            ((page, _),) = await self._read(_LEADERBOARD, board, known, {0: (offset, limit)})
            rows = _rows(layout.rules, _members(page.rows, 0), offset)
            return Window(
                page.epoch,
                page.seq,
                page.total,
                rows,
                ((page.epoch, page.seq),),
                page.changed_ms,
                page.now_ms,
            )
        # Any partition may hold all of the rows, so each is read from its first one.
        args = (0, offset + limit if limit else 0)
        found = await self._read(_LEADERBOARD, board, known, dict.fromkeys(numbers, args))
        pages: list[_Page] = [page for page, _ in found]
        ranking = merge(*(_members(page.rows, number) for number, page in enumerate(pages)))
        return Window(
            epoch=sum(page.epoch for page in pages),
            seq=sum(page.seq for page in pages),
            total=sum(page.total for page in pages),
            rows=_rows(layout.rules, list(islice(ranking, offset, offset + limit)), offset),
            positions=tuple((page.epoch, page.seq) for page in pages),
            changed_ms=max(page.changed_ms for page in pages),
            read_ms=max(page.now_ms for page in pages),
        )

    async def standing(self, board: str, user_id: str, *, around: int = 0) -> Standing:
        """Read a user's rank and score, with ``around`` rows on each side.

        Near an end of the ranking the rows missing on one side are added on the other. The user's
        partition is read in one round trip, all others in a second one.

        Raises UnknownUser, Uninitialised, RedisUnavailable, ScriptFailed.
        """
        return await self._with_layout(
            board, lambda known: self._standing(board, known, user_id, around)
        )

    async def _standing(self, board: str, known: _Known, user_id: str, around: int) -> Standing:
        layout = known.layout
        home = partition_of(user_id, layout.partitions)
        # Neighbours of other partitions may fill a whole window on either side.
        width = around if layout.partitions == 1 else 2 * around
        ((places, number),) = await self._read(_STANDING, board, known, {home: (user_id, width)})
        with checking_reply(_STANDING.script.name):
            place = convert(places.places[number], _Place)
        if place.index < 0:
            raise UnknownUser(f"The user has no score on board {board}")
        epoch, seq, total, index = places.epoch, places.seq, places.total, place.index
        near = _members(place.rows, home)
        first = place.first
        if layout.partitions > 1:
            args = {
                number: (place.packed, int(number < home), width)
                for number in range(layout.partitions)
                if number != home
            }
            others = await self._read(_NEIGHBOURS, board, known, args)
            for other, (nears, at) in zip(args, others, strict=True):
                with checking_reply(_NEIGHBOURS.script.name):
                    beside = convert(nears.near[at], _Near)
                epoch, seq, total = epoch + nears.epoch, seq + nears.seq, total + nears.total
                index += beside.count_above
                near += _members(beside.above, other) + _members(beside.below, other)
        if layout.partitions > 1 and around:
            near.sort()
            with checking_reply(_STANDING.script.name):
                at = near.index(_Member(-place.packed, home, user_id))
            first = max(0, min(index - around, total - 1 - 2 * around))
            start = max(0, at - (index - first))
            near = near[start : start + 2 * around + 1]
        return Standing(
            user_id=user_id,
            rank=index + 1,
            score=layout.rules.unpack_score(place.packed),
            total=total,
            epoch=epoch,
            seq=seq,
            neighbours=_rows(layout.rules, near, first) if around else (),
        )

    async def _with_layout(self, board: str, read: Callable[[_Known], Awaitable[_Reply]]) -> _Reply:
        """Read by the known layout; if that may have changed, learn it and read again.

        A change of layout gives each partition a new epoch or retires it.
        """
        for _ in range(READS_MAX - 1):
            known = self._known.use(board) or await self._learn(board)
            with suppress(Uninitialised):
                return await read(known)
            if self._known.get(board) is known:  # no other read has learned it since
                await self._learn(board)
        return await read(self._known.get(board) or await self._learn(board))

    async def _learn(self, board: str) -> _Known:
        """Read the layout of a board; forget the epochs of its partitions."""
        return self._known.keep(board, _Known((await self.board(board)).layout))

    async def _read(
        self,
        script: ReadScript,
        board: str,
        known: _Known,
        args: Mapping[int, Sequence[object]],
    ) -> Sequence[Reading]:
        """Run a script on partitions of a board in one round trip; ``args`` by partition number.

        Raises _EpochChanged if a partition has begun a new epoch.
        """
        found = await self._reads.read(
            script, [(Partition(board, number), values) for number, values in args.items()]
        )
        for number, (reply, _) in zip(args, found, strict=True):
            if reply.epoch > known.epochs.setdefault(number, reply.epoch):
                raise _EpochChanged
        return found
