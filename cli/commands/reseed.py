"""`scoreboard reseed`: rebuild a board in Redis from PostgreSQL."""

import asyncio
from pathlib import Path

import click

from cli.administration import reseed_board
from cli.output import confirm, print_json, print_message, progress
from cli.target import (
    board_option,
    board_or_default,
    data_dir_option,
    json_option,
    load_settings_to_change,
    operator_name,
)


@click.command()
@board_option
@click.option("--force", is_flag=True, help="Reseed a board even if it is open and has scores.")
@click.option("--if-uninitialised", is_flag=True, help="Do nothing if the board is open.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation of --force.")
@json_option
@data_dir_option
def reseed(
    *,
    board: str | None,
    force: bool,
    if_uninitialised: bool,
    yes: bool,
    as_json: bool,
    data_dir: Path,
) -> None:
    """Rebuild a board in Redis from PostgreSQL and open it.

    Updates of the board are answered with 503 during the reseed. If the command is killed, run it
    again.

    \b
    Examples:
      scoreboard reseed
      scoreboard reseed --board weekly --force --yes
    """  # noqa: D301
    settings = load_settings_to_change(data_dir)
    board = board_or_default(settings, board)
    if force and not yes:
        confirm(f"Updates of board {board} are answered with 503 during the reseed. Continue?")
    with progress() as report:
        done = asyncio.run(
            reseed_board(
                settings,
                board,
                force=force,
                only_closed=if_uninitialised,
                actor=operator_name(),
                report=report,
            )
        )
    if done is None:
        print_message(f"Board {board} is open; nothing was done")
    elif as_json:
        print_json(done)
    else:
        print_message(
            f"Board {board} is open: {done.users} users, {done.actions} remembered actions, "
            f"epoch {max(done.epochs)}, {done.duration_s:.1f} s"
        )
