"""Log files of `scoreboard up`'s children: each is capped, and one before it is kept."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

LOG_BYTES: Final = 8 << 20
"""A file is moved aside soon after it has grown beyond this."""


def cap(log: Path, limit_bytes: int = LOG_BYTES) -> bool:
    """Move what a log holds to `NAME.1` where it is too large; tell whether it was.

    The child goes on writing to the same file, which it appends to. What it writes in the moment
    between copying and emptying is lost; on a full disk the copy is, and the space is free again.
    """
    try:
        if log.stat().st_size <= limit_bytes:
            return False
    except OSError:
        return False
    before = log.with_name(f"{log.name}.1")
    try:
        shutil.copyfile(log, before)
        before.chmod(0o600)
    except OSError:
        with suppress(OSError):
            before.unlink()
    with suppress(OSError), log.open("r+b") as file:
        file.truncate(0)
    return True
