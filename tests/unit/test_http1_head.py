"""Request heads: what is read, what is refused, and when."""

import pytest

from scoreboard.errors import (
    ExpectationFailed,
    HeadTooLarge,
    Malformed,
    ScoreboardError,
    TargetTooLong,
    VersionUnsupported,
)
from scoreboard.http.head import CHUNKED, Head, head_size, read_head
from scoreboard.runtime.limits import HeadLimits
from tests.support.clients.smuggling import CHUNKS, HEADS

LIMITS = HeadLimits()


def head(*lines: str, line: str = "GET / HTTP/1.1", host: str | None = "a") -> Head:
    given = [line, *([f"Host: {host}"] if host is not None else []), *lines, "", ""]
    return read_head("\r\n".join(given).encode("latin-1"), LIMITS)


def size_of(data: bytes, step: int = 100_000, limits: HeadLimits = LIMITS) -> int:
    """Feed data in pieces, as a connection does."""
    for end in range(0, len(data) + step, step):
        size = head_size(data[: end + step], end, limits)
        if size:
            return size
    return 0


def test_a_head_is_parsed_into_its_parts() -> None:
    found = head(
        "content-TYPE:application/json",
        "Accept:  a \t",
        "X-Empty:",
        "Accept: b",
        "Cookie: c=1",
        "Cookie: d=2",
        "Content-Length: 12",
        line="POST /api/scores/users/auth0%7C4%2B2?board=main&a=%2F HTTP/1.1",
        host="Scores.example:8000",
    )
    assert (found.method, found.path, found.query) == (
        "POST",
        "/api/scores/users/auth0|4+2",
        b"board=main&a=%2F",
    )
    assert found.fields == [
        (b"host", b"Scores.example:8000"),
        (b"content-type", b"application/json"),
        (b"accept", b"a"),
        (b"x-empty", b""),
        (b"accept", b"b"),
        (b"cookie", b"c=1"),
        (b"cookie", b"d=2"),
        (b"content-length", b"12"),
    ]
    assert found.headers[b"accept"] == b"a, b"
    assert found.headers[b"cookie"] == b"c=1; d=2"
    assert (found.length, found.minor, found.is_last, found.expects_continue) == (
        12,
        1,
        False,
        False,
    )


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("/?", "/"),
        ("/docs/", "/docs/"),
        ("/.well-known/openid-configuration", "/.well-known/openid-configuration"),
        ("/a..b/...", "/a..b/..."),
        ("/api/scores/users/auth0|42", "/api/scores/users/auth0|42"),
        ("/%3A%40%5B%60%7B%5E%2D%2e_%7E", "/:@[`{^-._~"),
        ("/%C3%A9", "/é"),
        ("/%252f", "/%2f"),
        ("/a;b=c,d", "/a;b=c,d"),
        ("http://a/b?c", "/b"),
        ("HTTP://A", "/"),
        ("https://a?c", "/"),
    ],
)
def test_a_target_is_decoded_to_its_path(target: str, path: str) -> None:
    assert head(line=f"GET {target} HTTP/1.1").path == path


@pytest.mark.parametrize(
    "host", ["a", "A.b-c_d.example", "a:", "a:8000", "127.0.0.1:80", "[::1]", "[::1]:8000", "a%20b"]
)
def test_a_host_is_accepted_with_and_without_a_port(host: str) -> None:
    assert head(host=host).headers[b"host"] == host.encode()


@pytest.mark.parametrize(
    ("line", "connection", "is_last"),
    [
        ("GET / HTTP/1.1", None, False),
        ("GET / HTTP/1.1", "keep-alive", False),
        ("GET / HTTP/1.1", "close", True),
        ("GET / HTTP/1.1", "Upgrade, CLOSE", True),
        ("GET / HTTP/1.1", "closed", False),
        ("GET / HTTP/1.1", "Upgrade, HTTP2-Settings", False),
        ("GET / HTTP/1.0", None, True),
        ("GET / HTTP/1.0", "Keep-Alive", False),
        ("GET / HTTP/1.0", "keep-alive, close", True),
    ],
)
def test_version_and_connection_header_decide_whether_the_connection_stays_open(
    line: str, connection: str | None, is_last: bool
) -> None:
    lines = [] if connection is None else [f"Connection: {connection}"]
    assert head(*lines, line=line).is_last is is_last


