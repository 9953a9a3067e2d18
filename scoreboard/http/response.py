"""Answers, those to errors among them, and how their heads are written. No I/O."""

from http import HTTPStatus
from typing import Final

from msgspec import Struct

from scoreboard.errors import ScoreboardError
from scoreboard.http.problems import MEDIA_TYPE, encode_problem, problem_headers, status_of

Fields = list[tuple[bytes, bytes]]

NOSNIFF: Final = (b"x-content-type-options", b"nosniff")

_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}


class HttpResponse(Struct, frozen=True):
    """A whole answer. The server adds its length, the date, and whether the connection goes on."""

    status: int
    headers: Fields
    body: bytes = b""


def error_response(error: ScoreboardError, request_id: str) -> HttpResponse:
    """Return the whole answer of an error."""
    headers = [(b"content-type", MEDIA_TYPE.encode()), *problem_headers(error), NOSNIFF]
    return HttpResponse(status_of(type(error)), headers, encode_problem(error, request_id))


def has_body(status: int) -> bool:
    """Tell whether an answer of a status has a body at all (RFC 9110, 6.4.1)."""
    return status >= 200 and status not in {204, 304}


def encode_head(status: int, headers: Fields, *added: bytes) -> bytes:
    """Write the head of an answer; ``added`` are whole lines.

    Raises ValueError for a header that would end its line early.
    """
    lines = [_STATUS_LINES[status], *added]
    lines += [b"%b: %b\r\n" % field for field in headers]
    lines.append(b"\r\n")
    head = b"".join(lines)
    if head.count(b"\n") != len(lines):
        raise ValueError("A header holds a line end")
    return head
