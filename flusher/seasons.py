"""Ends the seasons of boards in time, also without traffic, and freezes their final standings.

The season of a partition ends in Redis by lua/turn.lua, which the api calls as well: it happens
once, whoever calls it, so no lease is needed. A season is frozen when PostgreSQL has the end of it
from every partition, and revised when something of it is counted later. Every process does all of
this; a repeat changes nothing.

Invariant: a board whose season cannot be computed or whose partition is closed does not hold up
the others.
"""

import asyncio
import time
from typing import Final

from flusher import metrics
from scoreboard.errors import (
    BoardArchived,
    Fenced,
    ScoreboardError,
    Uninitialised,
)
from scoreboard.ledger.pool import Connection, connect
from scoreboard.ledger.seasons import (
    freeze_season,
    revise_season,
    select_seasons_to_freeze,
    select_seasons_to_revise,
)
from scoreboard.model import Board, Partition
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.partitions import PAGE, Survey
from scoreboard.store.store import Store

TURN_EVERY_S: Final = 0.5
"""Interval of looking at the clock: the longest delay of an end without traffic."""

TURNS_MAX: Final = 16
"""Maximum number of partitions that are turned at once: many seasons end at the same midnight."""

LIST_EVERY_S: Final = 5.0
"""Interval of reading the list of boards and the seasons of their partitions."""

AGAIN_S: Final = 2.0
"""Time after which a partition that could not be turned is tried again."""

FREEZE_EVERY_S: Final = 1.0
FREEZE_MAX: Final = 20
"""Maximum number of seasons that are frozen in a row."""

SESSION: Final = {
    "lock_timeout": "1s",
    # A large season is sorted once.
    "statement_timeout": "10min",
    "work_mem": "128MB",
    "jit": "off",
}

ACTOR: Final = "flusher"
"""The actor of revisions in the audit log."""

_FREEZING: Final = "freezing"
_LIST: Final = "list"
_log = get_logger(__name__)


