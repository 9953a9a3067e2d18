"""Which viewers watch which users, and the newest place of each user. No I/O.

A user that several viewers watch is read once and encoded once. A viewer has no queue: for each of
its users it remembers the frame that it was sent, and gets the newest one when it can take data.

Invariants: nothing is kept here of a user that nobody watches; a place is never replaced by an
older one; the number of watched users is bounded; users that viewers name leave half of it to
viewers that watch themselves.
"""

from asyncio import TimerHandle
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice, takewhile
from math import inf
from typing import Final, Protocol

from msgspec import UNSET

from scoreboard.broadcast import messages
from scoreboard.broadcast.messages import encode
from scoreboard.broadcast.state import NO_NAMES, Positions, with_names
from scoreboard.broadcast.windows import KnownNames, no_names
from scoreboard.model import Place
from streamer.connection.framing import text_frame

TOTAL_PARTS: Final = 100
"""A change of the number of users alone is sent when it is more than one part in this many."""


class PlaceViewer(Protocol):
    """A viewer as its users see it."""

    def push_places(self) -> bool:
        """Write the places that this viewer lacks; return False if it cannot take data."""
        ...


class WatchedUser:
    """One user of a board that somebody watches."""

    __slots__ = (
        "_at_ms",
        "_names",
        "_shown",
        "board",
        "frame",
        "owners",
        "place",
        "positions",
        "turn_s",
        "user_id",
        "viewers",
    )

    def __init__(self, board: "WatchedPlaces", user_id: str) -> None:
        self.board = board
        self.user_id = user_id
        self.viewers: set[PlaceViewer] = set()
        self.owners = 0
        """How many of the viewers have a token of this user."""
        self.place: Place | None = None
        """What ``frame`` shows."""
        self.positions: Positions = ()
        """Those of the board when the place was read."""
        self.turn_s = inf
        """When it is read the next time; before its first place was asked for, never."""
        self.frame = b""
        """The newest place, encoded; empty until the first."""
        self._at_ms = 0
        self._shown: Sequence[str] = ()
        """The users that ``place`` shows: itself and those beside it."""
        self._names: Mapping[str, str] = NO_NAMES
        """The names that ``frame`` shows."""

    def accept(self, place: Place, at_ms: int, known: KnownNames = no_names) -> bool:
        """Take a place that was read; return whether there is something new to send.

        ``known`` returns the names of users that are known now.
        """
        held = self.place
        if held is not None and not _is_news(held, place):
            return False
        self.place = place
        self._at_ms = at_ms
        self._shown = (self.user_id, *(row.user_id for row in (*place.above, *place.below)))
        self._names = known(self._shown, self._names)
        self.frame = self._encode(place)
        return True

    def rename(self, user_ids: AbstractSet[str] | None, known: KnownNames) -> bool:
        """Encode the place again if it shows one of these users (None: any may have changed).

        Returns whether it shows other names than before.
        """
        place = self.place
        if place is None or (user_ids is not None and user_ids.isdisjoint(self._shown)):
            return False
        names = known(self._shown, self._names)
        if names == self._names:
            return False
        self._names = names
        self.frame = self._encode(place)
        return True

    def _encode(self, place: Place) -> bytes:
        message = make_message(self.board.name, self.user_id, place, self._at_ms, self._names)
        return text_frame(encode(message))


class WatchedPlaces:
    """The watched users of one board."""

    __slots__ = ("is_failing", "name", "new", "positions", "retry_at_s", "users")

    def __init__(self, name: str) -> None:
        self.name = name
        self.users: dict[str, WatchedUser] = {}
        """In the order of their turns."""
        self.new: dict[WatchedUser, None] = {}
        """Users whose first place was not asked for yet."""
        self.positions: Positions = ()
        """The newest that were read."""
        self.is_failing = False
        self.retry_at_s = 0.0
        """Until when it is not read, because it could not be."""

    def next_users(self, until_s: float, most: int) -> list[WatchedUser]:
        """Return up to ``most`` users whose turn comes until ``until_s``; they are last now."""
        first = islice(self.users.values(), most)
        found = list(takewhile(lambda user: user.turn_s <= until_s, first))
        for user in found:
            self.users[user.user_id] = self.users.pop(user.user_id)
        return found


