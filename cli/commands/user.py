"""`scoreboard user`: show, change and import users. Only actions change scores."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import click

from cli.output import print_json, print_message, print_table, progress
from cli.parameters import USER_ID
from cli.target import (
    board_option,
    board_or_default,
    data_dir_option,
    json_option,
    load_settings,
    load_settings_to_change,
    open_database,
    open_store,
    operator_name,
)
from cli.user_csv import check_email, check_name, open_user_file
from scoreboard.errors import Invalid, Uninitialised, UnknownUser
from scoreboard.ledger.audit import audited
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.users import Profile, User, import_users, select_user, upsert_user
from scoreboard.model import Standing
from scoreboard.runtime.settings import Settings


@click.group()
def user() -> None:
    """Show, change and import users."""


@user.command()
@click.argument("user_id", type=USER_ID)
@board_option
@json_option
@data_dir_option
def show(*, user_id: str, board: str | None, as_json: bool, data_dir: Path) -> None:
    """Show the data of USER_ID in Redis and PostgreSQL."""
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
            # Redis cannot distinguish a board that is not loaded from one that does not exist.
            await select_board(connection, board)
            raise
        try:
            known = await select_user(connection, user_id, board=board)
        except UnknownUser:
            if standing is None:
                raise
    return standing, known


@user.command(name="set")
@click.argument("user_id", type=USER_ID)
@click.option("--name", help="Display name.")
@click.option("--email", help="E-mail address.")
@data_dir_option
def set_user(*, user_id: str, name: str | None, email: str | None, data_dir: Path) -> None:
    """Set the name or the e-mail address of USER_ID.

    A user who does not exist is created. A field that is not given does not change.

    \b
    Example:
      scoreboard user set alice --name Alice --email alice@example.org
    """  # noqa: D301
    if name is None and email is None:
        raise click.UsageError("Give --name, --email or both")
    problem = check_name(name) or check_email(email)
    if problem:
        raise Invalid(problem)
    profile = Profile(user_id, name, email)
    fields = asyncio.run(_set(load_settings_to_change(data_dir), profile))
    print_message(f"User {user_id}: {' and '.join(fields)} set")


async def _set(settings: Settings, profile: Profile) -> list[str]:
    """Write the given fields of a user and return their names."""
    fields = [name for name in ("name", "email") if getattr(profile, name) is not None]
    async with open_database(settings) as connection, audited(connection) as trail:
        await upsert_user(connection, profile)
        await trail.insert(
            actor=operator_name(),
            action="user set",
            board=None,
            # Names of fields without their values: personal data cannot be erased from this table.
            detail={"user": profile.user_id, "fields": fields},
        )
    return fields


@user.command(name="import")
@click.argument(
    "file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
)
@data_dir_option
def import_(*, file: Path, data_dir: Path) -> None:
    """Import users from a CSV FILE with the columns userId, name and email.

    FILE is a comma-separated UTF-8 file, a pipe, or - for stdin. Every line is checked before any
    is written, and all are written in one transaction. An empty field does not change the user.

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
        audited(connection) as trail,
    ):
        done = await import_users(connection, users)
        await trail.insert(
            actor=operator_name(),
            action="user import",
            board=None,
            detail={"users": done},
        )
    return done
