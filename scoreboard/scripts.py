"""Runs scripts by their digest and turns refusals into errors; used by live and dispatcher only."""

import hashlib
from typing import Any, Final

import redis.asyncio as aioredis
from msgspec import Struct
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from scoreboard import resources
from scoreboard.errors import REFUSALS, RedisUnavailable, ScoreboardError, ScriptFailed
from scoreboard.redis_client import LOST
from scoreboard.telemetry import CALLS_REFUSED, REDIS_CALLS

SERVER_REFUSALS: Final = frozenset({"MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "BUSY"})
"""First words by which the server refuses before a script's first write: nothing happened."""


class Script(Struct, frozen=True):
    """A script of lua/ with the digest by which the server knows it."""

    name: str
    text: bytes
    sha: str

    @classmethod
    def load(cls, name: str) -> "Script":
        """Read ``lua/<name>.lua``."""
        text = resources.script(name)
        return cls(name, text, hashlib.sha1(text, usedforsecurity=False).hexdigest())


def first_word(error: Exception) -> str:
    """Give the code of a refusal; the rest is data and words, to which servers append."""
    return str(error).partition(" ")[0]


def as_error(error: Exception, script: Script) -> ScoreboardError:
    """Translate what redis-py raised for a script's reply; counts refusals.

    BUCKET and LAYOUT are the caller's to handle before it comes here.
    """
    if isinstance(error, (*LOST, BusyLoadingError)):
        return RedisUnavailable()
    if isinstance(
        error, ReadOnlyError | OutOfMemoryError | AuthenticationError | NoPermissionError
    ) or (isinstance(error, ResponseError) and first_word(error) in SERVER_REFUSALS):
        return RedisUnavailable("The live store refuses writes")
    code = first_word(error)
    kind = REFUSALS.get(code)
    if kind is None:
        return ScriptFailed(f"{script.name} answered {code or type(error).__name__}")
    CALLS_REFUSED.labels(code.lower()).inc()
    if issubclass(kind, ScriptFailed):
        return ScriptFailed(f"{script.name}: {error}")
    if code in {"FENCE", "EPOCH"}:
        return kind(str(error).partition(" ")[2])
    return kind()


async def call(
    client: aioredis.Redis, script: Script, keys: list[str], args: list[Any], *, reads: bool = False
) -> Any:  # noqa: ANN401 (each script's own shape, converted by the caller)
    """Run one script; load it first where the server does not know it.

    Raises RedisUnavailable when the connection fails (a write may or may not have happened: only
    repeatable scripts are run this way), and the error of a refusal.
    """
    command = "EVALSHA_RO" if reads else "EVALSHA"
    with REDIS_CALLS.labels(script.name).time():
        try:
            try:
                return await client.execute_command(command, script.sha, len(keys), *keys, *args)
            except NoScriptError:
                await client.script_load(script.text)  # pyright: ignore[reportArgumentType]
                return await client.execute_command(command, script.sha, len(keys), *keys, *args)
        except (*LOST, RedisError) as error:
            raise as_error(error, script) from error
