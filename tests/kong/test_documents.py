"""The tests that docs/explanation/security.md names exist."""

import ast
import re

import pytest

from tests.kong.runtime import ROOT

TEXT = (ROOT / "docs/explanation/security.md").read_text()


def named() -> list[tuple[str, str]]:
    found, file = [], ""
    for path, name in re.findall(r"`(?:([a-z]+/test_\w+\.py)|…)(?:::(test_\w+))?`", TEXT):
        file = path or file
        found.append((file, name))
    return found


@pytest.mark.parametrize(("path", "name"), named())
def test_every_test_named_on_the_security_page_exists(path: str, name: str) -> None:
    tree = ast.parse((ROOT / "tests" / path).read_text())
    functions = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not name or name in functions


def test_the_table_is_read() -> None:
    assert len(named()) > 15
