"""The process of the `scoreboard` command.

Invariants: an error is one line on stderr and a documented exit code (see `cli.failures`), never a
traceback; an interrupt at any moment exits with 130. The commands are imported inside `run`,
because an interrupt may arrive during the import.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

INTERRUPTED: Final = 130


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (this process's own without ``arguments``) and return its exit code."""
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
    """Run the command line of this process and exit."""
    _open_closed_streams()
    _remove_current_folder_from_path()
    try:
        from cli.output import prepare_streams  # noqa: PLC0415
        from scoreboard.runtime.core_dumps import disable_core_dumps  # noqa: PLC0415

        disable_core_dumps()
        prepare_streams(is_debug="--debug" in sys.argv)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(run())


def _remove_current_folder_from_path() -> None:
    """Remove the current folder from sys.path, so that no file in it is imported.

    `python -m cli` puts that folder first, and so does an empty or relative entry of PYTHONPATH.
    """
    try:
        current = Path.cwd()
    except OSError:
        return  # it was deleted, so nothing can be imported from it
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = {entry for entry in entries if Path(entry).is_absolute()}
    kept.add(str(Path(__file__).resolve().parents[1]))
    removed = {str((current / entry).resolve()) for entry in entries if entry not in kept}
    removed |= {"", str(current)}
    sys.path[:] = [entry for entry in sys.path if entry in kept or entry not in removed]


def _open_closed_streams() -> None:
    """Open descriptors 0 to 2 if they are closed, so that no later file or socket gets them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # gets the lowest free descriptor, which is this one
