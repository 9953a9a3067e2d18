"""Turns replies of Redis into values, and whatever goes wrong into an error of this project.

All reads of Redis pass through here. What stays true: whatever a server answers, the caller gets a
value of the shape it asked for, or a ScoreboardError; never an exception of a parser, which would
end the task that owns it and with it the process.
"""

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import msgspec
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from scoreboard.errors import RedisUnavailable, ScoreboardError, UnexpectedReply

CONNECTION_ERRORS: Final = (RedisConnectionError, RedisTimeoutError, OSError)
"""What redis-py raises when the connection failed: nothing is known of what was sent."""

PARSE_ERRORS: Final = (
    msgspec.MsgspecError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
)
"""What parsers raise for a reply of another shape: ours, redis-py's and hiredis's."""

SERVER_REFUSALS: Final = frozenset({"MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "BUSY"})
"""First words by which the server refuses a command before it writes anything."""

_REFUSED: Final = (ReadOnlyError, OutOfMemoryError, AuthenticationError, NoPermissionError)

_Shape = TypeVar("_Shape")


async def read_reply(waiting: Awaitable[Any], shape: type[_Shape], what: str) -> _Shape:
    """Await a reply and convert it; ``what`` names the command and key in an error.

    Raises RedisUnavailable, UnexpectedReply.
    """
    try:
        return convert(await waiting, shape)
    except (*CONNECTION_ERRORS, RedisError, *PARSE_ERRORS) as error:
        raise translate_error(error, what) from error


@contextmanager
def checking_reply(what: str) -> Iterator[None]:
    """Let a block work on replies that have the right shape and may still contradict each other.

    Raises UnexpectedReply.
    """
    try:
        yield
    except PARSE_ERRORS as error:
        raise translate_error(error, what) from error


def convert(reply: Any, shape: type[_Shape]) -> _Shape:  # noqa: ANN401 (that is the point)
    """Give a reply in the shape asked for; numbers may be text.

    Raises one of UNREADABLE.
    """
    return msgspec.convert(reply, shape, strict=False)


def translate_error(error: Exception, what: str) -> ScoreboardError:
    """Translate what a command raised."""
    if isinstance(error, CONNECTION_ERRORS):
        return RedisUnavailable()
    if isinstance(error, _REFUSED) or (
        isinstance(error, ResponseError) and error_code(error) in SERVER_REFUSALS
    ):
        return RedisUnavailable("The live store refuses the command")
    if isinstance(error, RedisError):
        return UnexpectedReply(f"{what}: {error_code(error)[:64] or type(error).__name__}")
    return UnexpectedReply(f"{what}: the reply has another shape ({type(error).__name__})")


def error_code(error: Exception) -> str:
    """Give the code of a refusal; the rest is data and words, to which servers append."""
    return str(error).partition(" ")[0]
