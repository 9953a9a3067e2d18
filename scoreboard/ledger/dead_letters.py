"""Dead letters: entries that the flusher could not decode or store (table dead_events).

Operators list, apply and discard them. Until then their actions are counted in Redis and not in
PostgreSQL, which verify, repair, reseed and the flusher take into account. Invariants: an entry is
resolved once, in one transaction with its rows and its audit record; the ledger's key decides
whether an applied action counts; if Redis may then differ from the expected score, a row of
rejected_events makes the flusher correct it, also after a crash; an action of a season that has
ended asks for a revision of its standings, in the same transaction.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import msgspec
import psycopg
from msgspec import Struct

from scoreboard.errors import Invalid, NotFound, OperatorMistake
from scoreboard.events import (
    BIGINT_MAX,
    CORRECTION,
    HELD,
    TURN,
    Event,
    decode,
    event_time,
    season_id_of,
)
from scoreboard.ledger.acts import ACTION_PREFIX, refuse_act
from scoreboard.ledger.audit import AuditTrail, audited
from scoreboard.ledger.held import insert_held
from scoreboard.ledger.pool import Connection, describe, translate_errors
from scoreboard.ledger.positions import lock_partitions, lock_position_shared
from scoreboard.ledger.seasons import ask_revision, open_season
from scoreboard.ledger.users import ensure_user
from scoreboard.model import (
    POINTS_MAX,
    SCORE_MAX,
    Board,
    Partition,
    is_identifier,
    kind_of,
    partition_of,
    scores_name,
)
from scoreboard.runtime import resources
from scoreboard.seasons import Season

_SELECT_DEAD: Final = resources.query("select_dead_events")
_SELECT_RESOLVED: Final = resources.query("select_resolved_events")
_SELECT_COUNTED: Final = resources.query("select_counted_places")
_LOCK_DEAD: Final = resources.query("lock_dead_event")
_RESOLVE_DEAD: Final = resources.query("resolve_dead_event")
_COUNT_DEAD: Final = resources.query("count_dead_event")
_COUNT_OPEN: Final = resources.query("count_dead_letters")
_INSERT_CORRECTION: Final = resources.query("insert_resolution_correction")

UNRESOLVED_MAX: Final = 100_000
"""Maximum number of unresolved actions of a board; a flusher stops long before that many."""

_RESOLUTION: Final = ("resolution", "resolved_at", "resolved_by", "resolved_reason")

PAGE: Final = 500
"""Entries of one read."""


class Entry(Struct, frozen=True, kw_only=True):
    """A dead letter: its place in the stream, its fields, and the reason.

    ``user_id``, ``action_id`` and ``delta`` are None if they cannot be parsed.
    """

    id: int
    partition: int
    stream_id: str
    reason: str
    recorded_at: datetime
    fields: dict[str, str]
    user_id: str | None
    action_id: str | None
    delta: int | None
    is_correction: bool
    is_held: bool
    """Whether it is an action that exceeded a limit: it changed no score."""
    resolution: str | None = None
    resolved_at: datetime | None = None
    resolved_by: str | None = None
    resolved_reason: str | None = None


class Overrides(Struct, frozen=True):
    """Values that an operator supplies for an entry that cannot be decoded."""

    user_id: str | None = None
    action_id: str | None = None
    delta: int | None = None


class Resolved(Struct, frozen=True, kw_only=True):
    """The outcome for an entry: ``applied``, ``duplicate``, ``discarded`` or ``refused``."""

    id: int
    outcome: str
    detail: str
    user_id: str | None = None
    action_id: str | None = None
    delta: int | None = None


class _Action(Struct, frozen=True):
    """An action ready for the ledger; ``score_after`` None: the score that PostgreSQL computes."""

    user_id: str
    action_id: str
    delta: int
    epoch: int
    seq: int
    score_after: int | None
    request_id: str | None
    occurred_at: datetime
    season: str
    """The id of its season, empty for a board without seasons."""


def expected_score(score: int | None, unresolved: int | None) -> int | None:
    """Return a user's score in PostgreSQL plus its ``unresolved`` deltas; None for no score.

    Redis refuses actions that leave the range of a score. Deltas that do were written by another
    program and are ignored.
    """
    total = (score or 0) + (unresolved or 0)
    if unresolved is None or not 0 <= total <= SCORE_MAX:
        return score
    return total


def fields_of(raw: bytes) -> dict[bytes, bytes]:
    """Return the fields of an entry from the ``raw`` of its row; empty if it cannot be decoded."""
    try:
        named = msgspec.json.decode(raw, type=dict[str, str])
        # Each character represents one byte.
        return {name.encode("latin-1"): value.encode("latin-1") for name, value in named.items()}
    except (msgspec.MsgspecError, UnicodeError):  # a row that the flusher did not write
        return {}


async def count_dead_letters(connection: Connection) -> dict[str, int]:
    """Count the unresolved dead letters of each board that has some.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        rows = await (await connection.execute(_COUNT_OPEN)).fetchall()
    return {str(board): int(count) for board, count in rows}


