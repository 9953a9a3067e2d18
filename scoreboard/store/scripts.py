"""Runs Lua scripts by their digest and turns refusals into errors."""

import hashlib
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NoReturn, TypeVar

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
from scoreboard.runtime.collectors import LoopHistogram, Series
from scoreboard.runtime.telemetry import REDIS_BUCKETS, Children, counter
from scoreboard.store.cluster import ClusterClient, load_script, send_many
from scoreboard.store.replies import (
    CONNECTION_ERRORS,
    PARSE_ERRORS,
    convert,
    error_code,
    read_reply,
    translate_error,
)

_EXPLAINED: Final = frozenset({"FENCE", "STALE", "LAG"})
"""Refusals whose text becomes the detail of the error."""

_SECONDS: Final = LoopHistogram(
    "redis_call_duration_seconds",
    "Time of one script call, as seen by the caller",
    REDIS_BUCKETS,
    "script",
    normal="p99 below 0.01; with appendfsync always, submit takes an fsync of the disk",
)
_REFUSED: Final = Children(
    counter(
        "calls_refused_total",
        "Script calls refused, by code",
        "reason",
        unit="calls",
        normal="0; bucket and layout once for each generation or change of layout and connection",
    ),
    *(code.lower() for code in REFUSALS),
)

_SHARDED_PUBLISH: Final = re.compile(rb"'PUBLISH', (changes|commits)\b")
"""Messages of a partition, whose channel has the hash tag of the keys."""

_Shape = TypeVar("_Shape")
_Call = tuple[Sequence[str], Sequence[Any]]
"""Keys and arguments of a call."""


class Script(Struct, frozen=True):
    """A script of lua/ with the digest by which the server knows it."""

    name: str
    text: bytes
    sha: str

    @classmethod
    def load(cls, name: str) -> "Script":
        """Read ``lua/<name>.lua``."""
        return cls._of(name, resources.script(name))

    @classmethod
    def _of(cls, name: str, text: bytes) -> "Script":
        return cls(name, text, hashlib.sha1(text, usedforsecurity=False).hexdigest())

    @property
    def sharded(self) -> "Script":
        """The script as it is sent to a cluster.

        It publishes messages of a partition with SPUBLISH, to the servers of its slot only.
        """
        return _sharded(self)


@lru_cache
def _sharded(script: Script) -> Script:
    text = _SHARDED_PUBLISH.sub(rb"'SPUBLISH', \1", script.text)
    return script if text == script.text else Script._of(script.name, text)  # noqa: SLF001


def script_for(client: aioredis.Redis, script: Script) -> Script:
    """Return the form of a script that a client's servers get."""
    return script.sharded if isinstance(client, ClusterClient) else script


def call_seconds(script: Script) -> Series:
    """Return the histogram of a script's calls."""
    return _SECONDS.series(script.name)


def count_refusal(code: str) -> None:
    """Count a refused call by its code, one of REFUSALS."""
    _REFUSED[code.lower()].inc()


def refusal_error(error: Exception, script: Script, key: str) -> ScoreboardError:
    """Translate what redis-py raised for a script's reply; count refusals.

    ``key`` is a key of the call, which names the partition in a message. The caller handles BUCKET
    and LAYOUT itself.
    """
    code = error_code(error) if isinstance(error, ResponseError) else ""
    kind = REFUSALS.get(code)
    if kind is None:
        known = translate_error(error, f"{script.name} {key}".rstrip())
        return ScriptFailed(known.detail) if isinstance(known, UnexpectedReply) else known
    count_refusal(code)
    if issubclass(kind, ScriptFailed):
        return ScriptFailed(f"{script.name}: {error}")
    return kind(str(error).partition(" ")[2]) if code in _EXPLAINED else kind()


def script_command(
    script: Script, keys: Sequence[str], args: Sequence[Any], *, reads: bool
) -> tuple[Any, ...]:
    """Return the command that runs a script; ``reads``: it writes nothing."""
    return ("EVALSHA_RO" if reads else "EVALSHA", script.sha, len(keys), *keys, *args)


