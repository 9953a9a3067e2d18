"""A Redis subscription that is confirmed, monitored and re-established when it fails.

A message announces a change (``epoch:seq``) and does not contain the data. redis-py's health check
does not wait for an answer, and its time-outs look the same as silence, so this module sends a PING
every few seconds and drops a connection that receives nothing. After a change of the secret it
subscribes on a new connection before it closes the old one.
"""

import asyncio
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
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
    """A connection and its channels."""

    __slots__ = ("asked", "confirmed", "connection", "is_ready")

    def __init__(self, connection: AbstractConnection) -> None:
        self.connection = connection
        self.is_ready = False
        """Whether the login is complete, so that commands can be sent."""
        self.asked: set[str] = set()
        """Channels that the server was asked for, and not asked to end since."""
        self.confirmed: set[str] = set()
        """Channels that the server has confirmed."""


class Subscription:
    """Calls ``on_change(channel)`` per message, ``on_up`` after each confirmed subscription.

    ``on_down`` is called once whenever a confirmed subscription is lost, or the first one fails.
    Messages sent while it was down are lost, so the owner reads everything again on ``on_up``. That
    is also called after the connection was replaced: the old one may have had unread messages.
    Channels can be added and removed at any time, without effect on the others.
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
        on_subscribed: Callable[[str], None] | None = None,
        on_message: Callable[[bytes], None] | None = None,
    ) -> None:
        """``message`` matches valid messages; others are counted and dropped.

        ``on_board`` is called before ``on_change`` if the properties of the board have changed.
        ``on_traces`` gets the traces that the next message belongs to. ``on_subscribed`` is called
        for each channel that is confirmed while the subscription is up, because it was wanted
        later; by default ``on_up`` is. ``on_message`` gets the contents of valid messages, in
        place of the calls of ``on_board`` and ``on_change``.
        """
        self._message = message
        self._on_traces = on_traces
        self._on_board = on_board
        self._on_message = on_message
        self._settings = settings
        self._name = name
        self._confirm_timeout_s = settings.redis_timeout_s
        self._connect_timeout_s = 2 * settings.redis_connect_timeout_s
        self._channels = set(channels)
        self._on_change = on_change
        self._on_up = on_up
        self._on_down = on_down
        self._on_subscribed = on_subscribed or (lambda _: on_up())
        self._link: _Link | None = None
        self._successor: asyncio.Task[_Link] | None = None
        self._channels_changed = asyncio.Event()
        self.is_up = False

    def want(self, channels: Iterable[str]) -> None:
        """Subscribe to more channels at once."""
        added = set(channels) - self._channels
        if added:
            self._channels |= added
            self._channels_changed.set()

    def drop(self, channels: Iterable[str]) -> None:
        """Unsubscribe from channels at once; a few messages of them may still arrive."""
        dropped = self._channels.intersection(channels)
        if not dropped:
            return
        self._channels -= dropped
        self._channels_changed.set()
        if self._link is not None:
            self._link.confirmed -= dropped
            self._note_confirmed(self._link)

    def hears(self, channels: Iterable[str]) -> bool:
        """Return whether all of these channels are confirmed on the current connection.

        ``on_up`` or ``on_subscribed`` was called since it became true.
        """
        link = self._link
        return self.is_up and link is not None and link.confirmed.issuperset(channels)

    async def run(self) -> None:
        """Keep the subscription alive until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send_changes())
            await self._keep_alive()

    async def _send_changes(self) -> None:
        """Send each change of the wanted channels; a new connection asks for all of them."""
        while True:
            await self._channels_changed.wait()
            self._channels_changed.clear()
            link = self._link
            if link is not None and link.is_ready and link.connection.is_connected:
                # A failure closes the connection, which ends the task that reads it.
                with suppress(*CONNECTION_ERRORS, RedisError):
                    await self._synchronise(link)

    async def _keep_alive(self) -> None:
        attempt = 0
        was_reported = False
        while True:
            reason = ""
            try:
                await self._listen()
            except (*CONNECTION_ERRORS, RedisError, *PARSE_ERRORS) as error:
                reason = type(error).__name__
            finally:
                await self._disconnect()
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

    async def _disconnect(self) -> None:
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
        await self._synchronise(link)
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
                await self._synchronise(link)
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
        link.is_ready = True

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
        following.confirmed &= self._channels
        self._channels_changed.set()  # channels may have been added or removed since it was opened
        await link.connection.disconnect(nowait=True)
        self._on_up()
        return following

    async def _open_successor(self) -> _Link:
        """Open a link with a current login; return it when it has the channels wanted now."""
        link = _Link(self._make_connection())
        try:
            await self._connect(link)
            wanted = set(self._channels)
            await self._synchronise(link)
            async with asyncio.timeout(self._confirm_timeout_s):
                while not link.confirmed >= wanted:
                    self._take(link, await link.connection.read_response())
        except BaseException:
            await link.connection.disconnect(nowait=True)
            raise
        return link

    async def _synchronise(self, link: _Link) -> None:
        """Ask the server for what is not confirmed, and to end what is not wanted any more."""
        commands: list[tuple[str, ...]] = []
        for name, channels in (
            ("UNSUBSCRIBE", link.asked - self._channels),
            ("SUBSCRIBE", self._channels - link.confirmed),
        ):
            if channels:
                commands.append((name, *sorted(channels)))
        link.asked = set(self._channels)
        if commands:
            # One write, so that the commands of two callers keep their order.
            packed = link.connection.pack_commands(commands)
            await link.connection.send_packed_command(packed, check_health=False)

    def _take(self, link: _Link, reply: Any) -> None:  # noqa: ANN401 (any push message)
        match reply:
            case [b"message", bytes(channel), bytes(data)]:
                name = channel.decode(errors="replace")
                if len(data) <= MESSAGE_BYTES_MAX and self._message.fullmatch(data):
                    if self._on_message is not None:
                        self._on_message(data)
                        return
                    if self._on_board is not None and data.endswith(_BOARD_SUFFIX):
                        self._on_board(name)
                    self._on_change(name)
                elif not data.startswith(NOTICE) or len(data) > NOTICE_BYTES_MAX:
                    _MALFORMED.inc()
                elif self._on_traces is not None:
                    self._on_traces(name, parse_notice(data))
            case [b"subscribe", bytes(channel), _]:
                self._confirm(link, channel.decode(errors="replace"))
            case [b"unsubscribe", bytes(channel), _]:
                link.confirmed.discard(channel.decode(errors="replace"))
            case _:
                pass  # the answer to a PING

    def _confirm(self, link: _Link, channel: str) -> None:
        if link is not self._link:
            link.confirmed.add(channel)
        elif channel in self._channels:
            link.confirmed.add(channel)
            if self.is_up:
                self._on_subscribed(channel)
            else:
                self._note_confirmed(link)

    def _note_confirmed(self, link: _Link) -> None:
        """Report a link as up when all wanted channels are confirmed on it."""
        confirmed, wanted = link.confirmed, self._channels
        # The count first: with many channels, comparing the sets at each reply would take long.
        if not self.is_up and len(confirmed) >= len(wanted) and confirmed >= wanted:
            self.is_up = True
            self._on_up()
