"""The state of a partition and its stream of events."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from msgspec import Struct, field
from redis.exceptions import RedisError, ResponseError

from scoreboard.errors import RedisUnavailable, SeasonEnded, UnexpectedReply, Uninitialised
from scoreboard.model import (
    NO_LIMITS,
    PARTITIONS_MAX,
    Board,
    Count,
    Layout,
    Limits,
    Partition,
    Rules,
    StreamId,
)
from scoreboard.seasons import Season, next_season
from scoreboard.store.cluster import ClusterClient, send_many
from scoreboard.store.keys import GROUP, PartitionKeys, commits_channel
from scoreboard.store.replies import (
    checking_reply,
    convert,
    parse_whole,
    read_reply,
    translate_error,
    unreachable_text,
)
from scoreboard.store.scripts import Script, call
from scoreboard.store.store_client import StoreClient

REWIND_FENCE: Final = "flusher:rewind"  # not a secret
"""Prefix of the token of a fence set because Redis lost data; any leader resumes from it."""

GAP_FENCE: Final = "flusher:gap"
"""Token of a fence set because entries vanished; only an operator can resolve it."""

_Shape = TypeVar("_Shape")
_FENCE_TOKEN: Final = re.compile(r"[!-~]+")
_COMMITTED: Final = re.compile(r"(\d{1,16}):(\d{1,16})(?::.*)?", re.ASCII)
_TRIM: Final = Script.load("trim")
_HISTORY: Final = Script.load("history")
_CONFIGURE: Final = Script.load("configure")
_TURN: Final = Script.load("turn")
_STATE: Final = (
    *("epoch", "seq", "state", "layout", "public", "fence", "committed"),
    *("limits", "season"),
)

PAGE: Final = 1000
"""Partitions of one pipeline."""

_MISSING: Final = "no such key"


class _Stream(Struct, frozen=True):
    """The fields of XINFO STREAM that are used."""

    length: Count
    last_id: StreamId = field(name="last-generated-id")
    first_entry: tuple[StreamId, Any] | None = field(name="first-entry")


class _Group(Struct, frozen=True):
    """The fields of a group in XINFO GROUPS that are used."""

    name: str
    pending: Count
    delivered_id: StreamId = field(name="last-delivered-id")


class PartitionState(Struct, frozen=True):
    """The contents of a partition's meta hash.

    ``epoch`` 0: the partition is empty. ``layout`` None: the field is missing. In both cases no
    action is accepted. A field that cannot be parsed counts as missing, as in the scripts.
    """

    epoch: int = 0
    seq: int = 0
    is_open: bool = False
    """It is loaded and not fenced; unless ``is_archived``, it accepts actions."""
    is_archived: bool = False
    layout: Layout | None = None
    is_public: bool = False
    limits: Limits = NO_LIMITS
    fence: str = ""
    is_retired: bool = False
    """Whether the board no longer has this partition; then ``epoch`` is 0."""
    committed_seq: int = 0
    """The highest seq of this epoch known to be committed to PostgreSQL."""
    season: Season | None = None
    """The current season; None if the board has none or it cannot be read."""

    @property
    def fenced_by(self) -> str:
        """Return who set the fence, without the random part of its token; empty if unknown."""
        if self.fence in {GAP_FENCE, REWIND_FENCE}:
            return self.fence
        return self.fence.rpartition(":")[0]


class Backlog(Struct, frozen=True):
    """What a partition's stream holds for the flusher. Committed entries are trimmed at once."""

    entries: int = 0
    pending: int = 0
    first_id: str = ""
    """The oldest entry, empty if there is none."""
    last_id: str = "0-0"
    delivered_id: str = ""

    @property
    def is_drained(self) -> bool:
        """Return whether every entry was delivered and acknowledged, so it is committed."""
        return not self.entries or (not self.pending and self.delivered_id == self.last_id)

    @property
    def oldest_ms(self) -> int | None:
        """When Redis accepted the oldest entry, ms since 1970; None if there is no entry."""
        return int(self.first_id.partition("-")[0]) if self.first_id else None


