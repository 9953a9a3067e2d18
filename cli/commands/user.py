"""`scoreboard user`: show, change, import, ban and erase users.

Only actions and acts change scores.
"""

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
from msgspec import Struct

from cli.moderation import Choice, act_options, perform, perform_everywhere
from cli.output import confirm, print_json, print_message, print_table, progress
from cli.parameters import USER_ID
from cli.target import (
    DATABASE_URL,
    board_option,
    board_or_default,
    data_dir_option,
    json_option,
    load_settings,
    load_settings_to_change,
    open_database,
    open_store,
    operator_name,
    yes_option,
)
from cli.user_csv import (
    check_email,
    check_metadata,
    check_name,
    compact_metadata,
    open_user_file,
)
from scoreboard.errors import Invalid, Uninitialised, UnknownUser
from scoreboard.ledger.acts import select_bans_of
from scoreboard.ledger.audit import audited
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.migrations import require_schema
from scoreboard.ledger.seasons import current_scores
from scoreboard.ledger.users import (
    PERSONAL,
    Imported,
    Profile,
    User,
    erase_user,
    import_users,
    select_erasure,
    select_user,
    upsert_user,
)
from scoreboard.model import Standing
from scoreboard.moderation.plans import BanChange
from scoreboard.runtime.settings import Settings

REMAINS: Final = (
    "the user id, scores, ledger and audit log, under the user id",
    "names in backups, WAL archives and files of imports, until you delete them",
    "name and metadata in api processes for a minute, or ten while PostgreSQL is unreachable",
)
"""What an erasure leaves; docs/how-to/data-protection.md explains each."""


class Erasure(Struct, frozen=True, rename="camel"):
    """The result of an erasure; ``erased_at`` is None in a dry run."""

    user_id: str
    erased: list[str]
    erased_at: datetime | None
    is_dry_run: bool
    remains: tuple[str, ...] = REMAINS


@click.group()
def user() -> None:
    """Show, change, import, ban and erase users."""


@user.command()
@click.argument("user_id", type=USER_ID)
@board_option
@json_option
@data_dir_option
def show(*, user_id: str, board: str | None, as_json: bool, data_dir: Path) -> None:
    """Show the data of USER_ID in Redis and PostgreSQL."""
    settings = load_settings(data_dir)
    board = board_or_default(settings, board)
    standing, known, banned_by = asyncio.run(_show(settings, user_id, board))
    facts: dict[str, object] = {
        "userId": user_id,
        "name": known.name if known else None,
        "email": known.email if known else None,
        "metadata": known.metadata if known else None,
        "board": board,
        "rank": standing.rank if standing else None,
        "score": standing.score if standing else None,
        "committedScore": known.score if known else None,
        "actions": known.actions if known else None,
        "reachedAt": known.reached_at if known else None,
        "bannedBy": banned_by,
    }
    if as_json:
        print_json(facts)
    else:
        print_table(("field", "value"), list(facts.items()))


async def _show(
    settings: Settings, user_id: str, board: str
) -> tuple[Standing | None, User | None, str | None]:
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
            found = await select_board(connection, board)
            scores = await current_scores(connection, found)
            known = await select_user(connection, user_id, scores=scores)
        except UnknownUser:
            if standing is None:
                raise
        bans = await select_bans_of(connection, board, [user_id])
    return standing, known, bans.get(user_id)


@user.command(name="set")
@click.argument("user_id", type=USER_ID)
@click.option("--name", help="Display name.")
@click.option("--email", help="E-mail address.")
@click.option("--metadata", help="JSON object of at most 1024 bytes, such as "
              "'{\"team\": \"red\"}', which readers of boards see beside the name; '{}' removes "
              "it.")  # fmt: skip
@data_dir_option
def set_user(
    *, user_id: str, name: str | None, email: str | None, metadata: str | None, data_dir: Path
) -> None:
    """Set the name, the e-mail address or the metadata of USER_ID.

    A user who does not exist is created. A field that is not given does not change.

    \b
    Example:
      scoreboard user set alice --name Alice --email alice@example.org
    """  # noqa: D301
    if name is None and email is None and metadata is None:
        raise click.UsageError("Give --name, --email or --metadata")
    problem = check_name(name) or check_email(email) or check_metadata(metadata)
    if problem:
        raise Invalid(problem)
    compact = None if metadata is None else compact_metadata(metadata or "{}")
    profile = Profile(user_id, name, email, compact)
    fields = asyncio.run(_set(load_settings_to_change(data_dir), profile))
    print_message(f"User {user_id}: {' and '.join(fields)} set")


