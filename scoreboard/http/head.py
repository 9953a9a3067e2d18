"""Reads the head of an HTTP/1.1 request. No I/O, no state.

What stays true: whatever two readers could understand differently is refused, not repaired, so that
a gateway and a service never see two different requests (RFC 9112, 11.2). docs/reference/http.md
lists the rules; a test compares everything that is accepted with h11's reading.
"""

import re
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
"""The length of a body that comes in chunks."""

LENGTH_DIGITS: Final = 15

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
"""Fields that are no lists. If one came twice, a gateway may have looked at the other one."""

_END: Final = b"\r\n\r\n"
_TEXT: Final = bytes([9, *range(32, 127), *range(128, 256)])
"""Every byte that may stand in a line; what is left of a good head is its line ends."""

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET: Final = re.compile(rb"/[!-\"$-\[\]-~]*")
"""Visible ASCII. A fragment is never sent, and some readers take a backslash for a slash."""

_ABSOLUTE: Final = re.compile(rb"(?i:https?)://([^/?]*)(.*)", re.DOTALL)
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]")
_MINORS: Final = {b"HTTP/1.1": 1, b"HTTP/1.0": 0}
_BROKEN: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r[^\n]")
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_NEEDLESS: Final = re.compile(rb"%(?:3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa])")
"""Letters and digits as escapes: no client writes them so, and not every gateway decodes them."""

_HIDDEN: Final = re.compile(rb"[\x00-\x1f\x7f/\\]")
"""What an escape in a path must not hide."""

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
"""Usual spellings of usual names; any other name is checked and lowered each time."""


class Head(Struct):
    """A request without its body. Names of fields are in lower case."""

    method: str
    target: bytes
    """As it was sent."""
    path: str
    """Decoded. It begins with a slash; no segment is ``.``, ``..``, or empty (but the last)."""
    query: bytes
    minor: int
    """0 for HTTP/1.0, 1 for HTTP/1.1."""
    fields: list[tuple[bytes, bytes]]
    """Every field, in the order in which they came."""
    headers: dict[bytes, bytes]
    """Fields by name; lists that came in several fields are joined by commas (RFC 9110, 5.3)."""
    length: int
    """Bytes of the body, or CHUNKED."""
    is_last: bool
    """Whether the client wants the connection closed after the answer."""
    expects_continue: bool


def head_size(received: bytes | bytearray, searched: int, limits: HeadLimits) -> int:
    """Return the size of a complete head, its blank line included, or 0 while it is incomplete.

    ``searched`` is how much of ``received`` was looked at before. Raises Malformed, TargetTooLong
    or HeadTooLarge as soon as it is certain that no good head will come.
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
    """Read a complete head, its blank line included.

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
            "A request line is a method, a target and a version, with one space between"
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
    host = _host(headers, minor)
    path, query = _split(words[1], host)
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
    """Return the members of a field that is a list, in lower case."""
    return [member.strip(b" \t") for member in value.lower().split(b",")]


def _check_line(received: bytes | bytearray, limits: HeadLimits) -> None:
    # The line end may have come by half.
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
    return Malformed("The request line does not end in HTTP/1.1")


def _lowered(name: bytes, colon: bytes) -> bytes:
    if not colon or not _TOKEN.fullmatch(name):
        raise Malformed("A header line is a name, a colon and a value, on one line")
    return name.lower()


def _joined(fields: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for name, value in fields:
        if name not in headers:
            headers[name] = value
        elif name in ONCE:
            raise Malformed(f"Send the header {name.decode()} once")
        else:
            headers[name] += (b"; " if name == b"cookie" else b", ") + value
    return headers


def _host(headers: dict[bytes, bytes], minor: int) -> bytes:
    host = headers.get(b"host")
    if host is None:
        if minor:
            raise Malformed("Send the header Host")
        return b""
    if not _HOST.fullmatch(host):
        raise Malformed("The header Host is not a host, or a host and a port")
    return host


def _split(target: bytes, host: bytes) -> tuple[str, bytes]:
    """Return the path and the query of a target."""
    if not target.startswith(b"/"):
        # A client that takes us for a proxy (RFC 9112, 3.2.2): served where it means us.
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None or absolute[1].lower() != host.lower():
            raise Malformed(
                "A request target is a path, or an address at the host of the header Host"
            )
        target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
    if not _TARGET.fullmatch(target):
        raise Malformed("A request target has visible ASCII characters only, without # and \\")
    path, _, query = target.partition(b"?")
    if b"%" in path or b"//" in path or b"/." in path:
        return _decoded(path), query
    return path.decode(), query


def _decoded(path: bytes) -> str:
    if _BAD_ESCAPE.search(path):
        raise Malformed("A % in a path is followed by two hexadecimal digits")
    if _NEEDLESS.search(path):
        raise Malformed("A path has letters and digits as themselves, not as escapes")
    segments = [unquote_to_bytes(segment) for segment in path.split(b"/")[1:]]
    if b"" in segments[:-1]:
        raise Malformed("A path has no empty segment")
    if any(segment in {b".", b".."} or _HIDDEN.search(segment) for segment in segments):
        raise Malformed("A path has no dot segment, and no slash or control character as an escape")
    try:
        return "/" + b"/".join(segments).decode()
    except UnicodeDecodeError:
        raise Malformed("A path is UTF-8") from None


def _length(headers: dict[bytes, bytes], minor: int) -> int:
    coding = headers.get(b"transfer-encoding")
    length = headers.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise Malformed("Send Content-Length or Transfer-Encoding, not both")
        if not minor or coding.lower() != b"chunked":
            raise Malformed("The only transfer coding is chunked, in HTTP/1.1")
        return CHUNKED
    if length is None:
        return 0
    if not length.isdigit() or len(length) > LENGTH_DIGITS:
        raise Malformed("Content-Length is a number of bytes")
    return int(length)


def _is_last(options: bytes, minor: int) -> bool:
    words = list_of(options)
    return b"close" in words or (not minor and b"keep-alive" not in words)


def _expects_continue(expectation: bytes, minor: int) -> bool:
    if expectation.lower() != b"100-continue":
        raise ExpectationFailed("The only expectation is 100-continue")
    return bool(minor)


def _unreadable() -> Malformed:
    return Malformed("A request has lines that end in CR LF, without control characters")


def _too_long(limits: HeadLimits) -> TargetTooLong:
    return TargetTooLong(f"A request line has at most {limits.line_bytes} bytes")


def _too_large(limits: HeadLimits) -> HeadTooLarge:
    return HeadTooLarge(
        f"A head has at most {limits.head_bytes} bytes and {limits.fields} header lines"
    )
