"""The last lines of a log file."""

import os
from pathlib import Path
from typing import Final

TAIL_BYTES: Final = 8192
"""Maximum number of bytes read from the end of a log."""


def read_last_lines(log: Path, count: int) -> list[str]:
    """Return the last ``count`` lines that are not blank; none if the log cannot be read."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]