def _all_boards_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--all-boards", is_flag=True, help="On every board.")(command)


@user.command()
@click.argument("user_id", type=USER_ID)
@_all_boards_option
@act_options
def ban(*, user_id: str, all_boards: bool, **chosen: Any) -> None:  # noqa: ANN401 (Choice's fields)
    """Remove USER_ID from a board, and refuse its new actions, until the ban is ended.

    The user keeps its score and its actions; corrections and voids still work.

    \b
    Examples:
      scoreboard user ban alice --reason "bot" --dry-run
      scoreboard user ban alice --all-boards --reason "bot" --yes
    """  # noqa: D301
    _change_ban(BanChange(user_id, "ban"), Choice(**chosen), all_boards=all_boards)


@user.command()
@click.argument("user_id", type=USER_ID)
@_all_boards_option
@act_options
def unban(*, user_id: str, all_boards: bool, **chosen: Any) -> None:  # noqa: ANN401 (Choice's fields)
    """End the ban of USER_ID, who returns to the board with its score.

    Among equal scores the user has the place of the time when it reached the score.

    \b
    Example:
      scoreboard user unban alice --reason "the appeal was right" --yes
    """  # noqa: D301
    _change_ban(BanChange(user_id, "unban"), Choice(**chosen), all_boards=all_boards)


def _change_ban(request: BanChange, choice: Choice, *, all_boards: bool) -> None:
    if not all_boards:
        perform(request, choice)
    elif choice.board is not None:
        raise click.UsageError("Give either --board or --all-boards")
    else:
        perform_everywhere(request, choice)


async def _set(settings: Settings, profile: Profile) -> list[str]:
    """Write the given fields of a user and return their names."""
    fields = [name for name in PERSONAL if getattr(profile, name) is not None]
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
    """Import users from a CSV FILE with the columns userId, name, email and metadata.

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
    print_message(f"{done.written} users imported")
    if done.erased:
        print_message(
            f"{done.erased} users were left out because they were erased; `user set` sets them"
        )


async def _import(settings: Settings, users: Iterator[Profile]) -> Imported:
    async with (
        open_database(settings, statement_timeout="0") as connection,
        audited(connection) as trail,
    ):
        done = await import_users(connection, users)
        await trail.insert(
            actor=operator_name(),
            action="user import",
            board=None,
            detail={"users": done.written, "erased": done.erased},
        )
    return done


@user.command()
@click.argument("user_id", type=USER_ID)
@click.option("--dry-run", is_flag=True, help="Show what would be erased, and erase nothing.")
@yes_option
@json_option
@data_dir_option
def erase(*, user_id: str, dry_run: bool, yes: bool, as_json: bool, data_dir: Path) -> None:
    """Erase the name, the e-mail address and the metadata of USER_ID.

    Scores and ledger stay under the user id, which must therefore be a pseudonym. Imports leave an
    erased user out; `user set` can set a name again. The command can be repeated.

    \b
    Examples:
      scoreboard user erase alice --dry-run
      scoreboard user erase alice --yes
    """  # noqa: D301
    settings = load_settings_to_change(data_dir, needs=(DATABASE_URL,))
    if not (yes or dry_run):
        confirm(f"Erase the name, the e-mail address and the metadata of {user_id}?")
    done = asyncio.run(_erase(settings, user_id, is_dry=dry_run))
    if as_json:
        print_json(done)
        return
    fields = " and ".join("e-mail address" if name == "email" else name for name in done.erased)
    verb = "would be erased" if dry_run else "erased"
    if fields:
        print_message(f"User {user_id}: {fields} {verb}")
    else:
        print_message(f"User {user_id} has no name, no e-mail address and no metadata")
    if "@" in user_id:
        print_message("The user id itself may be an e-mail address: it cannot be erased")
    print_message("\n".join(["What remains:", *(f"- {line}" for line in REMAINS)]))


async def _erase(settings: Settings, user_id: str, *, is_dry: bool) -> Erasure:
    async with open_database(settings) as connection:
        await require_schema(connection)
        async with audited(connection, is_dry=is_dry) as trail:
            fields = await erase_user(connection, user_id)
            # An erasure is recorded without fields, too, for the imports; once is enough.
            if fields or await select_erasure(connection, user_id) is None:
                await trail.insert(
                    actor=operator_name(),
                    action="user erase",
                    board=None,
                    # Without the values: the audit log cannot be changed.
                    detail={"user": user_id, "fields": fields},
                )
            erased_at = None if is_dry else await select_erasure(connection, user_id)
    return Erasure(user_id, fields, erased_at, is_dry)
