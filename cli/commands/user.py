"""`scoreboard user`: who users are, besides their ids. Scores are changed by actions only."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import click

from cli.output import print_json, print_message, print_table, progress
from cli.target import (
    board_option,
    board_or_default,
    data_dir_option,
    load_settings,
    load_settings_to_change,
    open_database,
    open_store,
    operator_name,
)
from cli.user_csv import check_email, check_name, open_user_file
from scoreboard.errors import Invalid, Uninitialised, UnknownUser
from scoreboard.ledger.audit import insert_audit
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.pool import translate_errors
from scoreboard.ledger.users import Profile, User, import_users, select_user, upsert_user
from scoreboard.model import Standing, is_identifier
from scoreboard.runtime.settings import Settings


@click.group()
def user() -> None:
    """Show users, and say who they are."""


@user.command()
@click.argument("user_id")
@board_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_dir_option
def show(*, user_id: str, board: str | None, as_json: bool, data_dir: Path) -> None:
    """Show what Redis and PostgreSQL know of USER_ID."""
    _check_id(user_id)
    settings = load_settings(data_dir)
    board = board_or_default(settings, board)
    standing, known = asyncio.run(_show(settings, user_id, board))
    facts: dict[str, object] = {
        "userId": user_id,
        "name": known.name if known else None,
        "email": known.email if known else None,
        "board": board,
        "rank": standing.rank if standing else None,
        "score": standing.score if standing else None,
        "committedScore": known.score if known else None,
        "actions": known.actions if known else None,
        "reachedAt": known.reached_at if known else None,
    }
    if as_json:
        print_json(facts)
    else:
        print_table(("field", "value"), list(facts.items()))


async def _show(
    settings: Settings, user_id: str, board: str
) -> tuple[Standing | None, User | None]:
    standing = known = None
    async with open_store(settings) as store, open_database(settings) as connection:
        try:
            standing = await store.standing(board, user_id)
        except UnknownUser:
            pass
        except Uninitialised:
            # Redis does not tell a board that is not loaded from one that does not exist.
            await select_board(connection, board)
            raise
        try:
            known = await select_user(connection, user_id, board=board)
        except UnknownUser:
            if standing is None:
                raise
    return standing, known


@user.command(name="set")
@click.argument("user_id")
@click.option("--name", help="What people call the user.")
@click.option("--email", help="Where the user can be reached.")
@data_dir_option
def set_user(*, user_id: str, name: str | None, email: str | None, data_dir: Path) -> None:
    """Say who USER_ID is; what is not given stays as it is."""
    _check_id(user_id)
    problem = check_name(name) or check_email(email)
    if problem:
        raise Invalid(problem)
    asyncio.run(_set(load_settings_to_change(data_dir), Profile(user_id, name, email)))


def _check_id(user_id: str) -> None:
    """Raise Invalid for what cannot be the id of a user."""
    if not is_identifier(user_id):
        raise Invalid("the id is not 1 to 128 of A-Z a-z 0-9 . _ | : @ -")


async def _set(settings: Settings, profile: Profile) -> None:
    fields = [name for name in ("name", "email") if getattr(profile, name) is not None]
    async with (
        open_database(settings) as connection,
        translate_errors(),
        connection.transaction(),
    ):
        await upsert_user(connection, profile)
        await insert_audit(
            connection,
            actor=operator_name(),
            action="user set",
            board=None,
            # Which fields, not what they say: nobody can be forgotten in an append-only table.
            detail={"user": profile.user_id, "fields": fields},
        )


@user.command(name="import")
@click.argument(
    "file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
)
@data_dir_option
def import_(*, file: Path, data_dir: Path) -> None:
    """Say who users are, by a CSV FILE with the columns userId, name, email.

    FILE is UTF-8 with commas, a pipe, or - for stdin. Every line is checked before anything is
    written, and all is written in one transaction. Empty fields change nothing.

    \b
    Example:
      printf 'userId,name,email\\nalice,Alice,alice@example.org\\n' > users.csv
      scoreboard user import users.csv
    """  # noqa: D301
    settings = load_settings_to_change(data_dir)
    with progress() as report, open_user_file(file, report) as users:
        total = users.count(report)
        done = asyncio.run(_import(settings, users.users(total, report)))
    print_message(f"{done} users imported")


async def _import(settings: Settings, users: Iterator[Profile]) -> int:
    async with (
        open_database(settings, statement_timeout="0") as connection,
        translate_errors(),
        connection.transaction(),
    ):
        done = await import_users(connection, users)
        await insert_audit(
            connection,
            actor=operator_name(),
            action="user import",
            board=None,
            detail={"users": done},
        )
    return done
