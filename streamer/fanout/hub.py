"""The viewers of each board, and the order in which new frames are pushed to them. No I/O.

A channel holds a board's viewers and their current frames: the newest board and its status. A sweep
visits all viewers once, in turns of bounded work. A newer frame restarts the sweep at the current
position, so that the remaining viewers get the newer frame and all others are visited again.

Invariants: every viewer that can take data is offered the newest frame, whichever viewers join or
leave during a sweep; a turn costs nothing for channels that are not sweeping.
"""

from collections.abc import Callable
from typing import Final, Protocol

from scoreboard.broadcast.channel import BoardChannel
from scoreboard.broadcast.messages import Leaderboard, Message, Status, encode
from scoreboard.broadcast.pace import gap_after
from streamer.connection.framing import ping_frame, text_frame

CHUNK: Final = 50
"""Viewers visited between two reads of the clock."""


class Subscriber(Protocol):
    """A viewer as its channel sees it. The channel owns ``index``."""

    index: int

    def push(self) -> None:
        """Write the channel's frames that this viewer lacks, if it can take data."""
        ...

    def push_heartbeat(self, frame: bytes) -> None:
        """Write a heartbeat, if it can take data."""
        ...


class Channel(BoardChannel):
    """One board's viewers, and the frames to send them."""

    __slots__ = (
        "_cursor",
        "_heartbeat",
        "_number",
        "_on_sweep",
        "_remaining",
        "accepted_at_s",
        "ack",
        "frame_at_s",
        "frame_with_ping",
        "least_gap_s",
        "noticed_at_s",
        "sent",
        "skipped",
        "used_s",
        "viewers",
    )

    def __init__(self, board: str, on_sweep: Callable[[], None]) -> None:
        super().__init__(board, _text_frame)
        self.viewers: list[Subscriber] = []
        self.frame_with_ping = b""
        """``frame`` followed by a ping with the payload ``ack``, for ack-paced viewers."""
        self.ack = b""
        self.frame_at_s = 0.0
        self.used_s = 0.0
        """CPU time of the turns since the newest board."""
        self.least_gap_s = 0.0
        """The least time from the newest board to the next one."""
        self.noticed_at_s = 0.0
        """When the change was noticed; 0 if the sweep carries no new board."""
        self.accepted_at_s = 0.0
        """When Redis accepted the newest change of that board; 0 if not known."""
        self.sent = 0
        self.skipped = 0
        self._number = 0
        self._heartbeat = b""
        self._cursor = 0
        self._remaining = 0
        self._on_sweep = on_sweep

    def publish(
        self,
        leaderboard: Leaderboard,
        now_s: float,
        noticed_at_s: float,
        accepted_at_s: float = 0.0,
    ) -> None:
        """Replace the board and start a sweep."""
        self._number += 1
        self.set_leaderboard(leaderboard)
        self.ack = b"%d" % self._number
        self.frame_with_ping = self.frame + ping_frame(self.ack)
        self.frame_at_s = now_s
        self.noticed_at_s, self.accepted_at_s = noticed_at_s, accepted_at_s
        self.used_s = 0.0
        if not self.viewers:
            self.least_gap_s = 0.0
        self._start_sweep(b"")

    def publish_status(self, status: Status) -> None:
        """Replace the status and start a sweep."""
        self.set_status(status)
        self.noticed_at_s = self.accepted_at_s = 0.0
        self._start_sweep(b"")

    def publish_heartbeat(self, now_s: float, at_ms: int) -> None:
        """Start a sweep of heartbeats, unless there is no board or a sweep is under way."""
        if self.leaderboard is None or self._remaining:
            return
        self.frame_at_s = now_s
        self.noticed_at_s = self.accepted_at_s = 0.0
        self._start_sweep(self.heartbeat(at_ms))

    def note_turn(self, now_s: float, used_s: float) -> None:
        """Record that a turn has ended, and with it perhaps the sweep."""
        if self.noticed_at_s:
            self.used_s += used_s
            self.least_gap_s = gap_after(now_s - self.frame_at_s, self.used_s)
        if not self._remaining:
            self.noticed_at_s = self.accepted_at_s = 0.0

    def add(self, viewer: Subscriber) -> None:
        """Add a viewer that already has the current frame."""
        viewer.index = len(self.viewers)
        self.viewers.append(viewer)
        if self._remaining:
            # The sweep will visit this viewer too; it must not end before its starting point.
            self._remaining += 1

    def remove(self, viewer: Subscriber) -> None:
        """Remove a viewer; the last one in the list takes its place."""
        index, last = viewer.index, self.viewers.pop()
        viewer.index = -1
        if last is viewer:
            return
        self.viewers[index] = last
        last.index = index
        if self._remaining:
            # It may have moved behind the cursor, where this sweep would miss it.
            last.push()

    def run_turn(self, limit: int, clock: Callable[[], float], until_s: float) -> int:
        """Visit up to ``limit`` viewers, or until the time is over; return how many."""
        visited = 0
        while self._remaining and visited < limit and (not visited or clock() < until_s):
            if self._cursor >= len(self.viewers):
                self._cursor = 0
            count = min(self._remaining, CHUNK, limit - visited)
            batch = self.viewers[self._cursor : self._cursor + count]
            if not batch:
                self._remaining = 0
                break
            if self._heartbeat:
                for viewer in batch:
                    viewer.push_heartbeat(self._heartbeat)
            else:
                for viewer in batch:
                    viewer.push()
            self._cursor += len(batch)
            self._remaining -= len(batch)
            visited += len(batch)
        return visited

    @property
    def is_sweeping(self) -> bool:
        """Return whether some viewers remain to be visited."""
        return self._remaining > 0

    def _start_sweep(self, heartbeat: bytes) -> None:
        self._heartbeat = heartbeat
        self._remaining = len(self.viewers)
        if self._remaining:
            self._on_sweep()


