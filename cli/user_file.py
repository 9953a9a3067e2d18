"""Reads CSV files of users: checks every line and says which are bad, then gives them one by one.

Called by `scoreboard user import`. What stays true: nothing is given of a file with a bad line.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from scoreboard.archive import Profile
from scoreboard.errors import Invalid, Malformed
from scoreboard.model import is_identifier
from scoreboard.reseed import Report

COLUMNS: Final = ("userId", "name", "email")
SHOWN_MAX: Final = 20
"""Most bad lines told of at once."""
NAME_MAX: Final = 200
EMAIL_MAX: Final = 320
REPORT_EVERY: Final = 1000


def check_name(name: str | None) -> str | None:
    """Say what is wrong with a name; None where nothing is."""
    if name and (len(name) > NAME_MAX or not name.isprintable()):
        return f"the name is longer than {NAME_MAX} characters or has unprintable ones"
    return None


def check_email(email: str | None) -> str | None:
    """Say what is wrong with an e-mail address; None where nothing is."""
    if not email:
        return None
    local, _, domain = email.rpartition("@")
    if not local or not domain or len(email) > EMAIL_MAX or not email.isprintable() or " " in email:
        return "the email is no address"
    return None


def count_users(file: Path, report: Report) -> int:
    """Check every line of a file; give how many users it has.

    Raises Malformed where it is no such file, Invalid with the numbers of its bad lines.
    """
    problems: list[str] = []
    bad = 0
    seen: dict[str, int] = {}
    for line, row in _rows(file):
        problem = _problem_of(row, seen)
        if problem:
            bad += 1
            if len(problems) < SHOWN_MAX:
                problems.append(f"line {line}: {problem}")
        else:
            seen[row["userId"]] = line
        if len(seen) % REPORT_EVERY == 0:
            report("check", len(seen), 0)
    if bad:
        more = f"; and {bad - SHOWN_MAX} more" if bad > SHOWN_MAX else ""
        raise Invalid(f"Nothing was imported. {'; '.join(problems)}{more}")
    return len(seen)


def read_users(file: Path, total: int, report: Report) -> Iterator[Profile]:
    """Give the users of a file that was checked."""
    done = 0
    for done, (_, row) in enumerate(_rows(file), 1):
        yield Profile(row["userId"], row.get("name") or None, row.get("email") or None)
        if done % REPORT_EVERY == 0:
            report("import", done, total)
    report("import", done, total)


def _problem_of(row: dict[str, str], seen: dict[str, int]) -> str | None:
    user_id = row.get("userId") or ""
    if None in row or any(value is None for value in row.values()):
        return "it has not as many fields as the head"
    if not is_identifier(user_id):
        return "the userId is not 1 to 128 characters of A-Z a-z 0-9 . _ | : @ -"
    if user_id in seen:
        return f"the user of line {seen[user_id]} again"
    return check_name(row.get("name")) or check_email(row.get("email"))


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            head = reader.fieldnames or []
            if "userId" not in head or not set(head) <= set(COLUMNS):
                raise Malformed(
                    f"The first line of {file} must name userId, and may name name and email"
                )
            try:
                for row in reader:
                    yield reader.line_num, row
            except csv.Error as error:
                raise Invalid(
                    f"Nothing was imported. line {reader.reader.line_num}: {error}"
                ) from error
    except UnicodeDecodeError as error:
        raise Malformed(f"{file} is not UTF-8 at byte {error.start}") from error
