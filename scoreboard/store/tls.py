"""TLS contexts of connections to Redis, shared by connections with the same parameters.

redis-py makes a context for each connection. That reads the authorities of the system again, which
takes about 35 ms on the event loop: a pool of 16 that connects would stop its process for half a
second.
"""

from copy import copy
from pathlib import Path
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection, RedisSSLContext, SSLConnection

_PARAMETERS: Final = tuple(
    name for name in RedisSSLContext.__slots__ if name not in {"context", "password"}
)
"""The password is that of the file with the key, and stays out of the dictionary."""

_FILES: Final = ("ca_certs", "certfile", "keyfile")
CONTEXTS_MAX: Final = 16
"""Contexts that are kept; a process has one or two, and another one after each new certificate."""

_contexts: dict[tuple[str, ...], RedisSSLContext] = {}


class _SharedContext:
    """Mixin of TLS connections."""

    def _connection_arguments(self) -> Any:  # noqa: ANN401 (as redis-py declares it)
        """Return the arguments of asyncio.open_connection; redis-py asks each time it connects."""
        itself: Any = self
        itself.ssl_context = shared_context(itself.ssl_context)
        connection: Any = super()
        return connection._connection_arguments()  # noqa: SLF001 (there is no public way)


def shared_context(context: RedisSSLContext) -> RedisSSLContext:
    """Return the context of these parameters, made anew if one of its files was replaced."""
    parameters = [repr(getattr(context, name)) for name in _PARAMETERS]
    key = (*parameters, *(_version(getattr(context, name)) for name in _FILES))
    found = _contexts.get(key)
    if found is None:
        if len(_contexts) >= CONTEXTS_MAX:
            del _contexts[next(iter(_contexts))]
        found = _contexts[key] = copy(context)
        found.context = None
    return found


def with_shared_context(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    """Return a class of connections; those with TLS share their contexts."""
    if not issubclass(kind, SSLConnection):
        return kind
    return type(kind.__name__, (_SharedContext, kind), {})


def _version(path: str | None) -> str:
    """Return what changes when a file is replaced; a missing one is reported by its reader."""
    try:
        facts = Path(path).stat() if path else None
    except OSError:
        facts = None
    return f"{facts.st_ino} {facts.st_mtime_ns} {facts.st_size}" if facts else ""
