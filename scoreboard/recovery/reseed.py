"""Rebuilds a board in Redis from PostgreSQL and opens it under a new epoch.

Used by `scoreboard reseed`, by `scoreboard up` for an empty Redis, and by the flusher when Redis is
older than the ledger. Invariants: no action is accepted between fence and opening; an interrupted
run leaves the board fenced and can be repeated; concurrent runs cannot mix, because every write
names the token of its fence. Only a reseed applies a changed layout: all partitions are fenced and
drained, those that the new layout lacks are retired, and only then the others are opened.
"""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import msgspec
from msgspec import Struct

from scoreboard.errors import OperatorMistake, ScoreboardError, ScriptFailed, WaitTimeout
from scoreboard.events import Event, season_id_of, stream_id_key
from scoreboard.ledger import acts, checks, dead_letters
from scoreboard.ledger.audit import audited
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.pool import Connection, snapshot
from scoreboard.ledger.positions import (
    Position,
    begin_epoch,
    close_corrections,
    lock_partitions,
    select_position,
)
from scoreboard.ledger.scores import (
    DedupRecord,
    count_dedup_records,
    select_dedup_records,
    select_ranking,
    select_totals,
)
from scoreboard.ledger.seasons import open_season, select_newest_season
from scoreboard.model import (
    SLOT_COUNT,
    Board,
    Partition,
    digest_of,
    partition_of,
    scores_name,
    shard_of,
)
from scoreboard.recovery.mirror import mirror_board, mirror_catalogue
from scoreboard.runtime.audit import write_audit
from scoreboard.seasons import Season, season_at
from scoreboard.store.partitions import Partitions, PartitionState
from scoreboard.store.rebuilding import PAGE
from scoreboard.store.store import Store

SESSION: Final = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "work_mem": "128MB",
}
"""Session settings for the connection of a reseed: one long snapshot, sorted in memory."""

FETCH: Final = 10 * PAGE
"""Rows of one fetch from PostgreSQL."""

CALLS_MAX: Final = 8
"""Maximum concurrent calls to Redis: enough to share an fsync, few enough to bound memory."""

STALL_S: Final = 30.0
"""Longest time to wait for a flusher that makes no progress."""

SEEN_GRACE_S: Final = 60
"""Added to the expiry of a dedup shard; lua/submit.lua uses the same value."""

_POLL_S: Final = 0.05
_UNPRINTABLE: Final = re.compile(r"[^!-~]")

ReportProgress = Callable[[str, int, int], None]
"""Called with a step's name, the amount done and the total; 0 and 0 if the total is unknown."""

Call = Callable[[], Awaitable[None]]
Drain = Callable[[Store, Sequence[Partition], ReportProgress], Awaitable[None]]


class Reseeded(Struct, frozen=True):
    """The result of a reseed. ``epochs`` are those of ``partitions``, in order."""

    board: str
    partitions: tuple[int, ...]
    epochs: tuple[int, ...]
    users: int
    actions: int
    duration_s: float


def report_nothing(_step: str, _done: int, _total: int) -> None:
    """Ignore the progress."""


class _Layouts(Struct, frozen=True):
    """The partitions in Redis compared with the board's layout."""

    differing: tuple[int, ...]
    """Partitions of the board that have another layout."""
    strays: tuple[int, ...]
    """Partitions that the board no longer has and that are not retired."""
    have_other_rules: bool
    """Whether a partition has other rules than the board."""
    closed: tuple[int, ...]
    """Partitions of the board that accept no actions: empty or fenced."""
    epochs: int
    """Sum of the epochs of all of these."""

    @property
    def are_current(self) -> bool:
        """Return whether every partition has the board's layout."""
        return not self.differing and not self.strays


async def _compare_layouts(store: Partitions, board: Board) -> _Layouts:
    states = await store.states(board.name)
    numbers = range(board.layout.partitions)
    used = {number: state for number, state in states.items() if state.epoch}
    return _Layouts(
        differing=tuple(n for n in numbers if n in used and used[n].layout != board.layout),
        strays=tuple(n for n in used if n not in numbers),
        have_other_rules=any(
            state.layout is not None and state.layout.rules != board.layout.rules
            for state in used.values()
        ),
        closed=tuple(n for n in numbers if n not in used or not used[n].is_open),
        epochs=sum(state.epoch for state in used.values()),
    )


