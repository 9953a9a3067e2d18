"""Changes the number of partitions of an open board, through PostgreSQL.

The new partitions are loaded beside the old ones, which go on accepting actions. What was counted
meanwhile is added in rounds. Then the old partitions are fenced, the rest is added, the layout and
new epochs are recorded in one transaction, and the new partitions are opened: updates are refused
for that time only. Reads are answered by the old partitions until then; they wait while partitions
open, and get 503 after two seconds if the opening fails or this process is killed meanwhile.

Invariants: before the transaction the old partitions lose nothing, so a run that fails lets them go
on, and the next run lets them go on if this process was killed; after it, only the opening is left,
which the next run completes by a reseed. No operator changes the board meanwhile: the lock of every
partition is held.
"""

import asyncio
import itertools
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Final, NoReturn

from msgspec import Struct
from msgspec.structs import replace

from scoreboard.errors import OperatorMistake, ScoreboardError, WaitTimeout
from scoreboard.ledger import dead_letters
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.pool import Connection, limit_statements, snapshot
from scoreboard.ledger.positions import Position, lock_partitions, select_position
from scoreboard.model import Board, Partition
from scoreboard.recovery.loading import Loader, Mark, ReportProgress, bounded_calls, report_nothing
from scoreboard.recovery.mirror import mirror_board
from scoreboard.recovery.reseed import (
    Layouts,
    choose_season,
    compare_layouts,
    make_token,
    next_position,
    open_partitions,
    raise_positions,
    record_epochs,
    require_same_rules,
    reseed,
    wait_until_drained,
)
from scoreboard.runtime.audit import write_audit
from scoreboard.runtime.lifecycle import backoff_s
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.partitions import PartitionState
from scoreboard.store.store import Store

FENCE: Final = "reshard"  # not a secret
"""Prefix of the token of a reshard: a partition that it has fenced may be let go on."""

CALLS_MAX: Final = 2
"""Concurrent calls to Redis while the board is open: updates and reads come in between."""

PAUSE_MAX_S: Final = 10.0
"""Longest time for which updates are refused before the change is recorded."""

STALL_S: Final = 5.0
"""Longest time to wait for a flusher that makes no progress, while updates are refused."""

PATIENCE_S: Final = 30.0
"""Longest time to wait for a flusher that makes no progress, while the board is open."""

READY_S: Final = 0.3
"""Duration of a round after which the rest is small enough to refuse updates for it.

A longer one is enough if it was not shorter than the round before: under load, a round has what was
counted during the last one.
"""

READY_ENTRIES: Final = 2000
"""Most uncommitted actions then: the flusher commits them in a fraction of a second."""

ROUNDS_MAX: Final = 100
"""Most rounds that wait for a flusher that lags."""

CHANGE_STATEMENT_S: Final = 10.0
"""Longest statement of PostgreSQL from the record to the opening, while updates are refused."""

RELEASE_S: Final = 30.0
"""How long the release of old partitions is repeated while Redis is away."""

TRIES_MAX: Final = 3
"""Most loads of a board whose season ends meanwhile."""

SLACK_S: Final = 60
"""How far the clocks of Redis may be set back during a reshard."""

UNSETTLED_S: Final = 1.0
"""How far the clocks of the servers of a cluster may differ: equals keep their order."""

_POLL_S: Final = 0.05

_log = get_logger(__name__)


class Resharded(Struct, frozen=True):
    """The result of a reshard. ``pause_s`` is the time for which updates were refused.

    ``is_listed`` is False if the list of boards in Redis could not be changed: the flusher does it.
    """

    board: str
    before: int
    partitions: int
    epoch: int
    users: int
    actions: int
    pause_s: float
    duration_s: float
    is_listed: bool = True


def count_partitions(partitions: int) -> str:
    """Return a number of partitions in words."""
    return "1 partition" if partitions == 1 else f"{partitions} partitions"


