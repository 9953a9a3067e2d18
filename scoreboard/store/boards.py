"""Reads of boards: layout, leaderboard, standing.

The partitions of a board are merged here, by packed score and then partition number. Each
partition is read at a moment of its own.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from heapq import merge
from itertools import islice
from typing import Annotated, Final, TypeVar

import redis.asyncio as aioredis
from msgspec import Meta, Struct

from scoreboard.errors import Uninitialised, UnknownUser
from scoreboard.model import (
    BATCH_MAX,
    COUNT_MAX,
    PACKED_MAX,
    Board,
    Count,
    Layout,
    Partition,
    Row,
    Standing,
    Window,
    partition_of,
    unpack_score,
)
from scoreboard.store.partitions import Partitions
from scoreboard.store.reads import ClientReads, Reading, Reads, ReadScript
from scoreboard.store.replies import checking_reply, parse_whole
from scoreboard.store.scripts import Script

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
    """The reply of standing.lua."""

    epoch: _Epoch
    seq: Count
    total: Count
    places: list[_Place]


class _Near(Struct, frozen=True, array_like=True):
    """What neighbours.lua returns for one packed score."""

    count_above: Count
    above: list[str]
    below: list[str]

    def __post_init__(self) -> None:
        _check_rows(self.above)
        _check_rows(self.below)


class _Nears(Struct, frozen=True, array_like=True):
    """The reply of neighbours.lua."""

    epoch: _Epoch
    seq: Count
    total: Count
    near: list[_Near]


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


def _rows(members: Sequence[_Member], first_index: int) -> tuple[Row, ...]:
    return tuple(
        Row(rank, member.user_id, unpack_score(member.packed))
        for rank, member in enumerate(members, first_index + 1)
    )


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
        self._layouts: dict[str, Layout] = {}
        self._epochs: dict[str, dict[int, int]] = {}
        """The epoch of each partition at its first read under the known layout."""

    async def board(self, name: str) -> Board:
        """Read the properties of a board from its partition 0.

        Raises Uninitialised if Redis is empty or the layout is missing, RedisUnavailable,
        UnexpectedReply.
        """
        state = await self.state(Partition(name))
        if not state.epoch or state.layout is None:
            raise Uninitialised
        if state.layout != self._layouts.get(name):
            self._epochs.pop(name, None)
        self._layouts[name] = state.layout
        return Board(name, state.layout, state.is_public)

    async def leaderboard(self, board: str, *, offset: int = 0, limit: int = 10) -> Window:
        """Read rows offset…offset+limit of a board, with the total, epoch and seq.

        All partitions are read in one round trip.

        Raises Uninitialised, RedisUnavailable, ScriptFailed.
        """
        return await self._with_layout(
            board, lambda layout: self._leaderboard(board, layout, offset, limit)
        )

    async def _leaderboard(self, board: str, layout: Layout, offset: int, limit: int) -> Window:
        numbers = range(layout.partitions)
        if layout.partitions == 1:
            ((page, _),) = await self._read(_LEADERBOARD, board, {0: (offset, limit)})
            rows = _rows(_members(page.rows, 0), offset)
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
        found = await self._read(_LEADERBOARD, board, dict.fromkeys(numbers, args))
        pages: list[_Page] = [page for page, _ in found]
        ranking = merge(*(_members(page.rows, number) for number, page in enumerate(pages)))
        return Window(
            epoch=sum(page.epoch for page in pages),
            seq=sum(page.seq for page in pages),
            total=sum(page.total for page in pages),
            rows=_rows(list(islice(ranking, offset, offset + limit)), offset),
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
            board, lambda layout: self._standing(board, layout, user_id, around)
        )

    async def _standing(self, board: str, layout: Layout, user_id: str, around: int) -> Standing:
        home = partition_of(user_id, layout.partitions)
        # Neighbours of other partitions may fill a whole window on either side.
        width = around if layout.partitions == 1 else 2 * around
        ((places, number),) = await self._read(_STANDING, board, {home: (user_id, width)})
        with checking_reply(_STANDING.script.name):
            place: _Place = places.places[number]
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
            others = await self._read(_NEIGHBOURS, board, args)
            for other, (nears, at) in zip(args, others, strict=True):
                with checking_reply(_NEIGHBOURS.script.name):
                    beside: _Near = nears.near[at]
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
            score=unpack_score(place.packed),
            total=total,
            epoch=epoch,
            seq=seq,
            neighbours=_rows(near, first) if around else (),
        )

    async def _with_layout(self, board: str, read: Callable[[Layout], Awaitable[_Reply]]) -> _Reply:
        """Read by the known layout; if that may have changed, learn it and read again.

        A change of layout gives each partition a new epoch or retires it.
        """
        for _ in range(READS_MAX - 1):
            with suppress(Uninitialised):
                return await read(self._layouts.get(board) or (await self.board(board)).layout)
            await self.board(board)
            self._epochs.pop(board, None)
        return await read(self._layouts[board])

    async def _read(
        self, script: ReadScript, board: str, args: Mapping[int, Sequence[object]]
    ) -> Sequence[Reading]:
        """Run a script on partitions of a board in one round trip; ``args`` by partition number.

        Raises _EpochChanged if a partition has begun a new epoch.
        """
        found = await self._reads.read(
            script, [(Partition(board, number), values) for number, values in args.items()]
        )
        self._check_epochs(board, zip(args, (reply.epoch for reply, _ in found), strict=True))
        return found

    def _check_epochs(self, board: str, epochs: Iterable[tuple[int, int]]) -> None:
        known = self._epochs.setdefault(board, {})
        is_changed = False
        for number, epoch in epochs:
            before = known.get(number)
            if before is None or epoch > before:
                known[number] = epoch
            is_changed = is_changed or (before is not None and epoch > before)
        if is_changed:
            raise _EpochChanged