class Seasons:
    """The seasons of all boards, as one flusher sees them."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._ends_s: dict[Partition, float] = {}
        """When the season of each partition ends."""
        self._tries_s: dict[Partition, float] = {}
        """When to try a partition again that could not be turned."""
        self._closed: set[Partition] = set()
        """Those that accept no actions, so their season is not overdue."""
        self._boards: dict[str, Board] = {}
        """Those with seasons."""
        self._listed_at_s = float("-inf")
        self._may_freeze = True
        """Whether a season may be over: also without boards, once after one was deleted."""
        self._failures: dict[str, str] = {}

    async def run(self, stop: StopEvent) -> None:
        """Turn and freeze seasons until ``stop``."""
        async with asyncio.TaskGroup() as group:
            freezing = group.create_task(self._freeze_all(stop))
            while not stop.is_set:
                try:
                    if time.monotonic() - self._listed_at_s >= LIST_EVERY_S:
                        await self._read_list()
                        self._listed_at_s = time.monotonic()
                except ScoreboardError as error:
                    self._note(_LIST, error)
                else:
                    self._failures.pop(_LIST, None)
                try:  # also the partitions of a list that could not be read again
                    await self._turn_due()
                except ScoreboardError as error:
                    self._note("", error)
                else:
                    self._failures.pop("", None)
                await stop.sleep(TURN_EVERY_S)
            freezing.cancel()  # the statement is repeated by the next process

    async def _turn_due(self) -> None:
        if not self._ends_s:
            metrics.SEASON_OVERDUE.set(0)
            return
        now_s = await self._store.now_s()
        due = [
            partition
            for partition, end_s in self._ends_s.items()
            if end_s <= now_s and self._tries_s.get(partition, 0.0) <= now_s
        ]
        for start in range(0, len(due), TURNS_MAX):
            some = due[start : start + TURNS_MAX]
            await asyncio.gather(*(self._turn(partition, now_s) for partition in some))
            self._measure(now_s)
        self._measure(now_s)

    def _measure(self, now_s: float) -> None:
        """Export how long the current season of a partition has been over."""
        ends_s = (end_s for one, end_s in self._ends_s.items() if one not in self._closed)
        metrics.SEASON_OVERDUE.set(max(0.0, now_s - min(ends_s, default=now_s)))

    async def _read_list(self) -> None:
        """Learn which boards have seasons, and when those of their partitions end."""
        found = await self._store.list_boards()
        before = self._boards.keys()
        boards = {name: board for name, board in found.items() if board.layout.rules.season}
        self._may_freeze |= bool(boards) or bool(before - boards.keys())
        partitions = [
            Partition(board.name, number)
            for board in boards.values()
            for number in range(board.layout.partitions)
        ]
        ends_s: dict[Partition, float] = {}
        closed: set[Partition] = set()
        for start in range(0, len(partitions), PAGE):
            page = partitions[start : start + PAGE]
            for partition, read in zip(page, await self._store.survey(page), strict=True):
                if isinstance(read, Survey) and read.state.season is not None:
                    ends_s[partition] = read.state.season.end_s
                    if not read.state.is_open or read.state.is_archived:
                        closed.add(partition)
        self._boards, self._ends_s, self._closed = boards, ends_s, closed
        self._tries_s = {one: at_s for one, at_s in self._tries_s.items() if one in ends_s}

    async def _turn(self, partition: Partition, now_s: float) -> None:
        """Turn a partition, or note when to try it again."""
        rules = self._boards[partition.board].layout.rules
        self._tries_s[partition] = now_s + AGAIN_S
        try:
            season = await self._store.turn(partition, rules)
        except (BoardArchived, Fenced, Uninitialised):
            self._closed.add(partition)
            return
        except ScoreboardError as error:
            self._note(str(partition), error)
            return
        self._closed.discard(partition)
        self._failures.pop(str(partition), None)
        if season is not None and season.end_s > now_s:
            del self._tries_s[partition]
            self._ends_s[partition] = season.end_s

    def _note(self, what: str, error: ScoreboardError) -> None:
        """Log a cause once."""
        if self._failures.get(what) == error.code:
            return
        self._failures[what] = error.code
        if what.startswith(_FREEZING):
            _log.warning("seasons_not_frozen", reason=error.detail)
        else:
            partition = None if what in {"", _LIST} else what
            _log.warning("season_not_turned", partition=partition, reason=error.detail)

    async def _freeze_all(self, stop: StopEvent) -> None:
        connection: Connection | None = None
        try:
            while not stop.is_set:
                try:
                    if self._may_freeze:
                        connection = await self._connected(connection)
                        self._may_freeze = bool(self._boards)  # a deletion meanwhile sets it
                        if await self._freeze(connection):
                            self._may_freeze = True
                    elif connection is not None:
                        await connection.close()
                        connection = None
                except ScoreboardError as error:
                    self._may_freeze = True
                    if connection is not None:
                        await connection.close()
                    connection = None
                    self._note(_FREEZING, error)
                else:
                    self._failures.pop(_FREEZING, None)
                await stop.sleep(FREEZE_EVERY_S)
        finally:
            if connection is not None:
                await connection.close()

    async def _connected(self, connection: Connection | None) -> Connection:
        if connection is not None and not connection.closed and not connection.is_login_outdated:
            return connection
        if connection is not None:
            await connection.close()
        return await connect(self._settings, name="flusher-seasons", **SESSION)  # pyright: ignore[reportArgumentType]

    async def _freeze(self, connection: Connection) -> bool:
        """Freeze what is over; return whether there may be more."""
        found = await select_seasons_to_freeze(connection, limit=FREEZE_MAX)
        for board, season in found:
            if await freeze_season(connection, board, season):
                _log.info("season_frozen", board=board, season=season)
        for board, season in await select_seasons_to_revise(connection, limit=FREEZE_MAX):
            await self._revise(connection, board, season)
        return bool(found)

    async def _revise(self, connection: Connection, board: str, season: str) -> None:
        """Revise a season; one that cannot be revised does not hold up the others."""
        try:
            users = await revise_season(
                connection, board, season, actor=ACTOR, reason="actions were counted later"
            )
        except ScoreboardError as error:
            if connection.closed:
                raise
            self._note(f"{_FREEZING} {board} {season}", error)
            return
        self._failures.pop(f"{_FREEZING} {board} {season}", None)
        if users is not None:
            _log.info("season_revised", board=board, season=season, users=users)