class Survey(Struct, frozen=True):
    """The state of a partition and the number of entries in its stream."""

    state: PartitionState
    entries: int


class Trimmed(Struct, frozen=True, array_like=True):
    """The reply of trim.lua."""

    removed: Count
    receivers: int
    """Subscribers that received the committed position; -1 if it was not announced."""


class Turned(Struct, frozen=True, array_like=True):
    """The reply of turn.lua."""

    outcome: str
    season: str
    """The current season as id:start:end."""


def turn_arguments(rules: Rules, ended: Season, now_s: float) -> list[str]:
    """Return the arguments of turn.lua.

    Raises SeasonEnded if the next season cannot be computed.
    """
    try:
        return [str(ended), str(next_season(rules, ended, now_s))]
    except ValueError as error:
        raise SeasonEnded(str(error)) from error


def _parse_state(facts: Mapping[str, str]) -> PartitionState:
    epoch, seq = parse_whole(facts.get("epoch")), parse_whole(facts.get("seq"))
    fence = facts.get("fence", "")
    fence = fence if _FENCE_TOKEN.fullmatch(fence) else ""
    if not epoch or seq is None:
        return PartitionState(fence=fence, is_retired=facts.get("state") == "retired")
    committed = _COMMITTED.fullmatch(facts.get("committed", ""))
    layout: Layout | None = None
    season: Season | None = None
    with suppress(ValueError):
        layout = Layout.parse(facts.get("layout", ""))
    limits = NO_LIMITS
    with suppress(ValueError):
        limits = Limits.parse(facts.get("limits", ""))
    with suppress(ValueError):
        season = Season.parse(facts["season"]) if "season" in facts else None
    return PartitionState(
        epoch=epoch,
        seq=seq,
        is_open=facts.get("state") in {"open", "archived"} and layout is not None,
        is_archived=facts.get("state") == "archived",
        layout=layout,
        is_public=facts.get("public") == "1",
        limits=limits,
        fence=fence,
        committed_seq=parse_whole(committed[2]) or 0
        if committed and parse_whole(committed[1]) == epoch
        else 0,
        season=season,
    )


def _backlog(stream: _Stream, groups: Sequence[_Group]) -> Backlog:
    group = next((one for one in groups if one.name == GROUP), None)
    return Backlog(
        entries=stream.length,
        pending=group.pending if group else 0,
        first_id=stream.first_entry[0] if stream.first_entry else "",
        last_id=stream.last_id,
        delivered_id=group.delivered_id if group else "",
    )


def _take(reply: Any, shape: type[_Shape], what: str) -> _Shape:  # noqa: ANN401 (any reply)
    """Return a reply of a pipeline in the requested shape.

    Raises RedisUnavailable, UnexpectedReply.
    """
    if isinstance(reply, RedisError):
        raise translate_error(reply, what) from reply
    with checking_reply(what):
        return convert(reply, shape)


def _take_state(values: Any, meta: str) -> PartitionState:  # noqa: ANN401 (any reply)
    found = _take(values, list[str | None], f"HMGET {meta}")
    with checking_reply(f"HMGET {meta}"):
        facts = zip(_STATE, found, strict=True)
        return _parse_state({name: value for name, value in facts if value is not None})


def _survey(
    partition: Partition,
    values: Any,  # noqa: ANN401 (any reply)
    entries: Any,  # noqa: ANN401
) -> Survey | UnexpectedReply | RedisUnavailable:
    keys = PartitionKeys(partition)
    try:
        return Survey(_take_state(values, keys.meta), _take(entries, int, f"XLEN {keys.events}"))
    except (UnexpectedReply, RedisUnavailable) as error:
        return error


