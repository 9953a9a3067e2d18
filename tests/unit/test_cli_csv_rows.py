"""CSV: exact values, and no cell that a spreadsheet evaluates."""

import csv
import io
from datetime import UTC, datetime

import pytest

from cli.csv_rows import CsvRows


def written(*values: object) -> list[str]:
    file = io.BytesIO()
    rows = CsvRows(file, [f"column{number}" for number in range(len(values))])
    rows.write([values])
    rows.finish()
    [_, row] = csv.reader(io.StringIO(file.getvalue().decode(), newline=""))
    return row


@pytest.mark.parametrize("first", [*"=+-@\t\r\n", "＝", "＋", "－", "＠"])
def test_a_text_that_a_spreadsheet_evaluates_gets_an_apostrophe(first: str) -> None:
    text = f'{first}HYPERLINK("http://example.org")'

    assert written(text) == [f"'{text}"]


def test_removing_one_apostrophe_restores_every_text() -> None:
    texts = ["'=1", "''", "'", "=1", "plain", "O'Neil", 'quo"ted, text', "two\nlines", "Zoë"]

    restored = [cell.removeprefix("'") for cell in written(*texts)]

    assert restored == texts


def test_numbers_and_times_are_written_as_they_are() -> None:
    moment = datetime(2026, 7, 1, 8, 30, 0, 5, UTC)

    assert written(-5, 0, 2**62, None, "", moment) == [
        *("-5", "0", str(2**62), "", "", "2026-07-01T08:30:00.000005Z"),
    ]


def test_a_file_without_rows_has_a_header() -> None:
    file = io.BytesIO()

    CsvRows(file, ["rank", "userId"]).finish()

    assert file.getvalue() == b"rank,userId\n"
