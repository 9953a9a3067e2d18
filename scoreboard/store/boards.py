"""Reads of boards: layout, leaderboard, standings, ranks of scores.

The partitions of a board are merged here, by packed score and then partition number. Each
partition is read at a moment of its own, and all of them in one layout: while a reshard switches
from one to the next, which takes milliseconds, a read waits.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
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
    SLOT_COUNT,
    Board,
    Count,
    Layout,
    Partition,
    Row,
    Rules,
    ScoreRank,
    Standing,
    Standings,
    Window,
    partition_of,
)
from scoreboard.runtime.recent import Recent
from scoreboard.seasons import Season
from scoreboard.store.cluster import send_many
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.partitions import Partitions
from scoreboard.store.reads import ClientReads, Reading, Reads, ReadScript
from scoreboard.store.replies import checking_reply, convert, parse_whole, read_replies
from scoreboard.store.scripts import Script

COUNTS_MAX: Final = 1000
"""Partitions of one round trip of counts: it must not hold Redis."""

READS_MAX: Final = 3
"""Maximum reads of a board whose partitions begin new epochs."""

SWITCH_S: Final = 2.0
"""Longest time to wait until all partitions of a board have one layout."""

_SWITCH_POLL_S: Final = 0.01

_Reply = TypeVar("_Reply")
_Item = TypeVar("_Item")
_Epoch = Annotated[int, Meta(ge=1, le=COUNT_MAX)]


class _Page(Struct, frozen=True, array_like=True):
    """The reply of leaderboard.lua."""

    epoch: _Epoch
    seq: Count
    total: Count
    rows: list[str]
    changed_ms: Count
    now_ms: Count
    season: str = ""
    layout: str = ""

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
    layout: str = ""


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
    layout: str = ""


_LEADERBOARD: Final = ReadScript(Script.load("leaderboard"), _Page, width=2)
"""One window per call, because one of several partitions may have thousands of rows."""

_STANDING: Final = ReadScript(Script.load("standing"), _Places, width=2, reads_max=BATCH_MAX)
_NEIGHBOURS: Final = ReadScript(Script.load("neighbours"), _Nears, width=3, reads_max=BATCH_MAX)
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


class _Found(Struct, frozen=True, order=True):
    """A user whose place in its partition was read; they sort in ranking order."""

    negative_packed: int
    partition: int
    index: int
    user_id: str

    @property
    def packed(self) -> int:
        return -self.negative_packed


def _check_rows(rows: Sequence[str]) -> None:
    """Raise ValueError unless users and packed scores alternate."""
    scores = [parse_whole(packed) for packed in rows[1::2]]
    if len(rows) % 2 or not all(score is not None and score <= PACKED_MAX for score in scores):
        raise ValueError("rows are not alternating users and packed scores")


def _start_of(season: str) -> int:
    """Return when a season, as id:start:end, began; 0 for none."""
    start = season.split(":")[1:2]
    return int(start[0]) if start and start[0].isdecimal() else 0


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


def _parts(items: Sequence[_Item]) -> list[Sequence[_Item]]:
    """Split a sequence into parts that one call takes."""
    return [items[at : at + BATCH_MAX] for at in range(0, len(items), BATCH_MAX)]


class _Known(Struct):
    """What is known of a board: its layout, and the epoch that each partition had under it.

    A read works with the one that it began with. After a change, all reads that began before notice
    it, not only the first one.
    """

    layout: Layout
    text: str
    """The layout as partitions have it."""
    epochs: dict[int, int] = field(default_factory=dict[int, int])


class _EpochChanged(Uninitialised):
    """A partition began a new epoch, so the layout of its board may have changed."""


class _LayoutDiffers(Uninitialised):
    """A partition has another layout than the reader assumed: users are in other partitions."""


class Boards(Partitions):
    """Reads of boards: layout, leaderboard, standings, ranks of scores."""

    def __init__(self, client: aioredis.Redis, reads: Reads | None = None) -> None:
        """Use a client that decodes replies, as ``store.client.make_client`` returns it.

        ``reads`` sends the reads of leaderboards and standings, by default with the client.
        """
        super().__init__(client)
        self._reads = reads or ClientReads(client)
        self._known: Recent[_Known] = Recent(BOARDS_KEPT_MAX)

    async def board(self, name: str) -> Board:
        """Read the properties of a board from its partition 0.

        Raises what ``board_and_season`` raises.
        """
        return (await self.board_and_season(name))[0]

    async def board_and_season(self, name: str) -> tuple[Board, Season | None]:
        """Read the properties of a board, and its season, from its partition 0.

        Raises Uninitialised if Redis is empty or the layout is missing, RedisUnavailable,
        UnexpectedReply.
        """
        state = await self.state(Partition(name))
        if not state.epoch or state.layout is None:
            raise Uninitialised
        known = self._known.get(name)
        if known is None or known.layout != state.layout:
            self._known.keep(name, _Known(state.layout, str(state.layout)))
        word = "archived" if state.is_archived else "open"
        return Board(name, state.layout, state.is_public, word, state.limits), state.season

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
            sent = send_many(self._client, [("ZCARD", key) for _, key in page])
            replies = await read_replies(sent, list[Count], "ZCARD")
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
                page.season,
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
            # Partitions turn one after the other: until the last one has, it is the season before.
            season=min((page.season for page in pages), key=_start_of),
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
        ((places, number),) = await self._read(_STANDING, board, known, {home: (user_id, around)})
        with checking_reply(_STANDING.script.name):
            place = convert(places.places[number], _Place)
        if place.index < 0:
            raise UnknownUser(f"The user has no score on board {board}")
        epoch, seq, total, index = places.epoch, places.seq, places.total, place.index
        near = _members(place.rows, home)
        first = place.first
        if layout.partitions > 1:
            # Each side needs as many rows as the other may lack, which are at most those that it
            # lacks in the user's own partition.
            lacking = around - min(around, index, total - 1 - index)
            width = around + lacking
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

    async def standings(self, board: str, user_ids: Sequence[str]) -> Standings:
        """Read ranks and scores of users, best first; users without a score are left out.

        The users' partitions are read in one round trip, all partitions in a second one if there
        are several. ``user_ids`` are distinct.

        Raises Uninitialised, RedisUnavailable, ScriptFailed.
        """
        return await self._with_layout(board, lambda known: self._standings(board, known, user_ids))

    async def _standings(self, board: str, known: _Known, user_ids: Sequence[str]) -> Standings:
        partitions = known.layout.partitions
        by_home: dict[int, list[str]] = {}
        for user_id in user_ids:
            by_home.setdefault(partition_of(user_id, partitions), []).append(user_id)
        asked = [(home, users) for home, all_of in by_home.items() for users in _parts(all_of)]
        found = await self._read_each(
            _STANDING,
            board,
            known,
            [(home, [arg for user in users for arg in (user, 0)]) for home, users in asked],
        )
        ranking: list[_Found] = []
        for (home, users), (places, first) in zip(asked, found, strict=True):
            with checking_reply(_STANDING.script.name):
                told = convert(places.places[first : first + len(users)], list[_Place])
                ranking += [
                    _Found(-place.packed, home, place.index, user)
                    for user, place in zip(users, told, strict=True)
                    if place.index >= 0
                ]
        ranking.sort()
        indexes = [one.index for one in ranking]
        replies: Mapping[int, Sequence[_Places | _Nears]]
        if partitions == 1:
            replies = {0: [places for places, _ in found]}
        else:
            replies = await self._add_ranks_elsewhere(board, known, ranking, indexes)
        # The position of the earliest reply: a later read then finds a change that another one has.
        positions = [min((one.epoch, one.seq) for one in of) for of in replies.values()]
        return Standings(
            rows=tuple(
                Row(index + 1, one.user_id, known.layout.rules.unpack_score(one.packed))
                for one, index in zip(ranking, indexes, strict=True)
            ),
            total=sum(of[0].total for of in replies.values()),
            epoch=sum(epoch for epoch, _ in positions),
            seq=sum(seq for _, seq in positions),
        )

    async def _add_ranks_elsewhere(
        self, board: str, known: _Known, ranking: Sequence[_Found], indexes: list[int]
    ) -> dict[int, list[_Nears]]:
        """Add to each index the members of other partitions that rank above.

        Returns the replies by partition: each is read, also without users, for its total.
        """
        groups = _parts(range(len(ranking))) or [range(0)]
        asked = [(number, group) for number in range(known.layout.partitions) for group in groups]
        found = await self._read_each(
            _NEIGHBOURS,
            board,
            known,
            [
                (
                    number,
                    [
                        arg
                        for at in group
                        for arg in (ranking[at].packed, int(number < ranking[at].partition), 0)
                    ]
                    or (0, 0, 0),
                )
                for number, group in asked
            ],
        )
        replies: dict[int, list[_Nears]] = {}
        for (number, group), (nears, first) in zip(asked, found, strict=True):
            replies.setdefault(number, []).append(nears)
            with checking_reply(_NEIGHBOURS.script.name):
                told = convert(nears.near[first : first + len(group)], list[_Near])
                for at, beside in zip(group, told, strict=True):
                    if ranking[at].partition != number:
                        indexes[at] += beside.count_above
        return replies

    async def rank_of_score(self, board: str, score: int) -> ScoreRank:
        """Read the rank that a user who reached a score now would get, after all equals.

        All partitions are read in one round trip.

        Raises Uninitialised, RedisUnavailable, ScriptFailed.
        """
        return await self._with_layout(
            board, lambda known: self._rank_of_score(board, known, score)
        )

    async def _rank_of_score(self, board: str, known: _Known, score: int) -> ScoreRank:
        # Members with this score or a better one, and those with a better one.
        pack = known.layout.rules.pack
        args = (pack(score, 0), 1, 0, pack(score, SLOT_COUNT - 1), 0, 0)
        found = await self._read(
            _NEIGHBOURS, board, known, dict.fromkeys(range(known.layout.partitions), args)
        )
        reached = better = 0
        for nears, first in found:
            with checking_reply(_NEIGHBOURS.script.name):
                here = convert(nears.near[first : first + 2], tuple[_Near, _Near])
            reached += here[0].count_above
            better += here[1].count_above
        return ScoreRank(
            rank=reached + 1,
            equals=reached - better,
            total=sum(nears.total for nears, _ in found),
            epoch=sum(nears.epoch for nears, _ in found),
            seq=sum(nears.seq for nears, _ in found),
        )

    async def _with_layout(self, board: str, read: Callable[[_Known], Awaitable[_Reply]]) -> _Reply:
        """Read by the known layout; if that may have changed, learn it and read again.

        A change of layout gives each partition a new epoch or retires it. A read that meets two
        layouts waits for the end of the change.
        """
        wait_until_s = 0.0
        reads = 1
        while True:
            known = self._known.use(board) or await self._learn(board)
            try:
                return await read(known)
            except _LayoutDiffers:
                if not wait_until_s:  # usually the change is over, and this process learns of it
                    wait_until_s = time.monotonic() + SWITCH_S
                elif time.monotonic() >= wait_until_s:
                    raise
                else:
                    await asyncio.sleep(_SWITCH_POLL_S)
            except Uninitialised:
                if reads >= READS_MAX:
                    raise
                reads += 1
            if self._known.get(board) is known:  # no other read has learned it since
                await self._learn(board)

    async def _learn(self, board: str) -> _Known:
        """Read the layout of a board; forget the epochs of its partitions."""
        layout = (await self.board(board)).layout
        return self._known.keep(board, _Known(layout, str(layout)))

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
        return await self._read_each(script, board, known, args.items())

    async def _read_each(
        self,
        script: ReadScript,
        board: str,
        known: _Known,
        args: Iterable[tuple[int, Sequence[object]]],
    ) -> Sequence[Reading]:
        """Run a script on partitions of a board in one round trip, perhaps twice on one.

        Raises _EpochChanged if a partition has begun a new epoch, _LayoutDiffers if it has another
        layout.
        """
        args = list(args)
        found = await self._reads.read(
            script, [(Partition(board, number), values) for number, values in args]
        )
        for (number, _), (reply, _) in zip(args, found, strict=True):
            if reply.layout != known.text and reply.layout:
                raise _LayoutDiffers
            if reply.epoch > known.epochs.setdefault(number, reply.epoch):
                raise _EpochChanged
        return found
