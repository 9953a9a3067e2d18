"""Validation of handshake requests: request line, headers, origin, token."""

import json
from base64 import b64encode
from email.utils import parsedate_to_datetime
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from scoreboard.errors import Malformed, ScoreboardError, SettingInvalid
from scoreboard.http.head import Head, read_head
from scoreboard.http.problems import PROBLEM_TYPES, status_of
from scoreboard.model import TOP, Span
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.security.addresses import client_address
from streamer.handshake.request import (
    LINE_BYTES,
    HandshakeConfig,
    HandshakeRequest,
    check_lines,
    encode_acceptance,
    encode_rejection,
    parse_request,
)
from tests.support.clients.viewer import KEY, PATH, Headers, request_bytes

JWT = "eyJhbGciOiJSUzI1NiJ9.e30.c2ln"


def settings(**more: Any) -> Settings:
    return Settings(redis_url=Secret("redis://test"), boards=("main", "weekly"), **more)


def head(path: str = "/ws/scoreboard", **request: Any) -> Head:
    return read_head(request_bytes(path, **request), settings().head_limits())


def parsed(
    peer: str = "192.0.2.7", *, path: str = "/ws/scoreboard", **request: Any
) -> HandshakeRequest:
    config = HandshakeConfig(settings(**request.pop("settings", {})))
    return parse_request(head(path, **request), peer, config)


def rejected(**request: Any) -> ScoreboardError:
    with pytest.raises(ScoreboardError) as caught:
        parsed(**request)
    return caught.value


def status(error: ScoreboardError) -> int:
    return status_of(type(error))


@pytest.mark.parametrize(
    "headers",
    [
        [("Connection", "keep-alive, Upgrade"), ("Upgrade", "websocket")],
        [("connection", "UPGRADE,keep-alive"), ("upgrade", "WebSocket")],
        [("Connection", "keep-alive"), ("Connection", "upgrade"), ("Upgrade", "websocket")],
    ],
    ids=["gateway", "mixed case", "two headers"],
)
def test_connection_header_is_parsed_as_a_list(headers: Headers) -> None:
    request = parsed(drop=("Connection", "Upgrade"), headers=headers)

    assert request == HandshakeRequest("main", "192.0.2.7", KEY.encode())


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"method": "POST"}, 405),
        ({"version": "HTTP/1.0"}, 505),
        ({"path": "/"}, 404),
        ({"path": "/ws/scoreboard/"}, 404),
        ({"path": "/ws/scoreboard?board=main&board=weekly"}, 400),
        ({"path": "/ws/scoreboard?board=%ff"}, 400),
        ({"path": "/ws/scoreboard?" + "a=1&" * 40}, 400),
        ({"path": "/ws/scoreboard?season=2026-W48"}, 400),
        ({"path": f"/ws/scoreboard?token={JWT}"}, 400),
        ({"drop": ("Host",)}, 400),
        ({"headers": [("Host", "other.test")]}, 400),
        ({"drop": ("Host",), "headers": [("Host", " ")]}, 400),
        ({"drop": ("Connection",)}, 426),
        ({"drop": ("Upgrade",)}, 426),
        ({"drop": ("Upgrade",), "headers": [("Upgrade", "h2c")]}, 426),
        ({"drop": ("Upgrade",), "headers": [("Upgrade", "websocket, h2c")]}, 426),
        ({"drop": ("Sec-WebSocket-Version",)}, 400),
        ({"drop": ("Sec-WebSocket-Version",), "headers": [("Sec-WebSocket-Version", "8")]}, 426),
        ({"drop": ("Sec-WebSocket-Version",), "headers": [("Sec-WebSocket-Version", "99")]}, 426),
        ({"headers": [("Sec-WebSocket-Version", "13")]}, 400),
        ({"drop": ("Sec-WebSocket-Key",)}, 400),
        ({"drop": ("Sec-WebSocket-Key",), "headers": [("Sec-WebSocket-Key", "c2hvcnQ=")]}, 400),
        ({"drop": ("Sec-WebSocket-Key",), "headers": [("Sec-WebSocket-Key", "$" * 24)]}, 400),
        ({"headers": [("Sec-WebSocket-Key", "AAECAwQFBgcICQoLDA0ODw==")]}, 400),
        ({"subprotocols": "chat"}, 400),
        ({"subprotocols": f"bearer.{JWT}"}, 400),
        ({"subprotocols": f"scoreboard.v1, bearer.{JWT}, bearer.{JWT}"}, 400),
        ({"subprotocols": f"scoreboard.v1, bearer.{JWT}", "token": JWT}, 400),
        ({"token": JWT, "headers": [("Authorization", f"Bearer {JWT}")]}, 400),
        ({"headers": [("Authorization", "Basic dXNlcjpwYXNz")]}, 401),
        ({"headers": [("Authorization", "Bearer ")]}, 401),
        ({"headers": [("Content-Length", "5")]}, 400),
        ({"headers": [("Content-Length", "00")]}, 400),
        ({"headers": [("Connection", "keep alive")]}, 400),
        ({"headers": [("Connection", "")]}, 400),
        ({"subprotocols": "scoreboard.v1, a b"}, 400),
        ({"subprotocols": "scoreboard.v1;q=1, scoreboard.v1"}, 400),
        ({"subprotocols": "scoreboard.v1, b\xe4rer"}, 400),
        ({"subprotocols": ""}, 400),
        ({"headers": [("X-Request-Id", "client-01"), ("X-Request-Id", "client-02")]}, 400),
        ({"headers": [("Transfer-Encoding", "chunked")]}, 400),
    ],
    ids=str,
)
def test_invalid_handshake_is_rejected_without_repeating_its_content(
    request_: dict[str, Any], expected: int
) -> None:
    error = rejected(**request_)

    assert status(error) == expected
    answer = encode_rejection(error, "request-1")
    head, _, body = answer.partition(b"\r\n\r\n")
    problem = json.loads(body)
    assert problem["status"] == expected
    assert problem["type"] == f"/docs/problems/{error.code}"
    assert type(error) in PROBLEM_TYPES, "docs/reference/problems.md describes it"
    assert problem["request_id"] == "request-1"
    assert b"\r\nx-request-id: request-1\r\n" in head
    assert b"\r\ncontent-type: application/problem+json\r\n" in head
    assert b"close" in head.partition(b"\r\nconnection: ")[2].split(b"\r\n")[0]
    for secret in (JWT, "dXNlcjpwYXNz", "nobody", "other.test", "h2c", "chat"):
        assert secret.encode() not in answer


