"""A secret in a file, with its pending and its previous version beside it.

Invariants: the files are read again when one of them changed; a version that cannot be used never
replaces one in use; no error and no log contains a content.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

from msgspec import Struct

from scoreboard.errors import OperatorMistake
from scoreboard.runtime.telemetry import get_logger

BYTES_MAX: Final = 65_536
PENDING: Final = ".pending"
PREVIOUS: Final = ".previous"

_log = get_logger(__name__)
T = TypeVar("T")


class Versions(Struct, Generic[T], frozen=True):
    """The versions of a secret; pending and previous exist during a rotation only."""

    current: T
    pending: T | None = None
    previous: T | None = None

    @property
    def all(self) -> tuple[T, ...]:
        """Every version; the current one first."""
        more = [found for found in (self.pending, self.previous) if found is not None]
        return (self.current, *more)


class StagedFile(Generic[T]):
    """The versions PATH, PATH.pending and PATH.previous; use ``read`` at each use."""

    def __init__(self, path: Path, parse: Callable[[bytes], T]) -> None:
        """``parse`` raises ValueError for an invalid content, with a reason that may be logged.

        Raises OperatorMistake if the current version is invalid or others can read it,
        FileNotFoundError if it is missing, OSError.
        """
        self._path = path
        self._parse = parse
        self._stamp = self._make_stamp()
        self._reported: set[str] = set()
        self._held = self._load()

    def read(self) -> Versions[T]:
        """Return the versions, read again if a file changed; the last valid ones on failure."""
        try:
            stamp = self._make_stamp()
            if stamp != self._stamp:
                self._held = self._load()
                # The files may have changed again since, so the stamp is of before the reading.
                self._stamp = stamp
                self._reported.clear()
                _log.info("secret_file_changed", path=str(self._path))
        except (OSError, OperatorMistake) as error:
            self._complain(str(error))
        return self._held

    def _load(self) -> Versions[T]:
        # In this order: a promotion first links the current version as the previous one and then
        # renames the pending one to the current one, so that none can be missed.
        pending = self._read_other(PENDING)
        current = self._read(self._path)
        return Versions(current, pending, self._read_other(PREVIOUS))

    def _read_other(self, suffix: str) -> T | None:
        try:
            return self._read(self._path.with_name(f"{self._path.name}{suffix}"))
        except FileNotFoundError:
            return None
        except OperatorMistake as error:
            self._complain(str(error))
            return None

    def _read(self, path: Path) -> T:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise OperatorMistake(f"Other users can read {path}; run chmod 600 {path}")
            content = file.read(BYTES_MAX)
        try:
            return self._parse(content)
        except ValueError as error:
            raise OperatorMistake(f"{path} {error}") from None

    def _make_stamp(self) -> tuple[tuple[int, int, int, int] | None, ...]:
        return tuple(
            _stat(self._path.with_name(f"{self._path.name}{suffix}"))
            for suffix in ("", PENDING, PREVIOUS)
        )

    def _complain(self, reason: str) -> None:
        # More than one version may be unusable: each is reported once until all are read again.
        if reason not in self._reported:
            self._reported.add(reason)
            _log.error("secret_file_unusable", reason=reason)


def _stat(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode
