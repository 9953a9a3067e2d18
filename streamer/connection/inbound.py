"""Frames from one viewer: rate limits, and reassembly into messages. No I/O.

The websockets library validates single frames (mask, reserved bits, opcode, size). This module
joins fragments, limits their number and size, checks UTF-8, and limits every rate. Most viewers
send nothing but pongs, so a viewer has the library's parser, which takes over 1 KB, only from its
first other frame on.

Invariants: at most one unfinished message is held per viewer.
"""

import logging
from typing import Final

from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side

from scoreboard.broadcast.admission import TokenBucket
from scoreboard.broadcast.close_codes import CloseCode
from scoreboard.errors import Malformed
from scoreboard.runtime.settings import Settings
from streamer import metrics
from streamer.protocol import Received, Sync, decode

CHUNK_BYTES: Final = 1024
"""Size of the parser's input: 1 KiB of the smallest frames takes 0.6 ms, 256 KB of them 160 ms."""

_TYPES: Final = {
    Opcode.CONT: "continuation",
    Opcode.TEXT: "text",
    Opcode.BINARY: "binary",
    Opcode.CLOSE: "close",
    Opcode.PING: "ping",
    Opcode.PONG: "pong",
}


_LOGGER: Final = logging.getLogger("websockets.streamer")
# The library logs all frames, including tokens, at DEBUG, and a line per viewer at INFO.
_LOGGER.setLevel(logging.WARNING)


class Parser(Protocol):
    """The library's parser, with control frames between fragments (RFC 6455, 5.4).

    The library rejects a close frame between fragments, and counts a ping there against the size
    of the message. Here the limit applies to each frame; MessageReader adds up the fragments.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(Side.SERVER, max_size=(None, settings.message_bytes), logger=_LOGGER)

    def recv_frame(self, frame: Frame) -> None:
        """Process a frame; a close frame also ends an unfinished message."""
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None
        super().recv_frame(frame)


def read_pong(data: bytes) -> bytes | None:
    """Return the payload of a pong, or None if ``data`` is not exactly one valid pong."""
    size = len(data) - 6
    if not 0 <= size <= 125 or data[0] != 0x8A or data[1] != 0x80 | size:
        return None
    mask = data[2:6] * (size // 4 + 1)
    return bytes(a ^ b for a, b in zip(data[6:], mask, strict=False))


class FrameError(Exception):
    """A frame that fails the connection with a close code."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class MessageReader:
    """Reads the messages of one viewer from its frames."""

    __slots__ = ("_bucket", "_fragments", "_malformed", "_settings", "_size", "_synced_at_s")

    def __init__(self, settings: Settings, now_s: float) -> None:
        rate, burst = settings.viewer_frames_per_second, settings.viewer_frames_burst
        self._settings = settings
        self._bucket = TokenBucket(rate, burst, now_s)
        self._fragments: list[bytes] = []
        self._size = 0
        self._malformed = 0
        self._synced_at_s = float("-inf")

    def receive(self, frame: Frame, now_s: float) -> Received | None:
        """Process a frame; return the message that it completes.

        Raises FrameError if the connection must fail, Malformed for an unreadable message while
        there have been few of them.
        """
        verdict = "refused"
        try:
            message = self._process(frame, now_s)
            verdict = "taken"
        finally:
            metrics.INBOUND[_TYPES[frame.opcode], verdict].inc()
        return message

    def _process(self, frame: Frame, now_s: float) -> Received | None:
        if not self._bucket.take(now_s):
            raise FrameError(CloseCode.RATE_LIMITED, "too many frames")
        if frame.opcode is Opcode.BINARY:
            raise FrameError(CloseCode.UNSUPPORTED_DATA, "messages must be text")
        if frame.opcode is not Opcode.TEXT and frame.opcode is not Opcode.CONT:
            return None  # the library answers pings and closes
        text = self._join(frame)
        if text is None:
            return None
        try:
            message = decode(text)
        except Malformed:
            self._malformed += 1
            if self._malformed > self._settings.viewer_mistakes:
                raise FrameError(CloseCode.MALFORMED, "too many unreadable messages") from None
            raise
        if isinstance(message, Sync):
            if now_s - self._synced_at_s < self._settings.sync_interval_s:
                raise FrameError(CloseCode.RATE_LIMITED, "too many sync messages")
            self._synced_at_s = now_s
        return message

    def _join(self, frame: Frame) -> str | None:
        """Add a fragment; return the text of a complete message."""
        settings = self._settings
        if len(self._fragments) >= settings.message_fragments:
            limit = settings.message_fragments
            raise FrameError(
                CloseCode.MESSAGE_TOO_BIG, f"a message may have at most {limit} fragments"
            )
        self._fragments.append(bytes(frame.data))
        self._size += len(frame.data)
        if self._size > settings.message_bytes:
            raise FrameError(
                CloseCode.MESSAGE_TOO_BIG,
                f"a message may have at most {settings.message_bytes} bytes",
            )
        if not frame.fin:
            return None
        message = b"".join(self._fragments)
        self._fragments, self._size = [], 0
        try:
            return message.decode()
        except UnicodeDecodeError:
            raise FrameError(CloseCode.INVALID_PAYLOAD, "messages must be valid UTF-8") from None
