"""Changes to boards and to the catalogue, each with its row in the audit log.

The commands and `scoreboard up` share them.
"""

from collections.abc import Mapping

from cli.target import open_database, open_store
from scoreboard.errors import RedisUnavailable
from scoreboard.ledger.actions import insert_action, select_actions
from scoreboard.ledger.audit import insert_audit
from scoreboard.ledger.boards import insert_board, select_board
from scoreboard.ledger.migrations import require_current
from scoreboard.ledger.pool import Connection, translate_errors
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


async def create_board(connection: Connection, made: Board, *, actor: str) -> bool:
    """Make a board, with its note in the audit log; tell whether it is new.

    Raises DatabaseUnavailable.
    """
    async with translate_errors(), connection.transaction():
        if not await insert_board(connection, made):
            return False
        detail = {"layout": str(made.layout), "public": made.is_public}
        await insert_audit(
            connection, actor=actor, action="board create", board=made.name, detail=detail
        )
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
    """Reseed a board by its name; give what was done, None where ``only_closed`` left it alone.

    Raises UnknownBoard, OperatorMistake, WaitTimeout, SchemaMismatch, RedisUnavailable,
    DatabaseUnavailable.
    """
    async with open_store(settings) as store, open_database(settings, **SESSION) as connection:
        await require_current(connection)
        found = await select_board(connection, name)
        if only_closed and not force:
            numbers = await find_unavailable(store, found)
            if not numbers:
                return None
        else:
            numbers = await choose_partitions(store, found, force=force)
        return await rebuild(store, connection, found, numbers, actor=actor, report=report)


async def seed_catalogue(settings: Settings, kinds: Mapping[str, int], *, actor: str) -> None:
    """Put kinds with their points into a catalogue that has none, and let the api know.

    Raises DatabaseUnavailable, RedisUnavailable.
    """
    async with open_database(settings) as connection:
        if await select_actions(connection):
            return
        async with translate_errors(), connection.transaction():
            for kind, points in kinds.items():
                if await insert_action(connection, kind, points):
                    await audit_points(connection, kind, points, actor=actor)
        await publish_catalogue(settings, connection)


async def audit_points(connection: Connection, kind: str, points: int, *, actor: str) -> None:
    """Record in the audit log what a kind is now worth, in the transaction of the change."""
    await insert_audit(
        connection,
        actor=actor,
        action="action set",
        board=None,
        detail={"kind": kind, "points": points},
    )


async def publish_catalogue(settings: Settings, connection: Connection) -> None:
    """Copy the catalogue to Redis; every api follows.

    Raises RedisUnavailable, DatabaseUnavailable.
    """
    try:
        async with open_store(settings) as store:
            await mirror_catalogue(store, connection)
    except RedisUnavailable as error:
        raise RedisUnavailable(
            "PostgreSQL has the change, but Redis could not be told: run the command again"
        ) from error