def test_a_remembered_target_is_judged_with_the_host_and_version_of_each_request() -> None:
    for _ in range(2):
        assert head(line="GET http://a/b HTTP/1.1", host="a").path == "/b"
        with pytest.raises(Malformed):
            head(line="GET http://a/b HTTP/1.1", host="c")
        with pytest.raises(Malformed):
            head(line="GET /b HTTP/1.1", host=None)
        assert head(line="GET /b HTTP/1.0", host=None).path == "/b"


def test_http_1_0_requires_no_host_and_ignores_expect() -> None:
    found = head("Expect: 100-continue", line="POST / HTTP/1.0", host=None)
    assert (found.minor, found.expects_continue) == (0, False)
    assert head("Expect: 100-Continue").expects_continue


@pytest.mark.parametrize("coding", ["chunked", "Chunked", "CHUNKED", " \tchunked \t"])
def test_transfer_encoding_chunked_is_recognized(coding: str) -> None:
    assert head(f"Transfer-Encoding: {coding}").length == CHUNKED


def test_an_upgrade_header_is_ignored() -> None:
    found = head("Connection: Upgrade", "Upgrade: websocket", "Content-Length: 7")
    assert (found.length, found.is_last) == (7, False)


@pytest.mark.parametrize("name", list(HEADS))
@pytest.mark.parametrize("step", [1, 100_000])
def test_an_ambiguous_request_is_refused(name: str, step: int) -> None:
    data = HEADS[name]
    with pytest.raises(Malformed):
        read_head(data[: size_of(data, step)], LIMITS)


@pytest.mark.parametrize("name", list(CHUNKS))
def test_the_heads_of_ambiguous_chunks_are_valid(name: str) -> None:
    data = CHUNKS[name]
    assert read_head(data[: size_of(data)], LIMITS).length == CHUNKED


@pytest.mark.parametrize("version", ["HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "HTTP/3.0"])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(VersionUnsupported):
        head(line=f"GET / {version}")


@pytest.mark.parametrize("expectation", ["", "200-ok", "100-continue, x", "100-continue; x"])
def test_other_expectations_are_refused(expectation: str) -> None:
    with pytest.raises(ExpectationFailed):
        head(f"Expect: {expectation}")


SMALL = HeadLimits(head_bytes=200, fields=4, line_bytes=50)


@pytest.mark.parametrize(
    ("data", "refused"),
    [
        (b"GET /" + b"a" * 60, TargetTooLong),
        (b"GET /" + b"a" * 60 + b" HTTP/1.1\r\nHost: a\r\n\r\n", TargetTooLong),
        (b"GET /" + b"a" * 300 + b" HTTP/1.1\r\nHost: a\r\n\r\n", TargetTooLong),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 200, HeadTooLarge),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 200 + b"\r\n\r\n", HeadTooLarge),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 4 + b"\r\n", HeadTooLarge),
    ],
    ids=["unfinished line", "line", "line longer than the head", "unfinished", "size", "count"],
)
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_a_head_beyond_a_limit_is_refused(
    data: bytes, refused: type[ScoreboardError], step: int
) -> None:
    with pytest.raises(refused):
        read_head(data[: size_of(data, step, SMALL)], SMALL)


def test_a_head_at_its_limits_is_read() -> None:
    line = b"GET /" + b"a" * 36 + b" HTTP/1.1"
    data = line + b"\r\nHost: a\r\nA: b\r\nC: d\r\nE: "
    data += b"f" * (200 - len(data) - 4) + b"\r\n\r\n"
    assert (len(line), len(data)) == (50, 200)
    assert size_of(data, 1, SMALL) == 200
    assert len(read_head(data, SMALL).fields) == 4


def test_a_long_token_and_long_cookies_are_accepted() -> None:
    found = head(f"Authorization: Bearer {'t' * 4096}", f"Cookie: {'c' * 8192}")
    assert len(found.headers[b"authorization"]) == 4103


@pytest.mark.parametrize("step", [1, 3, 100_000])
def test_a_head_ends_at_its_blank_line_for_pieces_of_any_size(step: int) -> None:
    data = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert size_of(data + b"\x81\x00", step) == len(data)
    assert size_of(data[:-1], step) == 0


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01", b"\n", b"\r\n", b" GET", b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\rH"],
    ids=repr,
)
def test_data_that_cannot_begin_a_request_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(Malformed):
        head_size(data, 0, LIMITS)
