"""Which characters a name may contain, and how unsafe ones are escaped for a terminal."""

import pytest

from cli.text import escape_unsafe, find_unsafe
from cli.user_csv import check_email, check_name

GOOD = [
    "山田\u3000太郎",  # ideographic space
    "می\u200cخواهم",  # ZWNJ
    "ශ්\u200dරී",  # ZWJ
    "👨\u200d👩\u200d👧",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # England, by tag characters
    "Jean\u00a0Paul",
    "אבג\u200e (abc)",  # left-to-right mark
    "O’Connor-Łukasz",
    "e\u0301",
    "\ue000",  # private use
    "\U0001fb00",
    "x" * 200,
]
BAD = [
    ("bell\x07", "control character (U+0007) at character 5"),
    ("a\x00b", "control character (U+0000) at character 2"),
    ("a\tb", "control character (U+0009) at character 2"),
    ("a\nb", "control character (U+000A) at character 2"),
    ("\x1b[31m", "control character (U+001B) at character 1"),
    ("\x7f", "control character (U+007F) at character 1"),
    ("\x85", "control character (U+0085) at character 1"),
    ("\u202egnp.exe", "right-to-left override (U+202E) at character 1"),
    ("\u202a", "left-to-right embedding (U+202A)"),
    ("\u202c", "pop directional formatting (U+202C)"),
    ("\u2066x\u2069", "left-to-right isolate (U+2066) at character 1"),
    ("x\u2069", "pop directional isolate (U+2069) at character 2"),
    ("a\u2028b", "line separator (U+2028)"),
    ("a\u2029b", "paragraph separator (U+2029)"),
    ("\ud800", "half of a surrogate pair (U+D800)"),
    ("\udcff", "half of a surrogate pair (U+DCFF)"),
    ("\ufffe", "noncharacter (U+FFFE)"),
    ("\ufdd0", "noncharacter (U+FDD0)"),
    ("\U0010ffff", "noncharacter (U+10FFFF)"),
]


@pytest.mark.parametrize("name", GOOD)
def test_real_names_are_accepted_and_printed_unchanged(name: str) -> None:
    assert check_name(name) is None
    assert escape_unsafe(name) == name


@pytest.mark.parametrize(("name", "what"), BAD, ids=ascii)
def test_unsafe_characters_are_rejected_with_name_and_position(name: str, what: str) -> None:
    problem = check_name(name)

    assert problem is not None
    assert what in problem
    assert problem.isprintable()
    assert find_unsafe(escape_unsafe(name)) is None


def test_an_email_without_a_valid_form_is_rejected() -> None:
    assert check_email("jörg@exämple.org") is None
    for wrong in ("a b@c", "a\u3000b@c", "a\u202e@c", "a@", "@b", "nobody", "a@b\x00"):
        assert check_email(wrong) == "the email is not a valid address"