async def sum_unresolved(connection: Connection, board: str, *, season: str = "") -> dict[str, int]:
    """Return, by user, the sum of unresolved deltas: counted by Redis, not by PostgreSQL.

    They are those of a season by its id, empty for a board without seasons.

    Raises OperatorMistake (more than ``UNRESOLVED_MAX`` actions), DatabaseUnavailable.
    """
    sums: dict[str, int] = {}
    for event in await select_unresolved_events(connection, board):
        if season_id_of(event.season) != season:
            continue
        sums[event.user_id] = sums.get(event.user_id, 0) + event.delta
    return sums


async def select_unresolved_events(connection: Connection, board: str) -> list[Event]:
    """List the unresolved actions, oldest first: counted by Redis, not by PostgreSQL.

    Raises OperatorMistake (more than ``UNRESOLVED_MAX`` actions), DatabaseUnavailable.
    """
    events: list[Event] = []
    after = 0
    while rows := await _page(connection, board, after=after, limit=PAGE):
        records = [decode(row[2].encode(), fields_of(row[3])) for row in rows]
        page = [one for one in records if isinstance(one, Event) and one.is_action]
        events += await _uncounted(connection, board, page)
        if len(events) > UNRESOLVED_MAX:
            raise OperatorMistake(
                f"Board {board} has more than {UNRESOLVED_MAX} unresolved dead letters: "
                "scoreboard dead list"
            )
        after = rows[-1][0]
    return events


async def _uncounted(connection: Connection, board: str, page: Sequence[Event]) -> list[Event]:
    """Return the events that are not in the ledger; a redelivered one may have been stored.

    A repeated action has another place in the stream; Redis has counted both.
    """
    placed = [one for one in page if max(one.epoch, one.seq) <= BIGINT_MAX]
    parameters = {
        "board": board,
        "users": [one.user_id for one in placed],
        "actions": [one.action_id for one in placed],
        "epochs": [one.epoch for one in placed],
        "seqs": [one.seq for one in placed],
    }
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_COUNTED, parameters)).fetchall()
    counted = set(rows)
    return [one for one in page if (one.user_id, one.action_id, one.epoch, one.seq) not in counted]


async def select_entries(
    connection: Connection, board: str, *, after: int, limit: int
) -> list[Entry]:
    """List unresolved entries, oldest first, after an id.

    Raises DatabaseUnavailable.
    """
    return [_entry(row) for row in await _page(connection, board, after=after, limit=limit)]


async def _page(
    connection: Connection, board: str, *, after: int, limit: int
) -> list[tuple[Any, ...]]:
    parameters = {"board": board, "after": after, "limit": limit}
    async with translate_errors():
        return await (await connection.execute(_SELECT_DEAD, parameters)).fetchall()


