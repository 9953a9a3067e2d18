"""What Redis knows, now: one typed method per script. Nothing else runs scripts.

Reads may be repeated by the caller at will. Updates go through scoreboard.dispatcher.
A board of several partitions is merged here: by packed score, then partition number. Each partition
is read at a moment of its own.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from heapq import merge
from itertools import islice
from typing import Annotated, Any, Final, TypeVar

import redis.asyncio as aioredis
from msgspec import Meta, Struct, field
from redis.exceptions import RedisError

from scoreboard.dispatcher import Dispatcher
from scoreboard.errors import (
    Busy,
    ScriptFailed,
    UnexpectedReply,
    Uninitialised,
    UnknownUser,
)
from scoreboard.keys import ACTIONS, ACTIONS_CHANGED, GROUP, PartitionKeys
from scoreboard.model import (
    COUNT_MAX,
    PACKED_MAX,
    PARTITIONS_MAX,
    POINTS_MAX,
    SLOT_COUNT,
    Board,
    Layout,
    Partition,
    Row,
    Standing,
    StreamId,
    Window,
    pack,
    partition_of,
    unpack_score,
)
from scoreboard.replies import ask, convert, error_of, reading
from scoreboard.scripts import Script, call
from scoreboard.tail import ENTRIES_MAX, Tail

__all__ = ["Backlog", "Dispatcher", "Live", "PartitionState", "Repaired", "Truth"]

PAGE: Final = 1000
"""Most scores or memories of one restore or remember call; entries of one read of a tail."""

EXTENSIONS: Final = 5
"""Times a tail is read on because more came meanwhile than a script may add up."""

_VERSION: Final = ":version"
"""Field of the catalogue's mirror that is no kind: how often it was copied."""

_WHOLE: Final = re.compile(r"\d{1,16}", re.ASCII)
_FENCE_TOKEN: Final = re.compile(r"[!-~]+")
_COMMITTED: Final = re.compile(r"(\d{1,16}):(\d{1,16})", re.ASCII)

READ_AGAIN: Final = 2
"""Most repetitions of a read because partitions began other epochs meanwhile."""

_Reply = TypeVar("_Reply")
_Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
_Epoch = Annotated[int, Meta(ge=1, le=COUNT_MAX)]
_Points = Annotated[int, Meta(ge=0, le=POINTS_MAX)]
_Entry = tuple[bytes, dict[bytes, bytes]]
_Read = TypeVar("_Read", "_Page", "_Place", "_Near")

_LEADERBOARD: Final = Script.load("leaderboard")
_STANDING: Final = Script.load("standing")
_NEIGHBOURS: Final = Script.load("neighbours")
_TRIM: Final = Script.load("trim")
_REPAIR: Final = Script.load("repair")
_FENCE: Final = Script.load("fence")
_RESTORE: Final = Script.load("restore")
_REMEMBER: Final = Script.load("remember")
_RETIRE: Final = Script.load("retire")
_OPEN: Final = Script.load("open")
_MIRROR: Final = Script.load("mirror")
_HISTORY: Final = Script.load("history")


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


class _Stream(Struct, frozen=True):
    """What XINFO STREAM says."""

    length: _Count
    last_id: StreamId = field(name="last-generated-id")


class _Group(Struct, frozen=True):
    """What XINFO GROUPS says of one group."""

    name: str
    pending: _Count
    delivered_id: StreamId = field(name="last-delivered-id")


class PartitionState(Struct, frozen=True):
    """What a partition's meta hash says. ``epoch`` 0: emptied, nothing is accepted.

    A field that cannot be read counts as missing, as it does in the scripts. ``layout`` None: it is
    missing, and nothing is accepted either.
    """

    epoch: int = 0
    seq: int = 0
    is_open: bool = False
    layout: Layout | None = None
    is_public: bool = False
    fence: str = ""
    is_retired: bool = False
    """Whether the board no longer has this partition; then ``epoch`` is 0."""
    committed_seq: int = 0
    """What PostgreSQL is known to have committed of this epoch."""


class Backlog(Struct, frozen=True):
    """What a partition's stream still holds for the flusher."""

    entries: int = 0
    pending: int = 0
    last_id: str = "0-0"
    delivered_id: str = ""

    @property
    def is_drained(self) -> bool:
        """Tell whether everything was delivered and acknowledged, which follows its COMMIT."""
        return not self.entries or (not self.pending and self.delivered_id == self.last_id)


class Truth(Struct, frozen=True):
    """What PostgreSQL says of a user; ``score`` None where it has no score of theirs.

    ``equals`` are the users whom it knows at the score to be set, in order of arrival: with them
    the user gets the place that is due, else the last one.
    """

    user_id: str
    score: int | None
    equals: tuple[str, ...] = ()


