"""Acts of administrators in PostgreSQL, and who is banned.

An act is recorded, with its row in the audit log, before Redis applies it. The ledger decides
whether it counted: its action id is ``act:`` and the id of the act. The caller owns the connection
and its transaction. Each constant has the name of its query file; a test compares the two sets.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal

from msgspec import Struct
from psycopg.types.json import Jsonb

from scoreboard.errors import Invalid, NotFound
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.ledger.positions import where
from scoreboard.ledger.users import ensure_user
from scoreboard.model import ACT_KIND, END, Partition, is_identifier
from scoreboard.runtime import resources

_INSERT_ACT: Final = resources.query("insert_act")
_INSERT_ACT_ACTIONS: Final = resources.query("insert_act_actions")
_REFUSE_ACT: Final = resources.query("refuse_act")
_SELECT_ACTS: Final = resources.query("select_acts")
_SELECT_VOIDABLE: Final = resources.query("select_voidable")
_INSERT_BAN: Final = resources.query("insert_ban")
_DELETE_BAN: Final = resources.query("delete_ban")
_SELECT_BANS: Final = resources.query("select_bans")
_SELECT_BANS_OF: Final = resources.query("select_bans_of")
_LOCK_POSITION: Final = resources.query("lock_position")

ACTION_PREFIX: Final = f"{ACT_KIND}:"
"""Prefix of the action ids of acts; no update may have it."""

ACT_ID_PATTERN: Final = rf"^[0-9a-f]{{16}}{END}"

ActKind = Literal["correct", "void", "void window", "undo", "ban", "unban", "release"]
ActState = Literal["applied", "pending", "refused"]


class NewAct(Struct, frozen=True, kw_only=True):
    """An act to record. ``actions`` are the ones that it voids, ``undoes`` the act it reverts."""

    id: str
    board: str
    user_id: str
    kind: ActKind
    delta: int
    actor: str
    reason: str
    detail: dict[str, Any] = {}
    undoes: str | None = None
    actions: tuple[str, ...] = ()


class Act(Struct, frozen=True, kw_only=True):
    """An act and its state; ``undone_by`` is the act that undoes it."""

    id: str
    at: datetime
    board: str
    user_id: str
    kind: ActKind
    delta: int
    actor: str
    reason: str
    detail: dict[str, Any]
    undoes: str | None
    undone_by: str | None
    state: ActState


class ActFilter(Struct, frozen=True, kw_only=True):
    """Which acts to list; None means all."""

    id: str | None = None
    board: str | None = None
    user_id: str | None = None
    since: datetime | None = None
    state: ActState | None = None
    before: tuple[datetime, str] | None = None
    """Only those after the act of this time and id in the list."""


class Counted(Struct, frozen=True):
    """A counted action; ``voided_by`` is the act that voids it."""

    action_id: str
    delta: int
    voided_by: str | None
    is_act: bool


def action_id_of(act_id: str) -> str:
    """Return the action id of an act in the ledger."""
    return ACTION_PREFIX + act_id


async def insert_act(connection: Connection, act: NewAct) -> None:
    """Record an act; run it in a transaction, and insert the audit row after it.

    Raises Invalid for ids that the flusher would refuse, DatabaseUnavailable.
    """
    if not (re.fullmatch(ACT_ID_PATTERN, act.id) and is_identifier(act.user_id)):
        raise Invalid("An act has an id of 16 hexadecimal digits and the id of a user")
    names = ("id", "board", "user_id", "kind", "delta", "actor", "reason", "undoes")
    row = {name: getattr(act, name) for name in names}
    await ensure_user(connection, act.user_id)
    async with translate_errors():
        await connection.execute(_INSERT_ACT, {**row, "detail": Jsonb(act.detail)})
        if act.actions:
            parameters = {"id": act.id, "actions": list(act.actions)}
            await connection.execute(_INSERT_ACT_ACTIONS, parameters)


async def refuse_act(connection: Connection, act_id: str) -> None:
    """Record that an act is refused, unless it has counted.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        await connection.execute(_REFUSE_ACT, {"id": act_id})


async def select_acts(connection: Connection, chosen: ActFilter, *, limit: int) -> list[Act]:
    """List acts, newest first.

    Raises DatabaseUnavailable.
    """
    values = {name: getattr(chosen, name) for name in chosen.__struct_fields__}
    values["before_at"], values["before_id"] = values.pop("before") or (None, None)
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_ACTS, {**values, "limit": limit})).fetchall()
    return [Act(**dict(zip(Act.__struct_fields__, row, strict=True))) for row in rows]


async def select_act(connection: Connection, act_id: str) -> Act:
    """Read an act.

    Raises NotFound, DatabaseUnavailable.
    """
    found = await select_acts(connection, ActFilter(id=act_id), limit=1)
    if not found:
        raise NotFound(f"There is no act {act_id}", hint="see scoreboard act list")
    return found[0]


async def select_counted(
    connection: Connection,
    board: str,
    user_id: str,
    *,
    action_id: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    season: str = "",
    limit: int,
) -> list[Counted]:
    """List a user's counted actions: one, or those from ``since`` until before ``until``.

    They are those of a season by its id, empty for a board without seasons.

    Raises DatabaseUnavailable.
    """
    parameters = {
        "board": board,
        "user_id": user_id,
        "action_id": action_id,
        "since": since,
        "until": until,
        "season": season or None,
        "limit": limit,
    }
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_VOIDABLE, parameters)).fetchall()
    return [Counted(*row) for row in rows]


async def lock_bans(connection: Connection, partition: Partition) -> bool:
    """Block commits and corrections of a partition until the transaction ends.

    A correction that read the bans of before would write them to Redis after those of now. Returns
    whether the partition has a position. Raises DatabaseUnavailable.
    """
    async with translate_errors():
        row = await (await connection.execute(_LOCK_POSITION, where(partition))).fetchone()
    return row is not None


async def insert_ban(connection: Connection, act_id: str) -> bool:
    """Ban the user of an act; return whether it was not banned. The caller holds ``lock_bans``.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        done = await connection.execute(_INSERT_BAN, {"id": act_id})
    return done.rowcount == 1


async def delete_ban(connection: Connection, act_id: str) -> bool:
    """End the ban of the user of an act; return whether it was banned.

    The caller holds ``lock_bans``. Raises DatabaseUnavailable.
    """
    async with translate_errors():
        done = await connection.execute(_DELETE_BAN, {"id": act_id})
    return done.rowcount == 1


async def select_bans(connection: Connection, board: str) -> set[str]:
    """Return the banned users of a board.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_BANS, {"board": board})).fetchall()
    return {str(row[0]) for row in rows}


async def select_bans_of(
    connection: Connection, board: str, user_ids: Sequence[str]
) -> dict[str, str]:
    """Return those of some users that are banned on a board, with the act of each ban.

    Raises DatabaseUnavailable.
    """
    parameters = {"board": board, "users": [user for user in user_ids if "\0" not in user]}
    async with translate_errors():
        rows = await (await connection.execute(_SELECT_BANS_OF, parameters)).fetchall()
    return {str(user): str(act_id) for user, act_id in rows}