async def select_resolved(connection: Connection, board: str, *, limit: int) -> list[Entry]:
    """List resolved entries, newest first.

    Raises DatabaseUnavailable.
    """
    parameters = {"board": board, "limit": limit}
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_RESOLVED, parameters)).fetchall()
    return [_entry(row) for row in rows]


async def select_ids(connection: Connection, board: str) -> AsyncIterator[int]:
    """Iterate over the ids of all unresolved entries.

    Raises DatabaseUnavailable.
    """
    after = 0
    while page := await select_entries(connection, board, after=after, limit=PAGE):
        for entry in page:
            yield entry.id
        after = page[-1].id


async def lock_board(connection: Connection, board: Board) -> None:
    """Take the operators' lock on every partition of a board, until the connection ends.

    A reseed must not read a board while its dead letters are resolved.

    Raises OperatorMistake if another operator holds one, DatabaseUnavailable.
    """
    numbers = range(board.layout.partitions)
    await lock_partitions(connection, [Partition(board.name, number) for number in numbers])


async def apply(
    connection: Connection,
    board: Board,
    entry_id: int,
    *,
    actor: str,
    overrides: Overrides | None = None,
    is_dry: bool = False,
) -> Resolved:
    """Insert a dead letter's action into the ledger, once; return the outcome.

    ``overrides`` supplies the fields that cannot be read. ``is_dry`` changes nothing.
    ``connection`` is in autocommit and holds ``lock_board``.

    Raises NotFound, Invalid, DatabaseUnavailable.
    """
    async with audited(connection, is_dry=is_dry) as trail:
        entry, season = await _lock(connection, board, entry_id)
        action = _action_of(entry, overrides or Overrides(), season)
        store = _hold if entry.is_held else _count
        try:
            async with connection.transaction():
                outcome = await store(connection, board, entry, action)
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            return _result(
                entry, action, "refused", f"it still cannot be stored: {describe(error)}"
            )
        if outcome == "applied":
            detail = "held" if entry.is_held else "counted"
            # The partition's position is locked: it cannot leave the season meanwhile.
            if not entry.is_held and action.season != season_id_of(season):
                why = f"dead letter {entry_id} was applied by {actor}"
                await ask_revision(connection, board.name, action.season, why)
                detail = f"counted; the final standings of {action.season} will be revised"
        else:
            detail = "the ledger already has this action, or it is held"
        done = _result(entry, action, outcome, detail)
        await _note(connection, trail, board, done, entry, actor=actor, reason=None)
    return done


async def discard(
    connection: Connection,
    board: Board,
    entry_id: int,
    *,
    actor: str,
    reason: str,
    is_dry: bool = False,
) -> Resolved:
    """Discard a dead letter permanently; Redis is corrected to the score without it.

    An administrator's act is then refused; it never counts.

    ``is_dry`` changes nothing. ``connection`` is in autocommit and holds ``lock_board``.

    Raises NotFound, DatabaseUnavailable.
    """
    async with audited(connection, is_dry=is_dry) as trail:
        entry, season = await _lock(connection, board, entry_id)
        try:
            changes_score = not entry.is_correction and not entry.is_held
            action = _action_of(entry, Overrides(), season) if changes_score else None
        except Invalid:
            action = None  # it names no valid user, so it changed no score
        if action is not None:
            row = _row(board, entry, action)
            await _lock_home(connection, board, row["home"], entry)
            await ensure_user(connection, action.user_id)
            await connection.execute(_INSERT_CORRECTION, {**row, "excess": action.delta})
        # The id that was sent, also if it is not valid.
        action_id = entry.fields.get("a", "")
        if action_id.startswith(ACTION_PREFIX):
            await refuse_act(connection, action_id.removeprefix(ACTION_PREFIX))
        done = _result(entry, action, "discarded", reason)
        await _note(connection, trail, board, done, entry, actor=actor, reason=reason)
    return done


