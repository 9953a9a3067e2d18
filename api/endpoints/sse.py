"""One event stream: the viewers' messages as server-sent events.

Invariants: a stream holds no queue; it is sent the channel's newest frame, and skips those before;
it ends at its deadline, with a ``bye`` that says why.
"""

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import UNSET, Struct

from scoreboard.broadcast.channel import BoardChannel
from scoreboard.broadcast.close_codes import CloseCode, make_bye
from scoreboard.broadcast.messages import (
    Bye,
    Heartbeat,
    Leaderboard,
    Message,
    Status,
    encode,
    now_ms,
)
from scoreboard.broadcast.pace import gap_after
from scoreboard.security.tokens import Caller

RETRY_MS: Final = 3000
"""Delay before EventSource reconnects, unless a ``bye`` says otherwise."""

STREAMED: Final[tuple[type[Message], ...]] = (Leaderboard, Heartbeat, Status, Bye)
"""The messages that streams have; the others are about messages from viewers."""

Write = Callable[[bytes], Awaitable[None]]


class Admission(Struct, frozen=True):
    """An admitted stream: who opened it, and when it ends at the latest (the loop's clock)."""

    board: str
    address: str
    caller: Caller | None
    ends_at_s: float
    ends_with: CloseCode
    last_event_id: str

    @property
    def subject(self) -> str | None:
        """The token's subject; None without a token."""
        return self.caller.subject if self.caller else None


class EventChannel(BoardChannel):
    """One board's event streams and the events to send them."""

    __slots__ = ("event_id", "least_gap_s", "streams")

    def __init__(self, board: str) -> None:
        super().__init__(board, encode_event)
        self.streams: set[EventStream] = set()
        self.event_id = ""
        """The id of the newest leaderboard's event; empty until the first."""
        self.least_gap_s = 0.0
        """The least time from the newest leaderboard to the next one."""

    def publish(self, state: Leaderboard) -> None:
        """Replace the leaderboard and wake every stream."""
        self.event_id = event_id(state)
        self.set_leaderboard(state)
        self._wake()
        loop = asyncio.get_running_loop()
        # The loop runs callbacks in order: this one runs after each stream that was waiting.
        loop.call_soon(self._note_written, loop.time(), time.thread_time())

    def _note_written(self, began_at_s: float, cpu_s: float) -> None:
        took_s = asyncio.get_running_loop().time() - began_at_s
        self.least_gap_s = gap_after(took_s, time.thread_time() - cpu_s)

    def heartbeat(self, at_ms: int) -> bytes:
        """Return a heartbeat with the id of the current leaderboard, or b"" without one."""
        event = super().heartbeat(at_ms)
        return b"id: %b\n%b" % (self.event_id.encode(), event) if event else event

    def publish_status(self, status: Status) -> None:
        """Replace the status and wake every stream."""
        self.set_status(status)
        self._wake()

    def _wake(self) -> None:
        for stream in self.streams:
            stream.woken.set()


class EventStream:
    """One client: what it was sent last, and whether it should end."""

    def __init__(self, admission: Admission, channel: EventChannel) -> None:
        self.admission = admission
        self.woken = asyncio.Event()
        self._channel = channel
        self._is_gone = False
        self._end: CloseCode | None = None
        self._sent_frame = b""
        self._sent_status = channel.initial_status

    def finish(self, code: CloseCode) -> None:
        """End the stream, with a ``bye``."""
        self._end = self._end or code
        self.woken.set()

    def leave(self) -> None:
        """Remove the stream from its channel."""
        self._channel.streams.discard(self)

    def note_disconnect(self) -> None:
        """Record that the client has disconnected."""
        self._is_gone = True
        self.woken.set()

    async def run(self, write: Write, heartbeat_s: float) -> str:
        """Write events until the stream ends; return the reason, a label of the metrics.

        ``write`` may take long: afterwards only the newest frame is sent.
        """
        loop = asyncio.get_running_loop()
        ends_at_s = self.admission.ends_at_s
        data = self._opening()
        while True:
            data += self._unsent()
            if data:
                await write(data)
            if self._is_gone:
                return "client"
            if loop.time() >= ends_at_s:
                self._end = self._end or self.admission.ends_with
            if self._end is not None:
                await write(encode_event(make_bye(self._end)))
                return str(int(self._end))
            data = b""
            try:
                async with asyncio.timeout_at(min(loop.time() + heartbeat_s, ends_at_s)):
                    await self.woken.wait()
            except TimeoutError:
                if loop.time() < ends_at_s:
                    data = self._heartbeat()
            self.woken.clear()

    def _opening(self) -> bytes:
        retry = b"retry: %d\n\n" % RETRY_MS
        current = self._channel.event_id
        if not current or self.admission.last_event_id != current:
            return retry
        # The client has the current board: a heartbeat is enough.
        self._sent_frame = self._channel.frame
        return retry + self._heartbeat()

    def _heartbeat(self) -> bytes:
        return self._channel.heartbeat(now_ms())

    def _unsent(self) -> bytes:
        data = b""
        if self._sent_frame is not self._channel.frame:
            self._sent_frame = self._channel.frame
            data = self._sent_frame
        if self._sent_status is not self._channel.status:
            self._sent_status = self._channel.status
            data += self._sent_status
        return data


def event_id(board: Leaderboard) -> str:
    """Return the id of a board's event: its position, and a checksum of its names if it has any.

    The same board with other names has another id, so that a client that comes back gets them.
    """
    names = [row.name for row in board.leaderboard]
    mark = ""
    if any(name is not UNSET for name in names):
        mark = f"-{zlib.crc32(repr(names).encode()):08x}"
    return f"{board.epoch}-{board.seq}{mark}"


def encode_event(message: Message) -> bytes:
    """Encode a message as a server-sent event, named by its type."""
    lines = f"event: {type(message).__struct_config__.tag}\n"
    if isinstance(message, Leaderboard):
        lines += f"id: {event_id(message)}\n"
    return lines.encode() + b"data: " + encode(message) + b"\n\n"
