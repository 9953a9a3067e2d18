"""When each watched user is read: once a second, spread over the second. No I/O.

A tick takes the users whose turn has come, and not many more than its share of all: the turns of
users that came together spread over the second. Users of one board have their turns together, up
to a call of them, so that a board is not looked at more often than it must be.

Invariants: every user that is watched has a turn in each period, or as soon as there is time for
it; turns of a user are a period apart, but for one that comes early to be that of others, too.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Final

from scoreboard.model import BATCH_MAX
from streamer.fanout.places import Places, WatchedPlaces, WatchedUser

PERIOD_S: Final = 1.0
"""Time from one turn of a user to the next one."""

EARLY: Final = 0.5
"""How much earlier a turn may come to be that of others of the board, too, in periods."""

TICK_S: Final = 0.05
"""Time from the start of a tick to that of the next one."""

SPARE: Final = 1.25
"""Users that a tick takes at most, as a multiple of its share of all."""


class Turns:
    """The turns of the watched users of a process."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._queue: deque[tuple[float, WatchedUser]] = deque()
        """The next turn of each user, in this order. Users that had theirs early, and those that
        nobody watches any more, are left out when it comes."""
        self._due_s = 0.0
        """When the next tick should be."""
        self.late_s = 0.0
        """How late the oldest of the turns taken last was."""

    def begin(self, users: Sequence[WatchedUser], now_s: float) -> None:
        """Give each of the users its next turn, a period from now."""
        for user in users:
            user.turn_s = now_s + PERIOD_S
            self._queue.append((user.turn_s, user))

    def take(self, now_s: float) -> dict[WatchedPlaces, list[WatchedUser]]:
        """Return the users to read now, by board."""
        # A tick that took too long leaves a larger share to the next one.
        share = (TICK_S + max(now_s - self._due_s, 0.0)) / PERIOD_S
        most = max(BATCH_MAX, math.ceil(self._places.count * share * SPARE))
        queue, taken = self._queue, 0
        boards: dict[WatchedPlaces, list[WatchedUser]] = {}
        while taken < most and queue and queue[0][0] <= now_s:
            turn_s, first = queue.popleft()
            if not first.viewers or first.turn_s != turn_s:
                continue
            if not taken:
                self.late_s = now_s - turn_s
            users = first.board.next_users(now_s + EARLY * PERIOD_S, BATCH_MAX)
            self.begin(users, now_s)
            boards.setdefault(first.board, []).extend(users)
            taken += len(users)
        return boards

    def next_s(self, now_s: float) -> float:
        """Return when the next tick should be, after one that began now."""
        # No turn comes before the first one, and those of new users come after a period.
        first_s = self._queue[0][0] if self._queue else now_s + PERIOD_S
        self._due_s = max(now_s + TICK_S, first_s)
        return self._due_s
