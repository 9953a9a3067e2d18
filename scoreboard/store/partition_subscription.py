"""Notifications of partitions, from the server that has each of them.

On a single server that is one subscription. In a cluster the scripts publish them to the slot of
the partition only (SPUBLISH), so this module keeps one subscription per primary that has wanted
channels, opened and closed on demand, and follows the slots: when a server ends a channel or names
another owner, when a connection is lost, and every few seconds.

A message that is published while its channel moves is lost. ``on_heard`` is called afterwards, and
the owner reads everything again.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Final

from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.client import make_slot_map
from scoreboard.store.cluster import SLOTS_READS, Address, SlotMap
from scoreboard.store.subscription import Subscription
from scoreboard.trace_context import TraceContext

SLOTS_EVERY_S: Final = 10.0
"""Interval of reading the owners of the slots while every channel is heard."""

SLOTS_SOON_S: Final = 0.5
"""The same while a server is away, or has not every channel that it should have."""

SLOTS_PAUSE_S: Final = 0.1
"""Least time between two such reads."""

_log = get_logger(__name__)


class _Server:
    """The subscription at one server; without ``address`` it is the only one."""

    __slots__ = ("address", "channels", "subscription", "task")

    def __init__(self, address: Address | None) -> None:
        self.address = address
        self.channels: set[str] = set()
        self.subscription: Subscription
        self.task: asyncio.Task[None] | None = None


class PartitionSubscription:
    """Calls ``on_change(channel)`` per message, wherever the channel is.

    ``on_heard`` gets channels whose messages arrive from now on, also after an interruption;
    ``on_lost`` those whose messages do not. Channels can be added and removed at any time. Run
    ``run`` in a task group.
    """

    def __init__(
        self,
        settings: Settings,
        channels: Iterable[str],
        *,
        name: str,
        on_heard: Callable[[Collection[str]], None],
        on_lost: Callable[[Collection[str]], None],
        on_change: Callable[[str], None] = lambda _: None,
        on_traces: Callable[[str, list[TraceContext]], None] | None = None,
        on_board: Callable[[str], None] | None = None,
        on_message: Callable[[bytes], None] | None = None,
    ) -> None:
        """``on_traces``, ``on_board`` and ``on_message`` are those of Subscription."""
        self._settings = settings
        self._name = name
        self._on_change = on_change
        self._on_heard = on_heard
        self._on_lost = on_lost
        self._on_traces = on_traces
        self._on_board = on_board
        self._on_message = on_message
        self._slot_map = make_slot_map(settings, name=name)
        self._channels: set[str] = set()
        self._places: dict[str, _Server] = {}
        """The server at which each channel was asked for; none if its slot has no known owner."""
        self._suspected: dict[str, Address] = {}
        """Channels that are heard, and the other owner that a server has named."""
        self._servers: dict[Address | None, _Server] = {}
        self._group: asyncio.TaskGroup | None = None
        self._slots_wanted = asyncio.Event()
        if self._slot_map is None:
            self._open(None)
        self.want(channels)

    @property
    def is_cluster(self) -> bool:
        """Whether the channels may be at several servers."""
        return self._slot_map is not None

    @property
    def is_up(self) -> bool:
        """Whether at least one server is heard."""
        return any(server.subscription.is_up for server in self._servers.values())

    def want(self, channels: Iterable[str]) -> None:
        """Subscribe to more channels at once."""
        added = set(channels) - self._channels
        self._channels |= added
        self._place(added)

    def drop(self, channels: Iterable[str]) -> None:
        """Unsubscribe from channels at once; a few messages of them may still arrive."""
        dropped = self._channels.intersection(channels)
        self._channels -= dropped
        self._leave(dropped)

    def hears(self, channels: Iterable[str]) -> bool:
        """Return whether messages of all of these channels arrive.

        ``on_heard`` was called since it became true.
        """
        return not self.unheard(channels)

    def unheard(self, channels: Iterable[str]) -> list[str]:
        """Return those of the channels whose messages do not arrive."""
        found: list[str] = []
        for channel in channels:
            server = self._places.get(channel)
            if server is None or not server.subscription.hears((channel,)):
                found.append(channel)
        return found

    def servers_of(self, channels: Iterable[str]) -> frozenset[Address | None]:
        """Return the servers of channels, as far as they are known."""
        places = (self._places.get(channel) for channel in channels)
        return frozenset(place.address for place in places if place is not None)

    def check_soon(self) -> None:
        """Read the owners of the slots soon: a server of a channel may be away."""
        self._slots_wanted.set()

    async def run(self) -> None:
        """Keep the subscriptions alive until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for server in self._servers.values():
                    self._start(server)
                if self._slot_map is not None:
                    await self._follow_slots(self._slot_map)
        finally:
            self._group = None
            if self._slot_map is not None:
                await self._slot_map.close()

    # Places

    async def _follow_slots(self, slot_map: SlotMap) -> None:
        """Keep every channel at the owner of its slot, until cancelled."""
        while True:
            self._slots_wanted.clear()
            if await slot_map.refresh(SLOTS_READS * self._settings.redis_timeout_s):
                self._place(self._confirmed_moves(slot_map))
            homeless = self._channels - self._places.keys()
            if homeless:
                self._on_lost(homeless)
            await asyncio.sleep(SLOTS_PAUSE_S)
            is_settled = not homeless and not self._suspected
            are_up = all(server.subscription.is_up for server in self._servers.values())
            with suppress(TimeoutError):
                async with asyncio.timeout(
                    SLOTS_EVERY_S if is_settled and are_up else SLOTS_SOON_S
                ):
                    await self._slots_wanted.wait()

    def _confirmed_moves(self, slot_map: SlotMap) -> list[str]:
        """Return the channels that are to be asked for at the owner of their slot now.

        One that is heard moves only if two answers in a row name the same other owner: a server
        may not know of a move yet, and the channel would go back and forth.
        """
        moves: list[str] = []
        before, self._suspected = self._suspected, {}
        for channel in self._channels:
            place, owner = self._places.get(channel), slot_map.owner_of(channel)
            if place is not None and owner is not None and place.address != owner:
                is_certain = before.get(channel) == owner
                if not is_certain and place.subscription.hears((channel,)):
                    self._suspected[channel] = owner
                    continue
            moves.append(channel)
        return moves

    def _place(self, channels: Iterable[str]) -> None:
        """Ask for channels at the owners of their slots, as far as these are known."""
        moved: list[str] = []
        added: dict[Address | None, list[str]] = {}
        for channel in channels:
            place = self._places.get(channel)
            if self._slot_map is None:
                added.setdefault(None, []).append(channel)
                continue
            owner = self._slot_map.owner_of(channel)
            if owner is None:
                self._slots_wanted.set()
            elif place is None or place.address != owner:
                added.setdefault(owner, []).append(channel)
                if place is not None:
                    moved.append(channel)
        self._leave(moved)
        for address, some in added.items():
            server = self._servers.get(address) or self._open(address)
            server.channels.update(some)
            self._places.update(dict.fromkeys(some, server))
            server.subscription.want(some)
        if moved:
            self._on_lost(moved)

    def _leave(self, channels: Iterable[str]) -> None:
        """Unsubscribe from channels where they are; close subscriptions without channels."""
        left: dict[_Server, list[str]] = {}
        for channel in channels:
            server = self._places.pop(channel, None)
            if server is not None:
                left.setdefault(server, []).append(channel)
        for server, some in left.items():
            server.channels.difference_update(some)
            if server.channels or server.address is None:
                server.subscription.drop(some)
            else:
                del self._servers[server.address]
                if server.task is not None:
                    server.task.cancel()

    def _open(self, address: Address | None) -> _Server:
        server = self._servers[address] = _Server(address)
        server.subscription = Subscription(
            self._settings,
            (),
            name=self._name,
            on_change=self._on_change,
            on_up=lambda: self._on_heard(tuple(server.channels)),
            on_down=lambda: self._note_down(server),
            on_subscribed=lambda channel: self._on_heard((channel,)),
            on_traces=self._on_traces,
            on_board=self._on_board,
            on_message=self._on_message,
            sharded_at=address,
            on_moved=lambda channel: self._note_moved(server, channel),
        )
        if self._group is not None:
            self._start(server)
        return server

    def _start(self, server: _Server) -> None:
        if self._group is not None:
            server.task = self._group.create_task(server.subscription.run())

    # Called by the subscriptions

    def _note_down(self, server: _Server) -> None:
        self._slots_wanted.set()
        self._on_lost(tuple(server.channels))

    def _note_moved(self, server: _Server, channel: str) -> None:
        """Look for the owner of a channel that a server does not have."""
        if self._places.get(channel) is server:
            self._leave((channel,))
            self._slots_wanted.set()
            self._on_lost((channel,))