class Places:
    """The watched users of one process, at most ``limit``; ``on_new`` tells of each new one."""

    def __init__(self, limit: int, on_new: Callable[[], None]) -> None:
        self.boards: dict[str, WatchedPlaces] = {}
        self.count = 0
        self.known: KnownNames = no_names
        """Returns the names that are known."""
        self.sent = 0
        """Frames that viewers took since they were last counted."""
        self._owned = 0
        """Users that a viewer with their token watches."""
        self._limit = limit
        self._on_new = on_new
        self._new: dict[WatchedPlaces, None] = {}
        """Boards with new users, in the order in which they are read."""
        self._renamed: dict[WatchedUser, None] = {}
        """Users whose frame got other names when somebody joined."""

    def users(self) -> list[WatchedUser]:
        """Return all watched users."""
        return [user for board in self.boards.values() for user in board.users.values()]

    def take_renamed(self) -> list[WatchedUser]:
        """Remove and return the users whose frame got other names when somebody joined."""
        renamed = list(self._renamed)
        self._renamed.clear()
        return renamed

    def next_new(self, most: int) -> tuple[WatchedPlaces, list[WatchedUser]] | None:
        """Remove and return up to ``most`` new users of one board; None if there are none."""
        if not self._new:
            return None
        board = next(iter(self._new))
        del self._new[board]
        users = list(board.new)[:most]
        for user in users:
            del board.new[user]
        if board.new:
            self._new[board] = None  # after the others
        return board, users

    def replace(
        self,
        viewer: PlaceViewer,
        held: Collection[WatchedUser],
        board: str,
        user_ids: Iterable[str],
        *,
        own: str | None,
    ) -> list[WatchedUser] | None:
        """Let a viewer watch users of a board in place of those that it watches.

        ``own`` is the user of its token. Returns None, and changes nothing, if the process would
        watch too many.
        """
        watched = self.boards.get(board)
        users = watched.users if watched is not None else {}
        wanted = dict.fromkeys(user_ids)
        kept = {user.user_id for user in held if user.board is watched} & wanted.keys()
        added = sum(user_id not in users for user_id in wanted)
        freed = [user for user in held if len(user.viewers) == 1 and user.user_id not in kept]
        if added and self.count + added - len(freed) > self._limit:
            return None
        named = sum(user_id not in users and user_id != own for user_id in wanted)
        free = self._limit - self._limit // 2 - (self.count - self._owned)
        if named and named - sum(not user.owners for user in freed) > free:
            return None
        for user in held:
            if user.user_id not in kept:
                self._leave(user, viewer, is_owner=user.user_id == own)
        kept_users = {user.user_id: user for user in held if user.user_id in kept}
        return [
            kept_users.get(user_id) or self._join(board, user_id, viewer, is_owner=user_id == own)
            for user_id in wanted
        ]

    def remove(self, viewer: PlaceViewer, held: Iterable[WatchedUser], own: str | None) -> None:
        """Forget a viewer, and the users that nobody else watches."""
        for user in held:
            self._leave(user, viewer, is_owner=user.user_id == own)

    def _join(self, name: str, user_id: str, viewer: PlaceViewer, *, is_owner: bool) -> WatchedUser:
        board = self.boards.get(name)
        if board is None:
            board = self.boards[name] = WatchedPlaces(name)
        user = board.users.get(user_id)
        if user is None:
            user = board.users[user_id] = WatchedUser(board, user_id)
            self.count += 1
            board.new[user] = self._new[board] = None
            self._on_new()
        elif user.rename(None, self.known):  # a name may be too old by now
            self._renamed[user] = None
        user.viewers.add(viewer)
        if is_owner:
            self._owned += not user.owners
            user.owners += 1
        return user

    def _leave(self, user: WatchedUser, viewer: PlaceViewer, *, is_owner: bool) -> None:
        user.viewers.remove(viewer)
        if is_owner:
            user.owners -= 1
            self._owned -= not user.owners
        if user.viewers:
            return
        board = user.board
        del board.users[user.user_id]
        self.count -= 1
        self._renamed.pop(user, None)
        board.new.pop(user, None)
        if not board.new:
            self._new.pop(board, None)
        if not board.users:
            del self.boards[board.name]


class PlaceWatch:
    """What one viewer watches, and the frame of each user that it was sent.

    ``own`` is the user of its token, None without one.
    """

    __slots__ = (
        "_own",
        "_places",
        "_sent",
        "_viewer",
        "had_turn",
        "is_used",
        "timer",
        "waiting",
        "watched_at_s",
    )

    def __init__(self, places: Places, viewer: PlaceViewer, own: str | None = None) -> None:
        self._places = places
        self._viewer = viewer
        self._own = own
        self.had_turn = False
        """Whether places were written after the last board that waited."""
        self.is_used = False
        """Whether the viewer has watched somebody, or has chosen not to."""
        self.watched_at_s = -inf
        """When a message of the viewer was last applied."""
        self.waiting: Sequence[str] = ()
        """The users of the message that ``timer`` will apply."""
        self.timer: TimerHandle | None = None
        self._sent: dict[WatchedUser, bytes] = {}

    def replace(self, board: str, user_ids: Sequence[str]) -> bool:
        """Watch other users, whose places count as not sent.

        Returns False, and changes nothing, if the process would watch too many.
        """
        users = self._places.replace(self._viewer, self._sent, board, user_ids, own=self._own)
        if users is None:
            return False
        self.is_used = True
        self._sent = dict.fromkeys(users, b"")
        return True

    def take(self) -> bytes:
        """Return the frames that were not sent; they count as sent from now on."""
        unsent = [user for user, frame in self._sent.items() if user.frame is not frame]
        for user in unsent:
            self._sent[user] = user.frame
        self._places.sent += sum(bool(user.frame) for user in unsent)
        return b"".join(user.frame for user in unsent)

    def close(self) -> None:
        """Watch nobody."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        users, self._sent = self._sent, {}
        self._places.remove(self._viewer, users, self._own)


def make_message(
    board: str, user_id: str, place: Place, at_ms: int, names: Mapping[str, str] = NO_NAMES
) -> messages.Place:
    """Return the message of a place, with the names of the users that it shows."""
    return messages.Place(
        board=board,
        epoch=place.epoch,
        seq=place.seq,
        at=at_ms,
        user_id=user_id,
        name=names.get(user_id, UNSET),
        rank=place.rank,
        score=place.score,
        total=place.total,
        to_next=UNSET if place.to_next is None else place.to_next,
        to_top=UNSET if place.to_top is None else place.to_top,
        above=with_names(place.above, names),
        below=with_names(place.below, names),
    )


def _is_news(held: Place, place: Place) -> bool:
    """Return whether to send a place after another one.

    The rank alone may stay while users join or leave: ``total`` is then sent when it moved enough.
    """
    if (place.epoch, place.seq) < (held.epoch, held.seq):
        return False
    return (
        place.rank != held.rank
        or place.score != held.score
        or place.to_next != held.to_next
        or place.to_top != held.to_top
        or place.epoch != held.epoch
        or place.above != held.above
        or place.below != held.below
        or abs(place.total - held.total) * TOTAL_PARTS > held.total
    )
