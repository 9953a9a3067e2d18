"""The `scoreboard` command with all its verbs."""

import os
from collections.abc import Sequence
from typing import Final

import click
from click.shell_completion import shell_complete

from cli.commands.action import action
from cli.commands.board import board
from cli.commands.config import config
from cli.commands.db import db
from cli.commands.dead import dead
from cli.commands.kong import kong
from cli.commands.reseed import reseed
from cli.commands.simulate import simulate
from cli.commands.token import token
from cli.commands.up import up
from cli.commands.user import user
from cli.commands.verify import repair, verify

NAME: Final = "scoreboard"
COMPLETE: Final = "_SCOREBOARD_COMPLETE"
"""Set by the shell that asks for completion."""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Completion in bash (zsh and fish alike): "
    'eval "$(_SCOREBOARD_COMPLETE=bash_source scoreboard)"',
)
@click.version_option(package_name="scoreboard")
@click.option("-q", "--quiet", is_flag=True, help="Print no messages and no progress.")
@click.option("--debug", is_flag=True, help="Print where an error came from.")
def scoreboard(*, quiet: bool, debug: bool) -> None:
    """Run and operate a real-time scoreboard.

    \b
    Examples:
      scoreboard up --simulate 20        everything, with 20 players
      scoreboard token --sub alice       a token for curl
      scoreboard board watch             the board, live
    """  # noqa: D301 (\b keeps click from joining the lines)


for command in (
    up,
    token,
    simulate,
    board,
    user,
    action,
    dead,
    db,
    reseed,
    verify,
    repair,
    config,
    kong,
):
    scoreboard.add_command(command)


def invoke(words: Sequence[str]) -> int:
    """Carry out one command line and return its exit code.

    Raises whatever goes wrong. click's own `main` does not: it ends the process with 1 when the
    reader of stdout has gone.
    """
    instruction = os.environ.get(COMPLETE)
    if instruction:
        return shell_complete(scoreboard, {}, NAME, COMPLETE, instruction)
    try:
        with scoreboard.make_context(NAME, list(words)) as context:
            result = scoreboard.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.Abort, EOFError):
        raise KeyboardInterrupt from None
    return result if isinstance(result, int) else 0
