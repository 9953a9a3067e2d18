"""One event stream and what it should have: server-sent events of the live board's messages.

Invariants: a stream holds one slot, the channel's newest frame; it ends when its time is over, with
a ``bye`` that says why.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import Struct

from scoreboard.broadcast.close_codes import CloseCode, bye_of
from scoreboard.broadcast.frames import Heartbeat, Message, Status, encode
from scoreboard.broadcast.state import BoardState
from scoreboard.security.tokens import Caller

RETRY_MS: Final = 3000
"""What EventSource waits before it reconnects, where no ``bye`` says otherwise."""

Write = Callable[[bytes], Awaitable[None]]


class Grant(Struct, frozen=True):
    """What a stream was granted: whose it is, and when it ends at the latest (loop's clock)."""

    board: str
    address: str
    caller: Caller | None
    ends_at_s: float
    ends_with: CloseCode
    last_event_id: str


class Channel:
    """One board's streams and what they should have."""

    def __init__(self, board: str) -> None:
        self.board = board
        self.streams: set[EventStream] = set()
        self.event_id = ""
        self.frame = b""
        self.status = b""
        self.is_stale = False
        self._position = (0, 0)

    def show(self, feed: BoardState) -> None:
        """Hold a new board and wake everyone."""
        if feed.frame is None:
            return
        self._position = feed.frame.epoch, feed.frame.seq
        self.event_id = f"{feed.frame.epoch}-{feed.frame.seq}"
        self.frame = event(feed.frame, self.event_id)
        self._wake()

    def tell(self, status: Status) -> None:
        """Hold a new status and wake everyone."""
        self.is_stale = status.state == "stale"
        self.status = event(status)
        self._wake()

    def heartbeat(self) -> bytes:
        """Give a heartbeat with the held frame's position."""
        epoch, seq = self._position
        now_ms = time.time_ns() // 1_000_000
        return event(Heartbeat(self.board, epoch, seq, now_ms), self.event_id)

    def _wake(self) -> None:
        for stream in self.streams:
            stream.woken.set()


class EventStream:
    """One client: what it was sent last, and whether it should end."""

    def __init__(self, grant: Grant, channel: Channel) -> None:
        self.grant = grant
        self.woken = asyncio.Event()
        self._channel = channel
        self._is_gone = False
        self._end: CloseCode | None = None
        self._seen = b""
        self._told = b"" if channel.is_stale else channel.status

    def finish(self, code: CloseCode) -> None:
        """Have the stream say ``bye`` and end."""
        self._end = self._end or code
        self.woken.set()

    def leave(self) -> None:
        """Note that the client has gone."""
        self._is_gone = True
        self.woken.set()

    async def follow(self, write: Write, heartbeat_s: float) -> str:
        """Write what is new until the stream ends; give why it did.

        ``write`` may take long; what comes meanwhile is skipped for what is newest after it.
        """
        loop = asyncio.get_running_loop()
        ends_at_s = self.grant.ends_at_s
        data = self._greeting()
        while True:
            data += self._news()
            if data:
                await write(data)
            if self._is_gone:
                return "client"
            if loop.time() >= ends_at_s:
                self._end = self._end or self.grant.ends_with
            if self._end is not None:
                await write(event(bye_of(self._end)))
                return str(int(self._end))
            data = b""
            try:
                async with asyncio.timeout_at(min(loop.time() + heartbeat_s, ends_at_s)):
                    await self.woken.wait()
            except TimeoutError:
                if loop.time() < ends_at_s:
                    data = self._channel.heartbeat()
            self.woken.clear()

    def _greeting(self) -> bytes:
        retry = b"retry: %d\n\n" % RETRY_MS
        if self.grant.last_event_id != self._channel.event_id:
            return retry
        # The client holds this very board: a sign of life will do.
        self._seen = self._channel.frame
        return retry + self._channel.heartbeat()

    def _news(self) -> bytes:
        news = b""
        if self._seen is not self._channel.frame:
            self._seen = self._channel.frame
            news = self._seen
        if self._told is not self._channel.status:
            self._told = self._channel.status
            news += self._told
        return news


def event(message: Message, event_id: str = "") -> bytes:
    """Give a message as a server-sent event, named by its type."""
    name = str(type(message).__struct_config__.tag)
    line = f"event: {name}\n" + (f"id: {event_id}\n" if event_id else "")
    return line.encode() + b"data: " + encode(message) + b"\n\n"
