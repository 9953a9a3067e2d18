"""What the documents say of errors: one entry per status, with an example per kind of problem."""

from collections.abc import Mapping
from typing import Final

from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example

from scoreboard.http.problems import MEDIA_TYPE, PROBLEM_TYPES, TYPE_PREFIX, Problem

EVERYWHERE: Final = (405, 414, 417, 431, 500, 505)
"""Any address may answer with these; the document describes each of them once."""

_DESCRIPTIONS: Final[Mapping[int, str]] = {
    400: "The request cannot be read.",
    401: "No token, or one that does not verify.",
    403: "The token lacks a scope, or acts for somebody else.",
    404: "There is no such user or board here.",
    405: "The address exists, for other methods.",
    409: "The action counted before with other points.",
    413: "The body is too large.",
    414: "The request line is too long.",
    415: "The body is not declared as JSON.",
    417: "The expectation cannot be met.",
    422: "A value breaks a rule.",
    429: "Too many requests.",
    431: "The head of the request is too large.",
    500: "The service failed.",
    503: "Not now; repeat the request after `Retry-After`.",
    505: "The request is neither HTTP/1.1 nor HTTP/1.0.",
}
_NOT_MODIFIED: Final = ResponseSpec(
    data_container=None, generate_examples=False, description="What the client has is current."
)


def problems(*statuses: int) -> dict[int, ResponseSpec]:
    """Describe the errors of an operation."""
    return {status: _problem(status) for status in (*statuses, *EVERYWHERE)}


def problems_of_a_read(*statuses: int) -> dict[int, ResponseSpec]:
    """Describe the errors of an operation that also answers 304."""
    return {304: _NOT_MODIFIED} | problems(*statuses)


def _problem(status: int) -> ResponseSpec:
    examples = [
        Example(
            id=kind.code,
            summary=kind.title,
            description=about.advice,
            value={
                "type": TYPE_PREFIX + kind.code,
                "title": kind.title,
                "status": status,
                "detail": about.advice,
                "request_id": "5f0c2a9b7d31-2a",
            },
        )
        for kind, about in PROBLEM_TYPES.items()
        if about.status == status and about.is_of_api
    ]
    return ResponseSpec(
        data_container=Problem,
        generate_examples=False,
        description=_DESCRIPTIONS[status],
        media_type=MEDIA_TYPE,
        examples=examples,
    )
