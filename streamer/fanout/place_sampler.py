"""Read the places of watched users: each once a second, where the board has changed.

streamer.fanout.turns says whose turn has come. The users of a board are read in calls of up to 64,
of which four are under way, over connections of their own: neither Redis nor the event loop is held
for longer than these take, and reads of boards never wait for a connection. Notifications tell of
the first ten rows only, so a tick first reads a board's position, with the row of rank 10. Names
are read again without Redis: those that have arrived or changed once a second, all others once a
minute, in slices.

Invariants: ticks do not overlap; a board that cannot be read, or that is stale, gets no places, and
later turns try again; an older state of a board is never sent.
"""

import asyncio
import math
from collections.abc import Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

import msgspec

from scoreboard.broadcast.messages import now_ms
from scoreboard.broadcast.state import is_older
from scoreboard.broadcast.watcher import READ_TIMEOUT_S
from scoreboard.errors import InternalError, ScoreboardError
from scoreboard.ledger.name_cache import NameCache
from scoreboard.model import BATCH_MAX, WATCHED_TOP, Window
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.boards import Boards
from scoreboard.store.client import make_client
from streamer import metrics
from streamer.fanout.hub import CHUNK, Hub
from streamer.fanout.places import Places, WatchedPlaces, WatchedUser
from streamer.fanout.turns import Turns

TICK_PAUSE_S: Final = 0.01
"""Least time between two ticks, if one takes longer than it should."""

RETRY_S: Final = 1.0
"""Time in which a board is not read that could not be."""

NAMES_S: Final = 1.0
"""Time between two looks for names that have arrived or changed."""

NEW_PAUSE_S: Final = 0.01
"""Time between two reads of new users: they may come all at once."""

READERS: Final = 2
"""Boards that a tick reads at the same time."""

CALLS: Final = 4
"""Calls for users of one board at the same time: each waits for its turn in a busy event loop."""

AROUND: Final = 2
"""Rows on either side of a place."""

RENEW_S: Final = 60.0
"""Time in which the names of all places are asked for again: they may be too old to be shown."""

USERS_LEAST: Final = 4
"""Users of a call on a board of many partitions."""

_log = get_logger(__name__)


