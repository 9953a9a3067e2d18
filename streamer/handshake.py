"""Judges a viewer's HTTP request before the 101: what it asks for, or how it is refused. No I/O.

The WebSocket library parses the request and computes the answer to the key; it leaves Host, sizes,
versions and origins to us, and repeats header values in its refusals, which ours never do. The
order is fixed: request line, headers, origin, subprotocol, token; who is let in is decided by
streamer.admission and the board.
"""

import base64
import binascii
from functools import lru_cache
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from msgspec import Struct
from websockets.datastructures import Headers
from websockets.http11 import Request

from scoreboard.addresses import client_address, trusted_networks
from scoreboard.errors import (
    ForeignOrigin,
    HeadTooLarge,
    Malformed,
    MethodNotAllowed,
    NotFound,
    ScoreboardError,
    SettingInvalid,
    TargetTooLong,
    UnknownBoard,
    UpgradeRequired,
    VersionUnsupported,
)
from scoreboard.problems import MEDIA_TYPE, body_of, headers_of, status_of
from scoreboard.request_ids import GATEWAY_HEADER, HEADER, RequestIds
from scoreboard.settings import Settings
from streamer.protocol import BEARER_PREFIX, PATH, SUBPROTOCOL

DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}

Origin = tuple[str, str, int]
"""Scheme, host, port: what must agree exactly."""

_END: Final = b"\r\n\r\n"


class Wish(Struct, frozen=True):
    """What a well-formed handshake asks for."""

    board: str
    address: str
    token: str = ""
    offers_subprotocol: bool = False


class Rules:
    """What handshakes are judged by; made once per process."""

    def __init__(self, settings: Settings) -> None:
        """Read origins and trusted hops.

        Raises SettingInvalid, naming the variable, where one of them cannot be read.
        """
        self.boards = settings.boards
        self.head_bytes = settings.handshake_bytes
        self.line_bytes = settings.request_line_bytes
        self.headers = settings.handshake_headers
        self.origins = frozenset(_listed_origin(text) for text in settings.origins)
        self.hops = trusted_networks(settings.trusted_hops)


def head_size(head: bytearray, searched: int, rules: Rules) -> int:
    """Give the size of a complete head, its blank line included, or 0 while it is incomplete.

    ``searched`` is how much was looked at before. Raises TargetTooLong or HeadTooLarge as soon as
    it is too big.
    """
    end = head.find(_END, max(0, searched - len(_END) + 1))
    line = head.find(b"\r\n", 0, rules.line_bytes + 2)
    if line < 0 and len(head) > rules.line_bytes:
        raise TargetTooLong(f"A request line has at most {rules.line_bytes} bytes")
    if (end + len(_END) if end >= 0 else len(head)) > rules.head_bytes:
        raise HeadTooLarge(f"A head has at most {rules.head_bytes} bytes")
    if head.count(b"\r\n", 0, end + 2 if end >= 0 else len(head)) > rules.headers + 1:
        raise HeadTooLarge(f"A head has at most {rules.headers} headers")
    return end + len(_END) if end >= 0 else 0


def judge(request: Request, peer: str, rules: Rules) -> Wish:
    """Give what a request asks for.

    Raises Malformed, MethodNotAllowed, VersionUnsupported, NotFound, UpgradeRequired or
    ForeignOrigin, whose problem it gets instead; none of them repeats what the request held.
    """
    board = _board(request, rules)
    headers = request.headers
    if len(headers.get_all("Host")) != 1 or not headers["Host"].strip():
        raise Malformed("Send exactly one Host header")
    _check_upgrade(headers)
    address = client_address(peer, headers.get_all("X-Forwarded-For"), rules.hops)
    _check_origin(headers, rules)
    offered = [
        word.strip()
        for value in headers.get_all("Sec-WebSocket-Protocol")
        for word in value.split(",")
    ]
    if offered and SUBPROTOCOL not in offered:
        raise Malformed(f"Offer the subprotocol {SUBPROTOCOL}, or none")
    return Wish(board, address, _token(headers, offered), bool(offered))


