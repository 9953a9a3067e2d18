"""CSV files of users: what is read, and which line an error names."""

from pathlib import Path

import pytest

from cli import user_csv
from cli.user_csv import open_user_file
from scoreboard.errors import Invalid, Malformed
from scoreboard.ledger.users import Profile
from scoreboard.recovery.reseed import report_nothing


def count_users(file: Path) -> int:
    with open_user_file(file, report_nothing) as users:
        return users.count(report_nothing)


def read_users(file: Path) -> list[Profile]:
    with open_user_file(file, report_nothing) as users:
        return list(users.users(users.count(report_nothing), report_nothing))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "users.csv"


def test_users_are_read_from_the_file(file: Path) -> None:
    file.write_text('userId,email,name\nalice,a@b.org,"Alice, A."\nbob,,\n')

    assert read_users(file) == [
        Profile("alice", "Alice, A.", "a@b.org"),
        Profile("bob", None, None),
    ]


def test_a_byte_order_mark_is_ignored(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfuserId\r\nalice\r\n")

    assert count_users(file) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a b,x,", "the userId must"),
        (",x,", "the userId must"),
        (f"alice,{'x' * 201},", "the name is longer"),
        ("alice,x\x00y,", r"a control character \(U\+0000\) at character 2"),
        ("alice,x\ry,", "misplaced"),
        ("al\x00ice,x,", "the userId must"),
        ("alice,x,nobody", "the email is not a valid address"),
        ("alice,x", "number of fields"),
        ("alice,x,a@b,more", "number of fields"),
        ("first,x,", "the userId repeats line 2"),
        ('alice,"x', "line 3"),
    ],
)
def test_an_invalid_line_is_reported_with_its_number(file: Path, line: str, reason: str) -> None:
    file.write_text(f"userId,name,email\nfirst,x,\n{line}\n")

    with pytest.raises(Invalid, match=reason) as caught:
        count_users(file)

    assert "line 3" in str(caught.value)
    assert str(caught.value).startswith("Nothing was imported")


def test_more_than_20_invalid_lines_are_counted(file: Path) -> None:
    file.write_text("userId\n" + "a b\n" * 25)

    with pytest.raises(Invalid, match=r"line 21: .*; and 5 more"):
        count_users(file)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name,email\n", "does not contain userId"),
        ("", "does not contain userId"),
        ("\n", "does not contain userId"),
        ("userId,score\n", 'contains "score"'),
        ("userId,userId,name\nalice,bob,Alice\n", 'contains "userId" twice'),
        ("userId,name,name\nalice,A,B\n", 'contains "name" twice'),
        ("userId;name\nalice;Alice\n", 'contains "userId;name".*commas'),
        ("userId\tname\nalice\tAlice\n", "commas"),
        ("userId,\nalice,\n", 'contains ""'),
        ("userid\nalice\n", 'contains "userid"'),
        ("userId, name\nalice,A\n", 'contains " name"'),
        ("userId,na\x1b[31mme\n", r'contains "na\\x1b\[31mme"'),
    ],
)
def test_an_invalid_header_is_rejected(file: Path, text: str, reason: str) -> None:
    file.write_text(text)

    with pytest.raises(Malformed, match=reason):
        count_users(file)


def test_a_file_that_is_not_utf_8_is_rejected(file: Path) -> None:
    file.write_bytes(b"userId\nalic\xe9\n")

    with pytest.raises(Malformed, match="Line 2 is not UTF-8"):
        count_users(file)


def test_utf_16_is_rejected(file: Path) -> None:
    file.write_text("userId\nalice\n", "utf-16")

    with pytest.raises(Malformed, match="Line 1 is not UTF-8"):
        count_users(file)


def test_all_line_endings_are_accepted_and_blank_lines_skipped(file: Path) -> None:
    file.write_bytes(b'\xef\xbb\xbfuserId,name\r\nalice,"A ""x"""\r\n\r\nbob,B\n\ncarol,C')

    assert [user.name for user in read_users(file)] == ['A "x"', "B", "C"]


def test_an_unclosed_quote_is_reported_on_its_line(file: Path) -> None:
    lines = ["userId,name", 'alice,"A', *(f"user-{number},N" for number in range(9000))]
    file.write_text("\n".join(lines))

    with pytest.raises(Invalid, match="line 2: misplaced quote"):
        count_users(file)


def test_repeated_users_are_reported_in_line_order(file: Path) -> None:
    file.write_text("userId\nalice\nbob\nb b\nalice\nbob\nalice\n")

    with pytest.raises(Invalid) as caught:
        count_users(file)

    assert caught.value.detail == (
        "Nothing was imported. "
        "line 4: the userId must have 1 to 128 characters of A-Z a-z 0-9 . _ | : @ -; "
        "line 5: the userId repeats line 2; line 6: the userId repeats line 3; "
        "line 7: the userId repeats line 2"
    )


def test_a_line_that_is_too_long_is_rejected_early(file: Path) -> None:
    file.write_bytes(b"userId\n" + b"x" * (user_csv.LINE_BYTES + 1))
    with pytest.raises(Malformed, match="longer than 16384 bytes"):
        count_users(file)
    with pytest.raises(Malformed, match="longer than 16384 bytes"):
        count_users(Path("/dev/zero"))


def test_a_file_that_is_too_large_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_csv, "FILE_BYTES", 1 << 20)
    file.write_bytes(b"userId\n" + b"alice\n" * 200_000)

    with pytest.raises(Malformed, match="larger than 1 MiB"):
        count_users(file)
