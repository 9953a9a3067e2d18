"""Every error has a problem document, and none reveals internal details."""

from collections.abc import Iterator
from typing import Any

import pytest
from litestar.exceptions import (
    ClientException,
    MethodNotAllowedException,
    NotFoundException,
    SerializationException,
    ValidationException,
)

import api.app  # noqa: F401 (so that every class of errors is there to be walked)
from api.edge import problems
from scoreboard.errors import (
    ClientError,
    Forbidden,
    InternalError,
    OutcomeUnknown,
    RateLimited,
    ScoreboardError,
    ScriptFailed,
    SettingInvalid,
    Unauthenticated,
    Unavailable,
)
from scoreboard.http.problems import (
    PROBLEM_TYPES,
    QuotaExceeded,
    problem_headers,
    problem_of,
    status_of,
)


def tree(kind: type[ScoreboardError] = ScoreboardError) -> Iterator[type[ScoreboardError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from tree(below)


def make(kind: type[ScoreboardError]) -> ScoreboardError:
    if kind is QuotaExceeded:
        return QuotaExceeded(limit=10, window_s=60, retry_after_s=5)
    return kind()


@pytest.mark.parametrize("kind", sorted(set(tree()), key=lambda one: one.__name__))
def test_every_error_has_a_problem(kind: type[ScoreboardError]) -> None:
    error = make(kind)
    status = status_of(kind)
    if issubclass(kind, Unavailable):
        assert status == 503
    elif issubclass(kind, ClientError) and kind is not ClientError:
        assert status in {400, 401, 403, 404, 405, 409, 413, 414, 415, 417, 422, 426, 429, 431, 505}
    else:
        assert status == 500  # no request should cause it
    problem = problem_of(error, "request-1")
    assert problem.status == status
    assert problem.type.removeprefix("/docs/problems/") in {one.code for one in PROBLEM_TYPES}
    assert problem.title
    assert problem.detail
    assert problem.request_id == "request-1"
    names = {name for name, _ in problem_headers(error)}
    assert (b"retry-after" in names) == (status in {429, 503})
    if status == 401:
        assert b"www-authenticate" in names


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in PROBLEM_TYPES]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(
    "error",
    [ScriptFailed("submit: ERR at /srv"), SettingInvalid("REDIS_URL: x"), InternalError("sql")],
)
def test_internal_errors_are_not_explained_to_clients(error: ScoreboardError) -> None:
    problem = problem_of(error, "r")
    assert problem.type == "/docs/problems/internal"
    assert error.detail not in problem.detail


def test_an_error_without_a_detail_has_a_default_detail() -> None:
    assert "same actionId" in problem_of(OutcomeUnknown(), "r").detail
    assert problem_of(OutcomeUnknown("these words"), "r").detail == "these words"


def test_challenges_follow_rfc_6750() -> None:
    def challenge(error: ScoreboardError) -> bytes:
        return dict(problem_headers(error))[b"www-authenticate"]

    assert challenge(Unauthenticated()) == b'Bearer realm="scoreboard"'
    refused = challenge(Unauthenticated('has "quotes" \\ and é', reason="expired"))
    assert refused == (
        b'Bearer realm="scoreboard", error="invalid_token", '
        b"error_description=\"has 'quotes'  and ?\""
    )
    forbidden = challenge(Forbidden("no", scope="update:score"))
    assert b'error="insufficient_scope", scope="update:score"' in forbidden
    assert b"www-authenticate" not in dict(problem_headers(Forbidden("no")))


def test_an_exceeded_quota_has_retry_after_and_rate_limit_headers() -> None:
    headers = dict(problem_headers(QuotaExceeded(limit=10, window_s=60, retry_after_s=7)))
    assert headers[b"retry-after"] == b"7"
    assert headers[b"ratelimit-policy"] == b'"default";q=10;w=60'
    assert headers[b"ratelimit"] == b'"default";r=0;t=7'
    assert issubclass(QuotaExceeded, RateLimited)


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (NotFoundException(), 404),
        (MethodNotAllowedException(headers={"allow": "GET"}), 405),
        (ValidationException(extra=[{"key": "limit", "message": "too large"}]), 422),
        (ValidationException(extra={"a": 1}), 422),
        (SerializationException(), 400),
        (ClientException(), 400),
        (ClientException(status_code=413), 413),
        (ClientException(status_code=415), 415),
        (RuntimeError("secret"), 500),
        (Forbidden(), 403),
    ],
)
def test_exceptions_of_the_framework_are_translated(raised: Any, status: int) -> None:
    error = problems.as_scoreboard_error(raised)
    assert status_of(type(error)) == status
    assert "secret" not in problem_of(error, "r").detail
    if status == 405:
        assert dict(problem_headers(error))[b"allow"] == b"GET"
