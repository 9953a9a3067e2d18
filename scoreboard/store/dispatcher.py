"""Sends updates to Redis in batches: one per free connection and turn of the event loop.

All updates that are queued when a connection becomes free are sent in one write, so batches grow
with concurrency and an idle service adds no delay. The dispatcher owns its connections: a cancelled
request drops its future and never a connection, so no caller gets the answer of another one. Only
this module runs submit.lua.

After a change of the secret each connection is replaced between two batches, once its successor has
logged in.

A batch whose reply was lost is sent once more (replays are harmless). If that reply is lost too,
its callers get OutcomeUnknown.
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from scoreboard.errors import (
    ActionConflict,
    Busy,
    ClientError,
    OutcomeUnknown,
    Overloaded,
    RedisUnavailable,
    ScoreboardError,
    ScoreOutOfRange,
    ScriptFailed,
)
from scoreboard.model import (
    BATCH_MAX,
    Action,
    Layout,
    Partition,
    Receipt,
    digest_of,
    partition_of,
    shard_of,
)
from scoreboard.runtime.collectors import LoopHistogram
from scoreboard.runtime.lifecycle import backoff_s
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import BATCH_BUCKETS, gauge, get_logger
from scoreboard.runtime.tracing import CURRENT_SPAN
from scoreboard.store.keys import PULSE, PartitionKeys
from scoreboard.store.pipelined_connection import Command, PipelinedConnection
from scoreboard.store.replies import CONNECTION_ERRORS, PARSE_ERRORS, convert
from scoreboard.store.scripts import Script, call_seconds, count_refusal, refusal_error

if TYPE_CHECKING:
    from scoreboard.runtime.otel import Span

WRITE_ACTIONS_MAX: Final = 4 * BATCH_MAX
"""Maximum actions of one write: four script calls, a few ms of Redis's time, one fsync."""

ATTEMPTS_MAX: Final = 2
"""Maximum sends of a batch whose connection is lost; after the last the outcome is unknown."""

REBUILDS_MAX: Final = 4
"""Maximum attempts to send a batch whose generation, layout or script cache is outdated."""

RENEW_EVERY_S: Final = 1.0
"""Interval of checking whether the logins of the connections are outdated."""

_SECONDS: Final = re.compile(r"\d{1,12}", re.ASCII)
_SUBMIT: Final = Script.load("submit")
_BATCH_ACTIONS = LoopHistogram(
    "dispatch_batch_actions",
    "Actions of one submit call",
    BATCH_BUCKETS,
    unit="actions",
    normal="1 with little load; larger under load, at most 64",
).series()
_CALL_SECONDS = call_seconds(_SUBMIT)
_WAITING = gauge(
    "dispatch_waiting",
    "Updates waiting for a connection to Redis",
    unit="updates",
    normal="0, or briefly some; SCOREBOARD_DISPATCH_WAITING is the limit",
)
_log = get_logger(__name__)


class _Outcome(Struct, frozen=True, array_like=True):
    """One row of submit.lua's reply."""

    word: str
    delta: int
    score: int
    seq: int
    committed: int


class _Entry:
    """A queued update: the action, its digest, and the future its caller awaits."""

    __slots__ = ("action", "board", "digest", "future")

    def __init__(self, board: str, action: Action, future: "asyncio.Future[Receipt]") -> None:
        self.board = board
        self.action = action
        self.digest = digest_of(board, action.user_id, action.action_id)
        self.future = future


class _TracedEntry(_Entry):
    """A queued update of a traced request: ``span`` lasts until it is answered."""

    __slots__ = ("span",)

    def __init__(
        self, board: str, action: Action, future: "asyncio.Future[Receipt]", parent: "Span"
    ) -> None:
        super().__init__(board, action, future)
        self.span = parent.child(
            "submit.lua", "client", {"db.system.name": "redis", "scoreboard.board": board}
        )
        future.add_done_callback(self._end)

    def _end(self, future: "asyncio.Future[Receipt]") -> None:
        if future.cancelled():
            self.span.add({"error.type": "cancelled"})
        elif isinstance(error := future.exception(), ClientError):
            self.span.add({"error.type": error.code})
        elif isinstance(error, ScoreboardError):
            self.span.fail(error.code)
        elif error is None:
            receipt = future.result()
            outcome = "replayed" if receipt.replayed else "applied"
            self.span.add({"scoreboard.outcome": outcome, "scoreboard.seq": receipt.seq})
        self.span.end()


