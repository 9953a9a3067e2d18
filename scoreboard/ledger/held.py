"""Held actions: those that exceeded a limit of their board (table held_actions).

The flusher records them; an operator releases each with an act, or voids it. Invariants: a held
action never counts by itself, also if it is repeated after the dedup window, because its row stays;
it is released or voided once, and can be again only after its act was refused or undone. The caller
owns the connection and its transaction. Each constant has the name of its query file; a test
compares the two sets.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal

from msgspec import Struct

from scoreboard.errors import NotFound
from scoreboard.events import Event, event_time, season_id_of
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.ledger.positions import where
from scoreboard.model import LimitKind, Partition, user_uuid
from scoreboard.runtime import resources

_INSERT_HELD: Final = resources.query("insert_held_actions")
_SELECT_HELD: Final = resources.query("select_held_actions")
_RELEASE_HELD: Final = resources.query("release_held_action")
_VOID_HELD: Final = resources.query("void_held_action")
_COUNT_HELD: Final = resources.query("count_held_actions")

HeldState = Literal["held", "pending", "released", "voided"]
"""``pending``: its release is recorded and not in the ledger yet."""


class Held(Struct, frozen=True):
    """How many held actions are new; of these, how many have a seq that was committed before."""

    new: int = 0
    rewound: int = 0

    def plus(self, other: "Held") -> "Held":
        """Return the sums."""
        return Held(self.new + other.new, self.rewound + other.rewound)


class HeldAction(Struct, frozen=True, kw_only=True):
    """A held action and its state.

    ``delta`` is what it would have changed when the score was ``score``; ``act_id`` is the act that
    released it last.
    """

    id: int
    board: str
    user_id: str
    action_id: str
    delta: int
    score: int
    limit: LimitKind
    occurred_at: datetime
    state: HeldState
    act_id: str | None
    voided_by: str | None
    voided_reason: str | None
    season: str | None
    """The season in which it was held; None on a board without seasons."""


class Waiting(Struct, frozen=True):
    """How many held actions wait for a decision, and the age of the oldest (s)."""

    actions: int = 0
    oldest_s: float = 0.0


class HeldFilter(Struct, frozen=True, kw_only=True):
    """Which held actions to list; None means all."""

    ids: tuple[int, ...] | None = None
    board: str | None = None
    user_id: str | None = None
    action_id: str | None = None
    limit_kind: LimitKind | None = None
    since: datetime | None = None
    state: HeldState | None = None
    after: int | None = None
    """Only those with a greater id."""


async def insert_held(
    connection: Connection, partition: Partition, events: Sequence[Event], *, committed: int
) -> Held:
    """Record held actions; those that are known already are kept as late duplicates.

    ``committed`` is the seq up to which the stream was committed before. The caller translates the
    errors of psycopg.
    """
    parameters: dict[str, Any] = {
        **where(partition),
        "committed": committed,
        "users": [event.user_id for event in events],
        "preferred_ids": [user_uuid(event.user_id) for event in events],
        "actions": [event.action_id for event in events],
        "epochs": [event.epoch for event in events],
        "seqs": [event.seq for event in events],
        "deltas": [event.delta for event in events],
        "scores": [event.score_after for event in events],
        "limits": [event.limit for event in events],
        "requests": [event.request_id or None for event in events],
        "times": [event_time(event.stream_id) for event in events],
        "seasons": [season_id_of(event.season) or None for event in events],
    }
    row = await (await connection.execute(_INSERT_HELD, parameters)).fetchone()
    return Held(*row) if row else Held()


async def select_held(
    connection: Connection, chosen: HeldFilter, *, limit: int
) -> list[HeldAction]:
    """List held actions, oldest first.

    Raises DatabaseUnavailable.
    """
    values: dict[str, Any] = {name: getattr(chosen, name) for name in chosen.__struct_fields__}
    values["ids"] = None if chosen.ids is None else list(chosen.ids)
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_HELD, {**values, "limit": limit})).fetchall()
    return [HeldAction(**dict(zip(HeldAction.__struct_fields__, row, strict=True))) for row in rows]


async def count_held(connection: Connection) -> Waiting:
    """Count the held actions of all boards that wait for a decision.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        row = await (await connection.execute(_COUNT_HELD)).fetchone()
    return Waiting(*row) if row else Waiting()


async def select_held_action(connection: Connection, board: str, held_id: int) -> HeldAction:
    """Read a held action.

    Raises NotFound, DatabaseUnavailable.
    """
    found = await select_held(connection, HeldFilter(ids=(held_id,), board=board), limit=1)
    if not found:
        hint = "see scoreboard held list"
        raise NotFound(f"Board {board} has no held action {held_id}", hint=hint)
    return found[0]


async def release_held(connection: Connection, held_id: int, act_id: str) -> bool:
    """Note the act that releases an action; return whether it was held.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        done = await connection.execute(_RELEASE_HELD, {"id": held_id, "act_id": act_id})
    return done.rowcount == 1


async def void_held(connection: Connection, held_id: int, *, actor: str, reason: str) -> bool:
    """Void an action; return whether it was held.

    Raises DatabaseUnavailable.
    """
    parameters = {"id": held_id, "actor": actor, "reason": reason}
    async with translate_errors():
        done = await connection.execute(_VOID_HELD, parameters)
    return done.rowcount == 1
