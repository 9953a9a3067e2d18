"""Changes to boards and to the catalogue of actions, each with its row in the audit log."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import msgspec

from cli.target import open_database, open_store
from scoreboard.errors import (
    Fenced,
    OperatorMistake,
    RedisUnavailable,
    Unavailable,
    Uninitialised,
    WaitTimeout,
)
from scoreboard.ledger.actions import Kind, KindChange, insert_action, select_actions
from scoreboard.ledger.audit import AuditTrail, audited
from scoreboard.ledger.boards import (
    select_board,
    select_deleted_board,
    set_board_state,
)
from scoreboard.ledger.migrations import require_schema
from scoreboard.ledger.pool import Connection, user_of
from scoreboard.ledger.positions import lock_partitions
from scoreboard.ledger.retention import LedgerPartition, attach, detach
from scoreboard.model import Board, BoardState, Partition
from scoreboard.recovery import board_changes
from scoreboard.recovery.board_changes import LimitChange, partitions_of
from scoreboard.recovery.mirror import mirror_catalogue, unlist_board
from scoreboard.recovery.reseed import (
    SESSION,
    ReportProgress,
    Reseeded,
    choose_partitions,
    find_unavailable,
    wait_until_drained,
)
from scoreboard.recovery.reseed import reseed as rebuild
from scoreboard.recovery.reshard import Resharded, reshard
from scoreboard.runtime.settings import Settings
from scoreboard.store.store import Store


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


async def reshard_board(
    settings: Settings, name: str, partitions: int, *, actor: str, report: ReportProgress
) -> Resharded:
    """Change the number of partitions of a board while it is open.

    Raises SchemaMismatch, and as scoreboard.recovery.reshard.reshard.
    """
    async with open_store(settings) as store, open_database(settings, **SESSION) as connection:
        await require_schema(connection)
        return await reshard(store, connection, name, partitions, actor=actor, report=report)


async def open_new_board(settings: Settings, name: str, *, actor: str) -> bool:
    """Open a board that has no scores yet and list it; return False if it has scores or is open.

    It needs no flusher, because its streams are empty.

    Raises UnknownBoard, OperatorMistake, SchemaMismatch, RedisUnavailable, DatabaseUnavailable.
    """
    async with open_store(settings) as store, open_database(settings, **SESSION) as connection:
        await require_schema(connection)
        return await board_changes.open_new_board(store, connection, name, actor=actor)


async def change_board(
    settings: Settings,
    name: str,
    *,
    actor: str,
    is_public: bool | None = None,
    state: BoardState | None = None,
    limits: LimitChange | None = None,
) -> bool:
    """Set whether a board is public or archived, and its limits; return whether that changed it.

    Raises as scoreboard.recovery.board_changes.change_board.
    """
    try:
        async with open_database(settings) as connection, open_store(settings) as store:
            return await board_changes.change_board(
                store,
                connection,
                name,
                actor=actor,
                is_public=is_public,
                state=state,
                limits=limits,
            )
    except RedisUnavailable as error:
        raise RedisUnavailable(
            "The change is in PostgreSQL but not in Redis; run the command again"
        ) from error


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
        partitions = partitions_of(board)
        await lock_partitions(connection, partitions)
        if deleted is None:
            board = await select_board(connection, name)
            _require_deletable(settings, board)
            await _drain_archived(store, board, report)
            async with audited(connection) as trail:
                await set_board_state(connection, name, "deleted")
                detail = {"layout": str(board.layout), "public": board.is_public}
                await trail.insert(actor=actor, action="board delete", board=name, detail=detail)
        await unlist_board(store, connection, name)
        strays = [Partition(name, number) for number in await store.states(name)]
        for partition in {*partitions, *strays}:
            await store.remove(partition, board.layout)
    return deleted is None


async def detach_ledger(
    settings: Settings, name: str, *, actor: str, report: ReportProgress
) -> LedgerPartition:
    """Detach the ledger of an archived or deleted board; return what is kept of it.

    Raises UnknownBoard, OperatorMistake (not archived, another operator works on it, or as
    scoreboard.ledger.retention.detach), WaitTimeout (actions are not committed), RedisUnavailable,
    DatabaseUnavailable: nothing was detached.
    """
    async with open_owner_database(settings) as connection, open_store(settings) as store:
        await require_schema(connection)
        if await select_deleted_board(connection, name) is None:
            board = await select_board(connection, name)
            await lock_partitions(connection, partitions_of(board))
            board = await select_board(connection, name)
            _require_archived(board)
            await _drain_archived(store, board, report)
        return await detach(connection, name, actor=actor)


async def attach_ledger(
    settings: Settings, name: str, *, actor: str, report: ReportProgress
) -> LedgerPartition:
    """Attach the ledger of a board again; return what was kept of it.

    The board is reseeded: one that was reseeded meanwhile does not remember the recent actions,
    which Redis would count again until the flusher corrects them.

    Raises UnknownBoard, OperatorMistake (another operator works on the board, or as
    scoreboard.ledger.retention.attach), DatabaseUnavailable. An error of the reseed says that the
    ledger is attached, and that the board is to be reseeded.
    """
    async with open_owner_database(settings) as connection, open_store(settings) as store:
        await require_schema(connection)
        is_deleted = await select_deleted_board(connection, name) is not None
        kept = await attach(connection, name, actor=actor)
        if not is_deleted:
            board = await select_board(connection, name)
            numbers = range(board.layout.partitions)
            try:
                await rebuild(store, connection, board, numbers, actor=actor, report=report)
            except (Unavailable, OperatorMistake) as error:
                raise type(error)(
                    f"The ledger of board {name} is attached. Before it is unarchived, run "
                    f"scoreboard reseed --board {name} --force: {error.detail}"
                ) from error
    return kept


@asynccontextmanager
async def open_owner_database(settings: Settings) -> AsyncIterator[Connection]:
    """Yield a connection to PostgreSQL for changes of tables, without a limit of statements' time.

    A login that DATABASE_URL names is the owner's, as for `db migrate`; the secret of the settings
    is often that of a service.

    Raises DatabaseUnavailable, UnsafeDatabase, SettingInvalid.
    """
    if user_of(settings.database_url.reveal()):
        settings = msgspec.structs.replace(settings, secrets="env", database_secret="")
    async with open_database(settings, **SESSION) as connection:
        yield connection


async def _drain_archived(store: Store, board: Board, report: ReportProgress) -> None:
    """Wait until PostgreSQL has all actions of an archived board, which accepts no more.

    Raises WaitTimeout, RedisUnavailable.
    """
    partitions = partitions_of(board)
    for partition in partitions:
        with suppress(Uninitialised, Fenced):
            await store.configure(partition, board)  # an older version may have opened it
    try:
        await wait_until_drained(store, partitions, report)
    except WaitTimeout as error:
        raise WaitTimeout(
            f"Board {board.name} has actions that are not in PostgreSQL yet: start the flusher, "
            "then run the command again"
        ) from error


def _require_deletable(settings: Settings, board: Board) -> None:
    if board.name in settings.boards:
        raise OperatorMistake(
            f"Board {board.name} is a default board: first remove it from SCOREBOARD_BOARDS of all "
            "services"
        )
    _require_archived(board)


def _require_archived(board: Board) -> None:
    if board.state != "archived":
        raise OperatorMistake(
            f"Board {board.name} accepts actions: first run scoreboard board archive {board.name}"
        )


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
