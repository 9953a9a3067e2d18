"""The ``scoreboard`` command: group, exit codes, and the one place that prints an error.

Data goes to stdout, everything else to stderr; an error of ours is one line and a stable exit code.
"""

import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from cli.actions import action
from cli.boards import board
from cli.configuration import config
from cli.database import db
from cli.gateway import kong
from cli.recovery import reseed
from cli.simulate import simulate
from cli.token import token
from cli.up import up
from cli.users import user
from cli.verification import repair, verify
from scoreboard.errors import (
    Forbidden,
    NotFound,
    NotInTime,
    Refused,
    ScoreboardError,
    Unauthenticated,
    Unavailable,
)

EXIT_CODES: Final[tuple[tuple[type[ScoreboardError], int], ...]] = (
    (NotFound, 3),
    (Unauthenticated, 4),
    (Forbidden, 4),
    (Refused, 5),
    (NotInTime, 75),
    (Unavailable, 69),
    (ScoreboardError, 1),
)
"""The first class that fits names the exit code; 2 is click's own, for a wrong command line."""

INTERRUPTED: Final = 130


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Completion in bash (zsh and fish alike): "
    'eval "$(_SCOREBOARD_COMPLETE=bash_source scoreboard)"',
)
@click.version_option(package_name="scoreboard")
@click.option("-q", "--quiet", is_flag=True, help="Print no messages and no progress.")
def scoreboard(*, quiet: bool) -> None:
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
    db,
    reseed,
    verify,
    repair,
    config,
    kong,
):
    scoreboard.add_command(command)


def exit_code_of(error: ScoreboardError) -> int:
    """Give the exit code of an error."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (this process's own without ``arguments``); give its exit code."""
    try:
        result = scoreboard.main(
            None if arguments is None else list(arguments),
            prog_name="scoreboard",
            standalone_mode=False,
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except ScoreboardError as error:
        click.echo(f"scoreboard: {error.title}: {error.detail}", err=True)
        return exit_code_of(error)
    except BrokenPipeError:
        # Whoever reads stdout has enough; Python must not complain again when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return result if isinstance(result, int) else 0


def main() -> None:
    """Run the command line of this process and end it."""
    sys.exit(run())