def _text_frame(message: Message) -> bytes:
    return text_frame(encode(message))


class Hub:
    """The channels of one process. ``on_sweep`` is called when a sweep starts."""

    def __init__(self, boards: tuple[str, ...], on_sweep: Callable[[], None]) -> None:
        self.channels: dict[str, Channel] = {}
        self._on_sweep = on_sweep
        self._sweeping: dict[Channel, None] = {}
        """Channels that have viewers left to visit, in the order of their next turns."""
        for board in boards:
            self.channel(board)

    def channel(self, board: str) -> Channel:
        """Return the channel of a board, which is created if necessary."""
        found = self.channels.get(board)
        if found is None:
            found = self.channels[board] = Channel(board, lambda: self._begin_sweep(board))
        return found

    def drop(self, board: str) -> Channel | None:
        """Remove and return the channel of a board, if there is one. A sweep of it ends."""
        return self.channels.pop(board, None)

    def _begin_sweep(self, board: str) -> None:
        self._sweeping.setdefault(self.channels[board])
        self._on_sweep()

    @property
    def viewer_count(self) -> int:
        """Count the viewers of all channels."""
        return sum(len(channel.viewers) for channel in self.channels.values())

    def run_turn(
        self, limit: int, clock: Callable[[], float], until_s: float
    ) -> tuple[Channel, ...]:
        """Run one turn of sweeping channels until a limit is reached; return these channels."""
        sweeping, visited, left = self._sweeping, list[Channel](), limit
        share = max(limit // max(len(sweeping), 1), CHUNK)
        for channel in tuple(sweeping):
            if visited and (left <= 0 or clock() >= until_s):
                break
            left -= channel.run_turn(share, clock, until_s)
            visited.append(channel)
            del sweeping[channel]
            if channel.is_sweeping:
                sweeping[channel] = None  # after the others
        return tuple(visited)

    @property
    def is_sweeping(self) -> bool:
        """Return whether any channel is sweeping."""
        return bool(self._sweeping)
