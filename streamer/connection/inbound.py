"""What one viewer sends: how much, how often, and put together into messages. No I/O.

Made by streamer.connection.viewer when a viewer first sends anything but an awaited pong. The
library checks a frame by itself (mask, reserved bits, opcode, size); joining fragments, their
number and size, strict UTF-8 and every rate are ours. What stays true: at most one unfinished
message is held.
"""

import logging
from typing import Final

from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

from scoreboard.broadcast.close_codes import CloseCode
from scoreboard.errors import Malformed
from scoreboard.runtime.settings import Settings
from streamer import metrics
from streamer.handshake.admission import Bucket
from streamer.protocol import Auth, Sync, decode

CHUNK_BYTES: Final = 1024
"""Fed to the parser at once: the smallest frames of 1 KiB take it 0.6 ms, 256 KB of them 160 ms."""

_NAMES: Final = {
    Opcode.CONT: "continuation",
    Opcode.TEXT: "text",
    Opcode.BINARY: "binary",
    Opcode.CLOSE: "close",
    Opcode.PING: "ping",
    Opcode.PONG: "pong",
}


_LOGGER: Final = logging.getLogger("websockets.streamer")
# The library logs every header at DEBUG, tokens too, and two lines per viewer at INFO.
_LOGGER.setLevel(logging.WARNING)


class Parser(ServerProtocol):
    """The library's parser of one connection, with control frames amid fragments (RFC 6455, 5.4).

    The library refuses a close frame between fragments, and counts a ping there against the size
    of the message. Here the limit holds for each frame; Inbound adds up the fragments.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(max_size=(None, settings.message_bytes), logger=_LOGGER)

    def recv_frame(self, frame: Frame) -> None:
        """Take a frame; a close ends an unfinished message too."""
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None
        super().recv_frame(frame)


class Unwelcome(Exception):  # noqa: N818 (says what it is)
    """A frame that ends the connection with ``code``."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Inbound:
    """The frames of one viewer."""

    __slots__ = ("_bucket", "_mistakes", "_parts", "_settings", "_size", "_synced_at_s")

    def __init__(self, settings: Settings, now_s: float) -> None:
        rate, burst = settings.viewer_frames_per_second, settings.viewer_frames_burst
        self._settings = settings
        self._bucket = Bucket(rate, burst, now_s)
        self._parts: list[bytes] = []
        self._size = 0
        self._mistakes = 0
        self._synced_at_s = float("-inf")

    def take(self, frame: Frame, now_s: float) -> Auth | Sync | None:
        """Take a frame; give the message it completes.

        Raises Unwelcome where the connection must end, Malformed for a message that cannot be read
        as long as there have been few.
        """
        verdict = "refused"
        try:
            message = self._judge(frame, now_s)
            verdict = "taken"
        finally:
            metrics.INBOUND.labels(_NAMES[frame.opcode], verdict).inc()
        return message

    def _judge(self, frame: Frame, now_s: float) -> Auth | Sync | None:
        if not self._bucket.take(now_s):
            raise Unwelcome(CloseCode.TOO_CHATTY, "too many frames")
        if frame.opcode is Opcode.BINARY:
            raise Unwelcome(CloseCode.UNSUPPORTED, "messages are text")
        if frame.opcode is not Opcode.TEXT and frame.opcode is not Opcode.CONT:
            return None  # the library answers pings and closes
        text = self._join(frame)
        if text is None:
            return None
        try:
            message = decode(text)
        except Malformed:
            self._mistakes += 1
            if self._mistakes > self._settings.viewer_mistakes:
                raise Unwelcome(CloseCode.MALFORMED, "too many unreadable messages") from None
            raise
        if isinstance(message, Sync):
            if now_s - self._synced_at_s < self._settings.sync_interval_s:
                raise Unwelcome(CloseCode.TOO_CHATTY, "too many sync")
            self._synced_at_s = now_s
        return message

    def _join(self, frame: Frame) -> str | None:
        settings = self._settings
        if len(self._parts) >= settings.message_fragments:
            most = settings.message_fragments
            raise Unwelcome(CloseCode.TOO_BIG, f"a message has at most {most} fragments")
        self._parts.append(bytes(frame.data))
        self._size += len(frame.data)
        if self._size > settings.message_bytes:
            raise Unwelcome(
                CloseCode.TOO_BIG, f"a message has at most {settings.message_bytes} bytes"
            )
        if not frame.fin:
            return None
        whole = b"".join(self._parts)
        self._parts, self._size = [], 0
        try:
            return whole.decode()
        except UnicodeDecodeError:
            raise Unwelcome(CloseCode.BAD_TEXT, "a message is UTF-8") from None
