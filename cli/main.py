"""The process of the `scoreboard` command: from its start to its exit code.

What stays true: however a verb ends, it is one line on stderr and a documented exit code (see
`cli.failures`), never a traceback; an interrupt at any moment is 130. The verbs are imported inside
`run`, because the interrupt may come while they are.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

INTERRUPTED: Final = 130


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (this process's own without ``arguments``); return its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        from cli import failures, group  # noqa: PLC0415

        try:
            code = group.invoke(words)
            if sys.stdout is not None:
                sys.stdout.flush()
        except Exception as error:  # noqa: BLE001 (process entry)
            return failures.report(error, is_debug="--debug" in words)
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def main() -> None:
    """Run the command line of this process and end it."""
    _open_closed_streams()
    _leave_current_folder()
    try:
        from cli.output import prepare_streams  # noqa: PLC0415

        prepare_streams(is_debug="--debug" in sys.argv)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(run())


def _leave_current_folder() -> None:
    """Import what is installed alone, and nothing that happens to lie in the current folder.

    `python -m cli` puts that folder first, and so does an empty or relative entry of PYTHONPATH.
    """
    try:
        here = Path.cwd()
    except OSError:
        return  # it was deleted: nothing can be imported from it
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    wanted = {entry for entry in entries if Path(entry).is_absolute()}
    wanted.add(str(Path(__file__).resolve().parents[1]))
    strays = {str((here / entry).resolve()) for entry in entries if entry not in wanted}
    strays |= {"", str(here)}
    sys.path[:] = [entry for entry in sys.path if entry in wanted or entry not in strays]


def _open_closed_streams() -> None:
    """Take the numbers 0 to 2, so that no socket or file of ours becomes somebody's stdout."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # gets the lowest free number: this one
