"""Replies to updates of several boards and to bulk requests, and their log lines. No I/O."""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from api.documents.schemas import (
    BoardScore,
    BulkReply,
    BulkResult,
    UpdateItem,
    UpdateProblem,
    UpdateReply,
    UpdateRequest,
)
from api.edge.access_log import AuditedUpdate
from api.endpoints.updates import Outcome
from scoreboard.errors import RateLimited, ScoreboardError, Unavailable
from scoreboard.http.problems import (
    MEDIA_TYPE,
    Headers,
    problem_headers,
    problem_of,
    status_of,
)
from scoreboard.http.response import NOSNIFF, HttpResponse
from scoreboard.model import Receipt

JSON: Final = b"application/json"
HEADERS: Final = ((b"content-type", JSON), (b"cache-control", b"no-store"), NOSNIFF)
"""Headers of a successful update."""

_encode: Final = msgspec.json.Encoder().encode


def make_reply(receipt: Receipt, scores: dict[str, BoardScore] | UnsetType = UNSET) -> UpdateReply:
    """Return the reply to an action, with the result on each board if it names several."""
    held = True if receipt.held else UNSET
    return UpdateReply(True, receipt.score, receipt.replayed, scores, held)


def respond_to_boards(outcome: Outcome, request_id: str, quota: Headers) -> HttpResponse:
    """Return the response to an action of several boards."""
    error = outcome.error
    if error is None:
        reply = _encode(_reply(outcome))
        return HttpResponse(200, [*HEADERS, *quota], reply)
    headers = [(b"content-type", MEDIA_TYPE.encode()), *problem_headers(error), NOSNIFF]
    problem = _encode(_problem(outcome, error, request_id))
    return HttpResponse(status_of(type(error)), headers, problem)


def encode_results(
    items: Sequence[UpdateItem | ScoreboardError],
    results: Sequence[Outcome | ScoreboardError],
    request_id: str,
) -> bytes:
    """Encode the reply to a bulk request."""
    found = tuple(
        _result(item, result, request_id) for item, result in zip(items, results, strict=True)
    )
    return _encode(BulkReply(all(one.problem is UNSET for one in found), found))


def audited(
    update: UpdateRequest | ScoreboardError, result: Outcome | ScoreboardError
) -> list[AuditedUpdate]:
    """Return what the audit lines of an action contain: one for each board."""
    known = None if isinstance(update, ScoreboardError) else update
    if isinstance(result, ScoreboardError):
        board = known.board if isinstance(known, UpdateItem) else UNSET
        return [AuditedUpdate(known, None if board is UNSET else board, error=result)]
    lines = [
        AuditedUpdate(known, board, receipt=receipt) for board, receipt in result.receipts.items()
    ]
    return lines + [
        AuditedUpdate(known, board, error=error) for board, error in result.errors.items()
    ]


def _reply(outcome: Outcome) -> UpdateReply:
    first = next(iter(outcome.receipts.values()))
    return make_reply(first, _scores(outcome))


def _result(
    item: UpdateItem | ScoreboardError, result: Outcome | ScoreboardError, request_id: str
) -> BulkResult:
    if isinstance(result, ScoreboardError):
        problem = UpdateProblem(**msgspec.structs.asdict(problem_of(result, request_id)))
        return BulkResult("problem", problem=problem, retry_after=_retry_after_s(result))
    error = result.error
    if error is not None:
        problem = _problem(result, error, request_id)
        return BulkResult("problem", problem=problem, retry_after=_retry_after_s(error))
    first = next(iter(result.receipts.values()))
    names_boards = isinstance(item, UpdateItem) and item.boards is not UNSET
    return BulkResult(
        "held" if first.held else "replayed" if first.replayed else "applied",
        new_score=first.score,
        scores=_scores(result) if names_boards or len(result.receipts) > 1 else UNSET,
    )


def _retry_after_s(error: ScoreboardError) -> int | UnsetType:
    return error.retry_after_s if isinstance(error, RateLimited | Unavailable) else UNSET


def _scores(outcome: Outcome) -> dict[str, BoardScore]:
    return {
        board: BoardScore(receipt.score, receipt.replayed, True if receipt.held else UNSET)
        for board, receipt in outcome.receipts.items()
    }


def _problem(outcome: Outcome, error: ScoreboardError, request_id: str) -> UpdateProblem:
    problem = msgspec.structs.asdict(problem_of(error, request_id))
    if len(outcome.errors) + len(outcome.receipts) == 1:
        return UpdateProblem(**problem)
    problems = {board: problem_of(one, request_id) for board, one in outcome.errors.items()}
    problem["detail"] = "; ".join(f"{board}: {one.detail}" for board, one in problems.items())
    return UpdateProblem(**problem, scores=_scores(outcome), problems=problems)
