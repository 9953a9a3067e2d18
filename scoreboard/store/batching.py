"""Sends script calls to Redis in batches: one per free connection and turn of the event loop.

All entries that are queued when a connection becomes free are sent in one write, so batches grow
with concurrency and an idle service adds no delay. A batcher owns its connections: a cancelled
request drops its future and never a connection, so no caller gets the answer of another one.

After a change of the secret each connection is replaced between two batches, once its successor has
logged in. A batch whose reply was lost is sent once more; its callers must be able to repeat it.

In a cluster each primary has a lane: a queue and connections of its own, so that one that is away
delays no other. An entry gets into the lane of its partition's owner; a server that refuses it
names another one.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from redis.exceptions import AskError, MovedError, NoScriptError, RedisError, TryAgainError
from redis.exceptions import TimeoutError as RedisTimeoutError

from scoreboard.errors import Overloaded, RedisUnavailable, ScoreboardError, ScriptFailed
from scoreboard.model import Partition
from scoreboard.runtime.lifecycle import backoff_s
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import counter, get_logger
from scoreboard.store.client import make_slot_map
from scoreboard.store.cluster import Address, SlotMap
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.pipelined_connection import Command, PipelinedConnection
from scoreboard.store.replies import CONNECTION_ERRORS, PARSE_ERRORS, unreachable_text
from scoreboard.store.scripts import Script, call_seconds, refusal_error

ATTEMPTS_MAX: Final = 2
"""Maximum sends of a batch whose connection is lost."""

REBUILDS_MAX: Final = 5
"""Maximum attempts to send a batch that the server refuses with a newer fact, or without script."""

RENEW_EVERY_S: Final = 1.0
"""Interval of checking whether the connections have to be replaced."""

REDIRECTS_MAX: Final = 25
"""Maximum servers, or times, that an entry is sent to while its slot moves: about a second."""

REDIRECTS_AT_ONCE: Final = 2
"""Redirections without a pause: one for a slot that has moved, one for a server that asks."""

LOSSES_MAX: Final = 1
"""Redirections after which an entry of a cluster is not sent again when its connection is lost."""

REDIRECT_PAUSE_S: Final = 0.05

SLOTS_EVERY_S: Final = 10.0
"""Interval of reading the owners of the slots while no server has named another one."""

SLOTS_PAUSE_S: Final = 0.25
"""Least time between two such reads."""

ASKING: Final[Command] = ("ASKING",)
_REDIRECTED: Final = counter(
    "redis_redirects_total",
    "Entries of batches that a server of a cluster sent elsewhere, or refused for a moment",
    unit="entries",
    normal="0; some when a slot moves or a replica is promoted",
)
_log = get_logger(__name__)


class Entry:
    """What one caller waits for.

    ``redirects`` counts how often a server of a cluster sent it elsewhere; ``is_unsure``: it was
    sent, and a reply was lost.
    """

    __slots__ = ("future", "is_unsure", "redirects")

    def __init__(self, future: "asyncio.Future[Any]") -> None:
        self.future = future
        self.redirects = 0
        self.is_unsure = False


EntryT = TypeVar("EntryT", bound=Entry)


class Call(Generic[EntryT]):
    """A call of a script for entries of one partition.

    ``is_asking``: its slot is moving to the server that gets the call.
    """

    __slots__ = ("entries", "is_asking", "partition", "script")

    def __init__(self, script: Script, partition: Partition) -> None:
        self.script = script
        self.partition = partition
        self.is_asking = False
        self.entries: list[EntryT] = []


CallT = TypeVar("CallT", bound=Call[Any])


class _Slot:
    """One of the batcher's connections; ``turn`` is held during a batch."""

    __slots__ = ("connection", "turn")

    def __init__(self, connection: PipelinedConnection) -> None:
        self.connection = connection
        self.turn = asyncio.Lock()


