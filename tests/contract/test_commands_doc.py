"""docs/reference/cli.md lists the verbs there are and the exit codes they have."""

import re
from pathlib import Path

from cli.failures import DRIVERS, EXIT_CODES, FILE_FAILED
from cli.group import scoreboard
from cli.main import INTERRUPTED

TEXT = (Path(__file__).parents[2] / "docs/reference/cli.md").read_text()


def test_every_verb_is_listed_and_no_other() -> None:
    table = TEXT[TEXT.index("| command |") : TEXT.index("## Exit codes")]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)

    named = {verb for cell in cells for verb in re.findall(r"`([a-z]+)", cell)}

    assert named == set(scoreboard.commands)


def test_every_exit_code_is_explained_and_no_other() -> None:
    table = TEXT[TEXT.index("| exit code |") : TEXT.index("## Output")]

    explained = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}

    # 0, 1 and 2 are everybody's.
    used = {code for _, code in EXIT_CODES} | {code for *_, code in DRIVERS}
    assert explained == used | {0, 1, 2, FILE_FAILED, INTERRUPTED}
