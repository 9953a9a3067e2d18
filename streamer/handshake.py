"""Judges a viewer's HTTP request before the 101: what it asks for, or how it is refused. No I/O.

The WebSocket library parses the request and computes the answer to the key; it leaves Host, sizes,
versions and origins to us, and repeats header values in its refusals, which ours never do. The
order is fixed: request line, headers, origin, subprotocol, token; who is let in is decided by
streamer.admission and the board.
"""

import base64
import binascii
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import Struct
from websockets.datastructures import Headers
from websockets.http11 import Request

from scoreboard.addresses import client_address, trusted_networks
from scoreboard.errors import Malformed, SettingInvalid, UnknownBoard
from scoreboard.settings import Settings
from streamer.protocol import BEARER_PREFIX, PATH, SUBPROTOCOL, Refusal, refusal_of

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

    ``searched`` is how much was looked at before. Raises Refusal when it is too big already.
    """
    end = head.find(_END, max(0, searched - len(_END) + 1))
    line = head.find(b"\r\n", 0, rules.line_bytes + 2)
    if line < 0 and len(head) > rules.line_bytes:
        raise Refusal(414, "uri-too-long", f"A request line has at most {rules.line_bytes} bytes")
    if (end + len(_END) if end >= 0 else len(head)) > rules.head_bytes:
        raise Refusal(431, "head-too-large", f"A head has at most {rules.head_bytes} bytes")
    if head.count(b"\r\n", 0, end + 2 if end >= 0 else len(head)) > rules.headers + 1:
        raise Refusal(431, "head-too-large", f"A head has at most {rules.headers} headers")
    return end + len(_END) if end >= 0 else 0


def judge(request: Request, peer: str, rules: Rules) -> Wish:
    """Give what a request asks for.

    Raises Refusal with the answer it gets instead.
    """
    board = _board(request, rules)
    headers = request.headers
    if len(headers.get_all("Host")) != 1 or not headers["Host"].strip():
        raise _malformed("Send exactly one Host header")
    _check_upgrade(headers)
    address = client_address(peer, headers.get_all("X-Forwarded-For"), rules.hops)
    _check_origin(headers, rules)
    offered = [
        word.strip()
        for value in headers.get_all("Sec-WebSocket-Protocol")
        for word in value.split(",")
    ]
    if offered and SUBPROTOCOL not in offered:
        raise _malformed(f"Offer the subprotocol {SUBPROTOCOL}, or none")
    return Wish(board, address, _token(headers, offered), bool(offered))


def answer_of(refusal: Refusal) -> bytes:
    """Give the whole HTTP answer of a refusal; the connection ends with it."""
    body = msgspec.json.encode(
        {
            "type": f"/problems/{refusal.code}",
            "title": refusal.title,
            "status": refusal.status,
            "detail": refusal.detail,
        }
    )
    lines = [
        f"HTTP/1.1 {refusal.status} {_PHRASES.get(refusal.status, 'Refused')}",
        "Content-Type: application/problem+json",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        *(f"{name}: {value}" for name, value in refusal.headers),
    ]
    if refusal.retry_after_s:
        lines.append(f"Retry-After: {refusal.retry_after_s}")
    if not any(name == "Connection" for name, _ in refusal.headers):
        lines.append("Connection: close")
    return "\r\n".join(lines).encode() + _END + body


_PHRASES: Final = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    414: "URI Too Long",
    426: "Upgrade Required",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


def _board(request: Request, rules: Rules) -> str:
    if request.method != "GET":
        raise Refusal(
            405, "method-not-allowed", "A handshake is a GET", headers=(("Allow", "GET"),)
        )
    if request.protocol != "HTTP/1.1":
        raise Refusal(505, "http-version", "A handshake is HTTP/1.1")
    path, _, query = request.path.partition("?")
    if path != PATH:
        raise Refusal(404, "not-found", "There is nothing here", f"Viewers connect to {PATH}")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=16, errors="strict")
    except ValueError:
        raise _malformed("The query cannot be read") from None
    named = [value for name, value in pairs if name == "board"]
    if len(named) > 1:
        raise _malformed("Name one board")
    board = named[0] if named else rules.boards[0]
    if board not in rules.boards:
        raise refusal_of(UnknownBoard())
    return board


def _check_upgrade(headers: Headers) -> None:
    def words(name: str) -> list[str]:
        values = headers.get_all(name)
        return [word.strip().lower() for value in values for word in value.split(",")]

    # A list: browsers and gateways send `keep-alive, Upgrade`.
    if "upgrade" not in words("Connection") or words("Upgrade") != ["websocket"]:
        raise Refusal(
            426,
            "upgrade-required",
            "This address speaks WebSocket only",
            headers=_UPGRADE,
        )
    versions = headers.get_all("Sec-WebSocket-Version")
    if versions != ["13"]:
        if len(versions) != 1:
            raise _malformed("Send exactly one Sec-WebSocket-Version header")
        raise Refusal(426, "websocket-version", "Use WebSocket version 13", headers=_UPGRADE)
    keys = headers.get_all("Sec-WebSocket-Key")
    try:
        is_key = len(keys) == 1 and len(base64.b64decode(keys[0].strip(), validate=True)) == 16
    except (binascii.Error, ValueError):
        is_key = False
    if not is_key:
        raise _malformed("Send one Sec-WebSocket-Key of 16 bytes in base64")


_UPGRADE: Final = (
    ("Connection", "upgrade, close"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
)


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
    raise Refusal(403, "origin", "Pages of this origin may not connect")


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
        raise _malformed("Send one token: in the Authorization header or as a subprotocol")
    if in_offers:
        return in_offers[0][len(BEARER_PREFIX) :] or "."
    if not authorizations:
        return ""
    scheme, _, token = authorizations[0].strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise _malformed("The Authorization header is: Bearer <token>")
    return token.strip()


def _malformed(detail: str) -> Refusal:
    return refusal_of(Malformed(detail))


def _listed_origin(text: str) -> Origin:
    origin = _parse_origin(text.strip())
    if origin is None:
        raise SettingInvalid(f"SCOREBOARD_ORIGINS: {text!r} is no origin like https://example.com")
    return origin
