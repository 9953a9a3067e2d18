"""A connection to Redis for pipelined commands: one write, then one reply per command.

redis-py connects and authenticates (address, TLS, credentials); then this class takes over the
socket, because redis-py's way of sending and reading costs a task and several timers per call
(docs/explanation/benchmarks.md, section API). Invariants: at most one exchange is in progress;
replies belong to its commands in order; a connection on which anything else happens is closed.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from scoreboard.runtime.settings import Settings
from scoreboard.store.client import is_login_outdated, make_connection
from scoreboard.store.cluster import Address
from scoreboard.store.replies import PARSE_ERRORS, is_not_primary

Command = tuple[str | bytes | int, ...]

ERRORS: Final[dict[str, type[RedisError]]] = {
    "NOSCRIPT": NoScriptError,
    "LOADING": BusyLoadingError,
    "READONLY": ReadOnlyError,
    "OOM": OutOfMemoryError,
    "NOAUTH": AuthenticationError,
    "WRONGPASS": AuthenticationError,
    "NOPERM": NoPermissionError,
    "MOVED": MovedError,
    "ASK": AskError,
    "TRYAGAIN": TryAgainError,
}
"""redis-py's exception classes by error code; every other code is a ResponseError."""


class PipelinedConnection(asyncio.Protocol):
    """A connection that sends commands in one write and returns their replies."""

    def __init__(self, settings: Settings, *, name: str, address: Address | None = None) -> None:
        """``address`` is the server of a cluster."""
        self._settings = settings
        self.address = address
        self._connection: AbstractConnection = make_connection(settings, name=name, address=address)
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        self._replies: list[Any] = []
        self._wanted = 0
        self._exchange: asyncio.Future[list[Any]] | None = None

    @property
    def is_connected(self) -> bool:
        """Return whether commands can be sent."""
        return self._transport is not None

    @property
    def is_login_outdated(self) -> bool:
        """Return whether it is connected and the secret has changed since it logged in."""
        return self.is_connected and is_login_outdated(self._connection)

    async def connect(self) -> None:
        """Connect and authenticate.

        Raises redis-py's errors, TimeoutError.
        """
        await self.close()  # redis-py does not know the state of the previous socket
        async with asyncio.timeout(self._settings.redis_connect_timeout_s * 2):
            await self._connection.connect()
        connection: Any = self._connection
        transport: Any = connection._writer.transport  # noqa: SLF001 (there is no public way)
        self._reader = hiredis.Reader(encoding="utf-8", errors="replace", replyError=_as_error)
        transport.set_protocol(self)
        self._transport = transport

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one write; return their replies, an error reply as an exception.

        Raises redis-py's ConnectionError or TimeoutError if the replies do not arrive: the commands
        may have been executed, and the connection is closed. A cancellation also closes it.
        """
        if self._transport is None or self._exchange is not None:
            raise RedisConnectionError("the connection is in use or closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        self._exchange, self._wanted, self._replies = future, len(commands), []
        timer = loop.call_later(self._settings.redis_timeout_s, self._time_out)
        pack: Any = hiredis.pack_command  # its stub allows a tuple of one
        try:
            self._transport.write(b"".join(map(pack, commands)))
            replies = await future
        except RuntimeError as error:  # raised by uvloop for a closed socket
            self._fail(RedisConnectionError("the connection was closed"))
            raise RedisConnectionError("the connection was closed") from error
        except asyncio.CancelledError:
            self._fail(RedisConnectionError("the exchange was cancelled"))
            raise
        finally:
            timer.cancel()
            self._exchange = None
        if self.address is None and any(map(is_not_primary, replies)):
            await self.close()  # the address may lead to the new primary
        return replies

    async def close(self) -> None:
        """Close the connection; ``connect`` may open it again."""
        self._transport = None
        # nowait: redis-py would wait for a protocol that the transport no longer has.
        await self._connection.disconnect(nowait=True)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes and complete the exchange when all replies are there."""
        replies = self._replies
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                replies.append(reply)
        except (hiredis.HiredisError, *PARSE_ERRORS):
            self._fail(RedisConnectionError("the server sent invalid RESP"))
            return
        if len(replies) < self._wanted:
            return
        exchange = self._exchange
        if exchange is None or len(replies) > self._wanted:
            self._fail(RedisConnectionError("the server sent an unexpected reply"))
        elif not exchange.done():
            exchange.set_result(replies)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the exchange in progress."""
        self._fail(RedisConnectionError(str(exc or "closed by the server")))

    def _time_out(self) -> None:
        self._fail(RedisTimeoutError("no reply in time"))

    def _fail(self, error: RedisError) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        if self._exchange is not None and not self._exchange.done():
            self._exchange.set_exception(error)


def _as_error(text: str) -> RedisError:
    word, _, rest = text.partition(" ")
    kind = ERRORS.get(word)
    return ResponseError(text) if kind is None else kind(rest)
