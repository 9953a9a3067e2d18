"""The JavaScript of web/ and loadtest/k6 passes ESLint and the type checker of TypeScript."""

from pathlib import Path

import pytest

from tests.support.clients import npm
from tests.support.repository import ROOT

HERE = ROOT / "tests/javascript"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    npm.install(HERE)


def test_web_passes_eslint_and_the_type_checker() -> None:
    assert npm.findings(HERE, ROOT / "web") == []


def test_the_programs_for_k6_pass_eslint_and_the_type_checker() -> None:
    assert npm.findings(HERE, ROOT / "loadtest/k6", "k6") == []


def test_names_that_k6_does_not_have_are_found(tmp_path: Path) -> None:
    (tmp_path / "run.js").write_text(
        'import http from "k6/http";\nhttp.fetch("/");\nsetTimeout(__ENV.NAME, 1);\n'
    )

    found = npm.findings(HERE, tmp_path, "k6")

    assert [": ".join(one.split(": ")[:2]) for one in found] == [
        "run.js:2: TS2339",
        "run.js:3: TS2304",
    ]


def test_errors_are_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "page.js").write_text('export const width = "wide";\nlet unused = 1;\n')
    (tmp_path / "docs/start.js").write_text(
        'import { width } from "../page.js";\nMath.max(width);\n'
    )

    found = npm.findings(HERE, tmp_path)

    rules = [": ".join(one.split(": ")[:2]) for one in found]
    assert rules == [
        "page.js:2: no-unused-vars",
        "page.js:2: prefer-const",
        "docs/start.js:2: TS2345",
    ]
