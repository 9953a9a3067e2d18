"""Requests that two readers could understand differently; each must be refused.

From RFC 9112 11.2 and the published lists of request smuggling (CL.TE, TE.CL, TE.TE, obs-fold,
bare CR and LF, spaces before colons, chunk sizes). ``HIDDEN`` is a whole request that a reader with
another idea of the body's end would serve.
"""

from typing import Final

HIDDEN: Final = b"GET /health/live HTTP/1.1\r\nHost: hidden\r\n\r\n"
LENGTH: Final = str(len(HIDDEN)).encode()


def _request(*lines: bytes, body: bytes = b"", line: bytes = b"POST / HTTP/1.1") -> bytes:
    return b"\r\n".join([line, *lines, b"", b""]) + body


def _coded(*codings: bytes, body: bytes = b"0\r\n\r\n") -> bytes:
    return _request(b"Host: a", *codings, body=body + HIDDEN)


def _chunks(body: bytes) -> bytes:
    return _coded(b"Transfer-Encoding: chunked", body=body)


HEADS: Final[dict[str, bytes]] = {
    # Content-Length and Transfer-Encoding
    "CL.TE": _coded(b"Content-Length: 6", b"Transfer-Encoding: chunked"),
    "TE.CL": _coded(b"Transfer-Encoding: chunked", b"Content-Length: 6"),
    "CL and empty TE": _coded(b"Content-Length: 0", b"Transfer-Encoding:"),
    "two CL": _request(b"Host: a", b"Content-Length: 0", b"Content-Length: " + LENGTH, body=HIDDEN),
    "two equal CL": _request(b"Host: a", b"Content-Length: 0", b"Content-Length: 0", body=HIDDEN),
    "two CL in one": _request(b"Host: a", b"Content-Length: 0, " + LENGTH, body=HIDDEN),
    "two equal CL in one": _request(b"Host: a", b"Content-Length: 0, 0", body=HIDDEN),
    "two TE": _coded(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
    "two equal TE": _coded(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "TE in HTTP/1.0": _request(
        b"Host: a",
        b"Transfer-Encoding: chunked",
        line=b"POST / HTTP/1.0",
        body=b"0\r\n\r\n" + HIDDEN,
    ),
    **{
        f"CL {value!r}": _request(b"Host: a", b"Content-Length: " + value, body=HIDDEN)
        for value in (
            b"", b"-1", b"+0", b"0x10", b"1_0", b"1 0", b"1.0", b"1e1", b"0;", b'"0"', b"\xb2",
            b"9" * 16, b"9" * 400, b"\x000", b"0\x0b",
        )
    },
    **{
        f"TE {value!r}": _coded(b"Transfer-Encoding:" + value)
        for value in (
            b"", b" identity", b" xchunked", b" chunkedx", b" chunked, chunked", b" chunked,",
            b" ,chunked", b" identity, chunked", b" chunked, identity", b" gzip, chunked",
            b" chunked;q=1", b" chunked x", b' "chunked"', b" 'chunked'", b"\x0bchunked",
            b"\x0cchunked", b" chunked\x00", b" \xffchunked", b" chunk\xc3\xa9d", b" chunked\x0b",
        )
    },
    # lines
    "space before the colon": _coded(b"Transfer-Encoding : chunked"),
    "tab before the colon": _coded(b"Transfer-Encoding\t: chunked"),
    "space before the name": _coded(b" Transfer-Encoding: chunked"),
    "obs-fold": _coded(b"X: y", b" Transfer-Encoding: chunked"),
    "obs-fold within TE": _coded(b"Transfer-Encoding:", b" chunked"),
    "obs-fold with a tab": _coded(b"X: y", b"\tTransfer-Encoding: chunked"),
    "obs-fold at the start": _request(b" Host: a"),
    "bare LF": b"POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n0\r\n\r\n" + HIDDEN,
    "one bare LF": _coded(b"X: y\nTransfer-Encoding: chunked"),
    "bare CR": _coded(b"X: y\rTransfer-Encoding: chunked"),
    "CR CR LF": _coded(b"X: y\r"),
    "LF CR": _coded(b"X: y\n\rTransfer-Encoding: chunked"),
    "NUL in a value": _coded(b"X: y\x00z"),
    "NUL in a name": _coded(b"X\x00Y: z"),
    "no colon": _coded(b"Transfer-Encoding chunked"),
    "empty name": _coded(b": chunked"),
    "non-ASCII name": _coded(b"Transfer\xa0Encoding: chunked"),
    "name with a parenthesis": _coded(b"Transfer(Encoding): chunked"),
    "vertical tab in a line": _coded(b"X: y\x0bz"),
    # the request line
    "no version": _request(b"Host: a", line=b"GET /"),
    "two spaces": _request(b"Host: a", line=b"GET  / HTTP/1.1"),
    "a tab": _request(b"Host: a", line=b"GET\t/\tHTTP/1.1"),
    "space in the target": _request(b"Host: a", line=b"GET /a b HTTP/1.1"),
    "space at the end": _request(b"Host: a", line=b"GET / HTTP/1.1 "),
    "space at the start": _request(b"Host: a", line=b" GET / HTTP/1.1"),
    "lower-case version": _request(b"Host: a", line=b"GET / http/1.1"),
    "version with a zero": _request(b"Host: a", line=b"GET / HTTP/01.1"),
    "long version": _request(b"Host: a", line=b"GET / HTTP/1.10"),
    "other protocol": _request(b"Host: a", line=b"GET / HTTPS/1.1"),
    "bad method": _request(b"Host: a", line=b"G(T / HTTP/1.1"),
    "empty method": _request(b"Host: a", line=b" / HTTP/1.1"),
    "an empty line first": b"\r\n" + _request(b"Host: a", line=b"GET / HTTP/1.1"),
    "target without a slash": _request(b"Host: a", line=b"GET health HTTP/1.1"),
    "asterisk": _request(b"Host: a", line=b"OPTIONS * HTTP/1.1"),
    "authority": _request(b"Host: a:80", line=b"CONNECT a:80 HTTP/1.1"),
    "fragment": _request(b"Host: a", line=b"GET /#x HTTP/1.1"),
    "backslash": _request(b"Host: a", line=b"GET /\\health HTTP/1.1"),
    "non-ASCII target": _request(b"Host: a", line=b"GET /\xc3\xa9 HTTP/1.1"),
    "other authority": _request(b"Host: a", line=b"GET http://b/ HTTP/1.1"),
    "other scheme": _request(b"Host: a", line=b"GET ftp://a/ HTTP/1.1"),
    # the path
    **{
        f"path {path!r}": _request(b"Host: a", line=b"GET " + path + b" HTTP/1.1")
        for path in (
            b"//", b"//api/scores/update", b"/api//scores", b"/a//", b"/.", b"/..", b"/a/./b",
            b"/a/../b", b"/a/..", b"/%2e", b"/%2E%2e/a", b"/.%2e/a", b"/api%2fscores",
            b"/api%2Fscores%2Fupdate", b"/a%5cb", b"/a%00", b"/a%0d%0ab", b"/a%7f", b"/a%",
            b"/a%2", b"/a%zz", b"/%ff", b"/%c3", b"/api/%73cores",
            b"/%30", b"/%39", b"/%41", b"/%5a", b"/%4F", b"/%61", b"/%7A",
        )
    },
    # Host
    "no Host": _request(line=b"GET / HTTP/1.1"),
    "two Hosts": _request(b"Host: a", b"Host: b", line=b"GET / HTTP/1.1"),
    "two equal Hosts": _request(b"Host: a", b"host: a", line=b"GET / HTTP/1.1"),
    **{
        f"Host {value!r}": _request(b"Host: " + value, line=b"GET / HTTP/1.1")
        for value in (
            b"", b"a, b", b"a b", b"a/b", b"user@a", b"a:port", b"a:80:80", b"[::1", b"::1",
            b"http://a", b"a?b", b"a#b", b"a\\b",
        )
    },
    # fields that are not lists
    **{
        f"two {name.decode()}": _request(b"Host: a", name + b": x", name.lower() + b": y")
        for name in (
            b"Authorization", b"Content-Type", b"Expect", b"Last-Event-ID", b"Origin",
            b"Sec-WebSocket-Key", b"Sec-WebSocket-Version", b"X-Request-Id", b"X-Kong-Request-Id",
        )
    },
}  # fmt: skip
"""Requests that are refused by their head."""

CHUNKS: Final[dict[str, bytes]] = {
    name: _chunks(body)
    for name, body in {
        "no size": b"\r\n",
        "no digit": b"x\r\n\r\n",
        "negative size": b"-1\r\n\r\n",
        "signed size": b"+0\r\n\r\n",
        "prefixed size": b"0x0\r\n\r\n",
        "underscore in a size": b"0_0\r\n\r\n",
        "size that overflows": b"100000000\r\n\r\n",
        "very long size": b"0" * 40 + b"\r\n\r\n",
        "space before a size": b" 0\r\n\r\n",
        "space behind a size": b"0 \r\n\r\n",
        "tab behind a size": b"0\t\r\n\r\n",
        "bare LF behind a size": b"0\n\r\n",
        "bare LFs": b"0\n\n",
        "bare CR behind a size": b"0\r\r\n\r\n",
        "bare LF in an extension": b"0;a\nb\r\n\r\n",
        "bare CR in an extension": b"0;a\rb\r\n\r\n",
        "NUL in an extension": b"0;a\x00b\r\n\r\n",
        "long extension": b"0;" + b"a" * 65 + b"\r\n\r\n",
        "endless extension": b"0;" + b"a" * 20_000,
        "chunk longer than its size": b"1\r\nab\r\n0\r\n\r\n",
        "chunk shorter than its size": b"3\r\nab\r\n0\r\n\r\n",
        "bare LF behind a chunk": b"1\r\na\n0\r\n\r\n",
        "bare CR behind a chunk": b"1\r\na\r0\r\n\r\n",
        "no line end behind a chunk": b"1\r\na0\r\n\r\n",
        "trailer": b"0\r\nX: y\r\n\r\n",
        "trailing token": b"0\r\nAuthorization: Bearer x\r\n\r\n",
        "trailing length": b"0\r\nContent-Length: 5\r\n\r\n",
        "bare LF at the end": b"0\r\n\n",
        "tiny chunks": b"1\r\na\r\n" * 4000 + b"0\r\n\r\n",
    }.items()
}
"""Requests that are refused by their chunks."""
