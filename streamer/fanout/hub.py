"""Who watches which board, and whose turn it is to be shown it. Bookkeeping without I/O.

A room is a board's viewers and the bytes they should have: the newest frame, and the newest word on
whether it is stale. A sweep walks the room in turns of bounded work and ends one full lap after the
last new frame; a newer frame in mid-lap is what the rest get. What stays true: every viewer that
can take data is offered the newest frame, whoever joins or leaves during a lap.
"""

from collections.abc import Callable
from typing import Final, Protocol

from scoreboard.broadcast.channel import BoardChannel
from scoreboard.broadcast.messages import Leaderboard, Message, Status, encode
from streamer.connection.framing import ping_frame, text_frame

CHUNK: Final = 50
"""Viewers between two looks at the clock."""


class Watcher(Protocol):
    """A viewer as the hub knows it; ``index`` belongs to the hub."""

    index: int

    def push(self) -> None:
        """Write what the room has and this viewer does not, if it can take it now."""
        ...

    def beat(self, frame: bytes) -> None:
        """Write a heartbeat, if it can be taken now."""
        ...


class Channel(BoardChannel):
    """One board's viewers, and the frames to send them."""

    __slots__ = (
        "_cursor",
        "_heartbeat",
        "_lap",
        "_on_work",
        "ack",
        "frame_at_s",
        "noticed_at_s",
        "number",
        "paced",
        "sent",
        "skipped",
        "viewers",
    )

    def __init__(self, board: str, on_work: Callable[[], None]) -> None:
        super().__init__(board, _text_frame)
        self.viewers: list[Watcher] = []
        self.paced = b""
        """``frame`` followed by a ping that carries ``ack``, for viewers whose pace is watched."""
        self.ack = b""
        self.number = 0
        self.frame_at_s = 0.0
        self.noticed_at_s = 0.0
        """When the change was first heard of; 0 when the lap shows none."""
        self.sent = 0
        self.skipped = 0
        self._heartbeat = b""
        self._cursor = 0
        self._lap = 0
        self._on_work = on_work

    def show(self, state: Leaderboard, now_s: float, noticed_at_s: float) -> None:
        """Hold a new board and begin a lap."""
        self.number += 1
        self.set_board(state)
        self.ack = b"%d" % self.number
        self.paced = self.frame + ping_frame(self.ack)
        self.frame_at_s = now_s
        self.noticed_at_s = noticed_at_s
        self._start_lap(b"")

    def tell(self, status: Status) -> None:
        """Hold a new status and begin a lap."""
        self.set_status(status)
        self.noticed_at_s = 0.0
        self._start_lap(b"")

    def beat(self, now_s: float, at_ms: int) -> None:
        """Begin a lap of heartbeats with the held frame's position."""
        if self.state is None or self._lap:
            return
        self.frame_at_s = now_s
        self.noticed_at_s = 0.0
        self._start_lap(self.heartbeat(at_ms))

    def add(self, viewer: Watcher) -> None:
        """Let a viewer in; it has been shown the current frame already."""
        viewer.index = len(self.viewers)
        self.viewers.append(viewer)
        if self._lap:
            # The lap will come by here, and must not end one short of where it began.
            self._lap += 1

    def remove(self, viewer: Watcher) -> None:
        """Let a viewer go; the last in the list takes its place."""
        index, last = viewer.index, self.viewers.pop()
        viewer.index = -1
        if last is viewer:
            return
        self.viewers[index] = last
        last.index = index
        if self._lap:
            # It may have moved behind the cursor, where this lap would not find it.
            last.push()

    def turn(self, most: int, clock: Callable[[], float], until_s: float) -> int:
        """Serve up to ``most`` viewers, or until the time is over; give how many."""
        served = 0
        while self._lap and served < most and (not served or clock() < until_s):
            if self._cursor >= len(self.viewers):
                self._cursor = 0
            count = min(self._lap, CHUNK, most - served)
            batch = self.viewers[self._cursor : self._cursor + count]
            if not batch:
                self._lap = 0
                break
            if self._heartbeat:
                for viewer in batch:
                    viewer.beat(self._heartbeat)
            else:
                for viewer in batch:
                    viewer.push()
            self._cursor += len(batch)
            self._lap -= len(batch)
            served += len(batch)
        return served

    @property
    def is_in_lap(self) -> bool:
        """Tell whether some viewers are still to be served."""
        return self._lap > 0

    def _start_lap(self, heartbeat: bytes) -> None:
        self._heartbeat = heartbeat
        self._lap = len(self.viewers)
        if self._lap:
            self._on_work()


def _text_frame(message: Message) -> bytes:
    return text_frame(encode(message))


class Hub:
    """The rooms of a process. ``on_work`` is called when a lap begins."""

    def __init__(self, boards: tuple[str, ...], on_work: Callable[[], None]) -> None:
        self.rooms = {board: Channel(board, on_work) for board in boards}

    @property
    def viewer_count(self) -> int:
        """Count the viewers of all rooms."""
        return sum(len(room.viewers) for room in self.rooms.values())

    def turn(self, most: int, clock: Callable[[], float], until_s: float) -> tuple[Channel, ...]:
        """Serve each room in a lap for one turn; give the rooms served."""
        busy = tuple(room for room in self.rooms.values() if room.is_in_lap)
        for room in busy:
            room.turn(max(most // len(busy), CHUNK), clock, until_s)
        return busy

    @property
    def is_busy(self) -> bool:
        """Tell whether any room is in a lap."""
        return any(room.is_in_lap for room in self.rooms.values())
