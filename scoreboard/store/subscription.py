"""A Redis subscription that is confirmed, monitored and re-established when it fails.

A message announces a change (``epoch:seq``) and does not contain the data. redis-py's health check
does not wait for an answer and its time-outs cannot be told from silence, so this module sends a
PING every few seconds and drops a connection that receives nothing.
"""

import asyncio
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from scoreboard.runtime.lifecycle import backoff_s
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import counter, gauge, get_logger
from scoreboard.store.client import make_pool
from scoreboard.store.replies import CONNECTION_ERRORS, PARSE_ERRORS

PING_S: Final = 5.0
SILENCE_S: Final = 15.0
"""After three unanswered PINGs the connection is considered dead."""

MESSAGE_BYTES_MAX: Final = 64
"""``epoch:seq`` is at most 41 bytes; longer messages are dropped."""

RECONNECT_MOST_S: Final = 0.5
"""Longest wait before a reconnection: viewers must have the board two seconds after Redis is
back. One attempt per process costs Redis little."""

BURST: Final = 100
"""Messages handled before other tasks run: a backlog must not delay the viewers."""

_MESSAGE: Final = re.compile(rb"\d{1,20}:\d{1,20}")
_RECONNECTS = counter("pubsub_reconnects_total", "Times the subscription was lost")
_MALFORMED = counter("pubsub_malformed_total", "Malformed notifications dropped")
_SILENCE = gauge("pubsub_silence_seconds", "Time since the subscription last received anything")
_log = get_logger(__name__)


class Subscription:
    """Calls ``on_change(channel)`` per message, ``on_up`` after each confirmed subscription.

    ``on_down`` is called once whenever a confirmed subscription is lost, or the first one fails.
    Messages sent while it was down are lost, so the owner reads everything again on ``on_up``.
    """

    def __init__(
        self,
        settings: Settings,
        channels: Iterable[str],
        *,
        name: str,
        on_change: Callable[[str], None],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        message: re.Pattern[bytes] = _MESSAGE,
    ) -> None:
        """``message`` matches valid messages; others are counted and dropped."""
        self._message = message
        self._pool = make_pool(settings, name=name, decode=False, connections=1)
        self._confirm_timeout_s = settings.redis_timeout_s
        self._connect_timeout_s = 2 * settings.redis_connect_timeout_s
        self._channels = set(channels)
        self._confirmed: set[str] = set()
        self._on_change = on_change
        self._on_up = on_up
        self._on_down = on_down
        self._connection: AbstractConnection | None = None
        self.is_up = False

    def want(self, channels: Iterable[str]) -> None:
        """Subscribe to more channels, within one PING interval."""
        self._channels.update(channels)

    async def run(self) -> None:
        """Keep the subscription alive until cancelled."""
        attempt = 0
        was_reported = False
        while True:
            reason = ""
            try:
                await self._listen()
            except (*CONNECTION_ERRORS, RedisError, *PARSE_ERRORS) as error:
                reason = type(error).__name__
            finally:
                await self._drop()
            if self.is_up:
                attempt = 0
            if self.is_up or not was_reported:
                was_reported = True
                self.is_up = False
                _RECONNECTS.inc()
                _log.warning("subscription_lost", error=reason)
                self._on_down()
            await asyncio.sleep(backoff_s(attempt, most_s=RECONNECT_MOST_S))
            attempt += 1

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._confirmed.clear()
        connection = self._connection = self._pool.make_connection()
        async with asyncio.timeout(self._connect_timeout_s):
            await connection.connect()
        heard_at = loop.time()
        _SILENCE.set_function(lambda: loop.time() - heard_at)
        await self._subscribe(connection)
        ping_at = heard_at + PING_S
        handled = 0
        while True:
            now = loop.time()
            if not self.is_up and now - heard_at > self._confirm_timeout_s:
                raise TimeoutError
            if now - heard_at > SILENCE_S:
                raise TimeoutError
            if now >= ping_at:
                ping_at = now + PING_S
                await self._subscribe(connection)
                await connection.send_command("PING", check_health=False)
            wait_s = ping_at - now if self.is_up else min(ping_at - now, self._confirm_timeout_s)
            reply: Any = await connection.read_response(timeout=max(wait_s, 0.001))
            if reply is None:
                continue
            heard_at = loop.time()
            self._take(reply)
            handled += 1
            if handled % BURST == 0:
                await asyncio.sleep(0)

    async def _subscribe(self, connection: AbstractConnection) -> None:
        missing = self._channels - self._confirmed
        if missing:
            await connection.send_command("SUBSCRIBE", *sorted(missing), check_health=False)

    def _take(self, reply: Any) -> None:  # noqa: ANN401 (any push message)
        match reply:
            case [b"message", bytes(channel), bytes(data)]:
                if len(data) > MESSAGE_BYTES_MAX or self._message.fullmatch(data) is None:
                    _MALFORMED.inc()
                    return
                self._on_change(channel.decode(errors="replace"))
            case [b"subscribe", bytes(channel), _]:
                self._confirmed.add(channel.decode(errors="replace"))
                if self._confirmed >= self._channels:
                    self.is_up = True
                    self._on_up()
            case _:
                pass  # the answer to a PING
