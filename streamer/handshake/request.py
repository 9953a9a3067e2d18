"""Validate the HTTP request of an opening handshake, and answer it (RFC 6455, 4.2). No I/O.

scoreboard.http.head has parsed the request. No response repeats a header value. The order of the
checks is fixed: request line, headers, origin, subprotocol, token. streamer.handshake.admission and
the board decide who is admitted. A test compares all of this with the websockets library.
"""

import base64
import binascii
import re
import time
from email.utils import formatdate
from functools import lru_cache
from hashlib import sha1
from typing import Final

from msgspec import Struct

from scoreboard.broadcast.messages import COMPACT, OFFSET_MAX, SUBPROTOCOL, WS_PATH
from scoreboard.errors import (
    Malformed,
    MethodNotAllowed,
    NotFound,
    ScoreboardError,
    UpgradeRequired,
    VersionUnsupported,
)
from scoreboard.http.head import Head, list_of
from scoreboard.http.query import parse_query
from scoreboard.http.request_ids import HEADER
from scoreboard.http.response import encode_head, error_response
from scoreboard.model import PAGE_MAX, TOP, WATCHED_TOP, Span
from scoreboard.runtime.settings import Settings
from scoreboard.security.addresses import request_address, trusted_networks
from scoreboard.security.origins import Origins
from scoreboard.security.tokens import bearer_token
from streamer.protocol import BEARER_PREFIX

LINE_BYTES: Final = 8192
"""Maximum length of a line of the head, with its line end."""

PARAMETERS: Final = frozenset({"board", "rows", "offset"})
"""Query parameters of a handshake. Others are refused, as they are by the api."""

_KEY_SUFFIX: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_LIST: Final = re.compile(
    rb"(?:,[\t ]*)*{token}[\t ]*(?:,[\t ]*(?:{token}[\t ]*)?)*".replace(
        b"{token}", rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
    )
)
"""A list of tokens; empty members are ignored (RFC 9110, 5.6.1)."""

_SUBPROTOCOLS: Final = {name: name for name in (SUBPROTOCOL, COMPACT)}
"""Each with itself: no request holds a string of its own."""

_SUBPROTOCOL_LINES: Final = {"": b""} | {
    name: b"Sec-WebSocket-Protocol: %b\r\n" % name.encode() for name in _SUBPROTOCOLS
}
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,6}")
_LISTS: Final = frozenset({b"connection", b"sec-websocket-protocol"})


class HandshakeRequest(Struct, frozen=True):
    """The parameters of a valid handshake. Possibly there is no board with the name ``board``."""

    board: str
    address: str
    key: bytes
    token: str = ""
    subprotocol: str = ""
    """The selected subprotocol; empty if none is offered."""
    span: Span = TOP


class HandshakeConfig:
    """The settings that handshakes are validated against; created once per process."""

    def __init__(self, settings: Settings) -> None:
        """Parse origins and trusted hops.

        Raises SettingInvalid, naming the variable, if one of them is invalid.
        """
        self.default_board = settings.boards[0]
        self.limits = settings.head_limits()
        self.origins = Origins(settings.origins)
        self.hops = trusted_networks(settings.trusted_hops)


def parse_request(head: Head, peer: str, config: HandshakeConfig) -> HandshakeRequest:
    """Return the parameters of a handshake.

    Raises Malformed, MethodNotAllowed, VersionUnsupported, NotFound, UpgradeRequired, ForeignOrigin
    or Unauthenticated; none of them repeats a value of the request.
    """
    board, span = _window(head, config)
    headers = head.headers
    _check_upgrade(headers)
    for name, value in head.fields:
        if name in _LISTS and not _LIST.fullmatch(value):
            raise Malformed("Connection and Sec-WebSocket-Protocol must be lists of tokens")
    address = request_address(peer, headers, config.hops)
    config.origins.check(headers.get(b"origin"), headers[b"host"])
    protocols = headers.get(b"sec-websocket-protocol", b"").decode("latin-1")
    offered = [word.strip() for word in protocols.split(",")] if protocols else []
    subprotocol = next((_SUBPROTOCOLS[name] for name in offered if name in _SUBPROTOCOLS), "")
    if offered and not subprotocol:
        raise Malformed(f"Offer the subprotocol {SUBPROTOCOL} or {COMPACT}, or none")
    key = headers[b"sec-websocket-key"]
    return HandshakeRequest(board, address, key, _token(headers, offered), subprotocol, span)


