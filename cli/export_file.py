"""Files of exports: written beside their destination, readable by their owner only.

Invariants: a destination is complete or unchanged (a file is renamed to it after its last byte was
written); no other user can read it at any time; memory does not grow with the number of rows.
"""

import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, Protocol

from cli.csv_rows import CsvRows
from cli.output import OutputError, is_terminal
from scoreboard.errors import OperatorMistake
from scoreboard.ledger.exports import Column

Format = Literal["csv", "parquet"]
FORMATS: Final[Sequence[Format]] = ("csv", "parquet")
STDOUT: Final = Path("-")
INSTALL: Final = "pip install --require-hashes -r requirements/parquet.txt"


class RowWriter(Protocol):
    """Writes the rows of one table."""

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Write rows."""
        ...

    def finish(self) -> None:
        """Write what is buffered; the file stays open."""
        ...


def check_destination(output: Path, *, form: Format, is_archive: bool) -> None:
    """Check that a destination can take an export, before it begins.

    Raises OperatorMistake.
    """
    if form == "parquet":
        try:
            import pyarrow as pa  # noqa: F401, PLC0415 (an optional dependency)
        except ImportError:
            raise OperatorMistake(
                f"Parquet needs the library pyarrow, which the extra `parquet` installs: {INSTALL}"
            ) from None
    if output != STDOUT and not output.resolve().parent.is_dir():
        raise OperatorMistake(f"The folder {output.resolve().parent} does not exist")
    if output == STDOUT and (form == "parquet" or is_archive) and is_terminal(sys.stdout):
        raise OperatorMistake("The export is binary; use --output FILE or redirect stdout")


@contextmanager
def open_output(output: Path) -> Iterator[BinaryIO]:
    """Yield a file that becomes ``output`` if the block succeeds; `-` is stdout.

    Raises OutputError, OSError.
    """
    if output == STDOUT:
        if sys.stdout is None:
            raise OutputError("stdout is closed")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = output.resolve()
    if path.exists() and not path.is_file():
        # A device or a named pipe: it cannot be replaced.
        with path.open("wb") as file:
            yield file
        return
    # mkstemp gives the file the mode 0600.
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    draft = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            yield file
            file.flush()
            os.fsync(number)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def make_writer(file: BinaryIO, columns: Sequence[Column], form: Format) -> RowWriter:
    """Return a writer of rows in a format; the caller finishes it and closes the file."""
    if form == "csv":
        return CsvRows(file, [column.name for column in columns])
    from cli.parquet_rows import ParquetRows  # noqa: PLC0415 (imports an optional dependency)

    return ParquetRows(file, columns)


@contextmanager
def open_entry(archive: zipfile.ZipFile, name: str) -> Iterator[BinaryIO]:
    """Yield a new file of an archive, which only its owner can read after unpacking."""
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o100600 << 16
    entry.compress_type = archive.compression
    with archive.open(entry, "w", force_zip64=True) as file:
        yield file  # pyright: ignore[reportReturnType] (IO[bytes] has what writers use)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
