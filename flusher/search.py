"""Finds the partitions with work, at any number of boards.

A script that adds to an empty stream publishes the stream's name, so work is noticed at once.
Messages may be lost, and some work has none: every 30 s, and after each reconnection, a scan
compares the positions of all partitions and the lengths of their streams. Every 2 s a few queries,
whatever the number of boards, find what changed about the configured boards, and corrections that
an operator requested. With the scan, the list of boards in Redis is compared with PostgreSQL.

Invariant: only partitions of boards that PostgreSQL has are served.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from heapq import nlargest
from typing import Final, TypeGuard

from flusher import metrics
from flusher.recovery import compare_positions, is_own_fence
from flusher.roster import Roster
from scoreboard.errors import (
    DatabaseUnavailable,
    RedisUnavailable,
    ScoreboardError,
    UnexpectedReply,
)
from scoreboard.ledger.boards import select_existing_boards
from scoreboard.ledger.dead_letters import count_dead_letters
from scoreboard.ledger.held import count_held
from scoreboard.ledger.pool import POSTGRES_UP, Connection, connect
from scoreboard.ledger.positions import (
    Position,
    select_board_positions,
    select_partitions,
    select_partitions_to_correct,
)
from scoreboard.model import Partition
from scoreboard.recovery.mirror import mirror_boards
from scoreboard.runtime.lifecycle import StopEvent, backoff_s
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.keys import ACTIVE, partition_of_events
from scoreboard.store.partitions import PAGE, Survey
from scoreboard.store.store import Store
from scoreboard.store.subscription import Subscription

SEARCH_EVERY_S: Final = 2.0
"""Interval of the queries: the longest delay for a new configured board."""

SEARCH_LIMIT_S: Final = 10.0
"""Longest search; after it the connection is replaced."""

SCAN_EVERY_S: Final = 30.0
"""Interval of scans: the longest delay for work whose message was lost."""

SCAN_LIMIT_S: Final = 60.0
BOARDS_PAGE: Final = 200
"""Boards of one query of a scan."""

NOTICED_MAX: Final = 10_000
"""Most partitions of unknown boards that are remembered until PostgreSQL is asked."""

CORRECTIONS_MAX: Final = 1000
"""Most partitions of one search that are served because of open corrections."""

DEAD_LETTER_BOARDS_MAX: Final = 50
"""Most boards with a series of their own for dead letters, besides the configured ones."""

_MESSAGE: Final = re.compile(rb"sb:\{[!-~]+\}:events")
_log = get_logger(__name__)


class Search:
    """The search of one flusher: tells the roster which partitions to serve."""

    def __init__(self, settings: Settings, roster: Roster, store: Store) -> None:
        self._settings = settings
        self._configured = frozenset(settings.boards)
        self._roster = roster
        self._store = store
        self._subscription = Subscription(
            settings,
            [ACTIVE],
            name="flusher-active",
            message=_MESSAGE,
            on_change=lambda _channel: None,
            on_message=self._take_message,
            on_up=self._note_up,
            on_down=self._note_down,
        )
        self._boards: set[str] = set()
        """The boards of PostgreSQL at the last scan, and those found since."""
        self._strangers: set[str] = set()
        """Names that PostgreSQL did not know since the last search."""
        self._noticed: set[Partition] = set()
        """Partitions with work, of boards that were not known yet."""
        self._is_due = asyncio.Event()
        self._search_due_s = self._scan_due_s = 0.0
        self._missing_boards: set[str] = set()
        self._unreadable: set[Partition] = set()
        self._unreachable: RedisUnavailable | None = None
        """The last error of a partition whose primary did not answer in this turn."""
        self._is_list_failing = False

    async def run(self, stop: StopEvent) -> None:
        """Search until ``stop``."""
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(self._subscription.run())
            group.create_task(self._end(stop))
            await self._search(stop)
            listening.cancel()

    async def _end(self, stop: StopEvent) -> None:
        await stop.wait()
        self._is_due.set()

    def _note_up(self) -> None:
        self._roster.is_listening = True
        self._scan_due_s = 0.0  # messages may have been lost
        self._is_due.set()

    def _note_down(self) -> None:
        self._roster.is_listening = False

    def _take_message(self, data: bytes) -> None:
        partition = partition_of_events(data.decode())
        if partition is None:
            return
        if partition.board in self._configured:
            if not self._roster.serves(partition):  # the board has got more partitions
                self._search_due_s = 0.0
                self._is_due.set()
            return
        if partition.board in self._boards:
            self._roster.wake(partition)
        elif len(self._noticed) < NOTICED_MAX:
            self._noticed.add(partition)
            if partition.board not in self._strangers:
                self._is_due.set()
        else:
            self._scan_due_s = 0.0

    async def _search(self, stop: StopEvent) -> None:
        attempt = 0
        while not stop.is_set:
            try:
                async with self._connection() as connection:
                    while not stop.is_set and not connection.is_login_outdated:
                        await self._take_turn(connection)
                        attempt = 0
                        with suppress(TimeoutError):
                            async with asyncio.timeout(SEARCH_EVERY_S):
                                await self._is_due.wait()
            except (ScoreboardError, TimeoutError) as error:
                if isinstance(error, DatabaseUnavailable | TimeoutError):
                    POSTGRES_UP.set(0)
                if attempt == 0:
                    reason = error.detail if isinstance(error, ScoreboardError) else "no answer"
                    _log.warning("partition_search_failed", reason=reason)
                self._scan_due_s = 0.0
            await stop.sleep(backoff_s(attempt, most_s=SEARCH_EVERY_S))
            attempt += 1

    async def _take_turn(self, connection: Connection) -> None:
        self._is_due.clear()
        self._unreachable = None
        if time.monotonic() >= self._search_due_s:
            async with asyncio.timeout(SEARCH_LIMIT_S):
                await self._find_configured(connection)
                for partition in await select_partitions_to_correct(
                    connection, limit=CORRECTIONS_MAX
                ):
                    self._roster.wake(partition)
                _show_dead_letters(self._configured, await count_dead_letters(connection))
            POSTGRES_UP.set(1)
            self._strangers.clear()
            self._search_due_s = time.monotonic() + SEARCH_EVERY_S
        async with asyncio.timeout(SEARCH_LIMIT_S):
            await self._admit_noticed(connection)
        if time.monotonic() >= self._scan_due_s:
            # Set before the scan: a message that cannot be kept meanwhile asks for another one.
            self._scan_due_s = time.monotonic() + SCAN_EVERY_S
            async with asyncio.timeout(SCAN_LIMIT_S):
                await self._scan(connection)
                await self._copy_list(connection)
                waiting = await count_held(connection)
                metrics.HELD_ACTIONS.set(waiting.actions)
                metrics.HELD_AGE.set(waiting.oldest_s)
        if self._unreachable is not None:
            raise self._unreachable

    async def _find_configured(self, connection: Connection) -> None:
        """Serve the partitions of the configured boards, and those that they no longer have."""
        boards = await select_partitions(connection, self._settings.boards)
        missing = set(self._configured) - {board.board for board in boards}
        for name in sorted(missing - self._missing_boards):
            _log.warning("board_missing", board=name)
        self._missing_boards = missing
        left_over: list[Partition] = []
        for board in boards:
            for number in range(board.count):
                self._roster.keep(Partition(board.board, number))
            left_over += [Partition(board.board, number) for number in board.left_over]
        for start in range(0, len(left_over), PAGE):
            some = left_over[start : start + PAGE]
            for partition, found in zip(some, await self._store.survey(some), strict=True):
                if self._is_readable(found, partition) and found.state.epoch:
                    if not self._roster.serves(partition):
                        _log.warning("partition_not_retired", partition=str(partition))
                    self._roster.wake(partition)

    async def _admit_noticed(self, connection: Connection) -> None:
        """Serve the partitions of boards that were unknown, if PostgreSQL has these boards."""
        noticed, self._noticed = self._noticed, set()
        if not noticed:
            return
        try:
            names = {partition.board for partition in noticed}
            existing = await select_existing_boards(connection, names)
        except BaseException:
            self._noticed |= noticed
            raise
        self._boards |= existing
        self._strangers |= names - existing
        for partition in noticed:
            if partition.board in existing:
                self._roster.wake(partition)

    async def _scan(self, connection: Connection) -> None:
        """Serve every partition that has work, and learn the names of all boards."""
        boards: set[str] = set()
        after = ""
        while True:
            # PostgreSQL is read before Redis, so that its positions are never ahead.
            page = await select_board_positions(connection, after=after, limit=BOARDS_PAGE)
            positions = {
                partition: position
                for board, found in page.items()
                if board not in self._configured
                for partition, position in found.items()
            }
            partitions = list(positions)
            for start in range(0, len(partitions), PAGE):
                some = partitions[start : start + PAGE]
                for partition, found in zip(some, await self._store.survey(some), strict=True):
                    if self._is_readable(found, partition) and _has_work(
                        positions[partition], found
                    ):
                        self._roster.wake(partition)
            boards.update(page)
            if len(page) < BOARDS_PAGE:
                break
            after = list(page)[-1]
        self._boards = boards

    def _is_readable(
        self, found: Survey | UnexpectedReply | RedisUnavailable, partition: Partition
    ) -> TypeGuard[Survey]:
        """Return whether the keys of a partition could be read; log once if not.

        One that cannot be parsed does not affect others, nor one of a primary that is away: the
        turn fails after all others.
        """
        if isinstance(found, RedisUnavailable):
            self._unreachable = found
            return False
        if isinstance(found, UnexpectedReply):
            if partition not in self._unreadable:
                self._unreadable.add(partition)
                _log.error("partition_unreadable", partition=str(partition), reason=found.detail)
            return False
        self._unreadable.discard(partition)
        return True

    async def _copy_list(self, connection: Connection) -> None:
        """Copy the list of boards to Redis where it differs."""
        try:
            count = await mirror_boards(self._store, connection)
        except DatabaseUnavailable:
            raise
        except ScoreboardError as error:
            if not self._is_list_failing:
                self._is_list_failing = True
                _log.warning("board_list_not_copied", reason=error.detail)
            return
        self._is_list_failing = False
        if count:
            _log.info("board_list_copied", count=count)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        connection = await connect(self._settings, name="flusher-search")
        try:
            yield connection
        finally:
            await connection.close()


def _has_work(position: Position | None, found: Survey) -> bool:
    if found.entries or is_own_fence(found.state):
        return True
    return position is not None and compare_positions(position, found.state).is_rewind


def _show_dead_letters(configured: frozenset[str], counts: Mapping[str, int]) -> None:
    others = {board: count for board, count in counts.items() if board not in configured}
    shown = {board: counts.get(board, 0) for board in configured}
    shown |= nlargest(DEAD_LETTER_BOARDS_MAX, others.items(), key=lambda one: one[1])
    rest = sum(counts.values()) - sum(shown.values())
    if rest:
        shown[metrics.OTHER_BOARDS] = rest
    for board in metrics.OPEN_DEAD_LETTERS.keys() - shown.keys():
        metrics.OPEN_DEAD_LETTERS.remove(board)
    for board, count in shown.items():
        metrics.OPEN_DEAD_LETTERS[board].set(count)