async def find_unavailable(store: Partitions, board: Board) -> list[int]:
    """List the partitions that need a reseed: empty or fenced ones, or all after a layout change.

    Raises RedisUnavailable.
    """
    layouts = await _compare_layouts(store, board)
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
    store: Store, partitions: Sequence[Partition], report: ReportProgress
) -> None:
    """Wait until the flusher has committed everything the streams hold.

    Raises WaitTimeout when it makes no progress for ``STALL_S``; RedisUnavailable.
    """
    backlogs = [await store.backlog(partition) for partition in partitions]
    total = sum(backlog.entries for backlog in backlogs)
    progress_at = time.monotonic()
    while not all(backlog.is_drained for backlog in backlogs):
        report("drain", total - sum(backlog.entries for backlog in backlogs), total)
        await asyncio.sleep(_POLL_S)
        before, backlogs = backlogs, [await store.backlog(partition) for partition in partitions]
        if backlogs != before:
            progress_at = time.monotonic()
        elif time.monotonic() - progress_at > STALL_S:
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
    token = f"{_UNPRINTABLE.sub('?', actor)}:{secrets.token_hex(8)}"
    partitions = [Partition(board.name, number) for number in numbers]
    await lock_partitions(connection, partitions)
    layouts = await _compare_layouts(store, board)
    if layouts.have_other_rules:
        raise OperatorMistake(
            f"Board {board.name} has other rules in Redis than in PostgreSQL. The scores were "
            "counted by the rules of its creation, so restore these in the table boards"
        )
    if not layouts.are_current and list(numbers) != list(range(board.layout.partitions)):
        raise OperatorMistake(
            f"The layout of board {board.name} has changed",
            hint=f"run scoreboard reseed --board {board.name} --force",
        )
    strays = [Partition(board.name, number) for number in layouts.strays]
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
    season = await _choose_season(store, connection, board, partitions)
    rebuilding = _Rebuilding(
        store, connection, board, season=season, numbers=numbers, token=token, report=report
    )
    async with snapshot(connection):
        unresolved = await dead_letters.select_unresolved_events(connection, board.name)
        members = await rebuilding.load_scores(
            [event for event in unresolved if event.season == season]
        )
        actions = await rebuilding.load_dedup_records()
        await rebuilding.load_unresolved_records(unresolved)
    positions = [
        await _next_position(store, connection, partition, before, season)
        for partition, before in zip(partitions, fenced, strict=True)
    ]
    if strays or layouts.differing:
        positions = _raise_epochs(positions, layouts.epochs)
    await mirror_catalogue(store, connection)
    await mirror_board(store, connection, board.name)
    async with audited(connection) as trail:
        if season:
            await open_season(connection, board.name, Season.parse(season))
        for partition, position in zip(partitions, positions, strict=True):
            if not await begin_epoch(connection, partition, position):
                raise OperatorMistake(f"Another operator has already opened {partition}")
        # Open partitions get the expected scores; retired ones keep nothing.
        parts = [partition.number for partition in (*partitions, *strays)]
        await close_corrections(connection, board.name, parts)
        await trail.insert(
            actor=actor,
            action="reseed",
            board=board.name,
            detail={
                "partitions": list(numbers),
                "layout": str(board.layout),
                "retired": list(layouts.strays),
                "before": [list(before) for before in fenced],
                "after": [[position.epoch, position.seq] for position in positions],
                "users": sum(members.values()),
                "actions": actions,
                **({"season": season} if season else {}),
            },
        )
    # Retire first: a user must not be found in an old and a new partition.
    for stray in strays:
        await store.exclude(stray, token, [], first=True)
        await store.retire(stray, token, board.layout)
    for partition, position in zip(partitions, positions, strict=True):
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
    return Reseeded(
        board=board.name,
        partitions=tuple(numbers),
        epochs=tuple(position.epoch for position in positions),
        users=sum(members.values()),
        actions=actions,
        duration_s=time.monotonic() - started_at,
    )


