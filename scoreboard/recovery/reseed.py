"""Rebuilds a board in Redis from PostgreSQL and opens it under a new epoch.

Used by `scoreboard reseed`, by `scoreboard up` for an empty Redis, and by the flusher when Redis is
older than the ledger. Invariants: no action is accepted between fence and opening; an interrupted
run leaves the board fenced and can be repeated; concurrent runs cannot mix, because every write
names the token of its fence. A reseed applies a layout that was changed in PostgreSQL: all
partitions are fenced and drained, the new ones are opened, and those that the layout lacks are
retired. scoreboard.recovery.reshard changes the number of partitions of an open board.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec
from msgspec import Struct

from scoreboard.errors import OperatorMistake, WaitTimeout
from scoreboard.events import stream_id_key
from scoreboard.ledger import dead_letters
from scoreboard.ledger.audit import audited
from scoreboard.ledger.boards import select_board, set_board_partitions
from scoreboard.ledger.pool import Connection, snapshot
from scoreboard.ledger.positions import (
    Position,
    begin_epoch,
    close_corrections,
    lock_partitions,
    select_position,
)
from scoreboard.ledger.seasons import open_season, select_newest_season
from scoreboard.model import Board, Partition
from scoreboard.recovery.loading import Loader, ReportProgress, bounded_calls, report_nothing
from scoreboard.recovery.mirror import mirror_board, mirror_catalogue
from scoreboard.runtime.audit import write_audit
from scoreboard.seasons import Season, season_at
from scoreboard.store.partitions import Partitions, PartitionState
from scoreboard.store.store import Store

SESSION: Final = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "work_mem": "128MB",
}
"""Session settings for the connection of a reseed: one long snapshot, sorted in memory."""

STALL_S: Final = 30.0
"""Longest time to wait for a flusher that makes no progress."""

_POLL_S: Final = 0.05
_UNPRINTABLE: Final = re.compile(r"[^!-~]")

Drain = Callable[[Store, Sequence[Partition], ReportProgress], Awaitable[None]]


class Reseeded(Struct, frozen=True):
    """The result of a reseed. ``epochs`` are those of ``partitions``, in order."""

    board: str
    partitions: tuple[int, ...]
    epochs: tuple[int, ...]
    users: int
    actions: int
    duration_s: float


class Layouts(Struct, frozen=True):
    """The partitions in Redis compared with the board's layout."""

    differing: tuple[int, ...]
    """Partitions of the board that have another layout."""
    strays: tuple[int, ...]
    """Partitions that the board no longer has and that are not retired."""
    leftovers: tuple[int, ...]
    """Partitions that a reshard has begun to load, and that the board does not have."""
    have_other_rules: bool
    """Whether a partition has other rules than the board."""
    closed: tuple[int, ...]
    """Partitions of the board that accept no actions: empty or fenced."""
    epochs: tuple[int, ...]
    """The epochs of all that are loaded."""

    @property
    def are_current(self) -> bool:
        """Return whether every partition has the board's layout."""
        return not self.differing and not self.strays


async def compare_layouts(store: Partitions, board: Board) -> Layouts:
    """Compare the partitions in Redis with a board's layout.

    Raises RedisUnavailable, UnexpectedReply.
    """
    states = await store.states(board.name)
    numbers = range(board.layout.partitions)
    used = {number: state for number, state in states.items() if state.epoch}
    return Layouts(
        differing=tuple(n for n in numbers if n in used and used[n].layout != board.layout),
        strays=tuple(n for n in used if n not in numbers),
        leftovers=tuple(
            n
            for n, state in states.items()
            if n not in numbers and n not in used and state.fence and not state.is_retired
        ),
        have_other_rules=any(
            state.layout is not None and state.layout.rules != board.layout.rules
            for state in used.values()
        ),
        closed=tuple(n for n in numbers if n not in used or not used[n].is_open),
        epochs=tuple(state.epoch for state in used.values()),
    )


def require_same_rules(board: Board, layouts: Layouts) -> None:
    """Check that Redis has the rules of a board.

    Raises OperatorMistake.
    """
    if layouts.have_other_rules:
        raise OperatorMistake(
            f"Board {board.name} has other rules in Redis than in PostgreSQL. The scores were "
            "counted by the rules of its creation, so restore these in the table boards"
        )


async def find_unavailable(store: Partitions, board: Board) -> list[int]:
    """List the partitions that need a reseed: empty or fenced ones, or all after a layout change.

    Raises RedisUnavailable.
    """
    layouts = await compare_layouts(store, board)
    return list(layouts.closed if layouts.are_current else range(board.layout.partitions))


async def choose_partitions(store: Store, board: Board, *, force: bool = False) -> list[int]:
    """Choose the partitions to reseed: all if ``force``, else those that need it.

    Raises OperatorMistake if none needs it and the board has scores; RedisUnavailable.
    """
    everything = list(range(board.layout.partitions))
    if force:
        return everything
    closed = await find_unavailable(store, board)
    if not closed and (await store.leaderboard(board.name, limit=0)).total:
        raise OperatorMistake(
            f"Board {board.name} is open and has scores", hint="use --force to reseed it anyway"
        )
    return closed or everything