class Repaired(Struct, frozen=True, array_like=True):
    """What was, or in a dry run would be, done about a user: ``score`` is the right one."""

    outcome: str
    change: int
    score: int
    seq: int


class _Placed(Struct, frozen=True, order=True):
    """A member in the order of a whole board: best first."""

    sort_packed: int
    partition: int
    user_id: str

    @property
    def packed(self) -> int:
        return -self.sort_packed


def _whole(text: str | None) -> int | None:
    """Read a whole number as the scripts do; None where it is none, or beyond a double."""
    number = int(text) if text is not None and _WHOLE.fullmatch(text) else None
    return number if number is None or number <= COUNT_MAX else None


def _state_of(facts: Mapping[str, str]) -> PartitionState:
    epoch, seq = _whole(facts.get("epoch")), _whole(facts.get("seq"))
    fence = facts.get("fence", "")
    fence = fence if _FENCE_TOKEN.fullmatch(fence) else ""
    if not epoch or seq is None:
        return PartitionState(fence=fence, is_retired=facts.get("state") == "retired")
    committed = _COMMITTED.fullmatch(facts.get("committed", ""))
    layout: Layout | None = None
    with suppress(ValueError):
        layout = Layout.parse(facts.get("layout", ""))
    return PartitionState(
        epoch=epoch,
        seq=seq,
        is_open=facts.get("state") == "open" and layout is not None,
        layout=layout,
        is_public=facts.get("public") == "1",
        fence=fence,
        committed_seq=_whole(committed[2]) or 0
        if committed and _whole(committed[1]) == epoch
        else 0,
    )


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


