"""Turns what a handler or the framework raised into a problem document."""

from collections.abc import Mapping, Sequence
from typing import Any

from litestar import Request, Response
from litestar.exceptions import (
    ClientException,
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
    SerializationException,
    ValidationException,
)

from scoreboard.errors import (
    BodyTooLarge,
    InternalError,
    Invalid,
    Malformed,
    MethodNotAllowed,
    NotFound,
    ScoreboardError,
    UnsupportedMedia,
)
from scoreboard.http.problems import MEDIA_TYPE, encode_problem, problem_headers, status_of
from scoreboard.runtime.telemetry import get_logger

_log = get_logger(__name__)


def as_scoreboard_error(error: Exception) -> ScoreboardError:
    """Translate what the framework raises by itself; anything unknown is ours to mend."""
    known: ScoreboardError = InternalError()
    match error:
        case ScoreboardError():
            known = error
        case NotFoundException():
            known = NotFound("There is nothing at this address; /docs shows what there is")
        case MethodNotAllowedException():
            allow = (error.headers or {}).get("allow", "")
            known = MethodNotAllowed(f"Use {allow or 'another method'}", allow=allow)
        case ValidationException():
            known = Invalid(_validation_detail(error))
        case SerializationException():
            known = Malformed("The body is not JSON")
        case HTTPException(status_code=413):
            known = BodyTooLarge()
        case HTTPException(status_code=415):
            known = UnsupportedMedia()
        case ClientException():
            known = Malformed("The request cannot be read")
        case _:
            pass
    return known


def _validation_detail(error: ValidationException) -> str:
    extra: Any = error.extra
    if not isinstance(extra, list):
        return "A value breaks a rule"
    entries: Sequence[Mapping[str, Any]] = extra
    return "; ".join(f"{entry.get('key', 'request')}: {entry.get('message')}" for entry in entries)


def respond(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer with the problem of whatever a handler raised (Litestar's exception handler)."""
    known = as_scoreboard_error(error)
    if isinstance(known, InternalError):
        _log.error("request_failed", code=known.code, exc_info=error)
    state = request.scope["state"]
    state["code"] = known.code  # for the line in the log
    request_id = str(state.get("request_id", ""))
    return Response(
        encode_problem(known, request_id),
        status_code=status_of(type(known)),
        headers={name.decode(): value.decode() for name, value in problem_headers(known)},
        media_type=MEDIA_TYPE,
    )
