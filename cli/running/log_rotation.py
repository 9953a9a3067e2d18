"""Log files of the children of `scoreboard up`: a size limit and one older file."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

LOG_BYTES: Final = 8 << 20
"""A file that has grown beyond this is rotated."""


def rotate_if_large(log: Path, limit_bytes: int = LOG_BYTES) -> bool:
    """Copy a log that is too large to `NAME.1` and truncate it; return whether it was too large.

    The child keeps its file open for appending. Lines written between the copy and the truncation
    are lost. If the disk is full, the copy is dropped and the space is freed.
    """
    try:
        if log.stat().st_size <= limit_bytes:
            return False
    except OSError:
        return False
    older = log.with_name(f"{log.name}.1")
    try:
        shutil.copyfile(log, older)
        older.chmod(0o600)
    except OSError:
        with suppress(OSError):
            older.unlink()
    with suppress(OSError), log.open("r+b") as file:
        file.truncate(0)
    return True
