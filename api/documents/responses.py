"""Error responses in the OpenAPI document: one per status, with an example per problem type."""

from collections.abc import Mapping
from typing import Final

from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example

from scoreboard.http.problems import MEDIA_TYPE, PROBLEM_TYPES, TYPE_PREFIX, Problem

EVERYWHERE: Final = (405, 414, 417, 431, 500, 505)
"""Statuses that any path may return; the document describes each once."""

_DESCRIPTIONS: Final[Mapping[int, str]] = {
    400: "The request cannot be parsed.",
    401: "The token is missing or invalid.",
    403: "The token does not allow this request.",
    404: "The user or board does not exist.",
    405: "The path does not support this method.",
    409: "The action was applied before with other points.",
    413: "The body is too large.",
    414: "The request line is too long.",
    415: "The content type is not application/json.",
    417: "The expectation is not supported.",
    422: "A value violates a constraint.",
    429: "Too many requests.",
    431: "The request line and headers are too large.",
    500: "Internal error.",
    503: "Temporarily unavailable; repeat the request after `Retry-After`.",
    505: "The HTTP version is not supported.",
}
_NOT_MODIFIED: Final = ResponseSpec(
    data_container=None, generate_examples=False, description="The client's copy is current."
)


def problems(*statuses: int) -> dict[int, ResponseSpec]:
    """Describe the error responses of an operation."""
    return {status: _problem(status) for status in (*statuses, *EVERYWHERE)}


def read_problems(*statuses: int) -> dict[int, ResponseSpec]:
    """Describe the error responses of an operation that may return 304."""
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
