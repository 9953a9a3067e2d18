"""Sends updates to Redis in batches (scoreboard.store.batching). Only this module runs submit.lua.

A batch whose reply was lost is sent once more (replays are harmless). If that reply is lost too,
its callers get OutcomeUnknown.
"""

import asyncio
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from redis.exceptions import TimeoutError as RedisTimeoutError

from scoreboard.errors import (
    ActionConflict,
    Banned,
    Busy,
    ClientError,
    OutcomeUnknown,
    ScoreboardError,
    ScoreOutOfRange,
    ScriptFailed,
    SeasonClosed,
    SeasonEnded,
    Uninitialised,
)
from scoreboard.model import (
    BATCH_MAX,
    BOARDS_KEPT_MAX,
    Action,
    Layout,
    Partition,
    Receipt,
    Rules,
    digest_of,
    partition_of,
    shard_of,
)
from scoreboard.runtime.collectors import LoopHistogram
from scoreboard.runtime.recent import Recent
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import BATCH_BUCKETS, gauge, get_logger
from scoreboard.runtime.tracing import CURRENT_SPAN
from scoreboard.seasons import Season
from scoreboard.store.batching import ASKING, Batcher, Call, Entry, fail
from scoreboard.store.keys import PULSE, PartitionKeys
from scoreboard.store.partitions import turn_arguments
from scoreboard.store.pipelined_connection import Command, PipelinedConnection
from scoreboard.store.replies import PARSE_ERRORS, convert
from scoreboard.store.scripts import Script, call_seconds, count_refusal, script_command

if TYPE_CHECKING:
    from scoreboard.runtime.otel import Span

WRITE_ACTIONS_MAX: Final = 4 * BATCH_MAX
"""Maximum actions of one write: four script calls, a few ms of Redis's time, one fsync."""

_SECONDS: Final = re.compile(r"\d{1,12}", re.ASCII)
_SUBMIT: Final = Script.load("submit")
_TURN: Final = Script.load("turn")
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


class _Entry(Entry):
    """A queued update: the action, its digest, and the future its caller awaits."""

    __slots__ = ("action", "board", "digest")

    def __init__(self, board: str, action: Action, future: "asyncio.Future[Receipt]") -> None:
        super().__init__(future)
        self.board = board
        self.action = action
        self.digest = digest_of(board, action.user_id, action.action_id)


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
            outcome = "replayed" if receipt.replayed else "held" if receipt.held else "applied"
            self.span.add({"scoreboard.outcome": outcome, "scoreboard.seq": receipt.seq})
        self.span.end()


class _SubmitCall(Call[_Entry]):
    """A submit call, and the layout it was built for."""

    __slots__ = ("layout",)

    def __init__(self, partition: Partition, layout: Layout) -> None:
        super().__init__(_SUBMIT, partition)
        self.layout = layout


