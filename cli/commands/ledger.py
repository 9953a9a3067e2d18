"""`scoreboard ledger`: take the actions of closed boards out of the ledger, and keep their sums."""

import asyncio
from pathlib import Path

import click
import msgspec

from cli.administration import attach_ledger, detach_ledger, open_owner_database
from cli.output import confirm, print_json, print_message, print_table, progress
from cli.parameters import BOARD
from cli.target import (
    DATABASE_URL,
    data_dir_option,
    json_option,
    load_settings,
    load_settings_to_change,
    open_database,
    operator_name,
    yes_option,
)
from scoreboard.ledger import retention
from scoreboard.ledger.migrations import require_schema
from scoreboard.ledger.retention import LedgerPartition
from scoreboard.runtime.settings import Settings


@click.group()
def ledger() -> None:
    """Detach the ledgers of closed boards.

    Only a board with a partition of its own can be detached; it gets it before it is created. All
    commands but `list` need the login of the database's owner, in DATABASE_URL.
    """


@ledger.command(name="list")
@json_option
@data_dir_option
def list_partitions(*, as_json: bool, data_dir: Path) -> None:
    """List the boards with a partition of their own.

    The size is that of rows and indexes; users and actions are those of the kept sums.
    """
    found = asyncio.run(_list(load_settings(data_dir, [DATABASE_URL])))
    if as_json:
        print_json([msgspec.to_builtins(one) for one in found])
        return
    print_table(
        ("board", "state", "since", "MB", "users", "actions"),
        [
            (
                one.board,
                "attached" if one.detached_at is None else "detached",
                (one.detached_at or one.separated_at).isoformat(timespec="seconds"),
                f"{one.size / 1e6:.1f}" if one.size else "dropped",
                one.kept_users if one.detached_at else "",
                one.kept_actions if one.detached_at else "",
            )
            for one in found
        ],
    )
    if not found:
        print_message("No board has a partition of its own: scoreboard ledger separate --help")


async def _list(settings: Settings) -> list[LedgerPartition]:
    async with open_database(settings) as connection:
        await require_schema(connection)
        return await retention.list_partitions(connection)


@ledger.command()
@click.argument("name", type=BOARD)
@data_dir_option
def separate(*, name: str, data_dir: Path) -> None:
    """Make a partition for board NAME, before the board is created.

    The actions of all other boards share one table. The command reads that table once; updates go
    on. Run it again if it was interrupted.

    \b
    Example:
      scoreboard ledger separate cup-2026
      scoreboard board create cup-2026
    """  # noqa: D301
    settings = load_settings_to_change(data_dir, needs=[DATABASE_URL])
    is_new = asyncio.run(_separate(settings, name))
    print_message(
        f"Board {name} has a partition of its own now; create it with: scoreboard board create "
        f"{name}"
        if is_new
        else f"Board {name} had a partition of its own"
    )


async def _separate(settings: Settings, name: str) -> bool:
    async with open_owner_database(settings) as connection:
        await require_schema(connection)
        return await retention.separate(connection, name, actor=operator_name())


@ledger.command()
@click.argument("name", type=BOARD)
@yes_option
@data_dir_option
def detach(*, name: str, yes: bool, data_dir: Path) -> None:
    """Take the actions of board NAME out of the ledger; its scores and standings stay.

    The board must be archived or deleted. Its rows go to the schema `detached`, from where they can
    be copied and dropped; the sum of each user is kept and checked by `verify`. Afterwards nothing
    can change the board. Older versions of Scoreboard do not start any more.

    \b
    Example:
      scoreboard board archive cup-2026
      scoreboard ledger detach cup-2026
    """  # noqa: D301
    settings = load_settings_to_change(data_dir)
    if not yes:
        confirm(
            f"Detach the actions of board {name}? It cannot be unarchived then, its users have no "
            "history, and older versions of Scoreboard do not start."
        )
    with progress() as report:
        actor = operator_name()
        kept = asyncio.run(detach_ledger(settings, name, actor=actor, report=report))
    print_message(
        f"{kept.kept_actions} actions of {kept.kept_users} users of board {name} are detached: "
        f'they are in the table detached."score_events_b_{name}:rows" ({kept.size / 1e6:.1f} MB)'
    )


@ledger.command()
@click.argument("name", type=BOARD)
@data_dir_option
def attach(*, name: str, data_dir: Path) -> None:
    """Put the detached actions of board NAME into the ledger again.

    It is refused if they have changed: they must add up to the kept sums. The board is reseeded, so
    that it remembers its recent actions.
    """
    settings = load_settings_to_change(data_dir)
    with progress() as report:
        actor = operator_name()
        found = asyncio.run(attach_ledger(settings, name, actor=actor, report=report))
    print_message(
        f"{found.kept_actions} actions of {found.kept_users} users of board {name} are in the "
        "ledger again"
    )
