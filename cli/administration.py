"""Changes to boards and to the catalogue of actions, each with its row in the audit log."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct

from cli.target import open_database, open_store
from scoreboard.errors import (
    Fenced,
    Invalid,
    OperatorMistake,
    RedisUnavailable,
    Uninitialised,
    WaitTimeout,
)
from scoreboard.ledger.actions import Kind, KindChange, insert_action, select_actions
from scoreboard.ledger.audit import AuditTrail, audited
from scoreboard.ledger.boards import (
    insert_board,
    publish_board,
    require_free_name,
    select_board,
    select_deleted_board,
    set_board_limits,
    set_board_state,
)
from scoreboard.ledger.load_tests import CREATED, is_load_test_name
from scoreboard.ledger.migrations import require_schema
from scoreboard.ledger.pool import Connection
from scoreboard.ledger.positions import lock_partitions
from scoreboard.ledger.scores import select_totals
from scoreboard.model import NO_LIMITS, Board, BoardState, Limits, Partition, check_limits
from scoreboard.recovery.mirror import mirror_board, mirror_catalogue, unlist_board
from scoreboard.recovery.reseed import (
    SESSION,
    ReportProgress,
    Reseeded,
    choose_partitions,
    find_unavailable,
    report_nothing,
    wait_until_drained,
)
from scoreboard.recovery.reseed import reseed as rebuild
from scoreboard.runtime.settings import Settings


async def create_board(connection: Connection, board: Board, *, actor: str) -> bool:
    """Create a board and its row in the audit log; return whether it is new.

    A board whose name is one for load tests is marked so: `scoreboard bench` deletes its data.

    Raises OperatorMistake if a board of this name was deleted, DatabaseUnavailable.
    """
    async with audited(connection) as trail:
        if not await insert_board(connection, board):
            await require_free_name(connection, board.name)
            return False
        detail: dict[str, Any] = {"layout": str(board.layout), "public": board.is_public}
        if board.limits != NO_LIMITS:
            detail["limits"] = msgspec.structs.asdict(board.limits)
        action = CREATED if is_load_test_name(board.name) else "board create"
        await trail.insert(actor=actor, action=action, board=board.name, detail=detail)
    return True


async def reseed_board(
    settings: Settings,
    name: str,
    *,
    force: bool,
    only_closed: bool,
    actor: str,
    report: ReportProgress,
) -> Reseeded | None:
    """Reseed a board; return None if ``only_closed`` is set and the board is open.

    Raises UnknownBoard, OperatorMistake, WaitTimeout, SchemaMismatch, RedisUnavailable,
    DatabaseUnavailable.
    """
    async with open_store(settings) as store, open_database(settings, **SESSION) as connection:
        await require_schema(connection)
        board = await select_board(connection, name)
        if only_closed and not force:
            numbers = await find_unavailable(store, board)
            if not numbers:
                return None
        else:
            numbers = await choose_partitions(store, board, force=force)
        return await rebuild(store, connection, board, numbers, actor=actor, report=report)


async def open_new_board(settings: Settings, name: str, *, actor: str) -> bool:
    """Open a board that has no scores yet and list it; return False if it has scores or is open.

    It needs no flusher, because its streams are empty.

    Raises UnknownBoard, OperatorMistake, SchemaMismatch, RedisUnavailable, DatabaseUnavailable.
    """
    async with open_database(settings) as connection:
        if (await select_totals(connection, name))[0]:
            return False
    done = await reseed_board(
        settings, name, force=False, only_closed=True, actor=actor, report=report_nothing
    )
    return done is not None


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
            raise Invalid(f"Board {board.name}: {error}") from None
        return limits


async def change_board(
    settings: Settings,
    name: str,
    *,
    actor: str,
    is_public: bool | None = None,
    state: BoardState | None = None,
    limits: LimitChange | None = None,
) -> bool:
    """Set whether a board is public or archived, and its limits, in both stores.

    None leaves a property as it is in PostgreSQL; Redis gets all in any case. Services apply it at
    once. Repeat it if it was interrupted. Returns whether it changed the board.

    Raises UnknownBoard, Invalid (limits that do not fit), OperatorMistake (another operator works
    on the board), RedisUnavailable, DatabaseUnavailable.
    """
    async with open_database(settings) as connection:
        partitions = _partitions_of(await select_board(connection, name))
        await lock_partitions(connection, partitions)
        before = await select_board(connection, name)
        board = msgspec.structs.replace(
            before,
            is_public=before.is_public if is_public is None else is_public,
            state=state or before.state,
            limits=before.limits if limits is None else limits.applied_to(before),
        )
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
                detail = {
                    "before": msgspec.structs.asdict(before.limits),
                    "after": msgspec.structs.asdict(board.limits),
                }
                await trail.insert(actor=actor, action="board limit", board=name, detail=detail)
        try:
            async with open_store(settings) as store:
                await mirror_board(store, connection, name)
                for partition in partitions:
                    # A partition that is not loaded gets them from the reseed that opens it.
                    with suppress(Uninitialised, Fenced):
                        await store.configure(partition, board)
        except RedisUnavailable as error:
            raise RedisUnavailable(
                "The change is in PostgreSQL but not in Redis; run the command again"
            ) from error
    return board != before


async def delete_board(
    settings: Settings, name: str, *, actor: str, report: ReportProgress
) -> bool:
    """Delete an archived board: its keys and its entry in the list; the ledger stays.

    Returns False if it was deleted before; its keys are removed in any case, so repeat it if it was
    interrupted.

    Raises UnknownBoard, OperatorMistake (not archived, a default board, or another operator works
    on it), WaitTimeout (actions are not committed), RedisUnavailable, DatabaseUnavailable.
    """
    async with open_database(settings) as connection, open_store(settings) as store:
        deleted = await select_deleted_board(connection, name)
        board = deleted or await select_board(connection, name)
        partitions = _partitions_of(board)
        await lock_partitions(connection, partitions)
        if deleted is None:
            board = await select_board(connection, name)
            _require_deletable(settings, board)
            for partition in partitions:
                with suppress(Uninitialised, Fenced):
                    await store.configure(partition, board)  # an older version may have opened it
            try:
                await wait_until_drained(store, partitions, report)
            except WaitTimeout as error:
                raise WaitTimeout(
                    f"Board {name} has actions that are not in PostgreSQL yet: start the flusher, "
                    "then run the command again"
                ) from error
            async with audited(connection) as trail:
                await set_board_state(connection, name, "deleted")
                detail = {"layout": str(board.layout), "public": board.is_public}
                await trail.insert(actor=actor, action="board delete", board=name, detail=detail)
        await unlist_board(store, connection, name)
        strays = [Partition(name, number) for number in await store.states(name)]
        for partition in {*partitions, *strays}:
            await store.remove(partition, board.layout)
    return deleted is None


def _require_deletable(settings: Settings, board: Board) -> None:
    if board.name in settings.boards:
        raise OperatorMistake(
            f"Board {board.name} is a default board: first remove it from SCOREBOARD_BOARDS of all "
            "services"
        )
    if board.state != "archived":
        raise OperatorMistake(
            f"Board {board.name} accepts actions: first run scoreboard board archive {board.name}"
        )


def _partitions_of(board: Board) -> list[Partition]:
    return [Partition(board.name, number) for number in range(board.layout.partitions)]


async def seed_catalogue(settings: Settings, points: Mapping[str, int], *, actor: str) -> None:
    """Insert kinds of actions with their points into an empty catalogue and publish it.

    Raises DatabaseUnavailable, RedisUnavailable.
    """
    async with open_database(settings) as connection:
        if await select_actions(connection):
            return
        async with audited(connection) as trail:
            for kind, number in points.items():
                new = await insert_action(connection, kind, KindChange(number))
                if new is not None:
                    await audit_kind(trail, new, actor=actor)
        await publish_catalogue(settings, connection)


async def audit_kind(trail: AuditTrail, kind: Kind, *, actor: str) -> None:
    """Record what a kind is after a change in the audit log, in the transaction of the change."""
    rules = {"scope": kind.scope, "boards": list(kind.boards), "proof": kind.needs_proof}
    await trail.insert(
        actor=actor,
        action="action set",
        board=None,
        detail={"kind": kind.kind, "points": kind.points}
        | {name: value for name, value in rules.items() if value},
    )


async def publish_catalogue(settings: Settings, connection: Connection) -> None:
    """Copy the catalogue to Redis, from which every api reads it.

    Raises RedisUnavailable, DatabaseUnavailable.
    """
    try:
        async with open_store(settings) as store:
            await mirror_catalogue(store, connection)
    except RedisUnavailable as error:
        raise RedisUnavailable(
            "The change is in PostgreSQL but not in Redis; run the command again"
        ) from error
