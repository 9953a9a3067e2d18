"""The `scoreboard` command with all its subcommands.

Invariant: only the module of the command that runs is imported. Together, all of them need about as
much CPU time as the rest of the process.
"""

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final

import click
from click.shell_completion import shell_complete

NAME: Final = "scoreboard"
COMPLETE: Final = "_SCOREBOARD_COMPLETE"
"""The environment variable by which a shell requests completion."""

SECTIONS: Final[Mapping[str, Sequence[str]]] = {
    "Run": ("up", "status", "simulate", "token", "proof"),
    "Boards and users": ("board", "season", "user", "action", "export"),
    "Fair play": ("score", "window", "held", "act"),
    "Load tests": ("bench", "lua"),
    "Recovery": ("verify", "repair", "reseed", "dead", "backup", "ledger", "audit"),
    "Configuration and gateway": ("config", "db", "kong", "secrets"),
}
"""The commands; `cli.commands` has a module for each, with a function of the same name."""


class SectionedGroup(click.Group):
    """A group that imports a command when it is used, and whose help lists commands in sections."""

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401 (click.Group's)
        sections: Mapping[str, Sequence[str]],
        **options: Any,  # noqa: ANN401 (click.Group's)
    ) -> None:
        super().__init__(*arguments, **options)
        self._sections = sections
        self._names = frozenset(name for names in sections.values() for name in names)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, without importing them."""
        return sorted({*self._names, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, imported, or None if there is none with this name."""
        if cmd_name not in self._names:
            return super().get_command(ctx, cmd_name)
        return getattr(import_module(f"cli.commands.{cmd_name}"), cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one definition list for each section."""
        width = max(len(name) for name in self._names)
        limit = formatter.width - 6 - width
        for title, names in self._sections.items():
            with formatter.section(title):
                rows = [
                    (name.ljust(width), command.get_short_help_str(limit))
                    for name in names
                    if (command := self.get_command(ctx, name))
                ]
                formatter.write_dl(rows)


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
