"""Rows as CSV: UTF-8, a header, and no cell that a spreadsheet evaluates as a formula.

Spreadsheets evaluate a cell that begins with = + - @ or a control character, also in quotes; users
choose their names and partly their ids. An apostrophe before such a text prevents it. A text that
begins with an apostrophe gets one as well, so removing one apostrophe restores every text. Numbers
and times are written as they are.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final

_EVALUATED: Final = frozenset("=+-@\t\r\n＝＋－＠'")


class CsvRows:
    """Writes rows to a binary file, which the caller closes."""

    def __init__(self, file: BinaryIO, names: Sequence[str]) -> None:
        self._file = file
        self._text = io.StringIO(newline="")
        self._rows = csv.writer(self._text, lineterminator="\n")
        self._rows.writerow(names)

    def write(self, rows: Iterable[Sequence[Any]]) -> None:
        """Write rows; None is an empty cell."""
        self._rows.writerows([[_cell(value) for value in row] for row in rows])
        self.finish()

    def finish(self) -> None:
        """Write what is buffered. The file stays open."""
        self._file.write(self._text.getvalue().encode())
        self._text.seek(0)
        self._text.truncate()


def _cell(value: object) -> object:
    if isinstance(value, str):
        return f"'{value}" if value and value[0] in _EVALUATED else value
    if isinstance(value, datetime):
        return format_time(value)
    return value


def format_time(moment: datetime) -> str:
    """Return a time in UTC to the microsecond, such as 2026-07-01T08:30:00.000000Z."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