def _measurement(
    partition: Partition,
    values: Any,  # noqa: ANN401 (any reply)
    stream: Any,  # noqa: ANN401
    groups: Any,  # noqa: ANN401
) -> tuple[PartitionState, Backlog] | UnexpectedReply | RedisUnavailable:
    keys = PartitionKeys(partition)
    try:
        state = _take_state(values, keys.meta)
        if isinstance(stream, ResponseError) and _MISSING in str(stream):
            return state, Backlog()
        return state, _backlog(
            _take(stream, _Stream, f"XINFO STREAM {keys.events}"),
            _take(groups, list[_Group], f"XINFO GROUPS {keys.events}"),
        )
    except (UnexpectedReply, RedisUnavailable) as error:
        return error


class Partitions(StoreClient):
    """The state of partitions and their streams of events."""

    async def state(self, partition: Partition) -> PartitionState:
        """Read the state of a partition.

        Raises RedisUnavailable, UnexpectedReply.
        """
        meta = PartitionKeys(partition).meta
        try:
            facts = await read_reply(self._client.hgetall(meta), dict[str, str], f"HGETALL {meta}")
        except RedisUnavailable as error:
            if self.is_cluster and error.detail == error.title:  # it says nothing else
                raise RedisUnavailable(unreachable_text(partition)) from error
            raise
        return _parse_state(facts)

    async def states(self, board: str) -> dict[int, PartitionState]:
        """Read the states of all partitions of a board that Redis has, whatever its layout.

        Raises RedisUnavailable, UnexpectedReply.
        """
        metas = [PartitionKeys(Partition(board, number)).meta for number in range(PARTITIONS_MAX)]
        sent = send_many(self._client, [("HGETALL", meta) for meta in metas])
        replies = await read_reply(sent, list[Any], f"HGETALL {board}")
        states: dict[int, PartitionState] = {}
        for number, (meta, reply) in enumerate(zip(metas, replies, strict=False)):
            if isinstance(reply, RedisError):
                raise translate_error(reply, f"HGETALL {meta}") from reply
            with checking_reply(f"HGETALL {meta}"):
                facts = convert(reply, dict[str, str])
            if facts:
                states[number] = _parse_state(facts)
        return states

    async def configure(self, partition: Partition, board: Board) -> bool:
        """Set visibility, state and limits of a loaded partition; return whether one changed.

        The caller holds the operators' lock, so that no reseed opens it with older values.

        Raises Uninitialised, Fenced (the next reseed sets them), RedisUnavailable, ScriptFailed.
        """
        keys = PartitionKeys(partition)
        args = [int(board.is_public), board.state, str(board.limits)]
        return await call(self._client, _CONFIGURE, [keys.meta, keys.changes], args, int) == 1

    async def backlog(self, partition: Partition) -> Backlog:
        """Read what the stream of a partition holds for the flusher.

        Raises RedisUnavailable, UnexpectedReply.
        """
        events = PartitionKeys(partition).events
        if not await read_reply(self._client.exists(events), int, f"EXISTS {events}"):
            return Backlog()
        stream = await read_reply(
            self._client.xinfo_stream(events), _Stream, f"XINFO STREAM {events}"
        )
        groups = await read_reply(
            self._client.xinfo_groups(events), list[_Group], f"XINFO GROUPS {events}"
        )
        return _backlog(stream, groups)

    async def survey(
        self, partitions: Sequence[Partition]
    ) -> list[Survey | UnexpectedReply | RedisUnavailable]:
        """Read the states of up to ``PAGE`` partitions and the lengths of their streams.

        An error belongs to its partition and does not affect others. Raises RedisUnavailable,
        UnexpectedReply.
        """
        commands: list[tuple[str, ...]] = []
        for partition in partitions:
            keys = PartitionKeys(partition)
            commands += [("HMGET", keys.meta, *_STATE), ("XLEN", keys.events)]
        sent = send_many(self._client, commands)
        replies = await read_reply(sent, list[Any], "HMGET, XLEN of partitions")
        return [
            _survey(partition, values, entries)
            for partition, values, entries in zip(
                partitions, replies[::2], replies[1::2], strict=True
            )
        ]

    async def survey_all(
        self, partitions: Sequence[Partition]
    ) -> AsyncIterator[tuple[Partition, Survey | UnexpectedReply | RedisUnavailable]]:
        """Read the states of any number of partitions, page by page; see ``survey``."""
        for start in range(0, len(partitions), PAGE):
            page = partitions[start : start + PAGE]
            for pair in zip(page, await self.survey(page), strict=True):
                yield pair

    async def measure(
        self, partitions: Sequence[Partition]
    ) -> list[tuple[PartitionState, Backlog] | UnexpectedReply | RedisUnavailable]:
        """Read the states and backlogs of up to ``PAGE`` partitions, in one round trip.

        An error belongs to its partition and does not affect others. Raises RedisUnavailable,
        UnexpectedReply.
        """
        commands: list[tuple[str, ...]] = []
        for partition in partitions:
            keys = PartitionKeys(partition)
            commands.append(("HMGET", keys.meta, *_STATE))
            commands += [("XINFO STREAM", keys.events), ("XINFO GROUPS", keys.events)]
        sent = send_many(self._client, commands)
        replies = await read_reply(sent, list[Any], "XINFO of partitions")
        return [
            _measurement(partition, *replies[3 * place : 3 * place + 3])
            for place, partition in enumerate(partitions)
        ]

    async def replication_id(self, partition: Partition) -> str:
        """Read the replication id of a partition's server, which every failover and restart change.

        Read it before the data that a later call depends on: trim and repair are refused if it
        has changed since.

        Raises RedisUnavailable, ScriptFailed.
        """
        names = [PartitionKeys(partition).meta]
        return await call(self._client, _HISTORY, names, [], str, reads=True)

    async def turn(self, partition: Partition, rules: Rules) -> Season | None:
        """End the season of a partition if its time is over, and begin the one of now.

        Returns the season that is current then; None for a board without seasons. Whoever calls it,
        and how often, it happens once.

        Raises Uninitialised, Fenced, BoardArchived, SeasonEnded (the next one cannot be computed),
        RedisUnavailable, ScriptFailed.
        """
        if not rules.season:
            return None
        season = (await self.state(partition)).season
        if season is None:
            raise Uninitialised
        now_s = await self.now_s(partition)
        if now_s < season.end_s:
            return season
        keys = PartitionKeys(partition)
        command = turn_arguments(rules, season, now_s)
        names = [keys.board, keys.events, keys.meta, keys.changes, keys.banned]
        turned = await call(self._client, _TURN, names, command, Turned)
        with checking_reply(_TURN.name):
            return Season.parse(turned.season)

    async def now_s(self, partition: Partition | None = None) -> float:
        """Read the clock of a partition's server, by default of any, in seconds since 1970.

        It decides the generation and the season of an action.

        Raises RedisUnavailable, UnexpectedReply.
        """
        if partition is None and isinstance(self._client, ClusterClient):
            reply = self._client.ask_any("TIME")
        else:
            options = {} if partition is None else await self._beside(partition)
            reply = self._client.execute_command("TIME", **options)
        seconds, microseconds = await read_reply(reply, tuple[Count, Count], "TIME")
        return seconds + microseconds / 1_000_000

    async def trim(
        self,
        partition: Partition,
        last_id: str,
        acknowledged: Sequence[bytes],
        *,
        replication_id: str,
        epoch: int,
        first_seq: int,
        last_seq: int,
    ) -> Trimmed:
        """Acknowledge a committed batch and trim the stream.

        ``last_id`` is the id of its last entry. ``first_seq`` and ``last_seq`` are the seqs it
        spans; the last one becomes the committed position, which is published. ``first_seq`` is 0
        if entries before the batch are known to be missing, both are 0 if no seq of the batch can
        be parsed.

        Raises Outdated (another replication id or epoch, or an entry before the batch is not
        committed: read the stream from its start), Uninitialised, RedisUnavailable, ScriptFailed.
        """
        keys = PartitionKeys(partition)
        names = [keys.events, keys.meta]
        channel = commits_channel(partition, is_cluster=self.is_cluster)
        args: list[object] = [GROUP, replication_id, epoch, last_id, first_seq, last_seq, channel]
        args += acknowledged
        return await call(self._client, _TRIM, names, args, Trimmed)
