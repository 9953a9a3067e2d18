"""What `scoreboard up` holds before it starts anything: its folder and the signals."""

import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cli.target import read_state_file, remove_state_file
from cli.text import find_unsafe
from scoreboard.errors import EmbeddedFailed, OperatorMistake

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Give an event that the first signal sets; the second interrupts whatever is going on."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def lock_data_dir(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for this process alone; the kernel lets go of it when we die.

    Raises OperatorMistake where another `up` has it or its name is not plain text, EmbeddedFailed
    where it cannot be used.
    """
    if find_unsafe(str(data_dir.absolute())):
        raise OperatorMistake(
            "The name of the data folder must be UTF-8 without control characters: it stands in "
            "the configuration of Valkey"
        )
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(data_dir / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise EmbeddedFailed(f"{data_dir} cannot hold data: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note = read_state_file(data_dir)
            where = f" at {note.api}" if note else ""
            raise OperatorMistake(f"Another `scoreboard up` runs on {data_dir}{where}") from None
        remove_state_file(data_dir)
        yield
    finally:
        os.close(lock)
