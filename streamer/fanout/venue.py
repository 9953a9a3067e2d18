"""What all viewers of a process share: limits, rooms, deadlines, counts, token checks.

Made by streamer.server, handed to every viewer; also the listener the relay tells of new boards.
"""

import asyncio
import time
from collections import OrderedDict
from typing import Final, Protocol

from scoreboard.broadcast.close_codes import CloseCode
from scoreboard.broadcast.state import BoardState
from scoreboard.errors import KeysUnavailable, ScoreboardError, Unauthenticated
from scoreboard.http.request_ids import RequestIds
from scoreboard.runtime.settings import Settings
from scoreboard.security.tokens import Caller, Verifier
from streamer.fanout.hub import Channel, Hub
from streamer.fanout.wheel import TimingWheel
from streamer.handshake.admission import Admission, Capacity
from streamer.handshake.request import Rules

CHECK_TIMEOUT_S: Final = 5.0
"""Most time for one token check; the issuer's keys may have to be fetched."""


class Guest(Protocol):
    """A connection, greeted or viewing, as the process keeps it."""

    slot: int

    @property
    def is_watched(self) -> bool:
        """Tell whether boards wait for its pongs."""
        ...

    def due(self, now_s: float) -> None:
        """Do what the time asks for, and wait in the wheel for the next deadline."""
        ...

    def checked(self, outcome: Caller | ScoreboardError) -> None:
        """Take the outcome of a token check."""
        ...

    def access_lost(self, room: Channel) -> None:
        """Heed that a board is no longer public."""
        ...

    def leave(self, code: CloseCode, delay_ms: tuple[int, int]) -> None:
        """End: a viewer says ``bye`` first, a handshake is refused."""
        ...

    def abort(self) -> None:
        """End at once."""
        ...


class Handshaking(Guest, Protocol):
    """A connection that is no viewer."""

    def displaced(self) -> None:
        """End: newer connections need its place."""
        ...


class ConnectionManager:
    """One per process."""

    def __init__(
        self,
        settings: Settings,
        verifier: Verifier,
        *,
        capacity: Capacity,
        tick_s: float = 1.0,
    ) -> None:
        """Take what viewers are judged by.

        Raises SettingInvalid where origins or trusted hops cannot be read.
        """
        self.settings = settings
        self.rules = Rules(settings)
        self.request_ids = RequestIds()
        self.clock = asyncio.get_running_loop().time
        self.work = asyncio.Event()
        self.hub = Hub(settings.boards, self.work.set)
        self.wheel: TimingWheel[Guest] = TimingWheel(self.clock(), width_s=tick_s)
        self.admission = Admission(settings, capacity, self.clock())
        self.present: set[Guest] = set()
        """Every connection that is not gone, in whatever state."""
        self.is_empty = asyncio.Event()
        self.is_empty.set()
        self._handshakes: OrderedDict[Handshaking, None] = OrderedDict()
        """Those that are no viewers, oldest first."""
        self._verifier = verifier
        self._checks: asyncio.TaskGroup | None = None

    def use(self, tasks: asyncio.TaskGroup) -> None:
        """Take the group that owns token checks; there is at most one check per viewer."""
        self._checks = tasks

    def arrive(self, guest: Handshaking) -> None:
        """Take a connection up; where there are too many that are no viewers, the oldest goes.

        A viewer's handshake takes a round trip, so it is over long before it is the oldest.
        """
        self.present.add(guest)
        self.is_empty.clear()
        self._handshakes[guest] = None
        if len(self._handshakes) > self.admission.capacity.handshakes:
            self._handshakes.popitem(last=False)[0].displaced()

    def replace(self, guest: Handshaking, viewer: Guest) -> None:
        """Let a greeted connection go on as a viewer."""
        self.present.remove(guest)
        self._handshakes.pop(guest, None)
        self.present.add(viewer)

    def depart(self, guest: Guest) -> None:
        """Forget a viewer that is gone."""
        self.present.remove(guest)
        if not self.present:
            self.is_empty.set()

    def depart_early(self, guest: Handshaking) -> None:
        """Forget a connection that is gone and never became a viewer."""
        self._handshakes.pop(guest, None)
        self.depart(guest)

    def room(self, board: str) -> Channel:
        """Give the room of a board that is served here."""
        return self.hub.rooms[board]

    def beat(self, now_s: float) -> None:
        """Send a heartbeat in every room that was silent for as long as viewers may expect."""
        for room in self.hub.rooms.values():
            if now_s - room.frame_at_s >= self.settings.heartbeat_s:
                room.beat(now_s, time.time_ns() // 1_000_000)

    def deadline(self, unix_s: float) -> float:
        """Turn a moment of the wall clock into one of the loop's, which no clock change moves."""
        return self.clock() + unix_s - time.time()

    def check(self, guest: Guest, token: str) -> None:
        """Verify a token beside everything else; the guest's ``checked`` gets the outcome."""
        if self._checks is not None:
            self._checks.create_task(self._check(guest, token))

    async def _check(self, guest: Guest, token: str) -> None:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                caller = await self._verifier.verify(token)
        except (Unauthenticated, KeysUnavailable) as error:
            guest.checked(error)
        except TimeoutError:
            guest.checked(KeysUnavailable())
        else:
            guest.checked(caller)

    # The relay's listener.

    def board_changed(self, feed: BoardState, noticed_at_s: float) -> None:
        """Show a new board to everyone in its room."""
        if feed.frame is not None:
            self.room(feed.board).show(feed.frame, self.clock(), noticed_at_s)

    def status_changed(self, feed: BoardState) -> None:
        """Tell everyone in the room whether the board is live."""
        self.room(feed.board).tell(feed.status)

    def access_changed(self, feed: BoardState) -> None:
        """Heed that a board became public or private; who may no longer watch is closed."""
        room = self.room(feed.board)
        room.is_public = feed.is_public
        if not feed.is_public:
            for guest in tuple(self.present):
                guest.access_lost(room)
