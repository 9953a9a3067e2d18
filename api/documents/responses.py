"""Error responses in the OpenAPI document: one per status, with an example per problem type."""

from collections.abc import Collection, Mapping
from typing import Final

from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example

from scoreboard.errors import (
    ActConflict,
    ActionConflict,
    BoardArchived,
    Busy,
    Fenced,
    OperatorMistake,
    OutcomeUnknown,
    ProofInvalid,
    ProofRequired,
    ScoreboardError,
    ScoreOutOfRange,
    SeasonClosed,
    SeasonEnded,
    Uninitialised,
    UnknownKind,
    UnknownSeason,
)
from scoreboard.http.problems import MEDIA_TYPE, PROBLEM_TYPES, TYPE_PREFIX, Problem

EVERYWHERE: Final = (405, 414, 417, 431, 500, 505)
"""Statuses that any path may return; the document describes each once."""

UPDATE_ONLY: Final = frozenset(
    {
        *(ActionConflict, UnknownKind, ScoreOutOfRange, ProofRequired, ProofInvalid),
        *(Fenced, Busy, OutcomeUnknown, BoardArchived, SeasonClosed, SeasonEnded),
    }
)
"""Problems that only an update can have."""

ADMIN_ONLY: Final = frozenset({ActConflict, OperatorMistake})
"""Problems that only the request of an administrator can have."""

ACTION_ONLY: Final = frozenset(
    {UnknownKind, ScoreOutOfRange, Fenced, Busy, Uninitialised, SeasonEnded}
)
"""Problems of single actions, which the response to a bulk request has in its results."""

_DESCRIPTIONS: Final[Mapping[int, str]] = {
    400: "The request cannot be parsed.",
    401: "The token is missing or invalid.",
    403: "The token does not allow this request.",
    404: "The path, the board or the user does not exist.",
    405: "The path does not support this method.",
    409: "The request conflicts with what was done before.",
    413: "The body is too large.",
    414: "The request line is too long.",
    415: "The content type is not application/json.",
    417: "The expectation is not supported.",
    422: "A value violates a constraint.",
    429: "Too many requests.",
    431: "The request line and headers are too large.",
    500: "Internal error.",
    503: "Temporarily unavailable; send the request again after `Retry-After`.",
    505: "The HTTP version is not supported.",
}
_NOT_MODIFIED: Final = ResponseSpec(
    data_container=None, generate_examples=False, description="The client's copy is current."
)


def problems(
    *statuses: int, omitted: Collection[type[ScoreboardError]] = (), seasons: bool = False
) -> dict[int, ResponseSpec]:
    """Describe the error responses of an operation that cannot have the ``omitted`` problems.

    ``seasons``: it may ask for the standings of a season.
    """
    others = {*ADMIN_ONLY, *omitted} if seasons else {UnknownSeason, *ADMIN_ONLY, *omitted}
    return {status: _problem(status, others) for status in (*statuses, *EVERYWHERE)}


def admin_problems(
    *statuses: int, omitted: Collection[type[ScoreboardError]] = (), seasons: bool = False
) -> dict[int, ResponseSpec]:
    """Describe the error responses of an operation of administrators, as ``problems`` does."""
    omitted = {UnknownSeason, *UPDATE_ONLY, *omitted}
    omitted -= {ScoreOutOfRange, OutcomeUnknown, Fenced, Busy}
    if seasons:
        omitted -= {UnknownSeason, SeasonEnded}
    return {status: _problem(status, omitted) for status in (*statuses, *EVERYWHERE)}


def read_problems(
    *statuses: int, omitted: Collection[type[ScoreboardError]] = (), seasons: bool = False
) -> dict[int, ResponseSpec]:
    """Describe the error responses of a read, which may return 304."""
    others = {*UPDATE_ONLY, *omitted}
    if seasons:
        others.discard(SeasonEnded)
    return {304: _NOT_MODIFIED} | problems(*statuses, omitted=others, seasons=seasons)


def _problem(status: int, omitted: Collection[type[ScoreboardError]]) -> ResponseSpec:
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
        if about.status == status and about.is_of_api and kind not in omitted
    ]
    return ResponseSpec(
        data_container=Problem,
        generate_examples=False,
        description=_DESCRIPTIONS[status],
        media_type=MEDIA_TYPE,
        examples=examples,
    )