async def load_everywhere(client: aioredis.Redis, script: Script) -> None:
    """Load a script on the server, or on all primaries of a cluster.

    Raises RedisUnavailable, UnexpectedReply.
    """
    text = script_for(client, script).text
    await read_reply(load_script(client, text, ()), type(None), "SCRIPT LOAD")


async def call(
    client: aioredis.Redis,
    script: Script,
    keys: Sequence[str],
    args: Sequence[Any],
    shape: type[_Shape],
    *,
    reads: bool = False,
) -> _Shape:
    """Run a script and return its reply as ``shape``; load the script if the server lacks it.

    Raises RedisUnavailable when the connection fails (a write may have happened: only repeatable
    scripts are run this way), ScriptFailed, and the error of a refusal.
    """
    script = script_for(client, script)
    command = script_command(script, keys, args, reads=reads)
    began_s = time.perf_counter()
    try:
        try:
            reply = await client.execute_command(*command)
        except NoScriptError:
            await load_script(client, script.text, keys[:1])
            reply = await client.execute_command(*command)
        return convert(reply, shape)
    except (*CONNECTION_ERRORS, RedisError, *PARSE_ERRORS) as error:
        _raise(error, script, keys)
    finally:
        call_seconds(script).observe(time.perf_counter() - began_s)


async def call_many(
    client: aioredis.Redis,
    script: Script,
    calls: Sequence[_Call],
    shape: type[_Shape],
    *,
    reads: bool = True,
) -> list[_Shape]:
    """Run a script several times in one round trip; return the replies in order.

    A script that writes (``reads`` is false) is one that may be repeated.

    Raises what ``call`` raises, for the first call that failed.
    """
    if len(calls) == 1:
        keys, args = calls[0]
        return [await call(client, script, keys, args, shape, reads=reads)]
    found: list[_Shape] = []
    for reply in await call_each(client, script, calls, shape, reads=reads):
        if isinstance(reply, ScoreboardError):
            raise reply
        found.append(reply)
    return found


async def call_each(
    client: aioredis.Redis,
    script: Script,
    calls: Sequence[_Call],
    shape: type[_Shape],
    *,
    reads: bool = True,
) -> list[_Shape | ScoreboardError]:
    """Run a script several times in one round trip, as ``call_many``; return errors in place.

    Raises what ``call`` raises if all calls failed together.
    """
    began_s = time.perf_counter()
    try:
        commands = [script_command(script, *one, reads=reads) for one in calls]
        replies = await send_many(client, commands)
        lacking = [
            keys[0]
            for (keys, _), reply in zip(calls, replies, strict=True)
            if isinstance(reply, NoScriptError)
        ]
        if lacking:
            await load_script(client, script.text, lacking)
            replies = await send_many(client, commands)
    except (*CONNECTION_ERRORS, RedisError, *PARSE_ERRORS) as error:
        _raise(error, script, calls[0][0])
    finally:
        call_seconds(script).observe(time.perf_counter() - began_s)
    return [
        _converted(reply, script, keys, shape)
        for (keys, _), reply in zip(calls, replies, strict=True)
    ]


def _converted(
    reply: object, script: Script, keys: Sequence[str], shape: type[_Shape]
) -> _Shape | ScoreboardError:
    """Return the reply of one of several calls, or why it has none."""
    try:
        if isinstance(reply, Exception):
            raise reply
        return convert(reply, shape)
    except (*CONNECTION_ERRORS, RedisError, *PARSE_ERRORS) as error:
        try:
            _raise(error, script, keys)
        except ScoreboardError as known:
            return known


def _raise(error: Exception, script: Script, keys: Sequence[str]) -> NoReturn:
    known = refusal_error(error, script, keys[0] if keys else "")
    is_cause = isinstance(known, RedisUnavailable | UnexpectedReply)
    raise known from (error if is_cause else None)  # a refusal explains itself
