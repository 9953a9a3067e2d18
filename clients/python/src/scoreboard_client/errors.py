"""What a call can raise. All of it is a ScoreboardError."""

from collections.abc import Mapping

from msgspec import UNSET, DecodeError, Struct, UnsetType, json

from ._models import BoardScore, Problem, UpdateProblem


class ScoreboardError(Exception):
    """The base of all errors of this package."""


class NoAnswerError(ScoreboardError):
    """No try got an answer. An update may have been counted: repeat it with its `actionId`."""


class ProblemError(ScoreboardError):
    """The service refused a request; its class says what kind of refusal it is.

    `code` is the last part of the problem's `type`, such as `action-conflict`, or the status if the
    answer is not a problem document. `retry_after_s` is set if the same request may succeed later.
    """

    def __init__(self, problem: UpdateProblem, retry_after_s: float | None = None) -> None:
        super().__init__(f"{problem.status} {problem.title}: {problem.detail}")
        self.problem = problem
        self.status = problem.status
        self.type = problem.type
        self.code = problem.type.rsplit("/", 1)[-1]
        self.detail = problem.detail
        self.request_id = problem.request_id
        self.retry_after_s = retry_after_s

    @property
    def scores(self) -> dict[str, BoardScore]:
        """The boards that have counted the action, of an update that names several."""
        return self.problem.scores or {}

    @property
    def problems(self) -> dict[str, Problem]:
        """The boards that have not counted it, or may not have."""
        return self.problem.problems or {}


class InvalidError(ProblemError):
    """The request must be changed (400, 405, 413, 415, 422 and other 4xx)."""


class UnauthenticatedError(ProblemError):
    """There is no valid token, even after a renewal (401)."""


class ForbiddenError(ProblemError):
    """The token does not allow it, the user is banned, or a proof is missing or wrong (403)."""


class NotFoundError(ProblemError):
    """There is no such board, user or season (404)."""


class ConflictError(ProblemError):
    """The action has other points, or its season or board is closed (409)."""


class RateLimitedError(ProblemError):
    """There were too many requests, also after the waits that the retries allow (429)."""


class UnavailableError(ProblemError):
    """The service could not answer, also after all tries (5xx)."""


class LiveStoppedError(ScoreboardError):
    """A live board has stopped: `reason` and the close code, or the problem of the handshake."""

    def __init__(self, reason: str, code: int | None, problem: ProblemError | None) -> None:
        super().__init__(str(problem) if problem else f"{reason} ({code})")
        self.reason = reason
        self.code = code
        self.problem = problem


_BY_STATUS = {
    401: UnauthenticatedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    429: RateLimitedError,
}


class _Document(Struct):
    """A problem document, or what a proxy sent in its place."""

    type: str = ""
    title: str = ""
    detail: str = ""
    request_id: str = ""
    scores: dict[str, BoardScore] | UnsetType = UNSET
    problems: dict[str, Problem] | UnsetType = UNSET


def problem_of(status: int, headers: Mapping[str, str], body: bytes) -> ProblemError:
    """Return the error of a response that is not a success. Header names are in lower case."""
    try:
        document = json.decode(body, type=_Document)
    except (DecodeError, UnicodeDecodeError):
        document = _Document(detail=body[:200].decode(errors="replace"))
    problem = UpdateProblem(
        type=document.type or str(status),
        title=document.title or "The answer is not a problem document",
        status=status,
        detail=document.detail,
        request_id=document.request_id or headers.get("x-request-id", ""),
        scores=document.scores,
        problems=document.problems,
    )
    kind = _BY_STATUS.get(status, UnavailableError if status >= 500 else InvalidError)
    is_temporary = status == 429 or status >= 500
    return kind(problem, _seconds(headers.get("retry-after")) if is_temporary else None)


def _seconds(text: str | None) -> float:
    """Return the seconds of Retry-After; the service and Kong send no dates."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else 0.0
