"""A Redis subscription that is confirmed, monitored and re-established when it fails.

A message announces a change (``epoch:seq``) and does not contain the data. redis-py's health check
does not wait for an answer, and its time-outs look the same as silence, so this module sends a PING
every few seconds and drops a connection that receives nothing. After a change of the secret it
subscribes on a new connection before it closes the old one.
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
from scoreboard.store.client import is_login_outdated, make_connection
from scoreboard.store.replies import CONNECTION_ERRORS, PARSE_ERRORS
from scoreboard.trace_context import NOTICE, NOTICE_BYTES_MAX, TraceContext, parse_notice

PING_S: Final = 5.0
SILENCE_S: Final = 15.0
"""After three unanswered PINGs the connection is considered dead."""

MESSAGE_BYTES_MAX: Final = 64
"""``epoch:seq`` is at most 41 bytes; longer messages, except lists of traces, are dropped."""

RENEW_EVERY_S: Final = 1.0
"""Interval of checking whether the login of the connection is outdated."""

RECONNECT_MOST_S: Final = 0.5
"""Longest wait before a reconnection: viewers must have the board two seconds after Redis is
back. One attempt per process costs Redis little."""

BURST: Final = 100
"""Messages handled before other tasks run: a backlog must not delay the viewers."""

_MESSAGE: Final = re.compile(rb"\d{1,20}:\d{1,20}(?::[!-~]*)?")
"""Parts that a later version adds at the end are ignored."""

_BOARD_SUFFIX: Final = b":board"
"""Part of a message: visibility or state of the board has changed (lua/configure.lua)."""

_RECONNECTS: Final = counter(
    "pubsub_reconnects_total",
    "Times the subscription was lost",
    unit="times",
    normal="0; 1 for each restart or failover of Redis",
)
_MALFORMED: Final = counter(
    "pubsub_malformed_total", "Malformed notifications dropped", unit="notifications", normal="0"
)
_SILENCE: Final = gauge(
    "pubsub_silence_seconds",
    "Time since the subscription last received anything",
    normal="below 6: it is pinged every 5; 0 in an api without streams and reads of a top",
)
_log = get_logger(__name__)


class _Link:
    """A connection and the channels that the server has confirmed on it."""

    __slots__ = ("confirmed", "connection")

    def __init__(self, connection: AbstractConnection) -> None:
        self.connection = connection
        self.confirmed: set[str] = set()


class Subscription:
    """Calls ``on_change(channel)`` per message, ``on_up`` after each confirmed subscription.

    ``on_down`` is called once whenever a confirmed subscription is lost, or the first one fails.
    Messages sent while it was down are lost, so the owner reads everything again on ``on_up``. That
    is also called after the connection was replaced: the old one may have had unread messages.
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
        on_traces: Callable[[str, list[TraceContext]], None] | None = None,
        on_board: Callable[[str], None] | None = None,
    ) -> None:
        """``message`` matches valid messages; others are counted and dropped.

        ``on_board`` is called before ``on_change`` if the properties of the board have changed.
        ``on_traces`` gets the traces that the next message belongs to.
        """
        self._message = message
        self._on_traces = on_traces
        self._on_board = on_board
        self._settings = settings
        self._name = name
        self._confirm_timeout_s = settings.redis_timeout_s
        self._connect_timeout_s = 2 * settings.redis_connect_timeout_s
        self._channels = set(channels)
        self._on_change = on_change
        self._on_up = on_up
        self._on_down = on_down
        self._link: _Link | None = None
        self._successor: asyncio.Task[_Link] | None = None
        self.is_up = False

    def want(self, channels: Iterable[str]) -> None:
        """Subscribe to more channels, within one PING interval."""
        self._channels.update(channels)

    @property
    def is_complete(self) -> bool:
        """Return whether every wanted channel is confirmed on the current connection.

        ``on_up`` was called since it became true.
        """
        link = self._link
        return self.is_up and link is not None and link.confirmed >= self._channels

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
        link, self._link = self._link, None
        successor, self._successor = self._successor, None
        if link is not None:
            await link.connection.disconnect(nowait=True)
        if successor is not None:
            successor.cancel()
            await asyncio.wait([successor])
            if not successor.cancelled() and successor.exception() is None:
                await successor.result().connection.disconnect(nowait=True)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        link = self._link = _Link(self._make_connection())
        await self._connect(link)
        heard_at = renew_at = loop.time()
        _SILENCE.set_function(lambda: loop.time() - heard_at)
        await self._subscribe(link)
        ping_at = heard_at + PING_S
        handled = 0
        while True:
            now = loop.time()
            if not self.is_up and now - heard_at > self._confirm_timeout_s:
                raise TimeoutError
            if now - heard_at > SILENCE_S:
                raise TimeoutError
            if now >= renew_at:
                renew_at = now + RENEW_EVERY_S
                following = await self._renew(link)
                if following is not link:
                    link, heard_at = following, loop.time()
            if now >= ping_at:
                ping_at = now + PING_S
                await self._subscribe(link)
                await link.connection.send_command("PING", check_health=False)
            wait_s = min(ping_at, renew_at) - now
            if not self.is_up:
                wait_s = min(wait_s, self._confirm_timeout_s)
            reply: Any = await link.connection.read_response(timeout=max(wait_s, 0.001))
            if reply is None:
                continue
            heard_at = loop.time()
            self._take(link, reply)
            handled += 1
            if handled % BURST == 0:
                await asyncio.sleep(0)

    def _make_connection(self) -> AbstractConnection:
        return make_connection(self._settings, name=self._name, decode=False)

    async def _connect(self, link: _Link) -> None:
        async with asyncio.timeout(self._connect_timeout_s):
            await link.connection.connect()

    async def _renew(self, link: _Link) -> _Link:
        """Return the successor of a link with an outdated login once it is ready, else the link."""
        successor = self._successor
        if successor is None:
            if self.is_up and is_login_outdated(link.connection):
                self._successor = asyncio.create_task(self._open_successor())
            return link
        if not successor.done():
            return link
        self._successor = None
        error = successor.exception()
        if error is not None:
            _log.warning("subscription_login_not_renewed", error=type(error).__name__)
            return link  # it is tried again
        self._link = following = successor.result()
        await link.connection.disconnect(nowait=True)
        self._on_up()
        return following

    async def _open_successor(self) -> _Link:
        """Open a link with a current login; return it when all channels are confirmed on it."""
        link = _Link(self._make_connection())
        try:
            await self._connect(link)
            await self._subscribe(link)
            async with asyncio.timeout(self._confirm_timeout_s):
                while not link.confirmed >= self._channels:
                    self._take(link, await link.connection.read_response())
        except BaseException:
            await link.connection.disconnect(nowait=True)
            raise
        return link

    async def _subscribe(self, link: _Link) -> None:
        missing = self._channels - link.confirmed
        if missing:
            await link.connection.send_command("SUBSCRIBE", *sorted(missing), check_health=False)

    def _take(self, link: _Link, reply: Any) -> None:  # noqa: ANN401 (any push message)
        match reply:
            case [b"message", bytes(channel), bytes(data)]:
                name = channel.decode(errors="replace")
                if len(data) <= MESSAGE_BYTES_MAX and self._message.fullmatch(data):
                    if self._on_board is not None and data.endswith(_BOARD_SUFFIX):
                        self._on_board(name)
                    self._on_change(name)
                elif not data.startswith(NOTICE) or len(data) > NOTICE_BYTES_MAX:
                    _MALFORMED.inc()
                elif self._on_traces is not None:
                    self._on_traces(name, parse_notice(data))
            case [b"subscribe", bytes(channel), _]:
                link.confirmed.add(channel.decode(errors="replace"))
                if link is self._link and link.confirmed >= self._channels:
                    self.is_up = True
                    self._on_up()
            case _:
                pass  # the answer to a PING