async def reshard(
    store: Store,
    connection: Connection,
    name: str,
    partitions: int,
    *,
    actor: str,
    report: ReportProgress = report_nothing,
) -> Resharded:
    """Change the number of partitions of a board, or complete a change that was interrupted.

    ``connection`` is in autocommit, opened with ``reseed.SESSION``, and holds the operators' lock
    until it is closed.

    Raises UnknownBoard, OperatorMistake (the board has so many, is not open, or another operator
    works on it), Outdated (it was fenced meanwhile), WaitTimeout (the flusher makes no progress),
    ScriptFailed, RedisUnavailable, DatabaseUnavailable. The text says if the board has to be
    completed; else it goes on with the partitions that it had. Partitions that cannot be let go on
    for ``RELEASE_S`` have to be completed, too.
    """
    started_at = time.monotonic()
    board = await select_board(connection, name)
    held = range(max(board.layout.partitions, partitions))
    await lock_partitions(connection, [Partition(name, number) for number in held])
    # The answer proves that the session held its locks when the states are read.
    if await select_board(connection, name) != board:
        raise OperatorMistake(f"Board {name} was changed meanwhile; try again")
    layouts = await compare_layouts(store, board)
    require_same_rules(board, layouts)
    strays = [number for number in layouts.strays if number not in held]
    await lock_partitions(connection, [Partition(name, number) for number in strays])
    if board.layout.partitions == partitions:
        return await _complete(store, connection, board, layouts, actor=actor, report=report)
    if layouts.closed and await _let_go_on(store, connection, board, layouts):
        layouts = await compare_layouts(store, board)
    if layouts.closed or not layouts.are_current:
        raise OperatorMistake(
            f"Board {name} is not open with its {count_partitions(board.layout.partitions)}",
            hint=f"run scoreboard reseed --board {name}, then run this command again",
        )
    change = _Reshard(store, connection, board, partitions, layouts, actor=actor, report=report)
    return await change.run(started_at)


async def _complete(
    store: Store,
    connection: Connection,
    board: Board,
    layouts: Layouts,
    *,
    actor: str,
    report: ReportProgress,
) -> Resharded:
    """Open the board with the layout that PostgreSQL has, if an earlier run was interrupted."""
    count = board.layout.partitions
    if layouts.are_current and not layouts.closed:
        raise OperatorMistake(f"Board {board.name} has {count_partitions(count)} already")
    began_s = time.monotonic()
    is_listed = True
    if not layouts.differing and not layouts.closed:
        # Only the partitions of before are left.
        token = make_token(f"{FENCE}:{actor}")
        strays = [Partition(board.name, number) for number in layouts.strays]
        states = await store.states(board.name)
        for stray in strays:
            await store.fence(stray, token, states[stray.number])
        await wait_until_drained(store, strays, report)
        await open_partitions(store, board, token, {}, {}, strays=strays)
        is_listed = await _copy_to_list(store, connection, board.name)
        window = await store.leaderboard(board.name, limit=0)
        epoch, users, actions, pause_s = window.positions[0][0], window.total, 0, 0.0
    else:
        done = await reseed(store, connection, board, range(count), actor=actor, report=report)
        epoch, users, actions, pause_s = max(done.epochs), done.users, done.actions, done.duration_s
    return Resharded(
        board=board.name,
        before=count,
        partitions=count,
        epoch=epoch,
        users=users,
        actions=actions,
        pause_s=pause_s,
        duration_s=time.monotonic() - began_s,
        is_listed=is_listed,
    )


async def _let_go_on(store: Store, connection: Connection, board: Board, layouts: Layouts) -> bool:
    """Let partitions go on that a reshard had fenced when it was killed; return whether it did.

    PostgreSQL has the layout of before, so the partitions still hold what they held.
    """
    states = await store.states(board.name)
    fenced = [number for number in layouts.closed if number in states]
    for number in layouts.closed:
        state = states.get(number, PartitionState())
        position = await select_position(connection, Partition(board.name, number))
        if not (
            state.fence.startswith(f"{FENCE}:")
            and state.layout == board.layout
            and state.epoch == position.epoch
        ):
            return False
    for number in fenced:
        await store.release(Partition(board.name, number), states[number].fence, board.state)
    return True


async def _copy_to_list(store: Store, connection: Connection, name: str) -> bool:
    """Copy a board that is open again to the list; return False if it fails."""
    try:
        await mirror_board(store, connection, name)
    except ScoreboardError as error:
        _log.warning("board_list_not_copied", reason=error.detail)
        return False
    return True


