"""Runs scripts by their digest and turns refusals into errors; used by live and dispatcher only."""

import hashlib
from typing import Any, Final, TypeVar

import redis.asyncio as aioredis
from msgspec import Struct
from redis.exceptions import NoScriptError, RedisError, ResponseError

from scoreboard.errors import (
    REFUSALS,
    RedisUnavailable,
    ScoreboardError,
    ScriptFailed,
    UnexpectedReply,
)
from scoreboard.runtime import resources
from scoreboard.runtime.telemetry import CALLS_REFUSED, REDIS_CALLS
from scoreboard.store.replies import (
    CONNECTION_ERRORS,
    PARSE_ERRORS,
    convert,
    error_code,
    translate_error,
)

_EXPLAINED: Final = frozenset({"FENCE", "STALE", "LAG"})
"""Refusals whose words the caller passes on."""

_Shape = TypeVar("_Shape")


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


def refusal_error(error: Exception, script: Script, key: str) -> ScoreboardError:
    """Translate what redis-py raised for a script's reply; counts refusals.

    ``key`` is one of the call's, which tells an operator the partition.

    BUCKET and LAYOUT are the caller's to handle before it comes here.
    """
    code = error_code(error) if isinstance(error, ResponseError) else ""
    kind = REFUSALS.get(code)
    if kind is None:
        known = translate_error(error, f"{script.name} {key}".rstrip())
        return ScriptFailed(known.detail) if isinstance(known, UnexpectedReply) else known
    CALLS_REFUSED.labels(code.lower()).inc()
    if issubclass(kind, ScriptFailed):
        return ScriptFailed(f"{script.name}: {error}")
    return kind(str(error).partition(" ")[2]) if code in _EXPLAINED else kind()


async def call(
    client: aioredis.Redis,
    script: Script,
    keys: list[str],
    args: list[Any],
    shape: type[_Shape],
    *,
    reads: bool = False,
) -> _Shape:
    """Run one script and give its reply in ``shape``; load it where the server does not know it.

    Raises RedisUnavailable when the connection fails (a write may or may not have happened: only
    repeatable scripts are run this way), ScriptFailed, and the error of a refusal.
    """
    command = "EVALSHA_RO" if reads else "EVALSHA"
    with REDIS_CALLS.labels(script.name).time():
        try:
            try:
                reply = await client.execute_command(command, script.sha, len(keys), *keys, *args)
            except NoScriptError:
                await client.script_load(script.text)  # pyright: ignore[reportArgumentType]
                reply = await client.execute_command(command, script.sha, len(keys), *keys, *args)
            return convert(reply, shape)
        except (*CONNECTION_ERRORS, RedisError, *PARSE_ERRORS) as error:
            known = refusal_error(error, script, keys[0] if keys else "")
            is_cause = isinstance(known, RedisUnavailable | UnexpectedReply)
            raise known from (error if is_cause else None)  # a refusal explains itself
