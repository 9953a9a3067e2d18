"""`scoreboard act`: list, undo and complete acts of administrators."""

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from cli.moderation import Choice, act_options, open_session, perform, print_done
from cli.output import print_json, print_message, print_table
from cli.parameters import BOARD, MOMENT, USER_ID
from cli.target import (
    DATABASE_URL,
    data_dir_option,
    json_option,
    load_settings,
    load_settings_to_change,
    open_database,
)
from scoreboard.ledger.acts import Act, ActFilter, select_act, select_acts
from scoreboard.ledger.migrations import require_schema
from scoreboard.moderation.acts import Done
from scoreboard.moderation.plans import Undo
from scoreboard.runtime.settings import Settings


@click.group()
def act() -> None:
    """List, undo and complete corrections, voids and bans."""


@act.command(name="list")
@click.option("--board", type=BOARD, help="Acts on this board.")
@click.option("--user", "user_id", type=USER_ID, help="Acts on this user.")
@click.option("--since", type=MOMENT, help="First time, such as 2026-07-01 or "
              "2026-07-01T08:30:00Z; UTC without a zone.")  # fmt: skip
@click.option("--pending", is_flag=True, help="Only acts that are recorded and not in the ledger.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True,
              help="Number of rows.")  # fmt: skip
@json_option
@data_dir_option
def list_acts(
    *,
    board: str | None,
    user_id: str | None,
    since: datetime | None,
    pending: bool,
    limit: int,
    as_json: bool,
    data_dir: Path,
) -> None:
    """List acts, newest first, with their states.

    An act is `pending` until the ledger has it: for a moment, while the flusher is away, or after
    its command was interrupted; then complete it with `act resume`.
    """
    settings = load_settings(data_dir, [DATABASE_URL])
    chosen = ActFilter(
        board=board, user_id=user_id, since=since, state="pending" if pending else None
    )
    found = asyncio.run(_list(settings, chosen, limit))
    if as_json:
        print_json(found)
        return
    columns = ("id", "time", "board", "user", "kind", "points", "state", "actor", "reason")
    print_table(columns, [_row(one) for one in found])


@act.command()
@click.argument("act_id")
@act_options
def undo(*, act_id: str, **chosen: Any) -> None:  # noqa: ANN401 (Choice's fields)
    """Do the opposite of the act ACT_ID, once.

    The points that it took away or gave are given or taken, voided actions can be voided again,
    and a ban is ended. An undo cannot be undone: repeat the first act instead.
    """
    choice = Choice(**chosen)
    if choice.board is None:
        settings = load_settings(choice.data_dir)
        board = asyncio.run(_select(settings, act_id)).board
        choice = Choice(**{**chosen, "board": board})
    perform(Undo(act_id), choice)


@act.command()
@click.argument("act_id")
@data_dir_option
def resume(*, act_id: str, data_dir: Path) -> None:
    """Complete the act ACT_ID if its command was interrupted.

    An act that was applied is not applied again.
    """
    settings = load_settings_to_change(data_dir)
    found = asyncio.run(_select(settings, act_id))
    if found.state == "applied" and found.delta:
        print_message(f"Act {act_id} is applied")
        return
    print_done(found.user_id, asyncio.run(_resume(settings, found)))


async def _list(settings: Settings, chosen: ActFilter, limit: int) -> list[Act]:
    async with open_database(settings) as connection:
        await require_schema(connection)
        return await select_acts(connection, chosen, limit=limit)


async def _select(settings: Settings, act_id: str) -> Act:
    async with open_database(settings) as connection:
        await require_schema(connection)
        return await select_act(connection, act_id)


async def _resume(settings: Settings, found: Act) -> Done:
    async with open_session(settings, found.board) as session:
        return await session.moderator.resume(found.id)


def _row(one: Act) -> tuple[object, ...]:
    state = one.state if one.undone_by is None else f"undone by {one.undone_by}"
    kind = one.kind if one.undoes is None else f"{one.kind} of {one.undoes}"
    time = one.at.isoformat(timespec="seconds")
    return (one.id, time, one.board, one.user_id, kind, one.delta, state, one.actor, one.reason)