class _Reshard:
    """One change of an open board."""

    def __init__(
        self,
        store: Store,
        connection: Connection,
        board: Board,
        partitions: int,
        layouts: Layouts,
        *,
        actor: str,
        report: ReportProgress,
    ) -> None:
        self._store = store
        self._connection = connection
        self._before = board
        self._board = replace(board, layout=replace(board.layout, partitions=partitions))
        self._epochs = layouts.epochs
        self._actor = actor
        self._report = report
        self._token = make_token(f"{FENCE}:{actor}")
        self._old = [Partition(board.name, n) for n in range(board.layout.partitions)]
        self._new = [Partition(board.name, n) for n in range(partitions)]
        self._strays = self._old[partitions:]
        self._states: dict[int, PartitionState] = {}
        self._actions = 0
        self._fenced_at_s = 0.0
        self._is_recorded: bool | None = False
        """Whether PostgreSQL has the new layout; None while that is unknown."""

    async def run(self, started_at: float) -> Resharded:
        failure: ScoreboardError | None = None
        try:
            for _ in range(TRIES_MAX):
                done = await self._try(started_at)
                if done is not None:
                    return done
                failure = await self._let_go_on()
                if failure is not None:
                    break
        except BaseException as error:
            if self._is_recorded is False:
                failure = await self._let_go_on()
                if failure is not None and isinstance(error, ScoreboardError):
                    self._explain(failure)
            raise
        if failure is not None:
            self._explain(failure)
        raise WaitTimeout(f"Seasons of board {self._board.name} ended meanwhile; {self._goes_on}")

    async def _try(self, started_at: float) -> Resharded | None:
        """Load, catch up and switch; return None if the season has ended meanwhile."""
        season = await self._season()
        loader = await self._stage(season)
        mark = await self._catch_up(loader, await self._load(loader), season)
        return mark and await self._switch(loader, mark, season, started_at)

    async def _season(self) -> str:
        return await choose_season(self._store, self._connection, self._before, self._old)

    # While the board is open

    async def _stage(self, season: str) -> Loader:
        """Take the right to load the new partitions, each beside what it holds."""
        self._states = await self._store.states(self._board.name)
        for partition in self._new:
            state = self._states.get(partition.number, PartitionState())
            await self._store.stage(partition, self._token, state)
            self._states[partition.number] = replace(state, fence=self._token)
        return Loader(
            self._store,
            self._connection,
            self._board,
            season=season,
            numbers=range(self._board.layout.partitions),
            token=self._token,
            report=self._report,
            moved_from=len(self._old),
            calls_max=CALLS_MAX,
        )

    async def _load(self, loader: Loader) -> Mark:
        oldest_s = await self._oldest_s()
        async with snapshot(self._connection):
            mark = await self._mark(oldest_s)
            await loader.load_scores([])
            self._actions = await loader.load_dedup_records()
        return mark

    async def _catch_up(self, loader: Loader, mark: Mark, season: str) -> Mark | None:
        """Add what is counted until the rest is small; return None if the season has ended.

        Raises WaitTimeout if the flusher makes no progress.
        """
        progress_at = time.monotonic()
        last_s = 2 * PATIENCE_S
        for _ in range(ROUNDS_MAX):
            began_s = time.monotonic()
            oldest_s = await self._oldest_s()
            before = mark
            async with snapshot(self._connection):
                mark = await self._mark(oldest_s)
                self._actions += await loader.load_changes(before)
            took_s = time.monotonic() - began_s
            backlogs = [await self._store.backlog(partition) for partition in self._old]
            waiting = sum(backlog.entries for backlog in backlogs)
            self._report("catch up", self._actions, self._actions + waiting)
            if await self._season() != season:
                return None
            is_short = took_s <= READY_S or took_s >= last_s
            last_s = took_s
            if is_short and waiting <= READY_ENTRIES and (not waiting or mark.seqs != before.seqs):
                return mark
            if mark.seqs != before.seqs or not waiting:
                progress_at = time.monotonic()
            elif time.monotonic() - progress_at > PATIENCE_S:
                raise WaitTimeout(
                    f"The flusher makes no progress: {waiting} actions wait. Start the flusher, "
                    f"then run the command again; {self._goes_on}"
                )
            await asyncio.sleep(_POLL_S)
        return mark

    async def _oldest_s(self) -> float:
        """Return a time (s since 1970) before every action that is not committed now."""
        backlogs = [await self._store.backlog(partition) for partition in self._old]
        oldest_ms = [one.oldest_ms for one in backlogs if one.oldest_ms is not None]
        now_s = [await self._store.now_s(partition) for partition in self._old]
        return min([*now_s, *(ms / 1000 for ms in oldest_ms)])

    async def _mark(self, oldest_s: float) -> Mark:
        """Return the mark of the snapshot, before which ``oldest_s`` was read."""
        seqs = {
            partition.number: (await select_position(self._connection, partition)).seq
            for partition in self._old
        }
        return Mark(seqs, since_s=oldest_s - SLACK_S, settled_s=oldest_s - UNSETTLED_S)

    # While updates are refused

    async def _switch(
        self, loader: Loader, mark: Mark, season: str, started_at: float
    ) -> Resharded | None:
        """Fence, add the rest, record the new layout, and open; None if the season has ended."""
        self._fenced_at_s = time.monotonic()
        try:
            async with asyncio.timeout(PAUSE_MAX_S):
                fenced = await self._fence()
                await wait_until_drained(self._store, self._old, self._report, stall_s=STALL_S)
                if await self._season() != season:
                    return None
                async with snapshot(self._connection):
                    unresolved = await dead_letters.select_unresolved_events(
                        self._connection, self._board.name
                    )
                    counted = [event for event in unresolved if event.season == season]
                    self._actions += await loader.load_changes(mark, counted)
                    await loader.load_unresolved_records(unresolved)
                    members = await loader.count_members(counted)
                beginnings = await self._beginnings(fenced, season)
                gains = [await self._store.gains(partition) for partition in self._old]
                await limit_statements(self._connection, CHANGE_STATEMENT_S)
        except (TimeoutError, WaitTimeout) as error:
            raise WaitTimeout(
                f"The flusher did not commit the last actions in time; {self._goes_on}. Run the "
                "command again when the flusher has caught up"
            ) from error

        async def change() -> None:
            self._is_recorded = None
            try:
                await record_epochs(
                    self._connection,
                    self._board,
                    beginnings,
                    self._strays,
                    season=season,
                    actor=self._actor,
                    action="board reshard",
                    is_resized=True,
                    detail={
                        "before": [list(fenced[partition]) for partition in self._old],
                        "users": sum(members.values()),
                        "actions": self._actions,
                    },
                )
                self._is_recorded = True
                await loader.load_bans(counted)
                await loader.move_gains(gains)
                unread = self._new[len(self._old) :]
                await open_partitions(
                    self._store,
                    self._board,
                    self._token,
                    beginnings,
                    members,
                    strays=self._strays,
                    unread=unread,
                )
            except ScoreboardError as error:
                self._explain(error)

        # A second signal ends the process; the first one waits for these milliseconds.
        changing = asyncio.create_task(change())
        try:
            await asyncio.shield(changing)
        except asyncio.CancelledError:
            await changing
            raise
        ended_s = time.monotonic()
        is_listed = await _copy_to_list(self._store, self._connection, self._board.name)
        return Resharded(
            board=self._board.name,
            before=len(self._old),
            partitions=len(self._new),
            epoch=beginnings[self._new[0]].epoch,
            users=sum(members.values()),
            actions=self._actions,
            pause_s=ended_s - self._fenced_at_s,
            duration_s=ended_s - started_at,
            is_listed=is_listed,
        )

    async def _fence(self) -> Mapping[Partition, tuple[int, int]]:
        """Fence the old partitions; return epoch and seq of each."""
        fenced: dict[Partition, tuple[int, int]] = {}

        async def fence(partition: Partition) -> None:
            seen = self._states[partition.number]
            fenced[partition] = await self._store.fence(partition, self._token, seen)

        async with bounded_calls() as send:
            for partition in self._old:
                await send(partial(fence, partition))
        write_audit("fence", actor=self._actor, board=self._board.name, reason="board reshard")
        return fenced

    async def _beginnings(
        self, fenced: Mapping[Partition, tuple[int, int]], season: str
    ) -> dict[Partition, Position]:
        positions = [
            await next_position(
                self._store, self._connection, partition, fenced.get(partition, (0, 0)), season
            )
            for partition in self._new
        ]
        seqs = [seq for _, seq in fenced.values()]
        positions = raise_positions(positions, self._epochs, seqs)
        return dict(zip(self._new, positions, strict=True))

    # Failures

    @property
    def _goes_on(self) -> str:
        return f"board {self._board.name} goes on with its {count_partitions(len(self._old))}"

    def _explain(self, error: ScoreboardError) -> NoReturn:
        raise type(error)(
            f"The change of board {self._board.name} is not complete. Its updates are refused, and "
            f"reads may be, too: run the command again ({error.detail})"
        ) from error

    async def _let_go_on(self) -> ScoreboardError | None:
        """Let the old partitions go on, and drop what was loaded. Another owner's fence stays.

        Repeats it for ``RELEASE_S``. Returns the error of a partition that still could not be let
        go on, for the next run.
        """
        give_up_at = time.monotonic() + RELEASE_S
        held = self._old
        failure: ScoreboardError | None = None
        for attempt in itertools.count():
            failure = None
            left: list[Partition] = []
            for partition in held:
                try:
                    await self._store.release(partition, self._token, self._before.state)
                except OperatorMistake:
                    continue  # it was not fenced, or an earlier attempt succeeded
                except ScoreboardError as error:
                    failure = error
                    left.append(partition)
            held = left
            delay_s = backoff_s(attempt, most_s=2.0)
            if failure is None or time.monotonic() + delay_s > give_up_at:
                break
            await asyncio.sleep(delay_s)
        for partition in self._new[len(self._old) :]:
            with suppress(ScoreboardError):
                await self._store.retire(partition, self._token, self._before.layout)
        return failure
