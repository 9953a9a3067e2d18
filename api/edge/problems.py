"""Turns exceptions of handlers and of the framework into problem documents."""

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
    """Translate the framework's exceptions; an unknown exception is an internal error."""
    known: ScoreboardError = InternalError()
    match error:
        case ScoreboardError():
            known = error
        case NotFoundException():
            known = NotFound("No such path; /docs lists the API")
        case MethodNotAllowedException():
            allow = (error.headers or {}).get("allow", "")
            known = MethodNotAllowed(f"Use {allow or 'another method'}", allow=allow)
        case ValidationException():
            known = Invalid()  # the guards check all that a request can get wrong
        case SerializationException():
            known = Malformed("The body is not valid JSON")
        case HTTPException(status_code=413):
            known = BodyTooLarge()
        case HTTPException(status_code=415):
            known = UnsupportedMedia()
        case ClientException():
            known = Malformed("The request cannot be read")
        case _:
            pass
    return known


def respond(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer with the problem of an exception (an exception handler of Litestar)."""
    known = as_scoreboard_error(error)
    if isinstance(known, InternalError):
        _log.error("request_failed", code=known.code, exc_info=error)
    state = request.scope["state"]
    state["error"] = known  # for the access log
    request_id = str(state.get("request_id", ""))
    return Response(
        encode_problem(known, request_id),
        status_code=status_of(type(known)),
        headers={name.decode(): value.decode() for name, value in problem_headers(known)},
        media_type=MEDIA_TYPE,
    )
