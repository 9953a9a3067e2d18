"""A Redis subscription that is confirmed, monitored and re-established when it fails.

A message announces a change (``epoch:seq``) and does not contain the data. redis-py's health check
does not wait for an answer, and its time-outs look the same as silence, so this module sends a PING
every few seconds and drops a connection that receives nothing. After a change of the secret it
subscribes on a new connection before it closes the old one.

One subscription has one connection. Channels of partitions may be at several servers of a cluster:
scoreboard.store.partition_subscription.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final
from weakref import WeakSet

from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot
from redis.exceptions import MovedError, RedisError

from scoreboard.runtime.lifecycle import backoff_s
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import counter, gauge, get_logger
from scoreboard.store.client import is_login_outdated, make_connection
from scoreboard.store.cluster import Address
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
    "Time since a subscription last received anything; of several the longest",
    normal="below 6: it is pinged every 5; 0 in an api without streams and reads of a top",
)
_log = get_logger(__name__)


class _Link:
    """A connection and its channels."""

    __slots__ = (
        "__weakref__",
        "asked",
        "confirmed",
        "connection",
        "ending",
        "heard_at",
        "is_ready",
    )

    def __init__(self, connection: AbstractConnection) -> None:
        self.connection = connection
        self.is_ready = False
        """Whether the login is complete, so that commands can be sent."""
        self.asked: set[str] = set()
        """Channels that the server was asked for, and not asked to end since."""
        self.confirmed: set[str] = set()
        """Channels that the server has confirmed."""
        self.ending: Counter[str] = Counter()
        """How often the server was asked to end a channel, and has not answered yet."""
        self.heard_at = 0.0
        """When the server last sent anything (loop time)."""


_monitored: Final[WeakSet[_Link]] = WeakSet()


def _silence_s() -> float:
    now = time.monotonic()  # the clock of event loops
    return max((0.0, *(now - link.heard_at for link in _monitored)))


_SILENCE.set_function(_silence_s)


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
        sharded_at: Address | None = None,
        on_moved: Callable[[str], None] | None = None,
    ) -> None:
        """``message`` matches valid messages; others are counted and dropped.

        ``on_board`` is called before ``on_change`` if the properties of the board have changed.
        ``on_traces`` gets the traces that the next message belongs to. ``on_subscribed`` is called
        for each channel that is confirmed while the subscription is up, because it was wanted
        later; by default ``on_up`` is. ``on_message`` gets the contents of valid messages, in
        place of the calls of ``on_board`` and ``on_change``. With ``sharded_at`` the channels are
        those of slots of this server of a cluster (SSUBSCRIBE); ``on_moved`` is called for a
        channel that is not there, or not any more, and is to drop it.
        """
        self._message = message
        self._on_traces = on_traces
        self._on_board = on_board
        self._on_message = on_message
        self._sharded_at = sharded_at
        self._on_moved = on_moved or (lambda _: None)
        self._shard = "" if sharded_at is None else "S"
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
            _monitored.discard(link)
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
        _monitored.add(link)
        renew_at = loop.time()
        await self._synchronise(link)
        ping_at = link.heard_at + PING_S
        handled = 0
        while True:
            now = loop.time()
            if not self.is_up and now - link.heard_at > self._confirm_timeout_s:
                raise TimeoutError
            if now - link.heard_at > SILENCE_S:
                raise TimeoutError
            if now >= renew_at:
                renew_at = now + RENEW_EVERY_S
                link = await self._renew(link)
            if now >= ping_at:
                ping_at = now + PING_S
                await self._synchronise(link)
                await link.connection.send_command("PING", check_health=False)
            wait_s = min(ping_at, renew_at) - now
            if not self.is_up:
                wait_s = min(wait_s, self._confirm_timeout_s)
            try:
                reply: Any = await link.connection.read_response(timeout=max(wait_s, 0.001))
            except MovedError as error:
                self._note_moved(link, error)
                continue
            if reply is None:
                continue
            link.heard_at = loop.time()
            self._take(link, reply)
            handled += 1
            if handled % BURST == 0:
                await asyncio.sleep(0)

    def _make_connection(self) -> AbstractConnection:
        return make_connection(
            self._settings, name=self._name, decode=False, address=self._sharded_at
        )

    async def _connect(self, link: _Link) -> None:
        async with asyncio.timeout(self._connect_timeout_s):
            await link.connection.connect()
        link.heard_at = asyncio.get_running_loop().time()
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
        following.heard_at = asyncio.get_running_loop().time()
        _monitored.discard(link)
        _monitored.add(following)
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
        ended = link.asked - self._channels
        link.ending.update(ended)
        commands = [
            (f"{self._shard}{name}", *group)
            for name, channels in (
                ("UNSUBSCRIBE", ended),
                ("SUBSCRIBE", self._channels - link.confirmed),
            )
            for group in self._groups(channels)
        ]
        link.asked = set(self._channels)
        if commands:
            # One write, so that the commands of two callers keep their order.
            packed = link.connection.pack_commands(commands)
            await link.connection.send_packed_command(packed, check_health=False)

    def _groups(self, channels: Iterable[str]) -> Iterable[list[str]]:
        """Group channels that one command may name: those of one slot of a cluster."""
        ordered = sorted(channels)
        if self._sharded_at is None:
            return [ordered] if ordered else []
        by_slot: dict[int, list[str]] = {}
        for channel in ordered:
            by_slot.setdefault(key_slot(channel.encode()), []).append(channel)
        return by_slot.values()

    def _note_moved(self, link: _Link, error: MovedError) -> None:
        """Report the channels that a server does not have, because it has not their slot."""
        for channel in sorted(link.asked - link.confirmed):
            if key_slot(channel.encode()) == error.slot_id:
                link.asked.discard(channel)
                self._on_moved(channel)

    def _note_end(self, link: _Link, channel: str) -> None:
        """Note that the server has ended a channel; without being asked if its slot has moved."""
        link.confirmed.discard(channel)
        if link.ending[channel] > 1:
            link.ending[channel] -= 1
        elif link.ending.pop(channel, 0) == 0 and channel in link.asked:
            link.asked.discard(channel)
            if link is self._link:
                self._on_moved(channel)

    def _take(self, link: _Link, reply: Any) -> None:  # noqa: ANN401 (any push message)
        match reply:
            case [b"message" | b"smessage", bytes(channel), bytes(data)]:
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
            case [b"subscribe" | b"ssubscribe", bytes(channel), _]:
                self._confirm(link, channel.decode(errors="replace"))
            case [b"unsubscribe" | b"sunsubscribe", bytes(channel), _]:
                self._note_end(link, channel.decode(errors="replace"))
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