def check_lines(data: bytes) -> None:
    """Raise Malformed for a head with a line that is too long."""
    if len(data) > LINE_BYTES and any(len(line) + 2 > LINE_BYTES for line in data.split(b"\r\n")):
        raise Malformed(f"A line of the head must not exceed {LINE_BYTES} bytes")


def encode_acceptance(request: HandshakeRequest, request_id: str) -> bytes:
    """Return the 101 response. ``request_id`` has a safe form."""
    digest = sha1(request.key + _KEY_SUFFIX, usedforsecurity=False).digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\n%bUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%bx-request-id: %b\r\n\r\n"
    ) % (
        _date_line(int(time.time())),
        binascii.b2a_base64(digest, newline=False),
        _SUBPROTOCOL_LINES[request.subprotocol],
        request_id.encode(),
    )


def encode_rejection(error: ScoreboardError, request_id: str, *, with_body: bool = True) -> bytes:
    """Return the HTTP response to a rejected handshake; the connection ends with it.

    The response to HEAD has no body.
    """
    response = error_response(error, request_id)
    upgrade = b"upgrade, " if isinstance(error, UpgradeRequired) else b""
    headers = [
        *response.headers,
        (HEADER, request_id.encode()),
        (b"content-length", b"%d" % len(response.body)),
        (b"connection", upgrade + b"close"),
    ]
    return encode_head(response.status, headers) + (response.body if with_body else b"")


@lru_cache(maxsize=1)
def _date_line(now_s: int) -> bytes:
    return b"Date: %b\r\n" % formatdate(now_s, usegmt=True).encode()


def _window(head: Head, config: HandshakeConfig) -> tuple[str, Span]:
    """Return the board and the rows that a handshake asks for."""
    if head.method != "GET":
        raise MethodNotAllowed("A handshake must use GET", allow="GET")
    if not head.minor:
        raise VersionUnsupported("A handshake requires HTTP/1.1")
    if head.path != WS_PATH:
        raise NotFound(f"Viewers connect to {WS_PATH}")
    if head.length or head.headers.get(b"content-length", b"0") != b"0":
        raise Malformed("A handshake must not have a body")
    values = parse_query(head.query, PARAMETERS)
    board = values.get("board", config.default_board)
    if "rows" not in values and "offset" not in values:
        return board, TOP
    rows = _number(values, "rows", WATCHED_TOP, WATCHED_TOP, PAGE_MAX)
    return board, Span(_number(values, "offset", 0, 0, OFFSET_MAX), rows)


def _number(values: dict[str, str], name: str, default: int, least: int, most: int) -> int:
    text = values.get(name)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
        raise Malformed(f"{name} is a whole number from {least} to {most}")
    return int(text)


def _check_upgrade(headers: dict[bytes, bytes]) -> None:
    # A list: browsers and gateways send `keep-alive, Upgrade`.
    options, offers = headers.get(b"connection", b""), headers.get(b"upgrade", b"")
    if b"upgrade" not in list_of(options) or list_of(offers) != [b"websocket"]:
        raise UpgradeRequired
    version = headers.get(b"sec-websocket-version")
    if version is None:
        raise Malformed("Send the header Sec-WebSocket-Version")
    if version != b"13":
        raise UpgradeRequired("Use WebSocket version 13")
    try:
        key = base64.b64decode(headers.get(b"sec-websocket-key", b""), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != 16:
        raise Malformed("Send one Sec-WebSocket-Key of 16 bytes in base64")


def _token(headers: dict[bytes, bytes], offered: list[str]) -> str:
    in_offers = [word for word in offered if word.lower().startswith(BEARER_PREFIX)]
    authorization = headers.get(b"authorization")
    if len(in_offers) + (authorization is not None) > 1:
        raise Malformed("Send one token: in the Authorization header or as a subprotocol")
    if in_offers:
        return in_offers[0][len(BEARER_PREFIX) :] or "."
    return bearer_token(authorization)
