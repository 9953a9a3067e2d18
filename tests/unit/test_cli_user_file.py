"""CSV files of users: what is refused, by which line, and what comes out."""

from pathlib import Path

import pytest

from cli.user_file import count_users, read_users
from scoreboard.archive import Profile
from scoreboard.errors import Invalid, Malformed
from scoreboard.reseed import silent


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "users.csv"


def test_users_come_out_as_they_stand(file: Path) -> None:
    file.write_text('userId,email,name\nalice,a@b.org,"Alice, A."\nbob,,\n')

    assert count_users(file, silent) == 2

    assert list(read_users(file, 2, silent)) == [
        Profile("alice", "Alice, A.", "a@b.org"),
        Profile("bob", None, None),
    ]


def test_a_byte_order_mark_of_a_spreadsheet_is_no_part_of_the_head(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfuserId\r\nalice\r\n")

    assert count_users(file, silent) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a b,x,", "the userId is not"),
        (",x,", "the userId is not"),
        (f"alice,{'x' * 201},", "the name is longer"),
        ("alice,x\x00y,", "unprintable"),
        ("alice,x,nobody", "the email is no address"),
        ("alice,x", "not as many fields"),
        ("alice,x,a@b,more", "not as many fields"),
        ("first,x,", "the user of line 2 again"),
        ('alice,"x', "line 3"),
    ],
)
def test_a_bad_line_is_named_with_its_number(file: Path, line: str, reason: str) -> None:
    file.write_text(f"userId,name,email\nfirst,x,\n{line}\n")

    with pytest.raises(Invalid, match=reason) as caught:
        count_users(file, silent)

    assert "line 3" in str(caught.value)
    assert str(caught.value).startswith("Nothing was imported")


def test_many_bad_lines_are_counted(file: Path) -> None:
    file.write_text("userId\n" + "a b\n" * 25)

    with pytest.raises(Invalid, match=r"line 21: .*; and 5 more"):
        count_users(file, silent)


@pytest.mark.parametrize("text", ["name,email\n", "userId,score\n", ""])
def test_a_file_with_another_head_is_refused(file: Path, text: str) -> None:
    file.write_text(text)

    with pytest.raises(Malformed, match="must name userId"):
        count_users(file, silent)


def test_a_file_that_is_no_text_is_refused(file: Path) -> None:
    file.write_bytes(b"userId\nalic\xe9\n")

    with pytest.raises(Malformed, match="not UTF-8"):
        count_users(file, silent)
