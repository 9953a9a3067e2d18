"""Reads CSV files of users: checks every line and says which are bad, then gives them one by one.

Called by `scoreboard user import`. What stays true: nothing is given of a file with a bad line. A
file is copied once, to a temporary file of our own, so that a pipe can be read twice and a file
that is being changed cannot; memory grows by eight bytes a user.
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
from typing import BinaryIO, Final

from cli.output import print_message
from cli.text import escape_unsafe, find_unsafe
from scoreboard.errors import Invalid, Malformed
from scoreboard.ledger.users import Profile
from scoreboard.model import is_identifier
from scoreboard.recovery.reseed import ReportProgress

COLUMNS: Final = ("userId", "name", "email")
STDIN: Final = Path("-")
SHOWN_MAX: Final = 20
"""Most bad lines told of at once."""
NAME_MAX: Final = 200
EMAIL_MAX: Final = 320
LINE_BYTES: Final = 16_384
"""A userId, a name and an email of the greatest length, quoted, in UTF-8, take a quarter of it."""
FILE_BYTES: Final = 1 << 30
REPORT_EVERY: Final = 1000
_CHUNK_BYTES: Final = 1 << 20

Row = dict[str, str]


def check_name(name: str | None) -> str | None:
    """Say what is wrong with a name; None where nothing is."""
    if not name:
        return None
    if len(name) > NAME_MAX:
        return f"the name is longer than {NAME_MAX} characters"
    harmful = find_unsafe(name)
    return f"the name has a {harmful}" if harmful else None


def check_email(email: str | None) -> str | None:
    """Say what is wrong with an e-mail address; None where nothing is."""
    if not email:
        return None
    local, _, domain = email.rpartition("@")
    is_plain = not find_unsafe(email) and not any(map(str.isspace, email))
    if not local or not domain or len(email) > EMAIL_MAX or not is_plain:
        return "the email is not an address"
    return None


class UserFile:
    """The lines of one file; made by ``open_user_file``."""

    def __init__(self, content: BinaryIO) -> None:
        self._content = content

    def count(self, report: ReportProgress) -> int:
        """Check every line; return how many users there are.

        Raises Malformed where this is not such a file, Invalid with the numbers of its bad lines.
        """
        problems: list[tuple[int, str]] = []
        bad = 0
        digests = array("q")
        for line, row in self._rows():
            problem = _problem_of(row)
            if problem is None:
                digests.append(hash(row["userId"]))
            else:
                bad += 1
                if len(problems) < SHOWN_MAX:
                    problems.append((line, problem))
            if line % REPORT_EVERY == 0:
                report("check", line, 0)
        repeated = _repeated(digests)
        if repeated:
            found = list(self._find_repeated(repeated))
            bad += len(found)
            problems = sorted([*problems, *found])[:SHOWN_MAX]
        if bad:
            told = "; ".join(f"line {line}: {problem}" for line, problem in problems)
            more = f"; and {bad - SHOWN_MAX} more" if bad > SHOWN_MAX else ""
            raise Invalid(f"Nothing was imported. {told}{more}")
        return len(digests)

    def users(self, total: int, report: ReportProgress) -> Iterator[Profile]:
        """Give the users of a file that was checked."""
        done = 0
        for done, (_, row) in enumerate(self._rows(), 1):
            yield Profile(row["userId"], row.get("name") or None, row.get("email") or None)
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
                    yield line, f"the user of line {first} again"

    def _rows(self) -> Iterator[tuple[int, Row]]:
        """Give the number and the fields of each line; too many or too few make an empty row."""
        lines = self._lines()
        _, head = next(lines, (1, []))
        _check_head(head)
        for number, fields in lines:
            if fields:  # else a blank line
                is_whole = len(fields) == len(head)
                yield number, dict(zip(head, fields, strict=True)) if is_whole else {}

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        # Line by line, as no field may hold a line break: a quote that is not closed is then a
        # fault of its own line, and not of the last one that the parser has swallowed.
        self._content.seek(0)
        for number, line in enumerate(self._content, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                yield number, next(csv.reader([text], strict=True), [])
            except UnicodeDecodeError:
                raise Malformed(f"Line {number} is not UTF-8") from None
            except csv.Error:
                raise Invalid(
                    f"Nothing was imported. line {number}: a quote or a line break is out of place"
                ) from None


@contextmanager
def open_user_file(path: Path, report: ReportProgress) -> Iterator[UserFile]:
    """Read a file, a pipe or (path `-`) stdin to its end, and give its lines.

    Raises Malformed where it is too large, not made of lines, or a closed stdin; OSError.
    """
    with tempfile.TemporaryFile() as content:
        if path == STDIN:
            if sys.stdin is None:
                raise Malformed("There is nothing to read: stdin is closed")
            print_message("Reading users from stdin")
            _copy(sys.stdin.buffer, content, report)
        else:
            if not stat.S_ISREG(path.stat().st_mode):
                print_message(f"Reading users from {path}")  # a pipe may keep us waiting
            with path.open("rb") as source:
                _copy(source, content, report)
        yield UserFile(content)


def _copy(source: BinaryIO, target: BinaryIO, report: ReportProgress) -> None:
    size = line_bytes = 0
    while chunk := source.read(_CHUNK_BYTES):
        size += len(chunk)
        if size > FILE_BYTES:
            raise Malformed(f"The file is larger than {FILE_BYTES >> 20} MiB: import it in parts")
        for part in chunk.splitlines(keepends=True):
            line_bytes += len(part)
            if line_bytes > LINE_BYTES:
                raise Malformed(f"A line is longer than {LINE_BYTES} bytes")
            if part.endswith(b"\n"):
                line_bytes = 0
        target.write(chunk)
        report("read", size, 0)


def _check_head(head: list[str]) -> None:
    """Raise Malformed where the first line does not name the columns."""
    rule = "the first line names userId, and may name name and email, with commas between them"
    twice = [name for name in head if head.count(name) > 1]
    unknown = [name for name in head if name not in COLUMNS]
    if twice:
        raise Malformed(f"The first line names {_quoted(twice[0])} twice: {rule}")
    if unknown:
        raise Malformed(f"The first line names {_quoted(unknown[0])}: {rule}")
    if "userId" not in head:
        raise Malformed(f"The first line does not name userId: {rule}")


def _problem_of(row: Row) -> str | None:
    if not row:
        return "it has not as many fields as the first line"
    if not is_identifier(row["userId"]):
        return "the userId is not 1 to 128 characters of A-Z a-z 0-9 . _ | : @ -"
    return check_name(row.get("name")) or check_email(row.get("email"))


def _repeated(digests: "array[int]") -> set[int]:
    ordered = sorted(digests)
    return {one for one, other in pairwise(ordered) if one == other}


def _quoted(text: str) -> str:
    return f'"{escape_unsafe(text[:40])}{"…" if len(text) > 40 else ""}"'