async def _lock(connection: Connection, board: Board, entry_id: int) -> tuple[Entry, str]:
    """Return an entry, and the season at the committed position of its partition."""
    parameters = {"board": board.name, "id": entry_id}
    row = await (await connection.execute(_LOCK_DEAD, parameters)).fetchone()
    if row is None:
        raise NotFound(f"Board {board.name} has no dead letter {entry_id}")
    entry = _entry(row)
    if entry.resolution is not None:
        raise OperatorMistake(f"Entry {entry_id} is already resolved: {entry.resolution}")
    # Locks are taken in the same order as by a commit: the position first.
    position = await lock_position_shared(connection, Partition(board.name, entry.partition))
    return entry, position.season if position else ""


async def _count(connection: Connection, board: Board, entry: Entry, action: _Action) -> str:
    """Add an action to ledger and score if it is new; return ``applied`` or ``duplicate``."""
    row = _row(board, entry, action)
    await _lock_home(connection, board, row["home"], entry)
    await ensure_user(connection, action.user_id)
    if action.season:
        await _ensure_season(connection, board, entry, action)
    cursor = await connection.execute(_COUNT_DEAD, row)
    is_new = bool((await cursor.fetchone() or (0,))[0])
    if not is_new:
        await connection.execute(_INSERT_CORRECTION, {**row, "excess": action.delta})
    elif action.score_after is None:  # Redis may never have counted it
        await connection.execute(_INSERT_CORRECTION, {**row, "excess": -action.delta})
    return "applied" if is_new else "duplicate"


async def _hold(connection: Connection, board: Board, entry: Entry, _action: _Action) -> str:
    """Record a held action that is new; return ``applied`` or ``duplicate``."""
    partition = Partition(board.name, entry.partition)
    raw = {name.encode("latin-1"): text.encode("latin-1") for name, text in entry.fields.items()}
    event = decode(entry.stream_id.encode(), raw)
    if not isinstance(event, Event):
        raise Invalid(f"Entry {entry.id} is a held action that cannot be decoded: discard it")
    held = await insert_held(connection, partition, [event], committed=0)
    return "applied" if held.new else "duplicate"


async def _ensure_season(
    connection: Connection, board: Board, entry: Entry, action: _Action
) -> None:
    """Record the season of an action, of which the flusher may have counted nothing."""
    with suppress(ValueError):
        season = Season.parse(entry.fields.get("p", ""))
        if season.id == action.season:
            await open_season(connection, board.name, season)


async def _lock_home(connection: Connection, board: Board, home: int, entry: Entry) -> None:
    """Block corrections of the user, which would use the unresolved deltas of before.

    After a layout change the user's partition may differ from that of the entry.
    """
    if home != entry.partition:
        await lock_position_shared(connection, Partition(board.name, home))


def _row(board: Board, entry: Entry, action: _Action) -> dict[str, Any]:
    return {
        "id": entry.id,
        "board": board.name,
        "part": entry.partition,
        "home": partition_of(action.user_id, board.layout.partitions),
        "kind": kind_of(action.action_id),
        **msgspec.structs.asdict(action),
        "season": action.season or None,
        "scores": scores_name(board.name, action.season),
    }


async def _note(
    connection: Connection,
    trail: AuditTrail,
    board: Board,
    done: Resolved,
    entry: Entry,
    *,
    actor: str,
    reason: str | None,
) -> None:
    parameters = {
        "id": done.id,
        "resolution": done.outcome,
        "actor": actor,
        "reason": reason,
    }
    await connection.execute(_RESOLVE_DEAD, parameters)
    await trail.insert(
        actor=actor,
        action="dead discard" if done.outcome == "discarded" else "dead apply",
        board=board.name,
        detail={
            "id": done.id,
            "part": entry.partition,
            "stream_id": entry.stream_id,
            "outcome": done.outcome,
            "user": done.user_id,
            "action": done.action_id,
            "delta": done.delta,
            "reason": reason,
        },
    )