class _Rebuilding:
    """Loads the data of a reseed, from one snapshot and under one fence."""

    def __init__(
        self,
        store: Store,
        connection: Connection,
        board: Board,
        *,
        season: str,
        numbers: Sequence[int],
        token: str,
        report: ReportProgress,
    ) -> None:
        self._store = store
        self._connection = connection
        self._board = board
        self._scores = scores_name(board.name, season_id_of(season))
        self._layout = board.layout
        self._rules = board.layout.rules
        self._numbers = frozenset(numbers)
        self._token = token
        self._report = report

    async def load_scores(  # noqa: C901 (two passes over the users)
        self, unresolved: Sequence[Event]
    ) -> dict[int, int]:
        """Fill the shadow boards in ranking order; return the number of members by partition.

        The first user at a score gets its highest slot, each later one the slot below. Users with
        ``unresolved`` dead letters are placed last at their expected scores. Banned users are
        excluded.
        """
        expected = await self._expected_scores(unresolved)
        banned = dict.fromkeys(await acts.select_bans(self._connection, self._board.name), -1)
        lowest: dict[tuple[int, int], int] = {}
        expected_values = frozenset(expected.values())
        total, _ = await select_totals(self._connection, self._scores)
        for number in self._numbers:
            await self._restore(number, [], first=True)
        members = dict.fromkeys(self._numbers, 0)
        reached: dict[int, tuple[int, int]] = dict.fromkeys(self._numbers, (-1, 0))
        pages: dict[int, list[tuple[int, str]]] = {number: [] for number in self._numbers}
        done = 0
        async with _bounded_calls() as send:
            async for rows in select_ranking(self._connection, self._scores, page=FETCH):
                for user_id, score in rows:
                    if user_id in banned:
                        banned[user_id] = expected.get(user_id, score)
                        continue
                    number = partition_of(user_id, self._layout.partitions)
                    if number not in self._numbers or user_id in expected:
                        continue
                    last_score, slot = reached[number]
                    slot = max(slot - 1, 0) if score == last_score else SLOT_COUNT - 1
                    reached[number] = (score, slot)
                    if score in expected_values:
                        lowest[number, score] = slot
                    page = pages[number]
                    page.append((self._rules.pack(score, slot), user_id))
                    members[number] += 1
                    if len(page) == PAGE:
                        pages[number] = []
                        await send(partial(self._restore, number, page))
                done += len(rows)
                self._report("scores", done, total)
            for number, page in pages.items():
                if page:
                    await send(partial(self._restore, number, page))
        async with _bounded_calls() as send:
            for user_id, score in expected.items():
                if user_id in banned:
                    banned[user_id] = score
                    continue
                number = partition_of(user_id, self._layout.partitions)
                slot = max(lowest.get((number, score), SLOT_COUNT) - 1, 0)
                lowest[number, score] = slot
                members[number] += 1
                packed = self._rules.pack(score, slot)
                await send(partial(self._restore, number, [(packed, user_id)]))
        await self._exclude(banned)
        return members

    async def _exclude(self, banned: Mapping[str, int]) -> None:
        """Write the banned users of each partition, in pages."""
        users: dict[int, list[tuple[str, int]]] = {number: [] for number in self._numbers}
        for user_id, score in banned.items():
            number = partition_of(user_id, self._layout.partitions)
            if number in users:
                users[number].append((user_id, score))
        for number, found in users.items():
            partition = Partition(self._board.name, number)
            for start in range(0, max(1, len(found)), PAGE):
                page = found[start : start + PAGE]
                await self._store.exclude(partition, self._token, page, first=not start)

    async def _expected_scores(self, unresolved: Sequence[Event]) -> dict[str, int]:
        """Return the scores of users with dead letters, where those change them."""
        sums: dict[str, int] = {}
        for event in unresolved:
            if partition_of(event.user_id, self._layout.partitions) in self._numbers:
                sums[event.user_id] = sums.get(event.user_id, 0) + event.delta
        if not sums:
            return {}
        scores = await checks.read_scores(self._connection, self._scores, list(sums))
        expected: dict[str, int] = {}
        for user, total in sums.items():
            held = scores[user].score if user in scores else None
            score = dead_letters.expected_score(held, total)
            if score is not None and score != held:
                expected[user] = score
        return expected

    async def load_dedup_records(self) -> int:
        """Fill the dedup window from the ledger; return the number of actions in it.

        The previous contents are deleted: the event of a remembered action may be lost, and a
        repeat would then get the answer of an action that was never counted.
        """
        window_s = self._layout.seen_seconds
        current = int(await self._store.now_s(Partition(self._board.name)) // window_s)
        since_s = float((current - 1) * window_s)
        total = await count_dedup_records(self._connection, self._board.name, since_s=since_s)
        pages: dict[tuple[int, int, int], list[tuple[bytes, str]]] = {}
        counts: dict[tuple[int, int, int], int] = {}
        done = 0
        async with _bounded_calls() as send:
            for number in self._numbers:
                for generation in (current - 1, current):
                    for shard in range(self._layout.seen_shards):
                        place = (number, generation, shard)
                        await send(partial(self._remember, place, [], 0, first=True))
        async with _bounded_calls() as send:
            async for records in select_dedup_records(
                self._connection, self._board.name, since_s=since_s, page=FETCH
            ):
                for record in records:
                    number = partition_of(record.user_id, self._layout.partitions)
                    if number not in self._numbers:
                        continue
                    digest = digest_of(self._board.name, record.user_id, record.action_id)
                    # The clock of this server may be behind the one that dated the ledger.
                    generation = min(record.occurred_at_ms // (window_s * 1000), current)
                    place = (number, generation, shard_of(digest, self._layout.seen_shards))
                    page = pages.setdefault(place, [])
                    page.append((digest, self._first_answer(record)))
                    counts[place] = counts.get(place, 0) + 1
                    if len(page) == PAGE:
                        del pages[place]
                        await send(partial(self._remember, place, page, 0))
                done += len(records)
                self._report("actions", done, total)
            full, pages = pages, {}
            for place, page in full.items():
                await send(partial(self._remember, place, page, 0))
        async with _bounded_calls() as send:
            for place, count in counts.items():
                await send(partial(self._remember, place, [], count))
        return sum(counts.values())

    async def load_unresolved_records(self, unresolved: Sequence[Event]) -> None:
        """Add dead letters to the dedup window: Redis has counted them."""
        window_s = self._layout.seen_seconds
        current = int(await self._store.now_s(Partition(self._board.name)) // window_s)
        async with _bounded_calls() as send:
            for event in unresolved:
                number = partition_of(event.user_id, self._layout.partitions)
                generation = min(event.occurred_at_ms // (window_s * 1000), current)
                if number not in self._numbers or generation < current - 1:
                    continue
                digest = digest_of(self._board.name, event.user_id, event.action_id)
                place = (number, generation, shard_of(digest, self._layout.seen_shards))
                await send(partial(self._remember, place, [(digest, self._first_answer(event))], 0))

    def _first_answer(self, action: DedupRecord | Event) -> str:
        """Return the dedup record of an action, as lua/submit.lua writes it."""
        answer = f"{action.delta}:{action.score_after}:{action.seq}"
        if isinstance(action, DedupRecord) and action.is_held:
            held_from = action.score_after if self._rules.takes_values else 0
            return f"{answer}:{held_from + action.delta}:held"
        # An action that changed the score set it to the value that it stated.
        return f"{answer}:{action.score_after}" if self._rules.takes_values else answer

    async def _restore(
        self, number: int, page: Sequence[tuple[int, str]], *, first: bool = False
    ) -> None:
        await self._store.restore(
            Partition(self._board.name, number), self._token, page, first=first
        )

    async def _remember(
        self,
        place: tuple[int, int, int],
        page: Sequence[tuple[bytes, str]],
        expected: int,
        *,
        first: bool = False,
    ) -> None:
        number, generation, shard = place
        remembered = await self._store.remember(
            Partition(self._board.name, number),
            self._token,
            (generation, shard),
            page,
            # Read until the end of the following generation.
            expires_at_s=(generation + 2) * self._layout.seen_seconds + SEEN_GRACE_S,
            first=first,
        )
        if expected and remembered != expected:
            raise ScriptFailed(f"A dedup shard holds {remembered} actions, not {expected}")


def _raise_epochs(positions: Sequence[Position], epochs: int) -> list[Position]:
    """Return positions with one epoch, such that their sum exceeds ``epochs``.

    Readers compare the sums of a board's epochs; fewer partitions would have a smaller sum.
    """
    epoch = max(*[position.epoch for position in positions], epochs // len(positions) + 1)
    return [msgspec.structs.replace(position, epoch=epoch) for position in positions]


async def _choose_season(
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


async def _next_position(
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


@asynccontextmanager
async def _bounded_calls() -> AsyncIterator[Callable[[Call], Awaitable[None]]]:
    """Yield a function that starts a call when fewer than ``CALLS_MAX`` are running.

    All calls have ended when the context ends; the first error is raised, not grouped.
    """
    free = asyncio.Semaphore(CALLS_MAX)

    async def drive(call: Call) -> None:
        try:
            await call()
        finally:
            free.release()

    try:
        async with asyncio.TaskGroup() as group:

            async def send(call: Call) -> None:
                await free.acquire()
                group.create_task(drive(call))

            yield send
    except BaseExceptionGroup as failures:
        for failure in failures.exceptions:
            if isinstance(failure, ScoreboardError):
                raise failure from None
        raise
