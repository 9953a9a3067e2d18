"""The `scoreboard` command with all its subcommands."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from click.shell_completion import shell_complete

from cli.commands.action import action
from cli.commands.audit import audit
from cli.commands.backup import backup
from cli.commands.board import board
from cli.commands.config import config
from cli.commands.db import db
from cli.commands.dead import dead
from cli.commands.kong import kong
from cli.commands.repair import repair
from cli.commands.reseed import reseed
from cli.commands.secrets import secrets
from cli.commands.simulate import simulate
from cli.commands.status import status
from cli.commands.token import token
from cli.commands.up import up
from cli.commands.user import user
from cli.commands.verify import verify

NAME: Final = "scoreboard"
COMPLETE: Final = "_SCOREBOARD_COMPLETE"
"""The environment variable by which a shell requests completion."""

SECTIONS: Final[Mapping[str, Sequence[click.Command]]] = {
    "Run": (up, status, simulate, token),
    "Boards and users": (board, user, action),
    "Recovery": (verify, repair, reseed, dead, backup, audit),
    "Configuration and gateway": (config, db, kong, secrets),
}


class SectionedGroup(click.Group):
    """A group whose help lists its commands in sections."""

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401 (click.Group's)
        sections: Mapping[str, Sequence[click.Command]],
        **options: Any,  # noqa: ANN401 (click.Group's)
    ) -> None:
        super().__init__(*arguments, **options)
        self._sections = sections
        for commands in sections.values():
            for command in commands:
                self.add_command(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one definition list for each section."""
        del ctx
        width = max(len(name) for name in self.commands)
        limit = formatter.width - 6 - width
        for title, commands in self._sections.items():
            with formatter.section(title):
                rows = [(one.name or "", one.get_short_help_str(limit)) for one in commands]
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])


@click.group(
    cls=SectionedGroup,
    sections=SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Shell completion (add the line to the shell's startup file):
  bash  eval "$(_SCOREBOARD_COMPLETE=bash_source scoreboard)"
  zsh   eval "$(_SCOREBOARD_COMPLETE=zsh_source scoreboard)"
  fish  _SCOREBOARD_COMPLETE=fish_source scoreboard | source
""",
)
@click.version_option(package_name="scoreboard")
@click.option("-q", "--quiet", is_flag=True, help="Do not print messages or progress.")
@click.option("--debug", is_flag=True, help="Print the traceback of an error.")
def scoreboard(*, quiet: bool, debug: bool) -> None:
    """Run and operate a real-time scoreboard.

    \b
    Examples:
      scoreboard up --simulate 20        run everything, with 20 players
      scoreboard status                  look at the whole system
      scoreboard token --sub alice       print a token for curl
      scoreboard board watch             follow the board live
    """  # noqa: D301 (\b keeps click from joining the lines)


def invoke(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    Every error is raised, unlike in click's own `main`, which exits with 1 when the reader of
    stdout has gone.
    """
    instruction = os.environ.get(COMPLETE)
    if instruction:
        return shell_complete(scoreboard, {}, NAME, COMPLETE, instruction)
    try:
        with scoreboard.make_context(NAME, list(arguments)) as context:
            result = scoreboard.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.Abort, EOFError):
        raise KeyboardInterrupt from None
    return result if isinstance(result, int) else 0