class PlaceSampler:
    """The reads of one process. Start ``run`` in a task group."""

    def __init__(
        self, settings: Settings, places: Places, new: asyncio.Event, hub: Hub, names: NameCache
    ) -> None:
        """Connect to nothing yet. ``new`` is set when ``places`` has new users."""
        self._places = places
        self._new = new
        self._turns = Turns(places)
        self._hub = hub
        self._names = names
        self._renamed: set[str] | None = set()
        """Users whose names have arrived or changed since the last look; None: any may have."""
        self._to_renew: list[WatchedUser] = []
        """The users whose names are still to be asked for in this turn."""
        self._renewed_at_s = -math.inf
        places.known = names.known
        names.on_change(self._on_names)
        settings = msgspec.structs.replace(
            settings, redis_timeout_s=min(settings.redis_timeout_s, READ_TIMEOUT_S)
        )
        self._client = make_client(
            settings, name="streamer-places", connections=(READERS + 1) * CALLS
        )
        self._store = Boards(self._client)

    async def run(self) -> None:
        """Read until cancelled; losing Redis does not end it."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._answer_new())
                tasks.create_task(self._run_ticks())
                tasks.create_task(self._renew_names())
        finally:
            await self._client.aclose()

    async def _answer_new(self) -> None:
        """Read new users at once, those of one board together."""
        now = asyncio.get_running_loop().time
        while True:
            await self._new.wait()
            self._new.clear()
            while (found := self._places.next_new(BATCH_MAX)) is not None:
                board, users = found
                self._turns.begin(users, now())
                await self._read_users(board, users)
                await asyncio.sleep(NEW_PAUSE_S)

    async def _run_ticks(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            started_at_s = loop.time()
            boards = self._turns.take(started_at_s)
            if boards:
                metrics.PLACE_LATE.observe(self._turns.late_s)
                metrics.PLACE_TURNS.inc(sum(len(users) for users in boards.values()))
            left = iter(boards.items())
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(READERS, len(boards))):
                    tasks.create_task(self._read_boards(left))
            if self._places.sent:
                metrics.PLACES_SENT.inc(self._places.sent)
                self._places.sent = 0
            wait_s = self._turns.next_s(started_at_s) - loop.time()
            await asyncio.sleep(max(wait_s, TICK_PAUSE_S))

    async def _read_boards(self, boards: Iterator[tuple[WatchedPlaces, list[WatchedUser]]]) -> None:
        for board, users in boards:
            await self._read_users(board, users)

    async def _read_users(self, board: WatchedPlaces, users: Sequence[WatchedUser]) -> None:
        """Read those of the users that may have another place than before."""
        top = await self._look(board)
        if top is None:
            return
        moved = [user for user in users if user.positions != top.positions]
        parts = _in_calls(moved, top)
        left = iter(parts)
        async with asyncio.TaskGroup() as tasks:
            for _ in parts[:CALLS]:
                tasks.create_task(self._read_parts(board, left, top))

    async def _read_parts(
        self, board: WatchedPlaces, parts: Iterator[Sequence[WatchedUser]], top: Window
    ) -> None:
        """Read users part by part, until none is left or one could not be read."""
        for users in parts:
            if not await self._read(board, users, top):
                return

    async def _renew_names(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            renamed, self._renamed = self._renamed, set()
            if renamed is None or renamed:
                await self._rename(self._places.users(), renamed)
            await self._rename(self._next_to_renew(loop.time()), None)
            await self._write(self._places.take_renamed())
            await asyncio.sleep(NAMES_S)

    async def _look(self, board: WatchedPlaces) -> Window | None:
        """Read the position of a board and its row of rank 10; None if it has no place to send."""
        channel = self._hub.channels.get(board.name)
        loop, before = asyncio.get_running_loop(), board.positions
        if channel is None or channel.is_stale or loop.time() < board.retry_at_s:
            return None
        try:
            top = await self._store.leaderboard(board.name, offset=WATCHED_TOP - 1, limit=1)
        except ScoreboardError as error:
            self._note_failure(board, error)
            return None
        if is_older(top.positions, before):
            return None
        if not is_older(top.positions, board.positions):  # it may have been looked at meanwhile
            board.positions = top.positions
        return top

    async def _read(self, board: WatchedPlaces, users: Sequence[WatchedUser], top: Window) -> bool:
        """Read users, and write places that changed to their viewers.

        Returns whether Redis answered. A user that was read in an older state than ``top`` is read
        again in its next turn.
        """
        metrics.PLACES_READ.inc(len(users))
        try:
            found = await self._store.places(
                board.name, [user.user_id for user in users], around=AROUND, top=top
            )
        except ScoreboardError as error:
            self._note_failure(board, error)
            return False
        board.is_failing = False
        at_ms, least, known = now_ms(), (top.epoch, top.seq), self._names.known
        read = [
            (user, place)
            for user, place in zip(users, found, strict=True)
            if (place.epoch, place.seq) >= least
        ]
        for user, _ in read:
            user.positions = top.positions
        await self._write([user for user, place in read if user.accept(place, at_ms, known)])
        return True

    async def _rename(self, users: Sequence[WatchedUser], renamed: AbstractSet[str] | None) -> None:
        """Write the places that show other names than before, in slices.

        ``renamed`` are the users whose names may have changed, None if all.
        """
        known = self._names.known
        for part in _slices(users, CHUNK):
            await self._write([one for one in part if one.viewers and one.rename(renamed, known)])
            await asyncio.sleep(0)

    def _next_to_renew(self, now_s: float) -> list[WatchedUser]:
        """Return the users whose names are to be asked for now, so that each is in ``RENEW_S``."""
        passed_s = min(now_s - self._renewed_at_s, RENEW_S)
        self._renewed_at_s = now_s
        if not self._to_renew:
            self._to_renew = self._places.users()
        count = math.ceil(self._places.count * passed_s / RENEW_S)
        due = self._to_renew[-count:] if count else []
        del self._to_renew[len(self._to_renew) - len(due) :]
        return due

    async def _write(self, users: Sequence[WatchedUser]) -> None:
        """Offer users' newest places to their viewers, a bounded number without a pause."""
        skipped = visited = 0
        for user in users:
            for viewer in tuple(user.viewers):
                skipped += not viewer.push_places()
                visited += 1
                if visited % CHUNK == 0:
                    await asyncio.sleep(0)
        if skipped:
            metrics.PLACES_SKIPPED.inc(skipped)

    def _on_names(self, user_ids: Collection[str] | None) -> None:
        if user_ids is None or not self._places.count:
            self._renamed = None if self._places.count else set()
        elif self._renamed is not None:
            self._renamed.update(user_ids)

    def _note_failure(self, board: WatchedPlaces, error: ScoreboardError) -> None:
        # The watcher reports a Redis that is away, for all boards.
        if isinstance(error, InternalError) and not board.is_failing:
            _log.error("places_unreadable", board=board.name, reason=error.detail)
        board.is_failing = True
        board.retry_at_s = asyncio.get_running_loop().time() + RETRY_S


def _in_calls(users: Sequence[WatchedUser], top: Window) -> list[Sequence[WatchedUser]]:
    """Split users into those of one call each.

    On a board of several partitions each user costs a read of each.
    """
    return _slices(users, max(BATCH_MAX // len(top.positions), USERS_LEAST))


def _slices(users: Sequence[WatchedUser], most: int) -> list[Sequence[WatchedUser]]:
    return [users[start : start + most] for start in range(0, len(users), most)]
