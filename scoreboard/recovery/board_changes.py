"""Makes boards and changes them, each with a row in the audit log, in both stores.

Every change can be repeated if it was interrupted.
"""

from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct

from scoreboard.errors import Fenced, Invalid, Uninitialised
from scoreboard.ledger.audit import audited
from scoreboard.ledger.boards import (
    insert_board,
    publish_board,
    require_free_name,
    select_board,
    set_board_limits,
    set_board_state,
)
from scoreboard.ledger.load_tests import CREATED, is_load_test_name, refuse_load_test_name
from scoreboard.ledger.pool import Connection
from scoreboard.ledger.positions import lock_partitions
from scoreboard.ledger.retention import require_complete_separation, require_ledger
from scoreboard.ledger.scores import has_scores
from scoreboard.model import (
    NO_LIMITS,
    SCORE_MAX,
    Board,
    BoardState,
    Limits,
    Partition,
    Rules,
    check_limits,
)
from scoreboard.recovery.mirror import mirror_board
from scoreboard.recovery.reseed import find_unavailable, reseed
from scoreboard.seasons import require_season
from scoreboard.store.store import Store


class LimitChange(Struct, frozen=True):
    """New limits of a board; None leaves one as it is, 0 removes it."""

    per_action: int | None = None
    per_window: int | None = None
    window_s: int | None = None

    def applied_to(self, board: Board) -> Limits:
        """Return the limits of a board after the change.

        The limit of a window is removed with either of its two numbers. Raises Invalid.
        """
        before = board.limits
        per_window = before.per_window if self.per_window is None else self.per_window
        window_s = before.window_s if self.window_s is None else self.window_s
        if 0 in {self.per_window, self.window_s}:
            per_window = window_s = 0
        limits = Limits(
            before.per_action if self.per_action is None else self.per_action, per_window, window_s
        )
        try:
            check_limits(limits, board.layout.rules)
        except ValueError as error:
            hint = ""
            if bool(per_window) != bool(window_s):
                hint = "give --max-points-per-window and --window"
            raise Invalid(f"Board {board.name}: {error}", hint=hint) from None
        return limits


def make_rules(rules: Rules) -> Rules:
    """Return rules whose values fit together.

    Raises Invalid.
    """
    if not 0 <= rules.score_min < rules.score_max <= SCORE_MAX:
        raise Invalid(
            f"min must be below max, both from 0 to {SCORE_MAX}; they are {rules.score_min} and "
            f"{rules.score_max}"
        )
    if rules.lowering != "nobody" and rules.operator != "add":
        raise Invalid(
            f"lowering is for boards with operator add, which count negative points; a board with "
            f"{rules.operator} takes values"
        )
    if rules.season and not rules.time_zone:
        rules = msgspec.structs.replace(rules, time_zone="UTC")
    require_season(rules)
    return rules


async def create_board(
    connection: Connection, board: Board, *, actor: str, allow_load_tests: bool = False
) -> bool:
    """Create a board and its row in the audit log; return whether it is new.

    A board whose name is one for load tests is marked so: `scoreboard bench` deletes its data.

    Raises OperatorMistake for such a name without ``allow_load_tests``, if a board of this name was
    deleted, or if its own partition of the ledger is not complete; DatabaseUnavailable.
    """
    if not allow_load_tests:
        refuse_load_test_name(board.name)
    async with audited(connection) as trail:
        if not await insert_board(connection, board):
            await require_free_name(connection, board.name)
            return False
        await require_complete_separation(connection, board.name)
        detail: dict[str, Any] = {"layout": str(board.layout), "public": board.is_public}
        if board.limits != NO_LIMITS:
            detail["limits"] = msgspec.structs.asdict(board.limits)
        action = CREATED if is_load_test_name(board.name) else "board create"
        await trail.insert(actor=actor, action=action, board=board.name, detail=detail)
    return True


async def open_new_board(store: Store, connection: Connection, name: str, *, actor: str) -> bool:
    """Open a board that has no scores yet and list it; return False if it has scores or is open.

    It needs no flusher, because its streams are empty. ``connection`` is in autocommit, and holds
    the operators' lock until it is closed.

    Raises UnknownBoard, OperatorMistake, RedisUnavailable, DatabaseUnavailable.
    """
    if await has_scores(connection, name):
        return False
    board = await select_board(connection, name)
    numbers = await find_unavailable(store, board)
    if not numbers:
        return False
    await reseed(store, connection, board, numbers, actor=actor)
    return True


async def change_board(
    store: Store,
    connection: Connection,
    name: str,
    *,
    actor: str,
    is_public: bool | None = None,
    state: BoardState | None = None,
    limits: LimitChange | None = None,
) -> bool:
    """Set whether a board is public or archived, and its limits; return whether that changed it.

    None leaves a property as it is in PostgreSQL; Redis gets all in any case. Services apply it at
    once. ``connection`` is in autocommit, and holds the operators' lock until it is closed.

    Raises UnknownBoard, Invalid (limits that do not fit), OperatorMistake (another operator works
    on the board, or its ledger is detached), DatabaseUnavailable; RedisUnavailable: PostgreSQL has
    the change, repeat the call.
    """
    partitions = partitions_of(await select_board(connection, name))
    await lock_partitions(connection, partitions)
    before = await select_board(connection, name)
    board = msgspec.structs.replace(
        before,
        is_public=before.is_public if is_public is None else is_public,
        state=state or before.state,
        limits=before.limits if limits is None else limits.applied_to(before),
    )
    if board.state == "open":
        await require_ledger(connection, name)
    async with audited(connection) as trail:
        if board.is_public != before.is_public:
            await publish_board(connection, name, is_public=board.is_public)
            detail = {"public": board.is_public}
            await trail.insert(actor=actor, action="board publish", board=name, detail=detail)
        if board.state != before.state:
            await set_board_state(connection, name, board.state)
            action = "board archive" if board.state == "archived" else "board unarchive"
            await trail.insert(actor=actor, action=action, board=name, detail={})
        if board.limits != before.limits:
            await set_board_limits(connection, name, board.limits)
            change = {
                "before": msgspec.structs.asdict(before.limits),
                "after": msgspec.structs.asdict(board.limits),
            }
            await trail.insert(actor=actor, action="board limit", board=name, detail=change)
    await mirror_board(store, connection, name)
    for partition in partitions:
        # A partition that is not loaded gets them from the reseed that opens it.
        with suppress(Uninitialised, Fenced):
            await store.configure(partition, board)
    return board != before


def partitions_of(board: Board) -> list[Partition]:
    """Return the partitions of a board."""
    return [Partition(board.name, number) for number in range(board.layout.partitions)]
