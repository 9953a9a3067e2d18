"""The viewers of each board, and the order in which new frames are pushed to them. No I/O.

A channel holds the viewers of a board, or of one window of it, and their current frames: the newest
board and its status. A sweep visits all viewers once, in turns of bounded work. A newer frame
restarts the sweep at the current position, so that the remaining viewers get the newer frame and
all others are visited again.

Invariants: every viewer that can take data is offered the newest frame, whichever viewers join or
leave during a sweep; a turn costs nothing for channels that are not sweeping.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Final, Protocol

from msgspec import UnsetType

from scoreboard.broadcast.channel import BoardChannel
from scoreboard.broadcast.messages import Leaderboard, Message, Status, difference, encode
from scoreboard.broadcast.pace import GAP_MAX_S, gap_after
from scoreboard.model import TOP, Span
from streamer.connection.framing import ping_frame, text_frame

CHUNK: Final = 50
"""Viewers visited between two reads of the clock."""

DELTAS_MAX: Final = 19
"""Deltas in a row: at least every 20th frame of a channel is a whole board."""


class Subscriber(Protocol):
    """A viewer as its channel sees it, or its subscription. The channel owns ``index``."""

    index: int

    @property
    def is_compact(self) -> bool:
        """Return whether it takes deltas."""
        ...

    def push(self) -> None:
        """Write the channel's frames that this viewer lacks, if it can take data."""
        ...

    def push_heartbeat(self, frame: bytes) -> None:
        """Write a heartbeat, if it can take data."""
        ...


class BoardCost:
    """What it costs to send one board with its windows, and so the least time to the next one."""

    __slots__ = ("_free_at_s", "_owed_s", "_published_at_s", "_used_s")

    def __init__(self) -> None:
        self._published_at_s = 0.0
        self._owed_s = 0.0
        """What was left of the gap before when the newest frame was published."""
        self._used_s = 0.0
        """CPU time of the turns since then."""
        self._free_at_s = 0.0
        """Until when the next board has to wait."""

    def publish(self, now_s: float) -> None:
        """Begin with a new frame of the board or a window; what is owed for others stays owed."""
        self._owed_s = max(self._free_at_s - now_s, 0.0)
        self._published_at_s, self._used_s = now_s, 0.0

    def add_turn(self, now_s: float, used_s: float) -> None:
        """Add a turn that has written frames of the board, however many of its channels."""
        self._used_s += used_s
        gap_s = gap_after(now_s - self._published_at_s, self._used_s)
        self._free_at_s = self._published_at_s + min(self._owed_s + gap_s, GAP_MAX_S)

    def least_gap_s(self, now_s: float) -> float:
        """Return the least time from the newest frame to the next board; 0 if it is over."""
        return self._free_at_s - self._published_at_s if now_s < self._free_at_s else 0.0


class Channel(BoardChannel):
    """The viewers of one board, or of one window of it, and the frames to send them."""

    __slots__ = (
        "_compact",
        "_cursor",
        "_deltas",
        "_heartbeat",
        "_number",
        "_on_sweep",
        "_previous",
        "_remaining",
        "accepted_at_s",
        "ack",
        "cost",
        "delta",
        "frame_at_s",
        "frame_with_ping",
        "noticed_at_s",
        "sent",
        "skipped",
        "span",
        "viewers",
    )

    def __init__(
        self,
        board: str,
        on_sweep: Callable[[], None],
        span: Span = TOP,
        cost: BoardCost | None = None,
    ) -> None:
        super().__init__(board, _text_frame)
        self.span = span
        self.cost = cost or BoardCost()
        """Shared by the channels of a board."""
        self.viewers: list[Subscriber] = []
        self.delta = b""
        """What turns the frame before into ``frame``; empty if viewers get the whole frame."""
        self._previous = b""
        self._compact = 0
        """Viewers that take deltas."""
        self._deltas = 0
        """Deltas since the last whole frame."""
        self.frame_with_ping = b""
        """``frame`` followed by a ping with the payload ``ack``, for ack-paced viewers."""
        self.ack = b""
        self.frame_at_s = 0.0
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
        base, self._previous = self.leaderboard, self.frame
        self.set_leaderboard(leaderboard)
        self.delta = self._delta_from(base) if self._compact and base is not None else b""
        self._deltas = self._deltas + 1 if self.delta else 0
        self.ack = b"%d" % self._number
        self.frame_with_ping = self.frame + ping_frame(self.ack)
        self.frame_at_s = now_s
        self.noticed_at_s, self.accepted_at_s = noticed_at_s, accepted_at_s
        self.cost.publish(now_s)
        self._start_sweep(b"")

    def next_for(self, sent: bytes) -> bytes:
        """Return what brings a viewer that takes deltas to ``frame``, from the frame it has."""
        if self.delta and sent is self._previous:
            return self.delta
        return self.frame if sent else self.first_frame

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

    def end_turn(self) -> None:
        """Record that a turn has ended, and with it perhaps the sweep."""
        if not self._remaining:
            self.noticed_at_s = self.accepted_at_s = 0.0

    def add(self, viewer: Subscriber) -> None:
        """Add a viewer that already has the current frame."""
        viewer.index = len(self.viewers)
        self.viewers.append(viewer)
        self._compact += viewer.is_compact
        if self._remaining:
            # The sweep will visit this viewer too; it must not end before its starting point.
            self._remaining += 1

    def remove(self, viewer: Subscriber) -> None:
        """Remove a viewer; the last one in the list takes its place."""
        index, last = viewer.index, self.viewers.pop()
        viewer.index = -1
        self._compact -= viewer.is_compact
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

    def _delta_from(self, base: Leaderboard) -> bytes:
        """Return the delta that replaces ``frame``; b"" if it cannot, or is not smaller."""
        if self._deltas >= DELTAS_MAX or self.leaderboard is None:
            return b""
        delta = difference(base, self.leaderboard)
        frame = _text_frame(delta) if delta is not None else b""
        return frame if len(frame) < len(self.frame) else b""

    def _start_sweep(self, heartbeat: bytes) -> None:
        self._heartbeat = heartbeat
        self._remaining = len(self.viewers)
        if self._remaining:
            self._on_sweep()