def test_426_names_protocol_and_version() -> None:
    answer = encode_rejection(rejected(drop=("Connection", "Upgrade")), "request-1")

    assert answer.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    assert b"\r\nupgrade: websocket\r\n" in answer
    assert b"\r\nconnection: upgrade, close\r\n" in answer
    assert b"\r\nsec-websocket-version: 13\r\n" in answer


@pytest.mark.parametrize(
    ("query", "board"),
    [("", "main"), ("?board=weekly", "weekly"), ("?&board=main&", "main")],
)
def test_default_board_is_the_first_one(query: str, board: str) -> None:
    request = parsed(path=f"/ws/scoreboard{query}")

    assert request.board == board
    assert request.token == ""


@pytest.mark.parametrize(
    ("request_", "token", "selected"),
    [
        ({}, "", ""),
        ({"token": JWT}, JWT, ""),
        ({"token": JWT, "subprotocols": "scoreboard.v1"}, JWT, "scoreboard.v1"),
        ({"subprotocols": f"scoreboard.v1, bearer.{JWT}"}, JWT, "scoreboard.v1"),
        ({"subprotocols": f"bearer.{JWT} ,chat,scoreboard.v1"}, JWT, "scoreboard.v1"),
        (
            {"subprotocols": f"scoreboard.v1.delta, scoreboard.v1, bearer.{JWT}"},
            JWT,
            "scoreboard.v1.delta",
        ),
        ({"headers": [("Authorization", f"bearer  {JWT} ")]}, JWT, ""),
        ({"headers": [("Cookie", f"token={JWT}"), ("X-Consumer-Id", "alice")]}, "", ""),
    ],
    ids=str,
)
def test_token_is_read_only_from_header_or_subprotocol(
    request_: dict[str, Any], token: str, selected: str
) -> None:
    request = parsed(**request_)

    assert (request.token, request.subprotocol) == (token, selected)


