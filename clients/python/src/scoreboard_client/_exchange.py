"""How a call is sent until it has an answer: tries, waits, one renewal of the token.

`exchange` and `exchange_many` do no I/O. They yield what to do and are sent what came of it; the
blocking and the asyncio client do it.
"""

import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from msgspec import DecodeError, ValidationError, json

from ._calls import Call, bulk
from ._models import BulkResult, UpdateItem
from ._tokens import TokenReason
from .errors import (
    NoAnswerError,
    ProblemError,
    ScoreboardError,
    UnauthenticatedError,
    problem_of,
)

T = TypeVar("T")
BULK_ACTIONS = 100
BULK_BYTES = 16_000
"""A body may have 16 KiB."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a call is tried, and how long it waits between tries.

    A wait is Retry-After plus a random time between 0 and a ceiling, which starts at `first_s` and
    doubles up to `ceiling_s`. A call that would have to wait longer than `longest_s` fails at once.
    """

    tries: int = 8
    first_s: float = 0.5
    ceiling_s: float = 30.0
    longest_s: float = 120.0

    def wait_s(self, attempt: int, retry_after_s: float = 0.0) -> float:
        """Return the wait after the given failure, 0 for the first."""
        ceiling = min(self.ceiling_s, self.first_s * 2 ** min(attempt, 16))
        return retry_after_s + random.uniform(0, ceiling)


@dataclass(frozen=True, slots=True)
class NeedToken:
    """Get the token to use. `why` is what happened to the token `used`; None: nothing."""

    why: TokenReason | None = None
    used: str | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request; the result is a Response, or Lost."""

    call: Call[object]
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """The request got no answer, so its outcome is unknown."""

    error: Exception


Effect = NeedToken | Send | Pause
Outcome = str | Response | Lost | None
Exchange = Generator[Effect, Outcome, T]


def exchange(call: Call[T], retries: Retries) -> Exchange[T]:
    """Send a call until it is answered. Every try is the same request, so an action counts once."""
    token = yield NeedToken()
    is_renewed = False
    attempt = 0
    while True:
        outcome = yield Send(call, _headers(call, token))
        try:
            return _answer(call, outcome)
        except ScoreboardError as failure:
            error = failure
        if isinstance(error, UnauthenticatedError) and not is_renewed:
            is_renewed = True
            newer = yield NeedToken("rejected", _text(token))
            if newer is not None and newer != token:
                token = newer
                continue
        least_s = _least_wait_s(error)
        if least_s is None:
            raise error
        wait_s = retries.wait_s(attempt, least_s)
        attempt += 1
        if attempt >= retries.tries or wait_s > retries.longest_s:
            raise error
        yield Pause(wait_s)
        token = yield NeedToken()


def exchange_many(updates: Sequence[UpdateItem], retries: Retries) -> Exchange[list[BulkResult]]:
    """Send actions in as many requests as they need, and those that may succeed later again.

    Return a result for each, in the same order. One that still has `retry_after` was tried as often
    as allowed.
    """
    results: dict[int, BulkResult] = {}
    pending = list(range(len(updates)))
    for attempt in range(retries.tries):
        for part in _parts(updates, pending):
            call = bulk([updates[number] for number in part])
            reply = yield from exchange(call, retries)
            if len(reply.results) != len(part):
                raise ScoreboardError("the answer has another number of results")
            results.update(zip(part, reply.results, strict=True))
        pending = [number for number in pending if _is_temporary(results[number])]
        waits = [results[number].retry_after or 0 for number in pending]
        if not pending or attempt + 1 == retries.tries:
            break
        wait_s = retries.wait_s(attempt, max(waits))
        if wait_s > retries.longest_s:
            break
        yield Pause(wait_s)
    return [results[number] for number in range(len(updates))]


def _parts(updates: Sequence[UpdateItem], numbers: list[int]) -> list[list[int]]:
    """Divide actions into requests that the service accepts."""
    parts: list[list[int]] = []
    size = BULK_BYTES
    for number in numbers:
        more = len(json.encode(updates[number])) + 1
        if size + more > BULK_BYTES or len(parts[-1]) == BULK_ACTIONS:
            parts.append([])
            size = len('{"updates":[]}')
        parts[-1].append(number)
        size += more
    return parts


def _is_temporary(result: BulkResult) -> bool:
    return isinstance(result.retry_after, int)


def _answer(call: Call[T], outcome: Outcome) -> T:
    match outcome:
        case Response(status, _, body) if 200 <= status < 300:
            try:
                return json.decode(body, type=call.reply)
            except ValidationError as error:
                raise ScoreboardError(f"the answer has another form: {error}") from error
            except DecodeError as error:
                raise NoAnswerError(f"the answer was cut: {error}") from error
        case Response(status, headers, body):
            raise problem_of(status, headers, body)
        case Lost(error):
            raise NoAnswerError(f"no answer: {error!r}") from error
        case _:
            raise TypeError(outcome)


def _least_wait_s(error: ScoreboardError) -> float | None:
    """Return how long to wait at least before the next try; None if it would be useless."""
    match error:
        case NoAnswerError():
            return 0.0
        case ProblemError():
            return error.retry_after_s
        case _:
            return None


def _headers(call: Call[object], token: Outcome) -> dict[str, str]:
    headers = {"accept": "application/json"}
    if call.body is not None:
        headers["content-type"] = "application/json"
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return headers


def _text(token: Outcome) -> str | None:
    return token if isinstance(token, str) else None
