"""`scoreboard action`: the catalogue, which says what each kind of action is worth.

Changes are made in PostgreSQL with a note in the audit log, then copied to Redis and announced;
every api follows without a restart.
"""

import asyncio
import re
from pathlib import Path
from typing import Final

import click

from cli.administration import audit_points, publish_catalogue
from cli.output import print_json, print_message, print_table
from cli.target import (
    data_dir_option,
    load_settings,
    load_settings_to_change,
    open_database,
    operator_name,
)
from scoreboard.errors import NotFound
from scoreboard.ledger.actions import (
    Kind,
    disable_action,
    insert_action,
    select_actions,
    upsert_action,
)
from scoreboard.ledger.audit import insert_audit
from scoreboard.ledger.pool import translate_errors
from scoreboard.model import POINTS_MAX
from scoreboard.runtime.settings import Settings

KIND: Final = re.compile(r"[A-Za-z0-9._|@-]{1,64}")
"""What may stand before the colon of an actionId; the table checks the same."""


@click.group()
def action() -> None:
    """List kinds of actions, and set what they are worth."""


@action.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_dir_option
def list_actions(*, as_json: bool, data_dir: Path) -> None:
    """List the kinds of actions with their points."""
    found = asyncio.run(_list(load_settings(data_dir)))
    if as_json:
        print_json(found)
    else:
        rows = [(one.kind, one.points, "yes" if one.enabled else "no") for one in found]
        print_table(("kind", "points", "counts"), rows)


@action.command(name="set")
@click.argument("kind")
@click.argument("points", type=click.IntRange(1, POINTS_MAX))
@click.option("--if-missing", is_flag=True, help="Leave a kind that the catalogue has as it is.")
@data_dir_option
def set_action(*, kind: str, points: int, if_missing: bool, data_dir: Path) -> None:
    """Let actions of KIND count POINTS from now on.

    What has counted stays as it is, and so do repeats of it.

    \b
    Example:
      scoreboard action set win 50
    """  # noqa: D301
    if not KIND.fullmatch(kind):
        raise click.BadParameter("a kind is 1 to 64 characters of A-Z a-z 0-9 . _ | @ -")
    settings = load_settings_to_change(data_dir)
    if asyncio.run(_set(settings, kind, points, if_missing=if_missing)):
        print_message(f"Actions of kind {kind} count {points}")
    else:
        print_message(f"The catalogue has the kind {kind}; it stays as it is")


@action.command()
@click.argument("kind")
@data_dir_option
def disable(*, kind: str, data_dir: Path) -> None:
    """Refuse actions of KIND from now on; `action set` lets them count again."""
    asyncio.run(_disable(load_settings_to_change(data_dir), kind))
    print_message(f"Actions of kind {kind} are refused")


async def _list(settings: Settings) -> list[Kind]:
    async with open_database(settings) as connection:
        return await select_actions(connection)


async def _set(settings: Settings, kind: str, points: int, *, if_missing: bool) -> bool:
    async with open_database(settings) as connection:
        async with translate_errors(), connection.transaction():
            if not if_missing:
                await upsert_action(connection, kind, points)
            elif not await insert_action(connection, kind, points):
                return False
            await audit_points(connection, kind, points, actor=operator_name())
        await publish_catalogue(settings, connection)
    return True


async def _disable(settings: Settings, kind: str) -> None:
    async with open_database(settings) as connection:
        async with translate_errors(), connection.transaction():
            if not await disable_action(connection, kind):
                raise NotFound(f"The catalogue has no kind {kind}: scoreboard action list")
            await insert_audit(
                connection,
                actor=operator_name(),
                action="action disable",
                board=None,
                detail={"kind": kind},
            )
        await publish_catalogue(settings, connection)