async def wait_until_drained(
    store: Store,
    partitions: Sequence[Partition],
    report: ReportProgress,
    *,
    stall_s: float | None = None,
) -> None:
    """Wait until the flusher has committed everything the streams hold.

    Raises WaitTimeout when it makes no progress for ``stall_s``, by default ``STALL_S``;
    RedisUnavailable.
    """
    stall_s = STALL_S if stall_s is None else stall_s
    backlogs = [await store.backlog(partition) for partition in partitions]
    total = sum(backlog.entries for backlog in backlogs)
    progress_at = time.monotonic()
    while not all(backlog.is_drained for backlog in backlogs):
        report("drain", total - sum(backlog.entries for backlog in backlogs), total)
        await asyncio.sleep(_POLL_S)
        before, backlogs = backlogs, [await store.backlog(partition) for partition in partitions]
        if backlogs != before:
            progress_at = time.monotonic()
        elif time.monotonic() - progress_at > stall_s:
            waiting = sum(backlog.entries for backlog in backlogs)
            raise WaitTimeout(
                f"The flusher makes no progress: {waiting} entries wait, the board stays fenced; "
                "start the flusher, then reseed again"
            )
    report("drain", total, total)


async def reseed(
    store: Store,
    connection: Connection,
    board: Board,
    numbers: Sequence[int],
    *,
    actor: str,
    drain: Drain = wait_until_drained,
    report: ReportProgress = report_nothing,
) -> Reseeded:
    """Rebuild partitions of a board from PostgreSQL and open them under a new epoch.

    ``connection`` is in autocommit, opened with ``SESSION``, and holds the operators' lock until it
    is closed. ``actor`` is recorded in the audit log and is the prefix of the fence's token.

    Raises OperatorMistake (another operator holds the lock, the rules differ, or the layout changed
    and ``numbers`` are not the whole board), Outdated (another operator changed the partitions),
    WaitTimeout (not drained), RedisUnavailable, DatabaseUnavailable: the board stays fenced until a
    later run succeeds.
    """
    started_at = time.monotonic()
    token = make_token(actor)
    partitions = [Partition(board.name, number) for number in numbers]
    await lock_partitions(connection, partitions)
    layouts = await compare_layouts(store, board)
    require_same_rules(board, layouts)
    is_whole = list(numbers) == list(range(board.layout.partitions))
    if not layouts.are_current and not is_whole:
        raise OperatorMistake(
            f"The layout of board {board.name} has changed",
            hint=f"run scoreboard reseed --board {board.name} --force",
        )
    left = layouts.leftovers if is_whole else ()
    strays = [Partition(board.name, number) for number in (*layouts.strays, *left)]
    await lock_partitions(connection, strays)
    everything = [*partitions, *strays]
    states = await store.states(board.name)
    seen = [states.get(partition.number, PartitionState()) for partition in everything]
    # The answer proves that the session held its locks when the states were read. A later holder
    # of the locks changes the states, and the fence is refused.
    if await select_board(connection, board.name) != board:
        raise OperatorMistake(f"Board {board.name} was changed meanwhile; try again")
    previous = [
        await store.fence(partition, token, state)
        for partition, state in zip(everything, seen, strict=True)
    ]
    fenced = previous[: len(partitions)]
    write_audit("fence", actor=actor, board=board.name, reason="reseed")
    await drain(store, everything, report)
    season = await choose_season(store, connection, board, partitions)
    loader = Loader(
        store, connection, board, season=season, numbers=numbers, token=token, report=report
    )
    async with snapshot(connection):
        unresolved = await dead_letters.select_unresolved_events(connection, board.name)
        counted = [event for event in unresolved if event.season == season]
        members = await loader.load_scores(counted)
        await loader.load_bans(counted)
        actions = await loader.load_dedup_records()
        await loader.load_unresolved_records(unresolved)
    positions = [
        await next_position(store, connection, partition, before, season)
        for partition, before in zip(partitions, fenced, strict=True)
    ]
    if strays or layouts.differing:
        positions = raise_positions(positions, layouts.epochs, [seq for _, seq in previous])
    beginnings = dict(zip(partitions, positions, strict=True))
    await mirror_catalogue(store, connection)
    await mirror_board(store, connection, board.name)
    await record_epochs(
        connection,
        board,
        beginnings,
        strays,
        season=season,
        actor=actor,
        action="reseed",
        detail={
            "before": [list(before) for before in fenced],
            "users": sum(members.values()),
            "actions": actions,
        },
    )
    await open_partitions(store, board, token, beginnings, members, strays=strays)
    return Reseeded(
        board=board.name,
        partitions=tuple(numbers),
        epochs=tuple(position.epoch for position in positions),
        users=sum(members.values()),
        actions=actions,
        duration_s=time.monotonic() - started_at,
    )


def make_token(owner: str) -> str:
    """Return a new token of a fence, with its owner as the prefix."""
    return f"{_UNPRINTABLE.sub('?', owner)}:{secrets.token_hex(8)}"