class Dispatcher(Batcher[_Entry, _SubmitCall]):
    """Batches single updates. Run ``run`` in a task group; call ``submit`` from any task.

    ``close`` sends what is queued and then ends ``run``.
    """

    def __init__(self, settings: Settings, *, name: str = "dispatcher") -> None:
        super().__init__(
            settings, _SUBMIT, _TURN, name=name, entries_max=WRITE_ACTIONS_MAX, lost=OutcomeUnknown
        )
        self._is_cluster = self.slot_map is not None
        self._is_tracing = settings.tracing != "off"
        _WAITING.set_function(lambda: self.waiting)
        self._layouts: Recent[Layout] = Recent(BOARDS_KEPT_MAX)
        """Layouts that refusals contained; without an entry a board has the default one."""
        self._turns: dict[Partition, Command] = {}
        """Calls of turn.lua that have to precede the next call of a partition."""
        self._clock_offset_s = 0.0
        self._waits = settings.acknowledge == "replicated"

    async def submit(self, board: str, action: Action) -> Receipt:
        """Apply an action exactly once and return its permanent answer.

        Raises ActionConflict, ScoreOutOfRange, Banned, BoardArchived, SeasonClosed, Busy, Fenced,
        SeasonEnded, Uninitialised, Overloaded, RedisUnavailable (nothing was sent) or
        OutcomeUnknown (repeat the action).
        """
        future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        parent = CURRENT_SPAN.get() if self._is_tracing else None
        self.enqueue(
            _Entry(board, action, future)
            if parent is None
            else _TracedEntry(board, action, future, parent)
        )
        return await future

    def plan(self, entries: Sequence[_Entry]) -> list[_SubmitCall]:
        """Group entries into calls of one partition and at most BATCH_MAX actions, in order.

        An action whose caller assumed other rules than the board has is refused: its number could
        have another meaning.
        """
        calls: list[_SubmitCall] = []
        open_calls: dict[tuple[str, int], _SubmitCall] = {}
        for entry in entries:
            rules = entry.action.rules
            layout = self._layouts.get(entry.board)
            if layout is None:
                layout = Layout(rules=rules)
            elif not _are_equal(layout.rules, rules):
                changed = Uninitialised("The rules of the board are being read again")
                self._fail_refused([entry], changed)
                continue
            number = partition_of(entry.action.user_id, layout.partitions)
            call = open_calls.get((entry.board, number))
            if (
                call is None
                or len(call.entries) == BATCH_MAX
                or not _are_equal(call.layout.rules, rules)
            ):
                call = _SubmitCall(Partition(entry.board, number), layout)
                open_calls[entry.board, number] = call
                calls.append(call)
            call.entries.append(entry)
        return calls

    def partition_of(self, entry: _Entry) -> Partition:
        """Return the partition of an entry by the layout that its board last had."""
        layout = self._layouts.get(entry.board)
        partitions = 1 if layout is None else layout.partitions
        return Partition(entry.board, partition_of(entry.action.user_id, partitions))

    def commands(self, call: _SubmitCall) -> Sequence[Command]:
        """Return the command of a call, for this moment's generation, after the turn it needs."""
        generation = int((time.time() + self._clock_offset_s) // call.layout.seen_seconds)
        command = submit_command(
            call.partition,
            call.layout,
            generation,
            self._settings.stream_cap,
            [(entry.action, entry.digest) for entry in call.entries],
            is_cluster=self._is_cluster,
        )
        traces = _traces_of(call) if self._is_tracing else ""
        if seasons := _seasons_of(call):
            command = (*command, traces, seasons)
        elif traces:
            command = (*command, traces)
        _BATCH_ACTIONS.observe(len(call.entries))
        # A refused turn needs no attention: its call is refused for the same reason.
        turn = self._turns.pop(call.partition, None) if self._turns else None
        return (command,) if turn is None else (turn, command)

    async def exchange(
        self, connection: PipelinedConnection, calls: Sequence[_SubmitCall]
    ) -> Sequence[Any]:
        """Send calls in one write, and wait for replicas if the settings ask for them.

        Raises RedisTimeoutError if too few replicas have the batch.
        """
        began_s = time.perf_counter()
        wait = self._wait_after(calls) if self._waits else ()
        try:
            replies, copied = await self.send(connection, calls, wait)
        finally:
            _CALL_SECONDS.observe(time.perf_counter() - began_s)
        if copied:
            *_, pulse, copies = copied
            # An error reply proves no copy.
            counts = isinstance(pulse, int) and isinstance(copies, int)
            if not counts or copies < self._settings.replicas:
                lost = RedisTimeoutError("too few replicas have the batch")
                if not any(isinstance(reply, Exception) for reply in replies):
                    raise lost
                # Refused calls changed nothing, so their replies stay.
                return [reply if isinstance(reply, Exception) else lost for reply in replies]
        return replies

    def _wait_after(self, calls: Sequence[_SubmitCall]) -> Sequence[Command]:
        """Return the commands that wait for the replicas of the server of calls.

        WAIT waits for this connection's last write. A replay writes nothing, so without the INCR,
        WAIT would return at once for an action that no replica has. In a cluster the counter is one
        of a partition, so that the server which gets the calls accepts it.
        """
        settings = self._settings
        first = calls[0]
        pulse = PartitionKeys(first.partition).pulse if self._is_cluster else PULSE
        wait: list[Command] = [("INCR", pulse)]
        if first.is_asking:
            wait.insert(0, ASKING)
        wait.append(("WAIT", settings.replicas, settings.replica_timeout_ms))
        return wait

    def learn(self, call: _SubmitCall, refusal: Exception) -> bool:
        """Use the time or layout that a refusal contains; return whether it contains one."""
        code, _, rest = str(refusal).partition(" ")
        fact = rest.partition(" ")[0]
        if code == "BUCKET" and _SECONDS.fullmatch(fact):
            count_refusal(code)
            self._clock_offset_s = int(fact) - time.time() + 0.5
            return True
        if code == "SEASON":
            season, _, now = fact.rpartition(":")
            with suppress(ValueError, SeasonEnded):
                self._turns[call.partition] = turn_command(
                    call.partition,
                    call.layout.rules,
                    Season.parse(season),
                    int(now),
                    is_cluster=self._is_cluster,
                )
                count_refusal(code)
                return True
        if code == "LAYOUT":
            with suppress(ValueError):
                self._layouts.keep(call.partition.board, Layout.parse(fact))
                count_refusal(code)
                return True
        return False

    def resolve(self, call: _SubmitCall, reply: Any) -> None:  # noqa: ANN401 (checked below)
        """Resolve the futures of a call's entries from its reply."""
        _resolve(call.entries, reply)


def _are_equal(one: Rules, other: Rules) -> bool:
    """Compare rules; in the usual case without looking at their fields."""
    return one is other or one == other


def submit_command(
    partition: Partition,
    layout: Layout,
    generation: int,
    stream_cap: int,
    actions: Iterable[tuple[Action, bytes]],
    *,
    is_cluster: bool = False,
) -> Command:
    """Return the command that applies actions, each with its digest, of one partition."""
    keys = PartitionKeys(partition)
    names: list[str] = [
        *(keys.board, keys.events, keys.meta, keys.changes, keys.banned, keys.gained),
    ]
    args: list[Any] = [generation, str(layout), stream_cap]
    pairs: dict[int, int] = {}
    for action, digest in actions:
        shard = shard_of(digest, layout.seen_shards)
        pair = pairs.get(shard)
        if pair is None:
            pair = pairs[shard] = len(pairs) + 1
            names.append(keys.dedup_shard(generation, shard))
            names.append(keys.dedup_shard(generation - 1, shard))
        args += (
            action.user_id,
            action.action_id,
            digest,
            action.delta,
            1 if action.stated else 0,
            action.request_id,
            pair,
        )
    script = _SUBMIT.sharded if is_cluster else _SUBMIT
    return script_command(script, names, args, reads=False)


def turn_command(
    partition: Partition, rules: Rules, ended: Season, now_s: int, *, is_cluster: bool = False
) -> Command:
    """Return the command that ends a season and begins the one of a moment (s since 1970).

    Raises SeasonEnded if that one cannot be computed.
    """
    keys = PartitionKeys(partition)
    names = [keys.board, keys.events, keys.meta, keys.changes, keys.banned]
    script = _TURN.sharded if is_cluster else _TURN
    return script_command(script, names, turn_arguments(rules, ended, now_s), reads=False)


def _out_of_range(rules: Rules, outcome: _Outcome) -> ScoreOutOfRange:
    if not rules.takes_values:
        return ScoreOutOfRange(f"The score is {outcome.score}, the action {outcome.delta}")
    if outcome.delta == 0 and rules.score_min == 0:
        return ScoreOutOfRange("The first value of a user must not be 0 on this board")
    return ScoreOutOfRange(
        f"The value is {outcome.delta}; it must be {rules.score_min} to {rules.score_max}"
    )


def _seasons_of(call: _SubmitCall) -> str:
    """Return the argument that names the seasons that actions state; empty if none does."""
    if not call.layout.rules.season:
        return ""
    return " ".join(
        f"{number} {entry.action.season}"
        for number, entry in enumerate(call.entries, 1)
        if entry.action.season
    )


def _traces_of(call: _SubmitCall) -> str:
    """Return the argument that names the traced actions, and note in each span that it is sent."""
    traces: list[str] = []
    for number, entry in enumerate(call.entries, 1):
        if isinstance(entry, _TracedEntry):
            entry.span.event("sent", {"scoreboard.batch_actions": len(call.entries)})
            traces.append(f"{number} {entry.span.context.encode().decode()}")
    return " ".join(traces)


def _resolve(  # noqa: C901 (one case per outcome)
    entries: Sequence[_Entry],
    reply: Any,  # noqa: ANN401 (checked below)
) -> None:
    try:
        outcomes = convert(reply, list[_Outcome])
    except PARSE_ERRORS:
        outcomes = []
    if len(outcomes) != len(entries):
        _log.error("script_failed", script=_SUBMIT.name, reason="the reply does not match the call")
        fail(entries, OutcomeUnknown)
        return
    for entry, outcome in zip(entries, outcomes, strict=True):
        if entry.future.done():
            continue
        match outcome.word:
            case "applied" | "replayed" | "held" | "held_before":
                entry.future.set_result(
                    Receipt(
                        outcome.score,
                        outcome.seq,
                        outcome.word in {"replayed", "held_before"},
                        outcome.committed == 1,
                        outcome.word in {"held", "held_before"},
                    )
                )
            case "conflict":
                entry.future.set_exception(
                    ActionConflict("This actionId was already sent with another value")
                    if entry.action.rules.takes_values
                    else ActionConflict(
                        f"This actionId was already sent with {outcome.delta} points"
                    )
                )
            case "busy":
                entry.future.set_exception(Busy())
            case "banned":
                entry.future.set_exception(Banned())
            case "closed":
                entry.future.set_exception(
                    SeasonClosed(f"Season {entry.action.season} is not the current one")
                )
            case "range":
                entry.future.set_exception(_out_of_range(entry.action.rules, outcome))
            case _:
                entry.future.set_exception(ScriptFailed(f"unknown outcome {outcome.word}"))
