"""docs/reference/cli.md lists exactly the commands and their exit codes."""

import re
from pathlib import Path

import click

from cli.failures import DRIVERS, EXIT_CODES, FILE_FAILED
from cli.group import scoreboard
from cli.main import INTERRUPTED

TEXT = (Path(__file__).parents[2] / "docs/reference/cli.md").read_text()


def test_exactly_the_existing_commands_are_listed() -> None:
    table = TEXT[TEXT.index("| command |") : TEXT.index("## Exit codes")]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)

    named = {verb for cell in cells for verb in re.findall(r"`([a-z]+)", cell)}

    assert named == set(scoreboard.list_commands(click.Context(scoreboard)))


def test_exactly_the_used_exit_codes_are_explained() -> None:
    table = TEXT[TEXT.index("| exit code |") : TEXT.index("## Output")]

    explained = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}

    # 0, 1 and 2 apply to every command.
    used = {code for _, code in EXIT_CODES} | {code for *_, code in DRIVERS}
    assert explained == used | {0, 1, 2, FILE_FAILED, INTERRUPTED}