async def record_epochs(
    connection: Connection,
    board: Board,
    beginnings: Mapping[Partition, Position],
    strays: Sequence[Partition],
    *,
    season: str,
    actor: str,
    action: str,
    detail: Mapping[str, Any],
    is_resized: bool = False,
) -> None:
    """Record the new epochs of a board in PostgreSQL, in one transaction.

    If ``is_resized``, the number of its partitions is recorded, too; a flusher may not do that.

    From then on, no flusher commits anything of the epochs before, and only an opening with these
    positions makes the partitions accept actions.

    Raises OperatorMistake (another operator has opened one), DatabaseUnavailable.
    """
    async with audited(connection) as trail:
        if is_resized:
            await set_board_partitions(connection, board.name, board.layout.partitions)
        if season:
            await open_season(connection, board.name, Season.parse(season))
        for partition, position in beginnings.items():
            if not await begin_epoch(connection, partition, position):
                raise OperatorMistake(f"Another operator has already opened {partition}")
        # Open partitions get the expected scores; retired ones keep nothing.
        parts = [partition.number for partition in (*beginnings, *strays)]
        await close_corrections(connection, board.name, parts)
        await trail.insert(
            actor=actor,
            action=action,
            board=board.name,
            detail={
                "partitions": [partition.number for partition in beginnings],
                "layout": str(board.layout),
                "retired": [stray.number for stray in strays],
                "after": [[position.epoch, position.seq] for position in beginnings.values()],
                **detail,
                **({"season": season} if season else {}),
            },
        )


async def open_partitions(
    store: Store,
    board: Board,
    token: str,
    beginnings: Mapping[Partition, Position],
    members: Mapping[int, int],
    *,
    strays: Sequence[Partition],
    unread: Collection[Partition] = (),
) -> None:
    """Open loaded partitions, then retire those that the board no longer has.

    ``unread`` are opened first: readers with the layout before do not ask for them. Until the last
    of the others is open, readers find two layouts and wait.

    Raises what Store.open and Store.retire raise: repeat the reseed.
    """

    async def begin(partition: Partition) -> None:
        position = beginnings[partition]
        await store.open(
            partition,
            token,
            board,
            epoch=position.epoch,
            seq=position.seq,
            stream_id=position.stream_id,
            members=members[partition.number],
            season=position.season,
        )

    async def end(stray: Partition) -> None:
        await store.exclude(stray, token, [], first=True)
        await store.retire(stray, token, board.layout)

    for group, step in (
        ([one for one in beginnings if one in unread], begin),
        ([one for one in beginnings if one not in unread], begin),
        (strays, end),
    ):
        async with bounded_calls() as send:
            for partition in group:
                await send(partial(step, partition))


def raise_positions(
    positions: Sequence[Position], epochs: Sequence[int], seqs: Sequence[int]
) -> list[Position]:
    """Return positions of a new layout, with one epoch and one seq for all partitions.

    The epoch is above each of ``epochs``, and the sum above theirs: readers compare the sums of a
    board's epochs, and fewer partitions would have a smaller sum. The seq is the highest of
    ``seqs``: users bring answers and a place among equals that have seqs of other partitions, and
    later ones have to be above them.
    """
    above = (sum(epochs) // len(positions) + 1, *(epoch + 1 for epoch in epochs))
    epoch = max(*above, *(position.epoch for position in positions))
    seq = max(*seqs, *(position.seq for position in positions))
    return [msgspec.structs.replace(position, epoch=epoch, seq=seq) for position in positions]


async def choose_season(
    store: Store, connection: Connection, board: Board, partitions: Sequence[Partition]
) -> str:
    """Return the season to open partitions in, as id:start:end; empty for a board without seasons.

    It is the last one that PostgreSQL has of the board, although its time may be over: an emptied
    Redis is not a new season, and the usual turn follows. The partitions are drained, so one that
    was in an earlier season has committed all of it.
    """
    rules = board.layout.rules
    if not rules.season:
        return ""
    recorded = await select_newest_season(connection, board.name)
    positions = [await select_position(connection, partition) for partition in partitions]
    seasons = [Season.parse(one.season) for one in positions if one.season]
    if recorded is not None:
        seasons.append(recorded)
    if seasons:
        return str(max(seasons, key=lambda one: one.start_s))
    try:
        return str(season_at(rules, await store.now_s()))
    except ValueError as error:
        raise OperatorMistake(f"The season of board {board.name} is unknown: {error}") from error


async def next_position(
    store: Store,
    connection: Connection,
    partition: Partition,
    before: tuple[int, int],
    season: str,
) -> Position:
    """Return a position after those of both stores, so no part of it decreases."""
    epoch, seq = before
    on_record = await select_position(connection, partition)
    last_id = (await store.backlog(partition)).last_id
    return Position(
        epoch=max(epoch, on_record.epoch) + 1,
        seq=max(seq, on_record.seq),
        stream_id=max(last_id, on_record.stream_id, key=stream_id_key),
        season=season,
    )
