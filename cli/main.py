"""The ``scoreboard`` command: group, exit codes, and the one place that prints an error."""

import sys

import click

from scoreboard.errors import (
    Invalid,
    NotFound,
    Refused,
    ScoreboardError,
    Unauthenticated,
    Unavailable,
)

EXIT_CODES: tuple[tuple[type[ScoreboardError], int], ...] = (
    (NotFound, 3),
    (Unauthenticated, 4),
    (Invalid, 5),
    (Refused, 5),
    (Unavailable, 69),
    (ScoreboardError, 1),
)
"""The first class that fits names the exit code; 2 is click's own, for a wrong command line."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="scoreboard")
def scoreboard() -> None:
    """Run and operate a real-time scoreboard."""


def exit_code_of(error: ScoreboardError) -> int:
    """Give the exit code of an error."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def main() -> None:
    """Run the command; every error of ours is one line on stderr and a stable exit code."""
    try:
        scoreboard()
    except ScoreboardError as error:
        click.echo(f"scoreboard: {error.title}: {error.detail}", err=True)
        sys.exit(exit_code_of(error))