@pytest.mark.parametrize(
    ("query", "span"),
    [
        ("", TOP),
        ("?rows=10&offset=0", TOP),
        ("?rows=25", Span(0, 25)),
        ("?board=main&offset=1000000&rows=100", Span(1_000_000, 100)),
    ],
)
def test_a_window_is_read_from_the_query(query: str, span: Span) -> None:
    assert parsed(path=f"{PATH}{query}").span == span


@pytest.mark.parametrize(
    "query",
    [
        *("rows=9", "rows=101", "rows=", "rows=1e1", "rows=%2B10", "rows=010", "rows=-10"),
        *("offset=-1", "offset=1000001", "offset=99999999999999999999", "offset=%D9%A1"),
        *("rows=10&rows=10", "limit=10"),
    ],
)
def test_a_window_out_of_bounds_is_refused(query: str) -> None:
    with pytest.raises(Malformed):
        parsed(path=f"{PATH}?{query}")


def by_library(data: bytes) -> dict[str, str] | None:
    """Return the headers of the websockets library's 101 response, or None for a refusal."""
    protocol = ServerProtocol()
    protocol.receive_data(data)
    for request in protocol.events_received():
        if b"sec-websocket-protocol" in data.lower():
            protocol.available_subprotocols = [Subprotocol("scoreboard.v1")]
        response = protocol.accept(request)  # type: ignore[arg-type]
        if response.status_code == 101:
            return dict(response.headers.raw_items())
    return None


def by_us(data: bytes) -> dict[str, str] | None:
    """Return the headers of our 101 response without the request id, or None for a refusal."""
    config = HandshakeConfig(settings())
    try:
        request = parse_request(read_head(data, config.limits), "192.0.2.7", config)
        check_lines(data)
    except ScoreboardError:
        return None
    response = encode_acceptance(request, "request-1")
    assert response.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert response.endswith(b"\r\nx-request-id: request-1\r\n\r\n")
    lines = response.decode().split("\r\n")[1:-3]
    return dict(line.split(": ", 1) for line in lines)  # type: ignore[misc]


def check_like_the_library(data: bytes, *, stricter: bool = False) -> None:
    """Check that both answer with the same headers; ours may refuse more if it is ``stricter``."""
    ours, theirs = by_us(data), by_library(data)
    if ours is None:
        assert stricter or theirs is None
        return
    assert theirs is not None
    seconds = [parsedate_to_datetime(headers.pop("Date")).timestamp() for headers in (ours, theirs)]
    assert abs(seconds[0] - seconds[1]) <= 1
    assert ours == theirs


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"subprotocols": "scoreboard.v1"},
        {"subprotocols": f"bearer.{JWT},,  scoreboard.v1 ,"},
        {"subprotocols": ", ,scoreboard.v1"},
        {"subprotocols": "scoreboard.v1", "headers": [("Sec-WebSocket-Protocol", "chat")]},
        {"subprotocols": "scoreboard.v1", "headers": [("Sec-WebSocket-Protocol", "")]},
        {"subprotocols": "scoreboard.v1 chat"},
        {"subprotocols": "scoreboard.v1/2, scoreboard.v1"},
        {"headers": [("Connection", "keep-alive")]},
        {"headers": [("Connection", ",, keep-alive ,")]},
        {"headers": [("Connection", "(comment)")]},
        {"headers": [("Connection", ",")]},
        {"headers": [("Upgrade", "")]},
        {"drop": ("Upgrade",), "headers": [("Upgrade", "WebSocket")]},
        {"drop": ("Upgrade",), "headers": [("Upgrade", "websocket/13")]},
        {"drop": ("Upgrade",), "headers": [("Upgrade", ",websocket")]},
        {"headers": [("Content-Length", "0")]},
        {"headers": [("Content-Length", "00")]},
        {"headers": [("Sec-WebSocket-Extensions", "permessage-deflate; nonsense=;;")]},
        {"headers": [("X-Long", "a" * (LINE_BYTES - len("X-Long: \r\n")))]},
        {"headers": [("X-Long", "a" * (LINE_BYTES - len("X-Long: \r\n") + 1))]},
        {"headers": [("X-Obsolete", "caf\xe9")]},
    ],
    ids=lambda request: str(request)[:60],
)
def test_handshakes_are_answered_as_by_the_websockets_library(request_: dict[str, Any]) -> None:
    # Ours also refuses an empty member before "websocket", which names no protocol.
    offers = dict(request_.get("headers", [])).get("Upgrade", "")
    check_like_the_library(request_bytes(**request_), stricter=offers.startswith(","))