class _Call:
    """A submit call: entries of one partition, and the layout it was built for."""

    __slots__ = ("entries", "layout", "partition")

    def __init__(self, partition: Partition, layout: Layout, entries: list[_Entry]) -> None:
        self.partition = partition
        self.layout = layout
        self.entries = entries


class _Slot:
    """One of the dispatcher's connections; ``turn`` is held during a batch."""

    __slots__ = ("connection", "turn")

    def __init__(self, connection: PipelinedConnection) -> None:
        self.connection = connection
        self.turn = asyncio.Lock()


class Dispatcher:
    """Batches single updates. Run ``run`` in a task group; call ``submit`` from any task.

    ``close`` sends what is queued and then ends ``run``.
    """

    def __init__(self, settings: Settings, *, name: str = "dispatcher") -> None:
        self._settings = settings
        self._is_tracing = settings.tracing != "off"
        self._name = name
        self._queue: deque[_Entry] = deque()
        self._idle: list[asyncio.Future[None]] = []
        _WAITING.set_function(lambda: len(self._queue))
        self._is_woken = False
        self._is_closing = False
        self._layouts: dict[str, Layout] = {}
        self._clock_offset_s = 0.0
        # WAIT waits for this connection's last write. A replay writes nothing, so without the
        # INCR, WAIT would return at once for an action that no replica has.
        self._wait: list[Command] = (
            [
                ("INCR", PULSE),
                ("WAIT", settings.replicas, settings.replica_timeout_ms),
            ]
            if settings.acknowledge == "replicated"
            else []
        )

    async def submit(self, board: str, action: Action) -> Receipt:
        """Apply an action exactly once and return its permanent answer.

        Raises ActionConflict, ScoreOutOfRange, Busy, Fenced, Uninitialised, Overloaded,
        RedisUnavailable (nothing was sent) or OutcomeUnknown (repeat the action).
        """
        if self._is_closing or len(self._queue) >= self._settings.dispatch_waiting:
            raise Overloaded
        future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        parent = CURRENT_SPAN.get() if self._is_tracing else None
        self._queue.append(
            _Entry(board, action, future)
            if parent is None
            else _TracedEntry(board, action, future, parent)
        )
        self._wake_one()
        return await future

    def close(self) -> None:
        """Refuse new updates; ``run`` ends when the queued ones are sent."""
        self._is_closing = True
        for idle in self._idle:
            if not idle.done():
                idle.set_result(None)
        self._idle.clear()

    async def run(self) -> None:
        """Serve until closed. On cancellation queued updates fail with OutcomeUnknown."""
        slots = [_Slot(self._connection()) for _ in range(self._settings.dispatch_connections)]
        try:
            async with asyncio.TaskGroup() as group:
                renewer = group.create_task(self._renew_logins(slots))
                await asyncio.wait([group.create_task(self._serve(slot)) for slot in slots])
                renewer.cancel()
        finally:
            self._is_closing = True
            _fail(self._queue, OutcomeUnknown)
            self._queue.clear()

    def _wake_one(self) -> None:
        # One connection at a time: the first takes all that this turn of the loop has queued.
        if not self._is_woken and self._idle:
            self._is_woken = True
            self._idle.pop().set_result(None)

    def _connection(self) -> PipelinedConnection:
        return PipelinedConnection(self._settings, name=self._name)

    async def _renew_logins(self, slots: Sequence[_Slot]) -> None:
        """Replace connections whose login is outdated, until cancelled."""
        attempt = 0
        while True:
            await asyncio.sleep(backoff_s(attempt) if attempt else RENEW_EVERY_S)
            outdated = [slot for slot in slots if slot.connection.is_login_outdated]
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
                count = min(len(self._queue), WRITE_ACTIONS_MAX)
                entries = [self._queue.popleft() for _ in range(count)]
                if self._queue:
                    self._wake_one()
                try:
                    async with slot.turn:
                        await self._process(slot.connection, entries)
                finally:
                    _fail(entries, OutcomeUnknown)  # entries left unresolved by an error above
        finally:
            await slot.connection.close()

    async def _process(self, connection: PipelinedConnection, entries: list[_Entry]) -> None:
        """Send entries until the future of each is resolved."""
        was_sent = False
        for attempt in range(ATTEMPTS_MAX):
            try:
                for _ in range(REBUILDS_MAX):
                    calls = self._plan(entries)
                    if not connection.is_connected:
                        await self._connect(connection)
                    was_sent = True
                    replies = await self._exchange(connection, calls)
                    entries = await self._handle_replies(connection, calls, replies)
                    if not entries:
                        return
                _fail(entries, ScriptFailed)
                return  # noqa: TRY300 (the loop returns when it is done)
            except CONNECTION_ERRORS as error:
                await connection.close()
                _log.warning("redis_connection_lost", attempt=attempt, error=type(error).__name__)
                if not was_sent:
                    _fail(entries, RedisUnavailable)
                    return
            except (RedisError, *PARSE_ERRORS) as error:
                # The handshake was refused (wrong password, loading …) or could not be parsed.
                await connection.close()
                _log.warning("redis_handshake_refused", error=type(error).__name__)
                _fail(entries, OutcomeUnknown if was_sent else RedisUnavailable)
                return
        _fail(entries, OutcomeUnknown)

    async def _connect(self, connection: PipelinedConnection) -> None:
        await connection.connect()
        await _load_script(connection)

    def _plan(self, entries: Sequence[_Entry]) -> list[_Call]:
        """Group entries into calls of one partition and at most BATCH_MAX actions, in order."""
        calls: list[_Call] = []
        open_calls: dict[tuple[str, int], _Call] = {}
        for entry in entries:
            layout = self._layouts.get(entry.board) or Layout()
            number = partition_of(entry.action.user_id, layout.partitions)
            call = open_calls.get((entry.board, number))
            if call is None or len(call.entries) == BATCH_MAX:
                call = _Call(Partition(entry.board, number), layout, [])
                open_calls[entry.board, number] = call
                calls.append(call)
            call.entries.append(entry)
        return calls

    def _command(self, call: _Call) -> Command:
        keys = PartitionKeys(call.partition)
        layout = call.layout
        generation = int((time.time() + self._clock_offset_s) // layout.seen_seconds)
        names: list[str] = [keys.board, keys.events, keys.meta, keys.changes]
        args: list[Any] = [generation, str(layout), self._settings.stream_cap]
        pairs: dict[int, int] = {}
        for entry in call.entries:
            shard = shard_of(entry.digest, layout.seen_shards)
            pair = pairs.get(shard)
            if pair is None:
                pair = pairs[shard] = len(pairs) + 1
                names.append(keys.dedup_shard(generation, shard))
                names.append(keys.dedup_shard(generation - 1, shard))
            action = entry.action
            args += (
                action.user_id,
                action.action_id,
                entry.digest,
                action.delta,
                1 if action.stated else 0,
                action.request_id,
                pair,
            )
        if self._is_tracing and (traces := _traces_of(call)):
            args.append(traces)
        _BATCH_ACTIONS.observe(len(call.entries))
        return ("EVALSHA", _SUBMIT.sha, len(names), *names, *args)

    async def _exchange(self, connection: PipelinedConnection, calls: Sequence[_Call]) -> list[Any]:
        """Send calls in one write; return the reply or error of each.

        Raises RedisTimeoutError if too few replicas have the batch.
        """
        began_s = time.perf_counter()
        try:
            replies = await connection.exchange(
                [self._command(call) for call in calls] + self._wait
            )
        finally:
            _CALL_SECONDS.observe(time.perf_counter() - began_s)
        if self._wait:
            *replies, pulse, copies = replies
            # An error reply proves no copy.
            counts = isinstance(pulse, int) and isinstance(copies, int)
            if not counts or copies < self._settings.replicas:
                raise RedisTimeoutError("too few replicas have the batch")
        return replies

    async def _handle_replies(
        self, connection: PipelinedConnection, calls: Sequence[_Call], replies: Sequence[Any]
    ) -> list[_Entry]:
        """Resolve futures; return the entries to be sent again with updated facts."""
        again: list[_Entry] = []
        for call, reply in zip(calls, replies, strict=True):
            if not isinstance(reply, Exception):
                _resolve(call.entries, reply)
            elif isinstance(reply, NoScriptError):
                await _load_script(connection)
                again += call.entries
            elif self._update_from_refusal(call.partition.board, reply):
                again += call.entries
            else:
                error = refusal_error(reply, _SUBMIT, PartitionKeys(call.partition).events)
                if isinstance(error, ScriptFailed):
                    _log.error("script_failed", script=_SUBMIT.name, reason=error.detail)
                _fail(call.entries, type(error), error.detail)
        return again

    def _update_from_refusal(self, board: str, refusal: Exception) -> bool:
        """Use the time or layout that a refusal contains; return whether it contains one."""
        code, _, rest = str(refusal).partition(" ")
        fact = rest.partition(" ")[0]
        if code == "BUCKET" and _SECONDS.fullmatch(fact):
            count_refusal(code)
            self._clock_offset_s = int(fact) - time.time() + 0.5
            return True
        if code == "LAYOUT":
            with suppress(ValueError):
                self._layouts[board] = Layout.parse(fact)
                count_refusal(code)
                return True
        return False


def _traces_of(call: _Call) -> str:
    """Return the argument that names the traced actions, and note in each span that it is sent."""
    traces: list[str] = []
    for number, entry in enumerate(call.entries, 1):
        if isinstance(entry, _TracedEntry):
            entry.span.event("sent", {"scoreboard.batch_actions": len(call.entries)})
            traces.append(f"{number} {entry.span.context.encode().decode()}")
    return " ".join(traces)


async def _load_script(connection: PipelinedConnection) -> None:
    """Load the script on the server.

    Raises RedisError if the server refuses it.
    """
    [reply] = await connection.exchange([("SCRIPT", "LOAD", _SUBMIT.text)])
    if isinstance(reply, RedisError):
        raise reply


def _resolve(entries: Sequence[_Entry], reply: Any) -> None:  # noqa: ANN401 (checked below)
    try:
        outcomes = convert(reply, list[_Outcome])
    except PARSE_ERRORS:
        outcomes = []
    if len(outcomes) != len(entries):
        _log.error("script_failed", script=_SUBMIT.name, reason="the reply does not match the call")
        _fail(entries, OutcomeUnknown)
        return
    for entry, outcome in zip(entries, outcomes, strict=True):
        if entry.future.done():
            continue
        match outcome.word:
            case "applied" | "replayed":
                entry.future.set_result(
                    Receipt(
                        outcome.score,
                        outcome.seq,
                        outcome.word == "replayed",
                        outcome.committed == 1,
                    )
                )
            case "conflict":
                entry.future.set_exception(
                    ActionConflict(f"This actionId was already counted with {outcome.delta} points")
                )
            case "busy":
                entry.future.set_exception(Busy())
            case "range":
                entry.future.set_exception(
                    ScoreOutOfRange(f"The score is {outcome.score}, the action {outcome.delta}")
                )
            case _:
                entry.future.set_exception(ScriptFailed(f"unknown outcome {outcome.word}"))


def _fail(
    entries: Sequence[_Entry] | deque[_Entry], kind: type[ScoreboardError], detail: str = ""
) -> None:
    for entry in entries:
        if not entry.future.done():
            entry.future.set_exception(kind(detail))
