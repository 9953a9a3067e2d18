"""Parser of HTTP/1.1 request heads: request line and headers. No I/O.

Invariant: ambiguous requests are refused, never repaired, so that a gateway and a service cannot
interpret one differently (request smuggling; RFC 9112, 11.2). docs/reference/http.md lists the
rules; a test compares the parser with h11.
"""

import re
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from scoreboard.errors import (
    ExpectationFailed,
    HeadTooLarge,
    Malformed,
    TargetTooLong,
    VersionUnsupported,
)
from scoreboard.runtime.limits import HeadLimits

CHUNKED: Final = -1
"""The length of a chunked body."""

LENGTH_DIGITS: Final = 15

LOCATIONS_MAX: Final = 64
"""Remembered pairs of target and host: most requests have one of few, which are checked once."""

ONCE: Final = frozenset(
    {
        b"authorization",
        b"content-length",
        b"content-type",
        b"expect",
        b"host",
        b"last-event-id",
        b"origin",
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"transfer-encoding",
        b"x-kong-request-id",
        b"x-request-id",
    }
)
"""Headers that are not lists. If one is repeated, a gateway may have used the other value."""

_END: Final = b"\r\n\r\n"
_TEXT: Final = bytes([9, *range(32, 127), *range(128, 256)])
"""Bytes allowed in a line; without them, a valid head consists of line ends."""

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET: Final = re.compile(rb"/[!-\"$-\[\]-~]*")
"""Visible ASCII without ``#`` (no fragment is sent) and backslash (some parsers read a slash)."""

_ABSOLUTE: Final = re.compile(rb"(?i:https?)://([^/?]*)(.*)", re.DOTALL)
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]")
_MINORS: Final = {b"HTTP/1.1": 1, b"HTTP/1.0": 0}
_BROKEN: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r[^\n]")
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_NEEDLESS: Final = re.compile(rb"%(?:3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa])")
"""Percent-encoded letters and digits: clients do not send them, and some gateways keep them."""

_HIDDEN: Final = re.compile(rb"[\x00-\x1f\x7f/\\]")
"""Characters that must not be percent-encoded in a path."""

_METHODS: Final = {
    name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
}
_SPELLINGS: Final = (
    "Accept", "Accept-Encoding", "Accept-Language", "Authorization", "Cache-Control", "Connection",
    "Content-Length", "Content-Type", "Cookie", "Expect", "Host", "If-None-Match", "Last-Event-ID",
    "Origin", "Referer", "Sec-Fetch-Dest", "Sec-Fetch-Mode", "Sec-Fetch-Site",
    "Sec-WebSocket-Extensions", "Sec-WebSocket-Key", "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Version", "Transfer-Encoding", "Upgrade", "User-Agent", "X-Forwarded-For",
    "X-Forwarded-Host", "X-Forwarded-Path", "X-Forwarded-Port", "X-Forwarded-Proto",
    "X-Kong-Request-Id", "X-Real-IP", "X-Request-Id",
)  # fmt: skip
_NAMES: Final = {
    spelling.encode(): name.lower().encode()
    for name in _SPELLINGS
    for spelling in (name, name.lower())
}
"""Common spellings of common names; any other name is validated and lowered each time."""


class Head(Struct):
    """A request without its body. Header names are in lower case."""

    method: str
    target: bytes
    """The request target as sent."""
    path: str
    """Decoded. It begins with a slash; no segment is ``.``, ``..``, or empty, except the last."""
    query: bytes
    minor: int
    """0 for HTTP/1.0, 1 for HTTP/1.1."""
    fields: list[tuple[bytes, bytes]]
    """All header fields, in order."""
    headers: dict[bytes, bytes]
    """Values by name; repeated list headers are joined by commas (RFC 9110, 5.3)."""
    length: int
    """Length of the body in bytes, or CHUNKED."""
    is_last: bool
    """Whether the connection ends after the response."""
    expects_continue: bool


def head_size(received: bytes | bytearray, searched: int, limits: HeadLimits) -> int:
    """Return the size of a complete head, including its blank line, or 0 while it is incomplete.

    ``searched`` is the length of ``received`` in the previous call. Raises Malformed, TargetTooLong
    or HeadTooLarge as soon as the head cannot become valid.
    """
    end = received.find(_END, max(0, searched - 3))
    if end >= 0:
        if end + 4 > limits.head_bytes:
            _check_line(received, limits)
            raise _too_large(limits)
        return end + 4
    _check_line(received, limits)
    if len(received) > limits.head_bytes:
        raise _too_large(limits)
    if received.startswith((b"\r", b" ")) or _BROKEN.search(received, max(0, searched - 1)):
        raise _unreadable()
    return 0