LISTS = st.text(st.sampled_from('ab,,  \t;/"(\xe9'), max_size=12)


@given(connection=st.lists(LISTS, max_size=2), protocols=st.lists(LISTS, max_size=2))
def test_lists_are_read_as_by_the_websockets_library(
    connection: list[str], protocols: list[str]
) -> None:
    headers = [("Connection", text) for text in connection]
    if protocols:
        headers.append(("Sec-WebSocket-Protocol", "scoreboard.v1"))
    headers += [("Sec-WebSocket-Protocol", text) for text in protocols]

    check_like_the_library(request_bytes(headers=headers))


@given(st.binary(min_size=16, max_size=16))
def test_accept_is_derived_from_the_key_as_by_the_websockets_library(nonce: bytes) -> None:
    key = b64encode(nonce).decode()

    check_like_the_library(
        request_bytes(drop=("Sec-WebSocket-Key",), headers=[("Sec-WebSocket-Key", key)])
    )


LISTED = {"origins": ("https://app.example.com", "http://localhost:3000")}


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com",
        "https://app.example.com:443",
        "HTTPS://APP.example.com",
        "http://localhost:3000",
        None,
    ],
)
def test_listed_or_missing_origin_is_accepted(origin: str | None) -> None:
    assert parsed(origin=origin, settings=LISTED).board == "main"


@pytest.mark.parametrize(
    "origin",
    [
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://app.example.com.evil",
        "https://evil.example.com",
        "https://app.example.com@evil.test",
        "https://app.example.com/path",
        "null",
        "",
        "file://",
        "https://[::1",
        "https://app.example.com:port",
        "http://scoreboard.test:8000",
    ],
)
def test_other_origin_is_rejected(origin: str) -> None:
    assert status(rejected(origin=origin, settings=LISTED)) == 403


def test_two_origin_headers_are_rejected() -> None:
    twice = [("Origin", "https://app.example.com")]

    error = rejected(origin="https://app.example.com", headers=twice, settings=LISTED)

    assert status(error) == 400


def test_same_host_is_accepted_in_addition_to_the_list() -> None:
    # Incident: a list with only a partner's origin blocked the service's own page.
    assert parsed(origin="http://scoreboard.test", settings=LISTED).board == "main"


def test_without_a_list_only_the_same_host_is_accepted() -> None:
    assert parsed(origin="https://scoreboard.test").board == "main"
    assert parsed(origin="http://scoreboard.test").board == "main"
    assert status(rejected(origin="http://scoreboard.test:8000")) == 403
    assert status(rejected(origin="https://other.test")) == 403


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.7", [], "192.0.2.7"),
        ("192.0.2.7", ["203.0.113.9"], "192.0.2.7"),
        ("10.0.0.5", [], "10.0.0.5"),
        ("10.0.0.5", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.5", ["198.51.100.1, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.5", ["203.0.113.9, 10.0.0.8"], "203.0.113.9"),
        ("10.0.0.5", ["203.0.113.9", "10.0.0.8"], "203.0.113.9"),
        ("10.0.0.5", ["203.0.113.9, nonsense"], "10.0.0.5"),
        ("10.0.0.5", ["10.0.0.6, 10.0.0.7"], "10.0.0.6"),
        ("::ffff:192.0.2.7", [], "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", [], "2001:db8:1:2::/64"),
        ("10.0.0.5", ["2001:db8:1:2::9"], "2001:db8:1:2::/64"),
    ],
)
def test_forwarded_address_is_trusted_only_from_trusted_hops(
    peer: str, forwarded: list[str], address: str
) -> None:
    assert client_address(peer, forwarded, (ip_network("10.0.0.0/8"),)) == address


@pytest.mark.parametrize(
    ("wrong", "variable"),
    [
        ({"origins": ("example.com",)}, "SCOREBOARD_ORIGINS"),
        ({"origins": ("https://example.com/",)}, "SCOREBOARD_ORIGINS"),
        ({"trusted_hops": ("kong",)}, "SCOREBOARD_TRUSTED_HOPS"),
    ],
)
def test_invalid_list_raises_an_error_that_names_the_variable(
    wrong: dict[str, Any], variable: str
) -> None:
    with pytest.raises(SettingInvalid, match=variable):
        HandshakeConfig(settings(**wrong))