def _text_frame(message: Message) -> bytes:
    return text_frame(encode(message))


class Hub:
    """The channels of one process, by board and window.

    ``on_sweep`` is called when a sweep starts.
    """

    def __init__(self, boards: tuple[str, ...], on_sweep: Callable[[], None]) -> None:
        self.channels: dict[str, Channel] = {}
        """The channel of each board, without windows."""
        self._windows: dict[str, dict[Span, Channel]] = {}
        """The channels of the windows of each board that has some."""
        self._on_sweep = on_sweep
        self._sweeping: dict[Channel, None] = {}
        """Channels that have viewers left to visit, in the order of their next turns."""
        for board in boards:
            self.channel(board)

    def channel(self, board: str) -> Channel:
        """Return the channel of a board, which is created if necessary."""
        found = self.channels.get(board)
        if found is None:
            made = found = self.channels[board] = Channel(board, lambda: self._begin_sweep(made))
        return found

    def window(self, board: str, span: Span) -> Channel:
        """Return the channel of a window, which is created if necessary with the board's status."""
        if span == TOP:
            return self.channel(board)
        windows = self._windows.setdefault(board, {})
        found = windows.get(span)
        if found is None:
            top = self.channel(board)
            made = found = windows[span] = Channel(
                board, lambda: self._begin_sweep(made), span, top.cost
            )
            found.take_over(top)
        return found

    def find(self, board: str, span: Span) -> Channel | None:
        """Return the channel of a window, if there is one."""
        return self.channels.get(board) if span == TOP else self._windows.get(board, {}).get(span)

    def has(self, channel: Channel) -> bool:
        """Return whether a channel was not dropped."""
        return self.find(channel.board, channel.span) is channel

    def of_board(self, board: str) -> tuple[Channel, ...]:
        """Return all channels of a board."""
        top = self.channels.get(board)
        return () if top is None else (top, *self._windows.get(board, {}).values())

    @property
    def every_channel(self) -> Iterable[Channel]:
        """All channels; none may be added or dropped meanwhile."""
        windows = chain.from_iterable(found.values() for found in self._windows.values())
        return chain(self.channels.values(), windows)

    def viewers_of(self, board: str) -> int:
        """Count the viewers of a board, each of whom sees it or one window of it."""
        return sum(len(channel.viewers) for channel in self.of_board(board))

    def set_viewers(self, board: str, viewers: int | UnsetType) -> None:
        """Set the viewers of a board over all processes, for messages from now on."""
        for channel in self.of_board(board):
            channel.set_viewers(viewers)

    def drop(self, board: str) -> tuple[Channel, ...]:
        """Remove and return the channels of a board. Their sweeps end."""
        dropped = self.of_board(board)
        self.channels.pop(board, None)
        self._windows.pop(board, None)
        return dropped

    def drop_window(self, board: str, span: Span) -> Channel | None:
        """Remove and return the channel of a window, if there is one."""
        windows = self._windows.get(board, {})
        dropped = windows.pop(span, None)
        if not windows:
            self._windows.pop(board, None)
        return dropped

    def _begin_sweep(self, channel: Channel) -> None:
        self._sweeping.setdefault(channel)
        self._on_sweep()

    @property
    def viewer_count(self) -> int:
        """Count the viewers of all channels, a viewer of several boards once for each."""
        return sum(len(channel.viewers) for channel in self.every_channel)

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

    def note_turn(self, channels: Sequence[Channel], now_s: float, used_s: float) -> None:
        """Record the CPU time of a turn of these channels, once for each board that was sent."""
        for cost in {channel.cost for channel in channels if channel.noticed_at_s}:
            cost.add_turn(now_s, used_s)
        for channel in channels:
            channel.end_turn()

    @property
    def is_sweeping(self) -> bool:
        """Return whether any channel is sweeping."""
        return bool(self._sweeping)