def read_head(data: bytes, limits: HeadLimits) -> Head:
    """Parse a complete head, including its blank line.

    Raises Malformed, TargetTooLong, HeadTooLarge, VersionUnsupported or ExpectationFailed.
    """
    lines = data.split(b"\r\n")
    count = len(lines) - 1
    if data.translate(None, _TEXT) != b"\r\n" * count:
        raise _unreadable()
    if len(lines[0]) > limits.line_bytes:
        raise _too_long(limits)
    if count - 2 > limits.fields:
        raise _too_large(limits)
    words = lines[0].split(b" ")
    if len(words) != 3:
        raise Malformed(
            "The request line must be a method, a target and a version, separated by one space"
        )
    minor = _MINORS.get(words[2])
    if minor is None:
        raise _bad_version(words[2])
    fields: list[tuple[bytes, bytes]] = []
    for line in lines[1:-2]:
        name, colon, value = line.partition(b":")
        known = _NAMES.get(name)
        if not colon or known is None:
            known = _lowered(name, colon)
        fields.append((known, value.strip(b" \t")))
    headers = dict(fields)
    if len(headers) != len(fields):
        headers = _joined(fields)
    path, query = _locate(words[1], headers.get(b"host"), minor)
    options = headers.get(b"connection")
    expectation = headers.get(b"expect")
    return Head(
        method=_METHODS.get(words[0]) or _method(words[0]),
        target=words[1],
        path=path,
        query=query,
        minor=minor,
        fields=fields,
        headers=headers,
        length=_length(headers, minor),
        is_last=not minor if options is None else _is_last(options, minor),
        expects_continue=expectation is not None and _expects_continue(expectation, minor),
    )


def list_of(value: bytes) -> list[bytes]:
    """Return the members of a list header, in lower case."""
    return [member.strip(b" \t") for member in value.lower().split(b",")]


def _check_line(received: bytes | bytearray, limits: HeadLimits) -> None:
    # Half of the line end may have arrived.
    if len(received) > limits.line_bytes + 1 and (
        received.find(b"\r\n", 0, limits.line_bytes + 2) < 0
    ):
        raise _too_long(limits)


def _method(word: bytes) -> str:
    if not _TOKEN.fullmatch(word):
        raise Malformed("The method is not a token")
    return word.decode()


def _bad_version(word: bytes) -> Malformed | VersionUnsupported:
    if _VERSION.fullmatch(word):
        return VersionUnsupported("Use HTTP/1.1")
    return Malformed("The request line must end with HTTP/1.1")


def _lowered(name: bytes, colon: bytes) -> bytes:
    if not colon or not _TOKEN.fullmatch(name):
        raise Malformed("A header must be a name, a colon and a value, on one line")
    return name.lower()


def _joined(fields: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for name, value in fields:
        if name not in headers:
            headers[name] = value
        elif name in ONCE:
            raise Malformed(f"The header {name.decode()} must not be repeated")
        else:
            headers[name] += (b"; " if name == b"cookie" else b", ") + value
    return headers


@lru_cache(LOCATIONS_MAX)
def _locate(target: bytes, host: bytes | None, minor: int) -> tuple[str, bytes]:
    """Return the path and the query of a target."""
    if host is None:
        if minor:
            raise Malformed("The header Host is required")
        host = b""
    elif not _HOST.fullmatch(host):
        raise Malformed("The header Host must be a host, or a host and a port")
    if not target.startswith(b"/"):
        # The absolute form, as sent to proxies (RFC 9112, 3.2.2); accepted if it names this host.
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None or absolute[1].lower() != host.lower():
            raise Malformed(
                "The request target must be a path, or a URL of the host in the header Host"
            )
        target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
    if not _TARGET.fullmatch(target):
        raise Malformed("The request target must be visible ASCII characters without # and \\")
    path, _, query = target.partition(b"?")
    if b"%" in path or b"//" in path or b"/." in path:
        return _decoded(path), query
    return path.decode(), query


def _decoded(path: bytes) -> str:
    if _BAD_ESCAPE.search(path):
        raise Malformed("A % in a path must be followed by two hexadecimal digits")
    if _NEEDLESS.search(path):
        raise Malformed("Letters and digits in a path must not be percent-encoded")
    segments = [unquote_to_bytes(segment) for segment in path.split(b"/")[1:]]
    if b"" in segments[:-1]:
        raise Malformed("A path must not have empty segments")
    if any(segment in {b".", b".."} or _HIDDEN.search(segment) for segment in segments):
        raise Malformed(
            "A path must not have dot segments, or encoded slashes or control characters"
        )
    try:
        return "/" + b"/".join(segments).decode()
    except UnicodeDecodeError:
        raise Malformed("A path must be UTF-8") from None


def _length(headers: dict[bytes, bytes], minor: int) -> int:
    coding = headers.get(b"transfer-encoding")
    length = headers.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise Malformed("Send Content-Length or Transfer-Encoding, not both")
        if not minor or coding.lower() != b"chunked":
            raise Malformed("The only supported transfer coding is chunked, in HTTP/1.1")
        return CHUNKED
    if length is None:
        return 0
    if not length.isdigit() or len(length) > LENGTH_DIGITS:
        raise Malformed("Content-Length must be a number of bytes")
    return int(length)


def _is_last(options: bytes, minor: int) -> bool:
    words = list_of(options)
    return b"close" in words or (not minor and b"keep-alive" not in words)


def _expects_continue(expectation: bytes, minor: int) -> bool:
    if expectation.lower() != b"100-continue":
        raise ExpectationFailed("The only supported expectation is 100-continue")
    return bool(minor)


def _unreadable() -> Malformed:
    return Malformed("Lines must end with CR LF and contain no control characters")


def _too_long(limits: HeadLimits) -> TargetTooLong:
    return TargetTooLong(f"The request line must not exceed {limits.line_bytes} bytes")


def _too_large(limits: HeadLimits) -> HeadTooLarge:
    return HeadTooLarge(
        f"The head must not exceed {limits.head_bytes} bytes and {limits.fields} headers"
    )
