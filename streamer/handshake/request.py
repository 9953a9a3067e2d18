"""Judges a viewer's HTTP request before the 101: what it asks for, or how it is refused. No I/O.

scoreboard.http.head has read the request; the WebSocket library computes the answer to the key. It
repeats header values in its refusals, which ours never do. The order is fixed: request line,
headers, origin, subprotocol, token; who is let in is decided by streamer.handshake.admission and
the board.
"""

import base64
import binascii
from http import HTTPStatus
from typing import Final

from msgspec import Struct

from scoreboard.errors import (
    Malformed,
    MethodNotAllowed,
    NotFound,
    ScoreboardError,
    UnknownBoard,
    UpgradeRequired,
    VersionUnsupported,
)
from scoreboard.http.head import Head, list_of
from scoreboard.http.problems import MEDIA_TYPE, encode_problem, problem_headers, status_of
from scoreboard.http.query import parse_query
from scoreboard.http.request_ids import HEADER
from scoreboard.runtime.settings import Settings
from scoreboard.security.addresses import client_address, trusted_networks
from scoreboard.security.origins import Origins
from scoreboard.security.tokens import bearer_token
from streamer.protocol import BEARER_PREFIX, PATH, SUBPROTOCOL

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
        self.limits = settings.head_limits()
        self.origins = Origins(settings.origins)
        self.hops = trusted_networks(settings.trusted_hops)


def judge(head: Head, peer: str, rules: Rules) -> Wish:
    """Return what a request asks for.

    Raises Malformed, MethodNotAllowed, VersionUnsupported, NotFound, UpgradeRequired, ForeignOrigin
    or Unauthenticated, whose problem it gets instead; none of them repeats what the request held.
    """
    board = _board(head, rules)
    headers = head.headers
    _check_upgrade(headers)
    forwarded = headers.get(b"x-forwarded-for", b"").decode("latin-1")
    address = client_address(peer, [forwarded], rules.hops)
    rules.origins.check(headers.get(b"origin"), headers[b"host"])
    protocols = headers.get(b"sec-websocket-protocol", b"").decode("latin-1")
    offered = [word.strip() for word in protocols.split(",")] if protocols else []
    if offered and SUBPROTOCOL not in offered:
        raise Malformed(f"Offer the subprotocol {SUBPROTOCOL}, or none")
    return Wish(board, address, _token(headers, offered), bool(offered))


def answer_of(error: ScoreboardError, request_id: str, *, with_body: bool = True) -> bytes:
    """Return the whole HTTP answer to a refused handshake; the connection ends with it.

    The answer to HEAD is one without the body.
    """
    status = status_of(type(error))
    body = encode_problem(error, request_id)
    upgrade = b"upgrade, " if isinstance(error, UpgradeRequired) else b""
    fields = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"x-content-type-options", b"nosniff"),
        (HEADER, request_id.encode()),
        *problem_headers(error),
        (b"connection", upgrade + b"close"),
    ]
    lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
    lines += [b"%s: %s" % field for field in fields]
    return b"\r\n".join(lines) + _END + (body if with_body else b"")


def _board(head: Head, rules: Rules) -> str:
    if head.method != "GET":
        raise MethodNotAllowed("A handshake is a GET", allow="GET")
    if not head.minor:
        raise VersionUnsupported("A handshake is HTTP/1.1")
    if head.path != PATH:
        raise NotFound(f"Viewers connect to {PATH}")
    if head.length:
        raise Malformed("A handshake has no body")
    board = parse_query(head.query).get("board", rules.boards[0])
    if board not in rules.boards:
        raise UnknownBoard
    return board


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
