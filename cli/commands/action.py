"""`scoreboard action`: the catalogue, which sets the points of each kind of action.

A change is written to PostgreSQL with a row in the audit log, then copied to Redis and announced;
every api applies it without a restart.
"""

import asyncio
from pathlib import Path

import click

from cli.administration import audit_points, publish_catalogue
from cli.output import print_json, print_message, print_table
from cli.parameters import KIND
from cli.target import (
    data_dir_option,
    json_option,
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
from scoreboard.ledger.audit import audited
from scoreboard.model import POINTS_MAX
from scoreboard.runtime.settings import Settings


@click.group()
def action() -> None:
    """List kinds of actions and set their points."""


@action.command(name="list")
@json_option
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
@click.argument("kind", type=KIND)
@click.argument("points", type=click.IntRange(1, POINTS_MAX))
@click.option("--if-missing", is_flag=True, help="Do not change a kind that exists.")
@data_dir_option
def set_action(*, kind: str, points: int, if_missing: bool, data_dir: Path) -> None:
    """Set the points of actions of KIND.

    Actions that were already counted keep their points, even if they are sent again.

    \b
    Example:
      scoreboard action set win 50
    """  # noqa: D301
    settings = load_settings_to_change(data_dir)
    if asyncio.run(_set(settings, kind, points, if_missing=if_missing)):
        print_message(f"Actions of kind {kind} now count {points} points")
    else:
        print_message(f"Kind {kind} exists and was not changed")


@action.command()
@click.argument("kind")
@data_dir_option
def disable(*, kind: str, data_dir: Path) -> None:
    """Reject actions of KIND until `action set` enables it again."""
    asyncio.run(_disable(load_settings_to_change(data_dir), kind))
    print_message(f"Actions of kind {kind} are now rejected")


async def _list(settings: Settings) -> list[Kind]:
    async with open_database(settings) as connection:
        return await select_actions(connection)


async def _set(settings: Settings, kind: str, points: int, *, if_missing: bool) -> bool:
    async with open_database(settings) as connection:
        async with audited(connection) as trail:
            if not if_missing:
                await upsert_action(connection, kind, points)
            elif not await insert_action(connection, kind, points):
                return False
            await audit_points(trail, kind, points, actor=operator_name())
        await publish_catalogue(settings, connection)
    return True


async def _disable(settings: Settings, kind: str) -> None:
    async with open_database(settings) as connection:
        async with audited(connection) as trail:
            if not await disable_action(connection, kind):
                raise NotFound(f"Unknown kind {kind}; see scoreboard action list")
            await trail.insert(
                actor=operator_name(),
                action="action disable",
                board=None,
                detail={"kind": kind},
            )
        await publish_catalogue(settings, connection)