class Live:
    """Typed access to the scripts over one client, which the caller owns and closes."""

    def __init__(self, client: aioredis.Redis) -> None:
        """Take a client that decodes replies (redis_client.make_client does)."""
        self._client = client
        self._layouts: dict[str, Layout] = {}
        self._epochs: dict[str, dict[int, int]] = {}
        """Epoch of each partition as it was first read under the layout that is known."""

    async def state(self, partition: Partition) -> PartitionState:
        """Read where a partition stands.

        Raises RedisUnavailable, UnexpectedReply.
        """
        meta = PartitionKeys(partition).meta
        return _state_of(await ask(self._client.hgetall(meta), dict[str, str], f"HGETALL {meta}"))

    async def states(self, board: str) -> dict[int, PartitionState]:
        """Read where every partition stands that Redis knows of a board, whatever its layout.

        Raises RedisUnavailable, UnexpectedReply.
        """
        metas = [PartitionKeys(Partition(board, number)).meta for number in range(PARTITIONS_MAX)]
        async with self._client.pipeline(transaction=False) as pipe:
            for meta in metas:
                pipe.hgetall(meta)
            replies = await ask(pipe.execute(raise_on_error=False), list[Any], f"HGETALL {board}")
        states: dict[int, PartitionState] = {}
        for number, (meta, reply) in enumerate(zip(metas, replies, strict=False)):
            if isinstance(reply, RedisError):
                raise error_of(reply, f"HGETALL {meta}") from reply
            with reading(f"HGETALL {meta}"):
                facts = convert(reply, dict[str, str])
            if facts:
                states[number] = _state_of(facts)
        return states

    async def board(self, name: str) -> Board:
        """Read what was fixed when a board was made, as partition 0 carries it.

        Raises Uninitialised on an emptied Redis and where the layout is missing, RedisUnavailable,
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
            with reading(_STANDING.name):
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

    async def history(self) -> str:
        """Name the history of writes that the server continues: another after each failover.

        Read it before what is later acted on: trim and repair refuse where it has changed.

        Raises RedisUnavailable, ScriptFailed.
        """
        return await call(self._client, _HISTORY, [], [], str, reads=True)

    async def trim(
        self,
        partition: Partition,
        last_id: str,
        acknowledged: Sequence[bytes],
        *,
        history: str,
        epoch: int,
        first_seq: int,
        last_seq: int,
    ) -> int:
        """Acknowledge a committed batch and cut the stream behind it; give how many entries went.

        ``last_id`` is the id of its last entry, ``first_seq`` and ``last_seq`` are the seqs it
        spans: the last one becomes the committed position, told to whoever waits for it.
        ``first_seq`` is 0 where entries before it are known to be missing, both are 0 where no seq
        of the batch can be read.

        Raises Outdated (other history or epoch, or something before the batch is not committed:
        read from the start of the stream again), Uninitialised, RedisUnavailable, ScriptFailed.
        """
        keys = PartitionKeys(partition)
        names = [keys.events, keys.meta]
        args: list[object] = [GROUP, history, epoch, last_id, first_seq, last_seq, *acknowledged]
        return await call(self._client, _TRIM, names, args, int)

    async def tail(self, partition: Partition, *, epoch: int, seq: int, stream_id: str) -> Tail:
        """Sum up what the stream adds to a committed position, which may not move meanwhile.

        Raises Busy (more actions than ``tail.ENTRIES_MAX``), RedisUnavailable, UnexpectedReply.
        """
        history = await self.history()
        tail = Tail(history=history, epoch=epoch, seq=seq, stream_id=stream_id)
        await self._extend(partition, tail)
        return tail

    async def repair(
        self, partition: Partition, truths: Sequence[Truth], tail: Tail, *, is_dry: bool = False
    ) -> list[Repaired]:
        """Set up to 64 users' scores to what PostgreSQL has plus what the stream still adds.

        ``tail`` belongs to the committed position, which may not move meanwhile: hold the
        partition's row of flush_state. A second run changes nothing.

        Raises Outdated (it moved all the same, or another history or epoch began), Busy (too many
        actions are not committed), ScoreOutOfRange, Fenced, Uninitialised, RedisUnavailable
        (repeat it), ScriptFailed.
        """
        for _ in range(EXTENSIONS):
            try:
                return await self._repair(partition, truths, tail, is_dry=is_dry)
            except Busy:
                await self._extend(partition, tail)
        raise Busy("Actions come faster than they can be added up")

    async def _repair(
        self, partition: Partition, truths: Sequence[Truth], tail: Tail, *, is_dry: bool
    ) -> list[Repaired]:
        keys = PartitionKeys(partition)
        names = [keys.board, keys.events, keys.meta, keys.changes]
        args: list[object] = [tail.history, tail.epoch, tail.seq, tail.up_to, int(is_dry)]
        for truth in truths:
            due = tail.due(truth.user_id, truth.score)
            args += [truth.user_id, due, len(truth.equals), *truth.equals]
        states = await call(self._client, _REPAIR, names, args, list[Repaired])
        if len(states) != len(truths):
            raise ScriptFailed(f"{_REPAIR.name} answered {len(states)} of {len(truths)} users")
        return states

    async def _extend(self, partition: Partition, tail: Tail) -> None:
        """Read a tail to the present end of the stream."""
        events = PartitionKeys(partition).events
        while True:
            page = self._client.execute_command(
                *("XRANGE", events, f"({tail.up_to}", "+", "COUNT", PAGE), NEVER_DECODE=True
            )
            entries = await ask(page, list[_Entry], f"XRANGE {events}")
            with reading(f"XRANGE {events}"):
                tail.take(entries)
            if len(entries) < PAGE:
                return
            if tail.count > ENTRIES_MAX:
                raise Busy(f"More than {ENTRIES_MAX} actions are not committed yet")

    async def standing_at(self, partition: Partition, score: int, *, most: int) -> list[str]:
        """Give up to ``most`` users of a partition who stand at a score, best first.

        Raises RedisUnavailable, UnexpectedReply.
        """
        low, high = pack(score, 0), pack(score, SLOT_COUNT - 1)
        board = PartitionKeys(partition).board
        reply = self._client.zrange(board, high, low, desc=True, byscore=True, offset=0, num=most)
        return await ask(reply, list[str], f"ZRANGE {board}")

    async def fence(
        self, partition: Partition, token: str, seen: PartitionState, *, committed: int = -1
    ) -> tuple[int, int]:
        """Stop accepting, in the name of ``token``; give epoch and seq (0, 0 on an emptied Redis).

        ``seen`` is the state that the caller saw while it was sure that it alone may do this;
        ``committed`` the highest committed seq that it knows of, -1 where that does not matter.

        Raises Outdated (the partition has changed since), RedisUnavailable, ScriptFailed.
        """
        args: list[object] = [token, seen.epoch, seen.fence, committed]
        meta = PartitionKeys(partition).meta
        return await call(self._client, _FENCE, [meta], args, tuple[_Count, _Count])

    async def restore(
        self, partition: Partition, token: str, page: Sequence[tuple[int, str]], *, first: bool
    ) -> int:
        """Put a page of (packed, user) into the shadow board; give its size.

        Raises OperatorMistake if another operator holds the fence, RedisUnavailable, ScriptFailed.
        """
        keys = PartitionKeys(partition)
        flat = [value for pair in page for value in pair]
        args = [token, int(first), *flat]
        return await call(self._client, _RESTORE, [keys.meta, keys.shadow], args, int)

    async def remember(
        self,
        partition: Partition,
        token: str,
        seen: tuple[int, int],
        page: Sequence[tuple[bytes, str]],
        *,
        expires_at_s: int,
        first: bool,
    ) -> int:
        """Put (digest, ``delta:score:seq``) into the seen hash (generation, shard); give its size.

        Raises OperatorMistake if another operator holds the fence, RedisUnavailable, ScriptFailed.
        """
        keys = PartitionKeys(partition)
        flat = [value for pair in page for value in pair]
        args = [token, int(first), expires_at_s, *flat]
        return await call(self._client, _REMEMBER, [keys.meta, keys.seen(*seen)], args, int)

    async def retire(self, partition: Partition, token: str, layout: Layout) -> None:
        """Empty a fenced partition that its board no longer has; callers learn ``layout`` there.

        Raises OperatorMistake if another operator holds the fence, Busy if actions of the stream
        are not committed, RedisUnavailable (repeat it), ScriptFailed.
        """
        keys = PartitionKeys(partition)
        names = [keys.meta, keys.board, keys.shadow, keys.events]
        await call(self._client, _RETIRE, names, [token, str(layout), GROUP], int)

    async def open(
        self,
        partition: Partition,
        token: str,
        board: Board,
        *,
        epoch: int,
        seq: int,
        stream_id: str,
        members: int,
    ) -> int:
        """Make the shadow the board, under a new epoch, and accept again; give its members.

        Raises OperatorMistake if the fence was lost or the shadow is incomplete, RedisUnavailable
        (it may have happened: read ``state``), ScriptFailed.
        """
        keys = PartitionKeys(partition)
        names = [keys.board, keys.shadow, keys.events, keys.meta, keys.changes]
        args = [
            token,
            epoch,
            seq,
            stream_id,
            GROUP,
            str(board.layout),
            int(board.is_public),
            members,
        ]
        return await call(self._client, _OPEN, names, args, int)

    async def now_s(self) -> float:
        """Read Redis's clock, which names the generations of the seen window (seconds since 1970).

        Raises RedisUnavailable, UnexpectedReply.
        """
        seconds, microseconds = await ask(self._client.time(), tuple[_Count, _Count], "TIME")
        return seconds + microseconds / 1_000_000

    async def backlog(self, partition: Partition) -> Backlog:
        """Read what the stream of a partition still holds for the flusher.

        Raises RedisUnavailable, UnexpectedReply.
        """
        events = PartitionKeys(partition).events
        if not await ask(self._client.exists(events), int, f"EXISTS {events}"):
            return Backlog()
        stream = await ask(self._client.xinfo_stream(events), _Stream, f"XINFO STREAM {events}")
        groups = await ask(
            self._client.xinfo_groups(events), list[_Group], f"XINFO GROUPS {events}"
        )
        group = next((one for one in groups if one.name == GROUP), None)
        return Backlog(
            entries=stream.length,
            pending=group.pending if group else 0,
            last_id=stream.last_id,
            delivered_id=group.delivered_id if group else "",
        )

    async def points(self) -> dict[str, int]:
        """Read the mirrored catalogue: points per kind, 0 where a kind is disabled.

        Raises RedisUnavailable, UnexpectedReply where it holds no points.
        """
        what = f"HGETALL {ACTIONS}"
        facts = await ask(self._client.hgetall(ACTIONS), dict[str, str], what)
        facts.pop(_VERSION, None)
        with reading(what):
            return convert(facts, dict[str, _Points])

    async def catalogue_version(self) -> int:
        """Read how often the catalogue was copied; 0 where that cannot be read.

        Raises RedisUnavailable.
        """
        with suppress(UnexpectedReply):  # a key of another type, which the next copy replaces
            held = self._client.hmget(ACTIONS, [_VERSION])
            (version,) = await ask(held, tuple[str | None], f"HMGET {ACTIONS}")
            return _whole(version) or 0
        return 0

    async def mirror_actions(self, points: Mapping[str, int], *, seen: int) -> None:
        """Replace the catalogue that the api reads, and announce it.

        ``seen`` is the version, read before the catalogue was read from PostgreSQL.

        Raises Outdated (somebody else made a copy meanwhile), RedisUnavailable (it may have
        happened: begin anew), ScriptFailed.
        """
        flat = [value for pair in points.items() for value in pair]
        await call(self._client, _MIRROR, [ACTIONS], [seen, ACTIONS_CHANGED, *flat], int)

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
