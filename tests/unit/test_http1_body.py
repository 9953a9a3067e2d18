"""Request bodies: with a length and in chunks, received in pieces of any size."""

import pytest

from scoreboard.errors import BodyTooLarge, Malformed
from scoreboard.http.body import EXTENSION_BYTES, FRAMING_BYTES, ChunkReader, LengthReader
from tests.support.clients.smuggling import CHUNKS, HIDDEN

Reader = LengthReader | ChunkReader


def rest_of(reader: Reader, data: bytes, step: int) -> bytes:
    """Feed data in pieces until the body is complete; return the bytes after it."""
    for start in range(0, len(data), step):
        rest = reader.take(data[start : start + step])
        if reader.is_complete:
            return rest + data[start + step :]
        assert not rest
    return b""


@pytest.mark.parametrize("step", [1, 3, 100])
def test_a_body_ends_at_its_content_length(step: int) -> None:
    reader = LengthReader(10)
    assert rest_of(reader, b"0123456789next", step) == b"next"
    assert reader.body() == b"0123456789"
    assert LengthReader(0).is_complete


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"05\r\nhello\r\n1\r\n!\r\n000\r\n\r\n", b"hello!"),
        (b"A\r\n\r\n0\r\n\r\n\r\n!\r\n0\r\n\r\n", b"\r\n0\r\n\r\n\r\n!"),
        (b"5;a=b\r\nhello\r\n0;" + b"x" * EXTENSION_BYTES + b"\r\n\r\n", b"hello"),
        (b'5;a="b c"\r\nhello\r\n0;\r\n\r\n', b"hello"),
    ],
)
@pytest.mark.parametrize("step", [1, 2, 7, 100])
def test_chunks_are_joined(data: bytes, body: bytes, step: int) -> None:
    reader = ChunkReader(100)
    assert rest_of(reader, data + HIDDEN, step) == HIDDEN
    assert reader.body() == body


@pytest.mark.parametrize("name", list(CHUNKS))
@pytest.mark.parametrize("step", [1, 100_000])
def test_ambiguous_chunks_are_refused(name: str, step: int) -> None:
    body = CHUNKS[name].partition(b"\r\n\r\n")[2]
    with pytest.raises(Malformed):
        rest_of(ChunkReader(1_000_000), body, step)


@pytest.mark.parametrize("data", [b"b\r\n", b"6\r\n123456\r\n5\r\n", b"ffffffff\r\n"])
@pytest.mark.parametrize("step", [1, 100])
def test_a_body_that_is_too_large_is_refused_before_it_arrives(data: bytes, step: int) -> None:
    with pytest.raises(BodyTooLarge):
        rest_of(ChunkReader(10), data, step)


def test_the_size_of_chunk_framing_is_limited() -> None:
    reader = ChunkReader(1_000_000)
    piece = b"1\r\na\r\n"
    count = FRAMING_BYTES // (len(piece) - 1)
    reader.take(piece * count)
    with pytest.raises(Malformed, match="too small"):
        reader.take(piece)


def test_a_trailer_is_refused() -> None:
    with pytest.raises(Malformed, match="Trailers"):
        ChunkReader(10).take(b"0\r\nX: y\r\n\r\n")


@pytest.mark.parametrize("data", [b"\n", b"5\n", b"g", b"5\r\nhello!", b"000000000", b"0\r\nX"])
def test_an_invalid_chunk_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(Malformed):
        ChunkReader(100).take(data)
