"""Sends script calls to Redis in batches: one per free connection and turn of the event loop.

All entries that are queued when a connection becomes free are sent in one write, so batches grow
with concurrency and an idle service adds no delay. A batcher owns its connections: a cancelled
request drops its future and never a connection, so no caller gets the answer of another one.

After a change of the secret each connection is replaced between two batches, once its successor has
logged in. A batch whose reply was lost is sent once more; its callers must be able to repeat it.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, Generic, TypeVar

from redis.exceptions import NoScriptError, RedisError

from scoreboard.errors import Overloaded, RedisUnavailable, ScoreboardError, ScriptFailed
from scoreboard.model import Partition
from scoreboard.runtime.lifecycle import backoff_s
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.pipelined_connection import Command, PipelinedConnection
from scoreboard.store.replies import CONNECTION_ERRORS, PARSE_ERRORS
from scoreboard.store.scripts import Script, call_seconds, refusal_error

ATTEMPTS_MAX: Final = 2
"""Maximum sends of a batch whose connection is lost."""

REBUILDS_MAX: Final = 5
"""Maximum attempts to send a batch that the server refuses with a newer fact, or without script."""

RENEW_EVERY_S: Final = 1.0
"""Interval of checking whether the connections have to be replaced."""

_log = get_logger(__name__)


class Entry:
    """What one caller waits for."""

    __slots__ = ("future",)

    def __init__(self, future: "asyncio.Future[Any]") -> None:
        self.future = future


EntryT = TypeVar("EntryT", bound=Entry)


class Call(Generic[EntryT]):
    """A call of a script for entries of one partition."""

    __slots__ = ("entries", "partition", "script")

    def __init__(self, script: Script, partition: Partition) -> None:
        self.script = script
        self.partition = partition
        self.entries: list[EntryT] = []


CallT = TypeVar("CallT", bound=Call[Any])


class _Slot:
    """One of the batcher's connections; ``turn`` is held during a batch."""

    __slots__ = ("connection", "turn")

    def __init__(self, connection: PipelinedConnection) -> None:
        self.connection = connection
        self.turn = asyncio.Lock()


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
        self._scripts = scripts
        self._name = name
        self._entries_max = entries_max
        self._lost = lost
        self._queue: deque[EntryT] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._is_woken = False
        self._is_closing = False
        self._is_moved = False

    def require_room(self) -> None:
        """Raise Overloaded if too many entries are waiting, or after ``close``."""
        if self._is_closing or len(self._queue) >= self._settings.dispatch_waiting:
            raise Overloaded

    def enqueue(self, entry: EntryT) -> None:
        """Queue an entry for the next batch; the caller has checked that there is room."""
        self._queue.append(entry)
        self._wake_one()

    @property
    def waiting(self) -> int:
        """The number of queued entries."""
        return len(self._queue)

    def reconnect(self) -> None:
        """Replace the connections soon: the address may lead to another server."""
        self._is_moved = True

    def close(self) -> None:
        """Refuse new entries; ``run`` ends when the queued ones are sent."""
        self._is_closing = True
        for idle in self._idle:
            if not idle.done():
                idle.set_result(None)
        self._idle.clear()

    async def run(self) -> None:
        """Serve until closed. On cancellation queued entries fail as lost."""
        slots = [_Slot(self._connection()) for _ in range(self._settings.dispatch_connections)]
        try:
            async with asyncio.TaskGroup() as group:
                renewer = group.create_task(self._renew(slots))
                await asyncio.wait([group.create_task(self._serve(slot)) for slot in slots])
                renewer.cancel()
        finally:
            self._is_closing = True
            fail(self._queue, self._lost)
            self._queue.clear()

    # For subclasses

    @abstractmethod
    def plan(self, entries: Sequence[EntryT]) -> list[CallT]:
        """Group entries into calls, in order."""
        ...

    @abstractmethod
    def command(self, call: CallT) -> Command:
        """Return the command of a call."""
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
            return await connection.exchange([self.command(call) for call in calls])
        finally:
            took_s = time.perf_counter() - began_s
            for script in {call.script for call in calls}:
                call_seconds(script).observe(took_s)

    # Connections

    def _wake_one(self) -> None:
        # One connection at a time: the first takes all that this turn of the loop has queued.
        if not self._is_woken and self._idle:
            self._is_woken = True
            self._idle.pop().set_result(None)

    def _connection(self) -> PipelinedConnection:
        return PipelinedConnection(self._settings, name=self._name)

    async def _renew(self, slots: Sequence[_Slot]) -> None:
        """Replace connections with an outdated login or server, until cancelled."""
        attempt = 0
        while True:
            await asyncio.sleep(backoff_s(attempt) if attempt else RENEW_EVERY_S)
            is_moved, self._is_moved = self._is_moved, False
            outdated = [
                slot
                for slot in slots
                if slot.connection.is_login_outdated or (is_moved and slot.connection.is_connected)
            ]
            replaced = [await self._replace(slot) for slot in outdated]
            attempt = 0 if all(replaced) else attempt + 1

    async def _replace(self, slot: _Slot) -> bool:
        """Replace a connection between two batches; return False if no other one can be opened."""
        successor = self._connection()
        try:
            await self._connect(successor)
            async with slot.turn:
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

    async def _serve(self, slot: _Slot) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                while not self._queue:
                    if self._is_closing:
                        return
                    idle = loop.create_future()
                    self._idle.append(idle)
                    await idle
                    self._is_woken = False
                count = min(len(self._queue), self._entries_max)
                entries = [self._queue.popleft() for _ in range(count)]
                if self._queue:
                    self._wake_one()
                try:
                    async with slot.turn:
                        await self._process(slot.connection, entries)
                finally:
                    fail(entries, self._lost)  # entries left unresolved by an error above
        finally:
            await slot.connection.close()

    async def _process(self, connection: PipelinedConnection, entries: list[EntryT]) -> None:
        """Send entries until the future of each is resolved."""
        was_sent = False
        for attempt in range(ATTEMPTS_MAX):
            try:
                for _ in range(REBUILDS_MAX):
                    calls = self.plan(entries)
                    if not calls:  # all callers are gone; an empty exchange would get no reply
                        return
                    if not connection.is_connected:
                        await self._connect(connection)
                    was_sent = True
                    replies = await self.exchange(connection, calls)
                    entries = await self._handle_replies(connection, calls, replies)
                    if not entries:
                        return
                fail(entries, ScriptFailed)
                return  # noqa: TRY300 (the loop returns when it is done)
            except CONNECTION_ERRORS as error:
                await connection.close()
                _log.warning("redis_connection_lost", attempt=attempt, error=type(error).__name__)
                if not was_sent:
                    fail(entries, RedisUnavailable)
                    return
            except (RedisError, *PARSE_ERRORS) as error:
                # The handshake was refused (wrong password, loading …) or could not be parsed.
                await connection.close()
                _log.warning("redis_handshake_refused", error=type(error).__name__)
                fail(entries, self._lost if was_sent else RedisUnavailable)
                return
        fail(entries, self._lost)

    async def _handle_replies(
        self, connection: PipelinedConnection, calls: Sequence[CallT], replies: Sequence[Any]
    ) -> list[EntryT]:
        """Resolve futures; return the entries to be sent again."""
        again: list[EntryT] = []
        is_script_missing = False
        for call, reply in zip(calls, replies, strict=True):
            if not isinstance(reply, Exception):
                self.resolve(call, reply)
            elif isinstance(reply, NoScriptError):
                is_script_missing = True
                again += call.entries
            elif self.learn(call, reply):
                again += call.entries
            else:
                error = refusal_error(reply, call.script, PartitionKeys(call.partition).events)
                if isinstance(error, ScriptFailed):
                    _log.error("script_failed", script=call.script.name, reason=error.detail)
                fail(call.entries, type(error), error.detail)
        if is_script_missing:
            await self._load_scripts(connection)
        return again


def fail(entries: Iterable[Entry], kind: type[ScoreboardError], detail: str = "") -> None:
    """Fail the entries that have no result yet."""
    for entry in entries:
        if not entry.future.done():
            entry.future.set_exception(kind(detail))
