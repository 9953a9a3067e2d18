"""Boards as readers see them: layout, leaderboard, standing.

A board of several partitions is merged here: by packed score, then partition number. Each
partition is read at a moment of its own.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from heapq import merge
from itertools import islice
from typing import Annotated, Final, TypeVar

import redis.asyncio as aioredis
from msgspec import Meta, Struct

from scoreboard.errors import (
    Uninitialised,
    UnknownUser,
)
from scoreboard.model import (
    COUNT_MAX,
    PACKED_MAX,
    Board,
    Layout,
    Partition,
    Row,
    Standing,
    Window,
    partition_of,
    unpack_score,
)
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.partitions import read_state
from scoreboard.store.replies import checking_reply
from scoreboard.store.scripts import Script, call

_WHOLE: Final = re.compile(r"\d{1,16}", re.ASCII)
READ_AGAIN: Final = 2
"""Most repetitions of a read because partitions began other epochs meanwhile."""
_Reply = TypeVar("_Reply")
_Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
_Epoch = Annotated[int, Meta(ge=1, le=COUNT_MAX)]
_Read = TypeVar("_Read", "_Page", "_Place", "_Near")
_LEADERBOARD: Final = Script.load("leaderboard")
_STANDING: Final = Script.load("standing")
_NEIGHBOURS: Final = Script.load("neighbours")


class _Page(Struct, frozen=True, array_like=True):
    epoch: _Epoch
    seq: _Count
    total: _Count
    rows: list[str]

    def __post_init__(self) -> None:
        _check_rows(self.rows)


class _Place(Struct, frozen=True, array_like=True):
    epoch: _Epoch
    seq: _Count
    total: _Count
    index: Annotated[int, Meta(ge=-1, le=COUNT_MAX)]
    packed: Annotated[int, Meta(ge=-1, le=PACKED_MAX)]
    first: _Count
    rows: list[str]

    def __post_init__(self) -> None:
        _check_rows(self.rows)


class _Near(Struct, frozen=True, array_like=True):
    epoch: _Epoch
    seq: _Count
    total: _Count
    count_above: _Count
    above: list[str]
    below: list[str]

    def __post_init__(self) -> None:
        _check_rows(self.above)
        _check_rows(self.below)


class _Placed(Struct, frozen=True, order=True):
    """A member in the order of a whole board: best first."""

    sort_packed: int
    partition: int
    user_id: str

    @property
    def packed(self) -> int:
        return -self.sort_packed


def _check_rows(rows: Sequence[str]) -> None:
    """Raise ValueError unless users and packed scores stand in turn."""
    if len(rows) % 2 or not all(
        _WHOLE.fullmatch(packed) and int(packed) <= PACKED_MAX for packed in rows[1::2]
    ):
        raise ValueError("rows are users and packed scores in turn")


def _pairs(flat: Sequence[str], partition: int) -> list[_Placed]:
    return [
        _Placed(-int(packed), partition, user)
        for user, packed in zip(flat[::2], flat[1::2], strict=True)
    ]


def _rows(placed: Sequence[_Placed], first_index: int) -> tuple[Row, ...]:
    return tuple(
        Row(rank, one.user_id, unpack_score(one.packed))
        for rank, one in enumerate(placed, first_index + 1)
    )


class _EpochChanged(Uninitialised):
    """A partition began another epoch: the layout of its board may be another one."""


class Boards:
    """Boards as readers see them: layout, leaderboard, standing."""

    def __init__(self, client: aioredis.Redis) -> None:
        """Take a client that decodes replies (store.client.make_client does)."""
        self._client = client
        self._layouts: dict[str, Layout] = {}
        self._epochs: dict[str, dict[int, int]] = {}
        """Epoch of each partition as it was first read under the layout that is known."""

    async def board(self, name: str) -> Board:
        """Read what was fixed when a board was made, as partition 0 carries it.

        Raises Uninitialised on an emptied Redis and where the layout is missing, RedisUnavailable,
        UnexpectedReply.
        """
        state = await read_state(self._client, Partition(name))
        if not state.epoch or state.layout is None:
            raise Uninitialised
        if state.layout != self._layouts.get(name):
            self._epochs.pop(name, None)
        self._layouts[name] = state.layout
        return Board(name, state.layout, state.is_public)

    async def leaderboard(self, board: str, *, offset: int = 0, limit: int = 10) -> Window:
        """Read rows offset…offset+limit of a board, with total, epoch and seq of the same moments.

        Raises Uninitialised, RedisUnavailable, ScriptFailed.
        """
        return await self._current(board, lambda: self._leaderboard(board, offset, limit))

    async def _leaderboard(self, board: str, offset: int, limit: int) -> Window:
        layout = await self._layout(board)
        if layout.partitions == 1:
            page = await self._page(Partition(board), offset, limit)
            rows = _rows(_pairs(page.rows, 0), offset)
            return Window(page.epoch, page.seq, page.total, rows, ((page.epoch, page.seq),))
        pages = [
            await self._page(Partition(board, number), 0, offset + limit if limit else 0)
            for number in range(layout.partitions)
        ]
        best = merge(*(_pairs(page.rows, number) for number, page in enumerate(pages)))
        return Window(
            epoch=sum(page.epoch for page in pages),
            seq=sum(page.seq for page in pages),
            total=sum(page.total for page in pages),
            rows=_rows(list(islice(best, offset, offset + limit)), offset),
            positions=tuple((page.epoch, page.seq) for page in pages),
        )

    async def standing(self, board: str, user_id: str, *, around: int = 0) -> Standing:
        """Read a user's place, and ``around`` rows to each side (more on one where the other ends).

        Raises UnknownUser, Uninitialised, RedisUnavailable, ScriptFailed.
        """
        return await self._current(board, lambda: self._standing(board, user_id, around))

    async def _standing(self, board: str, user_id: str, around: int) -> Standing:
        layout = await self._layout(board)
        home = partition_of(user_id, layout.partitions)
        # Neighbours of other partitions may fill a whole window on either side.
        width = around if layout.partitions == 1 else 2 * around
        place = await self._read(_STANDING, Partition(board, home), [user_id, width], _Place)
        if place.index < 0:
            raise UnknownUser(f"The user has no score on board {board}")
        epoch, seq, total, index = place.epoch, place.seq, place.total, place.index
        near = _pairs(place.rows, home)
        first = place.first
        if layout.partitions > 1:
            for number in range(layout.partitions):
                if number == home:
                    continue
                other = await self._read(
                    _NEIGHBOURS,
                    Partition(board, number),
                    [place.packed, int(number < home), width],
                    _Near,
                )
                epoch, seq, total = epoch + other.epoch, seq + other.seq, total + other.total
                index += other.count_above
                near += _pairs(other.above, number) + _pairs(other.below, number)
            near.sort()
            with checking_reply(_STANDING.name):
                at = near.index(_Placed(-place.packed, home, user_id))
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

    async def _current(self, board: str, read: Callable[[], Awaitable[_Reply]]) -> _Reply:
        """Read by the layout that is known; if that may have changed, learn it and read again.

        A layout changes together with the epoch of each partition, or its partitions are retired.
        """
        for _ in range(READ_AGAIN):
            with suppress(Uninitialised):
                return await read()
            await self.board(board)
            self._epochs.pop(board, None)
        return await read()

    async def _layout(self, board: str) -> Layout:
        return self._layouts.get(board) or (await self.board(board)).layout

    async def _page(self, partition: Partition, offset: int, limit: int) -> _Page:
        return await self._read(_LEADERBOARD, partition, [offset, limit], _Page)

    async def _read(
        self, script: Script, partition: Partition, args: list[object], shape: type[_Read]
    ) -> _Read:
        keys = PartitionKeys(partition)
        names = [keys.board, keys.meta]
        found = await call(self._client, script, names, args, shape, reads=True)
        epochs = self._epochs.setdefault(partition.board, {})
        known = epochs.get(partition.number)
        if known is None or found.epoch > known:
            epochs[partition.number] = found.epoch
        if known is not None and found.epoch > known:
            raise _EpochChanged
        return found