def _entry(row: Sequence[Any]) -> Entry:
    entry_id, partition, stream_id, raw, reason, recorded_at, *resolution = row
    fields = fields_of(raw)
    kind = fields.get(b"k", b"")
    return Entry(
        id=entry_id,
        partition=partition,
        stream_id=stream_id,
        reason=reason,
        recorded_at=recorded_at,
        fields={name.decode("latin-1"): value.decode("latin-1") for name, value in fields.items()},
        user_id=_identifier(fields, b"u"),
        action_id=_identifier(fields, b"a"),
        delta=_number(fields, b"d"),
        is_correction=kind in {CORRECTION.encode(), TURN.encode()},
        is_held=kind == HELD.encode(),
        **dict(zip(_RESOLUTION, resolution, strict=False)),
    )


def _identifier(fields: Mapping[bytes, bytes], name: bytes) -> str | None:
    text = fields.get(name, b"").decode("latin-1")
    return text if is_identifier(text) else None


def _number(fields: Mapping[bytes, bytes], name: bytes) -> int | None:
    text = fields.get(name, b"")
    digits = text.removeprefix(b"-")
    return int(text) if digits.isdigit() and len(digits) <= len(str(BIGINT_MAX)) else None


def _action_of(entry: Entry, overrides: Overrides, season: str) -> _Action:
    """Return the action of an entry, completed with an operator's values.

    ``season`` is the season of an entry that does not say its own, as id:start:end.

    Raises Invalid, naming a value that is missing, invalid or not needed.
    """
    if entry.is_correction:
        raise Invalid(f"Entry {entry.id} is a correction, which changes no score: discard it")
    raw = {name.encode("latin-1"): text.encode("latin-1") for name, text in entry.fields.items()}
    event = decode(entry.stream_id.encode(), raw)
    if isinstance(event, Event):
        if overrides != Overrides():
            raise Invalid(
                f"Entry {entry.id} can be decoded: --user, --action and --delta are not allowed"
            )
        has_place = event.seq <= BIGINT_MAX and event.epoch <= BIGINT_MAX
        return _Action(
            user_id=event.user_id,
            action_id=event.action_id,
            delta=event.delta,
            epoch=event.epoch if has_place else 0,
            seq=event.seq if has_place else 0,
            score_after=event.score_after,
            request_id=event.request_id or None,
            occurred_at=event_time(event.stream_id),
            season=season_id_of(event.season),
        )
    values: dict[str, Any] = {}
    for name, option in (("user_id", "--user"), ("action_id", "--action"), ("delta", "--delta")):
        override, found = getattr(overrides, name), getattr(entry, name)
        value = found if override is None else override
        if value is None:
            raise Invalid(f"Entry {entry.id} cannot be decoded ({event.reason}): add {option}")
        values[name] = value
    for name in ("user_id", "action_id"):
        if not is_identifier(values[name]):
            raise Invalid(f"{values[name]!r} is not 1 to 128 of A-Z a-z 0-9 . _ | : @ -")
    if not 1 <= values["delta"] <= POINTS_MAX:
        raise Invalid(f"The points of entry {entry.id} must be 1 to {POINTS_MAX}: add --delta")
    # Its place in the stream is uncertain, so it gets none.
    return _Action(
        **values,
        epoch=0,
        seq=0,
        score_after=None,
        request_id=None,
        occurred_at=event_time(entry.stream_id),
        season=season_id_of(entry.fields.get("p") or season),
    )


def _result(entry: Entry, action: _Action | None, outcome: str, detail: str) -> Resolved:
    return Resolved(
        id=entry.id,
        outcome=outcome,
        detail=detail,
        user_id=action.user_id if action else entry.user_id,
        action_id=action.action_id if action else entry.action_id,
        delta=action.delta if action else entry.delta,
    )
