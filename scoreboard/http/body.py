"""Parsers of HTTP/1.1 request bodies, by length or chunked. No I/O.

Use one reader per body.

Invariants: the size of a body and of its chunk framing is bounded; bytes after the end of a body
are never part of it.
"""

import re
from typing import Final

from scoreboard.errors import BodyTooLarge, Malformed

FRAMING_BYTES: Final = 16_384
"""Maximum bytes of chunk sizes, extensions and line ends in a body."""

EXTENSION_BYTES: Final = 64
"""Maximum length of a chunk extension; extensions are ignored (RFC 9112, 7.1.1)."""

_LINE_END: Final = b"\r\n"
_EXTENSION: Final = rb"(?:;[\t -~]{0,%d})?" % EXTENSION_BYTES
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})" + _EXTENSION + rb"\r\n")
_BEGUN_SIZE_LINE: Final = re.compile(rb"(?:[0-9A-Fa-f]{1,8}" + _EXTENSION + rb"\r?)?")


class LengthReader:
    """Reads a body with a Content-Length."""

    __slots__ = ("_left", "_parts", "is_complete")

    def __init__(self, length: int) -> None:
        self.is_complete = length == 0
        self._left = length
        self._parts: list[bytes] = []

    def take(self, data: bytes) -> bytes:
        """Consume the bytes of the body; return those after it."""
        part = data[: self._left]
        self._parts.append(part)
        self._left -= len(part)
        self.is_complete = not self._left
        return data[len(part) :]

    def body(self) -> bytes:
        """Return the bytes read."""
        return b"".join(self._parts)


class ChunkReader:
    """Reads a chunked body of at most ``limit`` bytes, without trailers."""

    __slots__ = (
        "_begun",
        "_framing",
        "_is_last",
        "_left",
        "_limit",
        "_parts",
        "_size",
        "is_complete",
    )

    def __init__(self, limit: int) -> None:
        self.is_complete = False
        self._limit = limit
        self._size = 0
        self._framing = 0
        self._left = 0
        """Remaining bytes of the chunk, including its line end."""
        self._is_last = False
        self._begun = b""
        """An incomplete size line or line end."""
        self._parts: list[bytes] = []

    def take(self, data: bytes) -> bytes:
        """Consume the bytes of the body; return those after it.

        Raises Malformed, or BodyTooLarge as soon as a chunk would exceed the limit.
        """
        data = self._begun + data
        at = 0
        while not self.is_complete:
            step = self._take_chunk(data, at) if self._left else self._take_size(data, at)
            if not step:
                self._begun = data[at:]
                return b""
            at += step
        return data[at:]

    def body(self) -> bytes:
        """Return the bytes read."""
        return b"".join(self._parts)

    def _take_size(self, data: bytes, at: int) -> int:
        """Consume a size line; return its length, or 0 while it is incomplete."""
        line = _SIZE_LINE.match(data, at)
        if line is None:
            if not _BEGUN_SIZE_LINE.fullmatch(data, at):
                raise Malformed("A chunk must begin with its size in hexadecimal digits")
            return 0
        size = int(line[1], 16)
        self._size += size
        if self._size > self._limit:
            raise BodyTooLarge(f"The body must not exceed {self._limit} bytes")
        self._framing += len(line[0]) + len(_LINE_END)
        if self._framing > FRAMING_BYTES:
            raise Malformed("The chunks are too small for their framing")
        self._left = size + len(_LINE_END)
        self._is_last = not size
        return len(line[0])

    def _take_chunk(self, data: bytes, at: int) -> int:
        """Consume the available bytes of a chunk and its line end; return their number."""
        part = data[at : at + self._left - len(_LINE_END)]
        if part:
            self._parts.append(part)
            self._left -= len(part)
            return len(part)
        end = data[at : at + len(_LINE_END)]
        if not _LINE_END.startswith(end):
            raise Malformed(
                "Trailers are not supported" if self._is_last else "A chunk is longer than its size"
            )
        if len(end) < len(_LINE_END):
            return 0
        self._left = 0
        self.is_complete = self._is_last
        return len(end)
