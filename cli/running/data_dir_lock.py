"""The lock of `scoreboard up` on its data folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.target import read_state_file, remove_state_file
from cli.text import find_unsafe
from scoreboard.errors import EmbeddedFailed, OperatorMistake


@contextmanager
def lock_data_dir(data_dir: Path) -> Iterator[None]:
    """Lock the data folder for this process; the kernel releases the lock when the process ends.

    Raises OperatorMistake if another `up` holds it or its name is not plain text, EmbeddedFailed
    if it cannot be used.
    """
    if find_unsafe(str(data_dir.absolute())):
        raise OperatorMistake(
            "The name of the data folder must be UTF-8 without control characters, because it is "
            "written to Valkey's configuration"
        )
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(data_dir / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise EmbeddedFailed(f"Cannot use the data folder {data_dir}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            running = read_state_file(data_dir)
            where = f" at {running.api}" if running else ""
            raise OperatorMistake(f"Another `scoreboard up` runs on {data_dir}{where}") from None
        remove_state_file(data_dir)
        yield
    finally:
        os.close(lock)