class _Lane(Generic[EntryT]):
    """The queue and the connections of one server."""

    __slots__ = ("address", "asking", "idle", "is_closing", "is_woken", "queue", "slots")

    def __init__(self, address: Address | None) -> None:
        self.address = address
        self.queue: deque[EntryT] = deque()
        self.slots: list[_Slot] = []
        self.idle: list[asyncio.Future[None]] = []
        self.is_woken = False
        self.is_closing = False
        self.asking: set[Partition] = set()
        """Partitions whose slot is moving to this server."""

    def wake_one(self) -> None:
        # One connection at a time: the first takes all that this turn of the loop has queued.
        if not self.is_woken and self.idle:
            self.is_woken = True
            self.idle.pop().set_result(None)

    def close(self) -> None:
        """End the tasks that serve the lane when its queue is empty."""
        self.is_closing = True
        for idle in self.idle:
            if not idle.done():
                idle.set_result(None)
        self.idle.clear()


class Batcher(ABC, Generic[EntryT, CallT]):
    """Queues entries and sends them in calls. Run ``run`` in a task group.

    ``close`` sends what is queued and then ends ``run``. A subclass makes the calls and reads their
    replies; ``lost`` is the error of an entry that was sent and got no reply.
    """

    def __init__(
        self,
        settings: Settings,
        *scripts: Script,
        name: str,
        entries_max: int,
        lost: type[ScoreboardError],
    ) -> None:
        """``entries_max`` bounds the entries of one write, and so the time that it holds Redis."""
        self._settings = settings
        self._name = name
        self._entries_max = entries_max
        self._lost = lost
        self.slot_map = make_slot_map(settings, name=name)
        is_cluster = self.slot_map is not None
        self._scripts = [script.sharded if is_cluster else script for script in scripts]
        self._only: _Lane[EntryT] | None = _Lane(None) if self.slot_map is None else None
        """The lane of a single server."""
        self._lanes: dict[Address | None, _Lane[EntryT]] = (
            {} if self._only is None else {None: self._only}
        )
        self._unplaced: _Lane[EntryT] = _Lane(None)
        """Entries whose owner is not known yet; nothing serves it."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._closing = asyncio.Event()
        self._slots_wanted = asyncio.Event()
        self._is_moved = False

    def enqueue(self, entry: EntryT) -> None:
        """Queue an entry for the next batch.

        Raises Overloaded if too many entries wait for the same server, or after ``close``.
        """
        lane = self._only or self._lane_of(entry)
        if lane.is_closing or len(lane.queue) >= self._settings.dispatch_waiting:
            raise Overloaded
        lane.queue.append(entry)
        lane.wake_one()

    @property
    def waiting(self) -> int:
        """The number of queued entries."""
        return sum(len(lane.queue) for lane in (*self._lanes.values(), self._unplaced))

    def reconnect(self) -> None:
        """Replace the connections soon: the address may lead to another server."""
        self._is_moved = self.slot_map is None
        self._slots_wanted.set()

    def close(self) -> None:
        """Refuse new entries; ``run`` ends when the queued ones are sent."""
        self._closing.set()
        self._unplaced.close()
        for lane in self._lanes.values():
            lane.close()

    async def run(self) -> None:
        """Serve until closed. On cancellation queued entries fail as lost."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                helpers = [group.create_task(self._renew())]
                if self._only is not None:
                    self._serve_lane(self._only)
                if self.slot_map is not None:
                    helpers.append(group.create_task(self._follow_slots(self.slot_map)))
                await self._closing.wait()
                self._fail_unsent(self._unplaced.queue)
                self._unplaced.queue.clear()
                while self._tasks:
                    await asyncio.wait(tuple(self._tasks))
                for helper in helpers:
                    helper.cancel()
        finally:
            self.close()
            for lane in (*self._lanes.values(), self._unplaced):
                fail(lane.queue, self._lost)
                lane.queue.clear()
            if self.slot_map is not None:
                await self.slot_map.close()

    # For subclasses

    @abstractmethod
    def partition_of(self, entry: EntryT) -> Partition:
        """Return the partition of an entry, as far as is known."""
        ...

    @abstractmethod
    def plan(self, entries: Sequence[EntryT]) -> list[CallT]:
        """Group entries into calls, in order."""
        ...

    @abstractmethod
    def commands(self, call: CallT) -> Sequence[Command]:
        """Return the commands of a call; the last reply is the call's."""
        ...

    @abstractmethod
    def resolve(self, call: CallT, reply: Any) -> None:  # noqa: ANN401 (any reply)
        """Resolve the futures of a call's entries from its reply."""
        ...

    def learn(self, call: CallT, refusal: Exception) -> bool:  # noqa: ARG002
        """Use a fact that a refusal contains; return whether the call is worth repeating."""
        return False

    async def exchange(
        self, connection: PipelinedConnection, calls: Sequence[CallT]
    ) -> Sequence[Any]:
        """Send calls in one write; return the reply or error of each."""
        began_s = time.perf_counter()
        try:
            replies, _ = await self.send(connection, calls)
            return replies
        finally:
            took_s = time.perf_counter() - began_s
            for script in {call.script for call in calls}:
                call_seconds(script).observe(took_s)

    async def send(
        self,
        connection: PipelinedConnection,
        calls: Sequence[CallT],
        following: Sequence[Command] = (),
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """Send calls, and commands after them, in one write; return the replies of both."""
        commands: list[Command] = []
        places: list[int] = []
        for call in calls:
            for command in self.commands(call):
                if call.is_asking:
                    commands.append(ASKING)
                commands.append(command)
            places.append(len(commands) - 1)
        replies = await connection.exchange([*commands, *following])
        if len(commands) == len(places):
            return replies[: len(places)], replies[len(places) :]
        return [replies[place] for place in places], replies[len(commands) :]

    # Owners of slots

    def _owner_of(self, partition: Partition) -> Address | None:
        return self.slot_map.owner(partition) if self.slot_map else None

    def _lane_of(self, entry: EntryT) -> _Lane[EntryT]:
        """Return the lane of an entry's owner; of no one if it is not known."""
        owner = self._owner_of(self.partition_of(entry))
        if owner is None:
            self._slots_wanted.set()
            return self._unplaced
        return self._lane_at(owner)

    def _lane_at(self, address: Address) -> _Lane[EntryT]:
        lane = self._lanes.get(address)
        if lane is None:
            lane = self._lanes[address] = _Lane(address)
            lane.is_closing = self._closing.is_set()
            if self._group is not None and not lane.is_closing:
                self._serve_lane(lane)
        return lane

    async def _follow_slots(self, slot_map: SlotMap) -> None:
        """Keep the owners of the slots up to date, until cancelled."""
        while True:
            self._slots_wanted.clear()
            if await slot_map.refresh(self._settings.redis_timeout_s):
                self._leave_lanes(slot_map.primaries)
            waiting = list(self._unplaced.queue)
            self._unplaced.queue.clear()
            for entry in waiting:
                lane = self._lane_of(entry)
                if lane is self._unplaced:
                    self._fail_unsent([entry])
                else:
                    self._append(lane, entry)
            await asyncio.sleep(SLOTS_PAUSE_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(SLOTS_EVERY_S):
                    await self._slots_wanted.wait()

    def _leave_lanes(self, primaries: AbstractSet[Address]) -> None:
        """Close the lanes of servers that own no slots any more; place what they have queued."""
        for address in self._lanes.keys() - primaries:
            lane = self._lanes.pop(address)
            lane.close()
            entries = list(lane.queue)
            lane.queue.clear()
            self._place(entries)
        for address, lane in self._lanes.items():
            lane.asking = {one for one in lane.asking if self._owner_of(one) != address}

    def _place(self, entries: Iterable[EntryT], lane: _Lane[EntryT] | None = None) -> None:
        """Queue entries in a lane, by default in those of their owners, also if these are full."""
        for entry in entries:
            if not entry.future.done():
                self._append(lane or self._lane_of(entry), entry)

    def _append(self, lane: _Lane[EntryT], entry: EntryT) -> None:
        if lane.is_closing:
            self._fail_unsent([entry])
            return
        lane.queue.append(entry)
        lane.wake_one()

    def _redirect(self, call: CallT, refusal: Exception, sender: Address) -> None:
        """Send the entries of a refused call where the refusal says, or again after a pause."""
        _REDIRECTED.inc(len(call.entries))
        self._slots_wanted.set()
        target: _Lane[EntryT] | None = None
        if isinstance(refusal, AskError):  # or MovedError
            address = refusal.host or sender[0], refusal.port
            target = self._lane_at(address)
            if not isinstance(refusal, MovedError):
                target.asking.add(call.partition)
            elif self.slot_map is not None:
                self.slot_map.move(refusal.slot_id, address)
        later: list[EntryT] = []
        for entry in call.entries:
            entry.redirects += 1
            if entry.redirects > REDIRECTS_MAX:
                self._fail_unsent([entry])
            elif target is None or entry.redirects > REDIRECTS_AT_ONCE:
                later.append(entry)
            else:
                self._append(target, entry)
        if later:
            # The owner would send those that a target shall get to it again.
            to = target if isinstance(refusal, AskError) else None
            loop = asyncio.get_running_loop()
            loop.call_later(REDIRECT_PAUSE_S, self._place, later, to)

    def _fail_unsent(self, entries: Iterable[EntryT], *, was_sent: bool = False) -> None:
        """Fail entries that are not being sent, each as its earlier sends allow."""
        for entry in entries:
            entry.is_unsure |= was_sent
            self._fail_lost([entry], self._lost if entry.is_unsure else RedisUnavailable)

    def _fail_lost(self, entries: Iterable[EntryT], kind: type[ScoreboardError]) -> None:
        """Fail entries whose server is not reached; in a cluster, say whose primary that is."""
        for entry in entries:
            detail = ""
            if kind is RedisUnavailable and self.slot_map is not None:
                detail = unreachable_text(self.partition_of(entry))
            fail([entry], kind, detail)

    def _fail_refused(self, entries: Iterable[EntryT], error: ScoreboardError) -> None:
        """Fail the entries of a refused call; one that was sent before may have been applied."""
        for entry in entries:
            if entry.is_unsure and self._lost is not RedisUnavailable:
                fail([entry], self._lost)
            else:
                fail([entry], type(error), error.detail)

    # Connections

    def _serve_lane(self, lane: _Lane[EntryT]) -> None:
        assert self._group is not None  # noqa: S101 (for the type)
        count = self._settings.dispatch_connections
        lane.slots = [_Slot(self._connection(lane.address)) for _ in range(count)]
        for slot in lane.slots:
            task = self._group.create_task(self._serve(lane, slot))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _connection(self, address: Address | None) -> PipelinedConnection:
        return PipelinedConnection(self._settings, name=self._name, address=address)

    async def _renew(self) -> None:
        """Replace connections with an outdated login or server, until cancelled."""
        attempt = 0
        while True:
            await asyncio.sleep(backoff_s(attempt) if attempt else RENEW_EVERY_S)
            is_moved, self._is_moved = self._is_moved, False
            outdated = [
                (lane, slot)
                for lane in self._lanes.values()
                for slot in lane.slots
                if slot.connection.is_login_outdated or (is_moved and slot.connection.is_connected)
            ]
            replaced = [await self._replace(*one) for one in outdated]
            attempt = 0 if all(replaced) else attempt + 1

    async def _replace(self, lane: _Lane[EntryT], slot: _Slot) -> bool:
        """Replace a connection between two batches; return False if no other one can be opened."""
        successor = self._connection(slot.connection.address)
        try:
            await self._connect(successor)
            async with slot.turn:
                if not lane.is_closing:  # else its task may have ended, and closed the connection
                    slot.connection, successor = successor, slot.connection
        except (*CONNECTION_ERRORS, RedisError, *PARSE_ERRORS) as error:
            _log.warning("redis_login_not_renewed", error=type(error).__name__)
            return False
        finally:
            await successor.close()
        return True

    async def _connect(self, connection: PipelinedConnection) -> None:
        await connection.connect()
        await self._load_scripts(connection)

    async def _load_scripts(self, connection: PipelinedConnection) -> None:
        """Load the scripts on the server.

        Raises RedisError if the server refuses one.
        """
        for reply in await connection.exchange(
            [("SCRIPT", "LOAD", script.text) for script in self._scripts]
        ):
            if isinstance(reply, RedisError):
                raise reply

    async def _serve(self, lane: _Lane[EntryT], slot: _Slot) -> None:
        loop = asyncio.get_running_loop()
        queue = lane.queue
        try:
            while True:
                while not queue:
                    if lane.is_closing:
                        return
                    idle = loop.create_future()
                    lane.idle.append(idle)
                    await idle
                    lane.is_woken = False
                count = min(len(queue), self._entries_max)
                entries = [queue.popleft() for _ in range(count)]
                if queue:
                    lane.wake_one()
                is_done = False
                try:
                    async with slot.turn:
                        await self._process(lane, slot.connection, entries)
                    is_done = lane.address is not None  # some may be queued elsewhere
                finally:
                    if not is_done:
                        fail(entries, self._lost)  # entries left unresolved by an error above
        finally:
            await slot.connection.close()

    async def _process(
        self, lane: _Lane[EntryT], connection: PipelinedConnection, entries: list[EntryT]
    ) -> None:
        """Send entries until the future of each is resolved, or it is queued elsewhere."""
        was_sent = False
        for attempt in range(ATTEMPTS_MAX):
            try:
                for _ in range(REBUILDS_MAX):
                    calls = self._plan(lane, entries)
                    if not calls:  # all callers are gone; an empty exchange would get no reply
                        return
                    if not connection.is_connected:
                        await self._connect(connection)
                    was_sent = True
                    replies = await self.exchange(connection, calls)
                    entries = self._handle_replies(connection, calls, replies)
                    if not entries:
                        return
                    await self._load_missing(connection, replies)
                fail(entries, ScriptFailed)
                return  # noqa: TRY300 (the loop returns when it is done)
            except CONNECTION_ERRORS as error:
                await connection.close()
                _log.warning("redis_connection_lost", attempt=attempt, error=type(error).__name__)
                if self._note_lost(lane, entries, was_sent=was_sent):
                    return
            except (RedisError, *PARSE_ERRORS) as error:
                # The handshake was refused (wrong password, loading …) or could not be parsed.
                await connection.close()
                _log.warning("redis_handshake_refused", error=type(error).__name__)
                self._fail_unsent(entries, was_sent=was_sent)
                return
        self._fail_lost(entries, self._lost)

    def _plan(self, lane: _Lane[EntryT], entries: Sequence[EntryT]) -> list[CallT]:
        calls = self.plan(entries)
        for call in calls if lane.asking else ():
            call.is_asking = call.partition in lane.asking
        return calls

    async def _load_missing(self, connection: PipelinedConnection, replies: Sequence[Any]) -> None:
        if any(isinstance(reply, NoScriptError) for reply in replies):
            await self._load_scripts(connection)

    def _note_lost(self, lane: _Lane[EntryT], entries: Sequence[EntryT], *, was_sent: bool) -> bool:
        """Note that a connection was lost; return whether the lane is done with the entries.

        In a cluster they are placed once more when the servers have said who owns their slots:
        a replica may have been promoted.
        """
        for entry in entries:
            entry.is_unsure |= was_sent
        if lane.address is None:
            if not was_sent:
                self._fail_unsent(entries)
            return not was_sent
        for entry in entries:
            entry.redirects += 1
            if entry.redirects > LOSSES_MAX or self._closing.is_set():
                self._fail_unsent([entry])
            elif not entry.future.done():
                self._unplaced.queue.append(entry)
        self._slots_wanted.set()
        return True

    def _handle_replies(
        self, connection: PipelinedConnection, calls: Sequence[CallT], replies: Sequence[Any]
    ) -> list[EntryT]:
        """Resolve futures; return the entries to be sent again on this connection."""
        again: list[EntryT] = []
        for call, reply in zip(calls, replies, strict=True):
            if not isinstance(reply, Exception):
                self.resolve(call, reply)
            elif isinstance(reply, NoScriptError):
                again += call.entries
            elif isinstance(reply, RedisTimeoutError):  # it was applied, and not copied
                fail(call.entries, self._lost)
            elif connection.address is not None and isinstance(reply, AskError | TryAgainError):
                self._redirect(call, reply, connection.address)
            elif self.learn(call, reply):
                again += call.entries
            else:
                error = refusal_error(reply, call.script, PartitionKeys(call.partition).events)
                if isinstance(error, ScriptFailed):
                    _log.error("script_failed", script=call.script.name, reason=error.detail)
                elif isinstance(error, RedisUnavailable):
                    self._slots_wanted.set()
                self._fail_refused(call.entries, error)
        return again


def fail(entries: Iterable[Entry], kind: type[ScoreboardError], detail: str = "") -> None:
    """Fail the entries that have no result yet."""
    for entry in entries:
        if not entry.future.done():
            entry.future.set_exception(kind(detail))