def request_id_of(headers: Headers, ids: RequestIds) -> str:
    """Return the id of a request: the gateway's, the client's where it is safe, or a new one."""
    given = (headers.get_all(name) for name in (GATEWAY_HEADER, HEADER))
    return ids.choose(*(values[0] for values in given if len(values) == 1))


def answer_of(error: ScoreboardError, request_id: str) -> bytes:
    """Return the whole HTTP answer to a refused handshake; the connection ends with it."""
    status = status_of(type(error))
    body = body_of(error, request_id)
    upgrade = b"upgrade, " if isinstance(error, UpgradeRequired) else b""
    fields = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"x-content-type-options", b"nosniff"),
        (HEADER.lower().encode(), request_id.encode()),
        *headers_of(error),
        (b"connection", upgrade + b"close"),
    ]
    lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
    lines += [b"%s: %s" % field for field in fields]
    return b"\r\n".join(lines) + _END + body


def _board(request: Request, rules: Rules) -> str:
    if request.method != "GET":
        raise MethodNotAllowed("A handshake is a GET", allow="GET")
    if request.protocol != "HTTP/1.1":
        raise VersionUnsupported("A handshake is HTTP/1.1")
    path, _, query = request.path.partition("?")
    if path != PATH:
        raise NotFound(f"Viewers connect to {PATH}")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=16, errors="strict")
    except ValueError:
        raise Malformed("The query cannot be read") from None
    named = [value for name, value in pairs if name == "board"]
    if len(named) > 1:
        raise Malformed("Name one board")
    board = named[0] if named else rules.boards[0]
    if board not in rules.boards:
        raise UnknownBoard
    return board


def _check_upgrade(headers: Headers) -> None:
    def words(name: str) -> list[str]:
        values = headers.get_all(name)
        return [word.strip().lower() for value in values for word in value.split(",")]

    # A list: browsers and gateways send `keep-alive, Upgrade`.
    if "upgrade" not in words("Connection") or words("Upgrade") != ["websocket"]:
        raise UpgradeRequired
    versions = headers.get_all("Sec-WebSocket-Version")
    if versions != ["13"]:
        if len(versions) != 1:
            raise Malformed("Send exactly one Sec-WebSocket-Version header")
        raise UpgradeRequired("Use WebSocket version 13")
    keys = headers.get_all("Sec-WebSocket-Key")
    try:
        is_key = len(keys) == 1 and len(base64.b64decode(keys[0].strip(), validate=True)) == 16
    except (binascii.Error, ValueError):
        is_key = False
    if not is_key:
        raise Malformed("Send one Sec-WebSocket-Key of 16 bytes in base64")


def _check_origin(headers: Headers, rules: Rules) -> None:
    origins = headers.get_all("Origin")
    if not origins:
        return  # not a browser; the token decides
    origin = _parse_origin(origins[0]) if len(origins) == 1 else None
    if origin is not None:
        if rules.origins:
            if origin in rules.origins:
                return
        elif _parse_origin(f"{origin[0]}://{headers['Host'].strip()}") == origin:
            return
    raise ForeignOrigin


@lru_cache(maxsize=1024)
def _parse_origin(text: str) -> Origin | None:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    scheme = parts.scheme.lower()
    is_bare = not (parts.path or parts.query or parts.fragment or "@" in parts.netloc)
    if scheme not in {"http", "https"} or not parts.hostname or not is_bare:
        return None
    return scheme, parts.hostname, port or DEFAULT_PORTS[scheme]


def _token(headers: Headers, offered: list[str]) -> str:
    in_offers = [word for word in offered if word.lower().startswith(BEARER_PREFIX)]
    authorizations = headers.get_all("Authorization")
    if len(in_offers) + len(authorizations) > 1:
        raise Malformed("Send one token: in the Authorization header or as a subprotocol")
    if in_offers:
        return in_offers[0][len(BEARER_PREFIX) :] or "."
    if not authorizations:
        return ""
    scheme, _, token = authorizations[0].strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Malformed("The Authorization header is: Bearer <token>")
    return token.strip()


def _listed_origin(text: str) -> Origin:
    origin = _parse_origin(text.strip())
    if origin is None:
        raise SettingInvalid(f"SCOREBOARD_ORIGINS: {text!r} is no origin like https://example.com")
    return origin
