"""CSV files of users, for `scoreboard user import`: check every line, then yield the users.

Invariants: no user of a file with an invalid line is yielded. The input is copied to a temporary
file first, so that a pipe can be read twice and a change of the file has no effect; memory grows
by eight bytes per user.
"""

import csv
import stat
import sys
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from cli.output import print_message
from cli.text import escape_unsafe, find_unsafe
from scoreboard.errors import Invalid, Malformed
from scoreboard.ledger.users import METADATA_BYTES, Profile
from scoreboard.model import ID_FORM, NAME_MAX, is_identifier
from scoreboard.recovery.reseed import ReportProgress

COLUMNS: Final = ("userId", "name", "email", "metadata")
STDIN: Final = Path("-")
SHOWN_MAX: Final = 20
"""Maximum number of invalid lines listed in one error."""
EMAIL_MAX: Final = 320
LINE_BYTES: Final = 16_384
"""More than three times the longest valid line: all columns, quoted, in UTF-8."""
FILE_BYTES: Final = 1 << 30
REPORT_EVERY: Final = 1000
_CHUNK_BYTES: Final = 1 << 20

Row = dict[str, str]


def check_name(name: str | None) -> str | None:
    """Describe what is wrong with a name, or return None."""
    if not name:
        return None
    if len(name) > NAME_MAX:
        return f"the name is longer than {NAME_MAX} characters"
    unsafe = find_unsafe(name)
    return f"the name contains a {unsafe}" if unsafe else None


def check_email(email: str | None) -> str | None:
    """Describe what is wrong with an e-mail address, or return None."""
    if not email:
        return None
    local, _, domain = email.rpartition("@")
    is_plain = not find_unsafe(email) and not any(map(str.isspace, email))
    if not local or not domain or len(email) > EMAIL_MAX or not is_plain:
        return "the email is not a valid address"
    return None


def check_metadata(text: str | None) -> str | None:
    """Describe what is wrong with metadata, or return None."""
    if not text:
        return None
    try:
        compact = compact_metadata(text)
    except (msgspec.MsgspecError, OverflowError, RecursionError):
        return "the metadata is not a JSON object"
    if len(compact.encode()) > METADATA_BYTES:
        return f"the metadata is longer than {METADATA_BYTES} bytes"
    unsafe = find_unsafe(compact)
    return f"the metadata contains a {unsafe}" if unsafe else None


def compact_metadata(text: str) -> str:
    """Return metadata as compact JSON, in which each name is once.

    Raises msgspec.MsgspecError, OverflowError, RecursionError unless it is an object.
    """
    return msgspec.json.encode(msgspec.json.decode(text, type=dict[str, Any])).decode()


