"""h11 reads every request that our reader accepts the same: method, target, fields, body, rest."""

import random
from typing import Any

import h11
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from scoreboard.errors import ScoreboardError
from scoreboard.http.body import ChunkReader, LengthReader
from scoreboard.http.head import CHUNKED, head_size, read_head
from scoreboard.runtime.limits import HeadLimits
from tests.support.clients.smuggling import CHUNKS, HEADS, HIDDEN

LIMITS = HeadLimits()
BODY_BYTES = 16_384

Reading = tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes, bytes]


def ours(data: bytes, cuts: list[int]) -> Reading | None:
    """Read the first request in pieces; None where it is refused or incomplete."""
    ends = [*sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    searched = 0
    for end in ends:
        size = head_size(data[:end], searched, LIMITS)
        searched = end
        if size:
            break
    else:
        return None
    head = read_head(data[:size], LIMITS)
    reader = ChunkReader(BODY_BYTES) if head.length == CHUNKED else LengthReader(head.length)
    rest, start = b"", size
    for end in [one for one in ends if one > size]:
        if reader.is_complete:
            rest += data[start:end]
        else:
            rest = reader.take(data[start:end])
        start = end
    if not reader.is_complete:
        return None
    return head.method.encode(), head.target, head.fields, reader.body(), rest


def theirs(data: bytes) -> Reading | None:
    """Read the first request with h11; None where it is incomplete."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1_000_000)
    connection.receive_data(data)
    request: Any = connection.next_event()
    body = b""
    while True:
        found: Any = connection.next_event()
        if isinstance(found, h11.Data):
            body += bytes(found.data)
        elif isinstance(found, h11.EndOfMessage):
            fields = [(bytes(name), bytes(value)) for name, value in request.headers]
            return request.method, request.target, fields, body, connection.trailing_data[0]
        else:
            return None


def normalized(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the fields with the coding in lowercase, as h11 returns them."""
    return [(n, v.lower() if n == b"transfer-encoding" else v) for n, v in fields]


def compare(data: bytes, cuts: list[int]) -> bool:
    """Check that an accepted request has one reading; return whether it was accepted."""
    try:
        mine = ours(data, cuts)
    except ScoreboardError:
        return False
    if mine is None:
        return False
    other = theirs(data)
    assert other is not None
    assert (mine[0], mine[1], normalized(mine[2]), *mine[3:]) == other
    return True


NAMES = st.sampled_from(
    [b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"X-A", b"expect", b"TE",
     b"Upgrade", b"Cookie", b"Accept", b"x-request-id", b"Content-length ", b"X\tB"]
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(
        [b"a", b"chunked", b"5", b"0", b"5, 5", b"close", b"Upgrade", b"websocket",
         b"gzip, chunked", b"", b" ", b"a:80", b"100-continue", b"\xe9", b"\x00", b"a\tb"]
    ),
    st.binary(max_size=6),
)  # fmt: skip
TARGETS = st.sampled_from(
    [
        b"/",
        b"/a?b=c",
        b"/%7C",
        b"/a|b",
        b"//",
        b"*",
        b"http://a/b",
        b"/\x7f",
        b"/\xe9",
        b"/a b",
        b"",
    ]
)
METHODS = st.sampled_from([b"GET", b"POST", b"get", b"X!", b"G T", b"OPTIONS", b""])
BODIES = st.one_of(
    st.sampled_from(
        [b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"5;x=y\r\nhello\r\n0\r\n\r\n", b"0\r\n\r\n",
         b"0\r\nX: y\r\n\r\n", b"5\r\nhello\r\n00\r\n\r\n", b"F\r\n0123456789abcde\r\n0\r\n\r\n"]
    ),
    st.binary(max_size=20),
)  # fmt: skip
NOISE = (b"\r", b"\n", b"\r\n", b" ", b"\t", b"\x00", b":", b"0", b"\x0b", b"\xff", b",", b";")


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Generate requests that are nearly valid: many are accepted and many refused."""
    fields = draw(st.lists(st.tuples(NAMES, VALUES), max_size=5))
    if draw(st.booleans()):
        fields.insert(0, (b"Host", b"a"))
    separator = draw(st.sampled_from([b": ", b":", b":\t ", b" :"]))
    version = draw(
        st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"http/1.1"])
    )
    line = b" ".join([draw(METHODS), draw(TARGETS), version])
    head = b"\r\n".join([line, *(name + separator + value for name, value in fields), b"", b""])
    return head + draw(BODIES) + draw(st.sampled_from([b"", HIDDEN]))


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """Generate valid requests with a few bytes inserted, removed or replaced."""
    framing = draw(
        st.sampled_from(
            [
                b"Content-Length: 5\r\n\r\nhello",
                b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;a=b\r\nlo\r\n0\r\n\r\n",
                b"\r\n",
            ]
        )
    )
    data = bytearray(
        b"POST /a%7Cb?c=d HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nX: y\r\n"
        + framing
        + HIDDEN
    )
    randomness = random.Random(draw(st.integers()))
    for _ in range(draw(st.integers(0, 3))):
        at = randomness.randrange(len(data))
        match randomness.randrange(3):
            case 0:
                data[at:at] = randomness.choice(NOISE)
            case 1:
                del data[at]
            case _:
                data[at : at + 1] = randomness.choice(NOISE)
    return bytes(data)


CUTS = st.lists(st.integers(0, 500), max_size=4)


@given(data=st.one_of(requests(), mutants()), cuts=CUTS)
@settings(max_examples=2000, deadline=None)
def test_an_accepted_request_is_read_the_same_by_h11(data: bytes, cuts: list[int]) -> None:
    event("accepted" if compare(data, cuts) else "refused")


@given(data=mutants(), cuts=CUTS)
@settings(max_examples=300, deadline=None)
def test_the_result_does_not_depend_on_the_pieces(data: bytes, cuts: list[int]) -> None:
    def outcome(cuts: list[int]) -> Any:
        try:
            return ours(data, cuts)
        except ScoreboardError as error:
            return type(error)

    assert outcome(cuts) == outcome([])


@given(body=st.binary(max_size=300), sizes=st.lists(st.integers(1, 50), min_size=1), cuts=CUTS)
def test_any_body_in_chunks_is_read(body: bytes, sizes: list[int], cuts: list[int]) -> None:
    parts, at = [], 0
    while at < len(body):
        size = sizes[len(parts) % len(sizes)]
        parts.append(b"%X\r\n%b\r\n" % (len(body[at : at + size]), body[at : at + size]))
        at += size
    assume(len(parts) < 1000)
    data = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    data += b"".join(parts) + b"0\r\n\r\n" + HIDDEN
    assert compare(data, cuts)
    mine = ours(data, cuts)
    assert mine is not None
    assert mine[3:] == (body, HIDDEN)


def test_smuggling_vectors_are_refused() -> None:
    for data in (*HEADS.values(), *CHUNKS.values()):
        assert not compare(data, [])


def test_plain_requests_are_accepted() -> None:
    assert compare(HIDDEN + HIDDEN, [])
    assert compare(
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" + HIDDEN, [3, 60]
    )
