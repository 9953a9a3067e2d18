"""The table of rules in CONTRIBUTING.md names files and symbols that exist."""

import re

import pytest

from tests.support.repository import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
TABLE = TEXT[TEXT.index("## Ten rules") : TEXT.index("## Rules")]
ROWS = re.findall(r"^\| ([^|]+) \| `([^`]+)` \| (`.+`) \|$", TABLE, re.MULTILINE)


@pytest.mark.parametrize(("rule", "file", "symbols"), ROWS, ids=[row[0] for row in ROWS])
def test_the_file_of_a_rule_contains_its_symbols(rule: str, file: str, symbols: str) -> None:
    source = (ROOT / file).read_text()

    for symbol in re.findall(r"`(\w+)`", symbols):
        assert re.search(rf"\b{symbol}\b", source), f"{rule}: {file} does not contain {symbol}"


def test_the_table_has_ten_rules() -> None:
    assert len(ROWS) == 10