class UserFile:
    """The lines of one file; see ``open_user_file``."""

    def __init__(self, content: BinaryIO) -> None:
        self._content = content

    def count(self, report: ReportProgress) -> int:
        """Check every line and return the number of users.

        Raises Malformed for a file of another format, Invalid with the numbers of invalid lines.
        """
        problems: list[tuple[int, str]] = []
        invalid = 0
        digests = array("q")
        for line, row in self._rows():
            problem = _problem_of(row)
            if problem is None:
                digests.append(hash(row["userId"]))
            else:
                invalid += 1
                if len(problems) < SHOWN_MAX:
                    problems.append((line, problem))
            if line % REPORT_EVERY == 0:
                report("check", line, 0)
        repeated = _repeated(digests)
        if repeated:
            found = list(self._find_repeated(repeated))
            invalid += len(found)
            problems = sorted([*problems, *found])[:SHOWN_MAX]
        if invalid:
            listed = "; ".join(f"line {line}: {problem}" for line, problem in problems)
            more = f"; and {invalid - SHOWN_MAX} more" if invalid > SHOWN_MAX else ""
            raise Invalid(f"Nothing was imported. {listed}{more}")
        return len(digests)

    def users(self, total: int, report: ReportProgress) -> Iterator[Profile]:
        """Yield the users of a checked file."""
        done = 0
        for done, (_, row) in enumerate(self._rows(), 1):
            metadata = row.get("metadata")
            yield Profile(
                row["userId"],
                row.get("name") or None,
                row.get("email") or None,
                compact_metadata(metadata) if metadata else None,
            )
            if done % REPORT_EVERY == 0:
                report("import", done, total)
        report("import", done, total)

    def _find_repeated(self, repeated: set[int]) -> Iterator[tuple[int, str]]:
        seen: dict[str, int] = {}
        for line, row in self._rows():
            user_id = row.get("userId", "")
            if hash(user_id) in repeated and _problem_of(row) is None:
                first = seen.setdefault(user_id, line)
                if first != line:
                    yield line, f"the userId repeats line {first}"

    def _rows(self) -> Iterator[tuple[int, Row]]:
        """Yield the number and fields of each line; a wrong number of fields gives an empty row."""
        lines = self._lines()
        _, header = next(lines, (1, []))
        _check_header(header)
        for number, fields in lines:
            if fields:  # else a blank line
                is_whole = len(fields) == len(header)
                yield number, dict(zip(header, fields, strict=True)) if is_whole else {}

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        # Each line is parsed alone, as no field may contain a line break: an unclosed quote is then
        # an error of its own line instead of the last line that the parser consumed.
        self._content.seek(0)
        for number, line in enumerate(self._content, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                yield number, next(csv.reader([text], strict=True), [])
            except UnicodeDecodeError:
                raise Malformed(f"Line {number} is not UTF-8") from None
            except csv.Error:
                raise Invalid(
                    f"Nothing was imported. line {number}: misplaced quote or line break"
                ) from None


@contextmanager
def open_user_file(path: Path, report: ReportProgress) -> Iterator[UserFile]:
    """Read a file, a pipe or stdin (path `-`) to its end and yield its lines.

    Raises Malformed if it is too large, has too long lines, or if stdin is closed; OSError.
    """
    with tempfile.TemporaryFile() as content:
        if path == STDIN:
            if sys.stdin is None:
                raise Malformed("Cannot read users: stdin is closed")
            print_message("Reading users from stdin")
            _copy(sys.stdin.buffer, content, report)
        else:
            if not stat.S_ISREG(path.stat().st_mode):
                print_message(f"Reading users from {path}")  # reading a pipe may block
            with path.open("rb") as source:
                _copy(source, content, report)
        yield UserFile(content)


def _copy(source: BinaryIO, target: BinaryIO, report: ReportProgress) -> None:
    size = line_bytes = 0
    while chunk := source.read(_CHUNK_BYTES):
        size += len(chunk)
        if size > FILE_BYTES:
            raise Malformed(f"The file is larger than {FILE_BYTES >> 20} MiB; split it")
        for part in chunk.splitlines(keepends=True):
            line_bytes += len(part)
            if line_bytes > LINE_BYTES:
                raise Malformed(f"A line is longer than {LINE_BYTES} bytes")
            if part.endswith(b"\n"):
                line_bytes = 0
        target.write(chunk)
        report("read", size, 0)


def _check_header(header: list[str]) -> None:
    """Raise Malformed if the first line does not name the columns."""
    rule = "it must contain userId and may contain name, email and metadata, separated by commas"
    repeated = [name for name in header if header.count(name) > 1]
    unknown = [name for name in header if name not in COLUMNS]
    if repeated:
        raise Malformed(f"The header contains {_quoted(repeated[0])} twice; {rule}")
    if unknown:
        raise Malformed(f"The header contains {_quoted(unknown[0])}; {rule}")
    if "userId" not in header:
        raise Malformed(f"The header does not contain userId; {rule}")


def _problem_of(row: Row) -> str | None:
    if not row:
        return "the number of fields differs from the header"
    if not is_identifier(row["userId"]):
        return f"the userId must have {ID_FORM}"
    problem = check_name(row.get("name")) or check_email(row.get("email"))
    return problem or check_metadata(row.get("metadata"))


def _repeated(digests: "array[int]") -> set[int]:
    ordered = sorted(digests)
    return {one for one, other in pairwise(ordered) if one == other}


def _quoted(text: str) -> str:
    return f'"{escape_unsafe(text[:40])}{"…" if len(text) > 40 else ""}"'
