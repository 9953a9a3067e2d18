"""Changes to boards and to the catalogue of actions, each with its row in the audit log."""

from collections.abc import Mapping

from cli.target import open_database, open_store
from scoreboard.errors import RedisUnavailable
from scoreboard.ledger.actions import insert_action, select_actions
from scoreboard.ledger.audit import AuditTrail, audited
from scoreboard.ledger.boards import insert_board, select_board
from scoreboard.ledger.load_tests import CREATED, is_load_test_name
from scoreboard.ledger.migrations import require_schema
from scoreboard.ledger.pool import Connection
from scoreboard.model import Board
from scoreboard.recovery.mirror import mirror_catalogue
from scoreboard.recovery.reseed import (
    SESSION,
    ReportProgress,
    Reseeded,
    choose_partitions,
    find_unavailable,
)
from scoreboard.recovery.reseed import reseed as rebuild
from scoreboard.runtime.settings import Settings


async def create_board(connection: Connection, board: Board, *, actor: str) -> bool:
    """Create a board and its row in the audit log; return whether it is new.

    A board whose name is one for load tests is marked so: `scoreboard bench` deletes its data.

    Raises DatabaseUnavailable.
    """
    async with audited(connection) as trail:
        if not await insert_board(connection, board):
            return False
        detail = {"layout": str(board.layout), "public": board.is_public}
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


async def seed_catalogue(settings: Settings, points: Mapping[str, int], *, actor: str) -> None:
    """Insert kinds of actions with their points into an empty catalogue and publish it.

    Raises DatabaseUnavailable, RedisUnavailable.
    """
    async with open_database(settings) as connection:
        if await select_actions(connection):
            return
        async with audited(connection) as trail:
            new = [kind for kind in points if await insert_action(connection, kind, points[kind])]
            for kind in new:
                await audit_points(trail, kind, points[kind], actor=actor)
        await publish_catalogue(settings, connection)


async def audit_points(trail: AuditTrail, kind: str, points: int, *, actor: str) -> None:
    """Record the new points of a kind in the audit log, in the transaction of the change."""
    await trail.insert(
        actor=actor,
        action="action set",
        board=None,
        detail={"kind": kind, "points": points},
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
