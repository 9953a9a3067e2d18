"""Converts replies of Redis to values, and failures to errors of this project.

Every read of Redis uses this module. Invariant: whatever a server answers, the caller gets a value
of the requested shape or a ScoreboardError, never an exception of a parser, which would end the
task that owns it and with it the process.
"""

import re
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import msgspec
from redis.exceptions import (
    AuthenticationError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from scoreboard.errors import RedisUnavailable, ScoreboardError, UnexpectedReply
from scoreboard.model import COUNT_MAX, Partition

CONNECTION_ERRORS: Final = (RedisConnectionError, RedisTimeoutError, OSError)
"""Raised by redis-py when the connection failed: the outcome of what was sent is unknown."""

PARSE_ERRORS: Final = (
    msgspec.MsgspecError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
)
"""Raised by parsers (ours, redis-py's and hiredis's) for a reply of another shape."""

SERVER_REFUSALS: Final = frozenset(
    {"MISCONF", "NOREPLICAS", "MASTERDOWN", "MOVED", "CLUSTERDOWN", "NOCLUSTER", "BUSY"}
)
"""Error codes with which the server refuses a command before it writes anything."""

NOT_PRIMARY: Final = frozenset({"READONLY", "MOVED", "MASTERDOWN"})
"""Error codes of a server that is not the primary; after a failover the address leads to another.

Connections to it have to be closed: it keeps them open, and each write would be refused.
"""

NO_CLUSTER: Final = "NOCLUSTER the servers that REDIS_URL names are not a cluster"
"""Stands for the error of a plain server in place of a cluster's."""

DENIED: Final = "permission denied (NOPERM)"

_NOT_PRIMARY: Final = (ReadOnlyError, MovedError, MasterDownError)
_REFUSED: Final = (*_NOT_PRIMARY, OutOfMemoryError)
_DENIED_IN_SCRIPT: Final = ("ACL failure in script", "can't run this command", "can't access")
"""Parts of the error of a script that lacks a right; its first word is ERR."""

_WHOLE: Final = re.compile(r"\d{1,16}", re.ASCII)

_Shape = TypeVar("_Shape")


async def read_reply(waiting: Awaitable[Any], shape: type[_Shape], what: str) -> _Shape:
    """Await a reply and convert it; ``what`` names the command and key in an error.

    Raises RedisUnavailable, UnexpectedReply.
    """
    try:
        return convert(await waiting, shape)
    except (*CONNECTION_ERRORS, RedisError, *PARSE_ERRORS) as error:
        raise translate_error(error, what) from error


async def read_replies(waiting: Awaitable[Sequence[Any]], shape: type[_Shape], what: str) -> _Shape:
    """Await several replies and convert them together, such as to a list.

    Raises RedisUnavailable, UnexpectedReply, for the first one that is an error.
    """
    try:
        replies = await waiting
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return convert(replies, shape)
    except (*CONNECTION_ERRORS, RedisError, *PARSE_ERRORS) as error:
        raise translate_error(error, what) from error


@contextmanager
def checking_reply(what: str) -> Iterator[None]:
    """Guard a block that works on replies whose contents may contradict each other.

    Raises UnexpectedReply.
    """
    try:
        yield
    except PARSE_ERRORS as error:
        raise translate_error(error, what) from error


def convert(reply: Any, shape: type[_Shape]) -> _Shape:  # noqa: ANN401 (any reply)
    """Return a reply in the requested shape; numbers may be text.

    Raises one of PARSE_ERRORS.
    """
    return msgspec.convert(reply, shape, strict=False)


def parse_whole(text: str | None) -> int | None:
    """Return a whole number from 0 to 2⁵³-1, as the scripts parse it; None for anything else."""
    number = int(text) if text is not None and _WHOLE.fullmatch(text) else None
    return number if number is None or number <= COUNT_MAX else None


def translate_error(error: Exception, what: str) -> ScoreboardError:
    """Return the error to raise for what a command raised."""
    code = error_code(error) if isinstance(error, ResponseError) else ""
    if isinstance(error, (*CONNECTION_ERRORS, NoPermissionError, *_REFUSED)) or (
        code in SERVER_REFUSALS
    ):
        return RedisUnavailable(*_reason(error))
    if code and any(text in str(error) for text in _DENIED_IN_SCRIPT):
        return UnexpectedReply(f"{what}: {DENIED}")
    if isinstance(error, RedisError):
        return UnexpectedReply(f"{what}: {error_code(error)[:64] or type(error).__name__}")
    return UnexpectedReply(f"{what}: the reply has another shape ({type(error).__name__})")


def unreachable_text(partition: Partition) -> str:
    """Return the message when a cluster's primary with a partition cannot be reached."""
    return f"The primary of partition {partition.number} of board {partition.board} is unreachable"


def _reason(error: Exception) -> tuple[str, ...]:
    """Return why a command was refused; nothing if the connection failed."""
    if isinstance(error, AuthenticationError):
        return ("Redis refuses the login",)
    if isinstance(error, NoPermissionError):
        return (f"Redis: {DENIED}",)
    return () if isinstance(error, CONNECTION_ERRORS) else ("Redis refuses the command",)


def is_not_primary(reply: object) -> bool:
    """Return whether a reply is the error of a server that is not the primary."""
    # redis-py removes the code from the text of the errors that it knows.
    return isinstance(reply, ResponseError) and (
        isinstance(reply, _NOT_PRIMARY) or error_code(reply) in NOT_PRIMARY
    )


def error_code(error: Exception) -> str:
    """Return the first word of an error reply; servers append text and data to it."""
    return str(error).partition(" ")[0]
