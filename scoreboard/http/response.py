"""Responses, including error responses, and the encoding of their heads. No I/O."""

from http import HTTPStatus
from typing import Final

from msgspec import Struct

from scoreboard.errors import ScoreboardError
from scoreboard.http.problems import MEDIA_TYPE, Headers, encode_problem, problem_headers, status_of

NOSNIFF: Final = (b"x-content-type-options", b"nosniff")

_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}


class HttpResponse(Struct, frozen=True):
    """A whole response. The server adds Content-Length, Date and Connection."""

    status: int
    headers: Headers
    body: bytes = b""


def error_response(error: ScoreboardError, request_id: str) -> HttpResponse:
    """Return the response to an error."""
    headers = [(b"content-type", MEDIA_TYPE.encode()), *problem_headers(error), NOSNIFF]
    return HttpResponse(status_of(type(error)), headers, encode_problem(error, request_id))


def has_body(status: int) -> bool:
    """Return whether a response with a status may have a body (RFC 9110, 6.4.1)."""
    return status >= 200 and status not in {204, 304}


def encode_head(status: int, headers: Headers, *added: bytes) -> bytes:
    """Encode the head of a response; ``added`` are whole lines.

    Raises ValueError for a header that contains a line end.
    """
    lines = [_STATUS_LINES[status], *added]
    lines += [b"%b: %b\r\n" % field for field in headers]
    lines.append(b"\r\n")
    head = b"".join(lines)
    if head.count(b"\n") != len(lines):
        raise ValueError("A header contains a line end")
    return head
