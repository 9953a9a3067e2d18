"""Playwright's trace of a test is kept if the test fails."""

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.support.clients.browser import ARTIFACTS
from tests.support.repository import ROOT

TESTS = """
import pytest
from tests.support.clients.browser import *

pytestmark = pytest.mark.asyncio(loop_scope="session")

async def test_passes(open_page, site):
    await open_page(f"{site.url}blank.html")

async def test_fails(open_page, site):
    await open_page(f"{site.url}blank.html")
    assert False

async def test_logs_an_error(open_page, site):
    page = await open_page(f"{site.url}blank.html")
    await page.evaluate("console.error('a mistake')")
"""


def test_only_tests_that_fail_keep_a_trace(tmp_path: Path, chromium_path: str) -> None:
    del chromium_path
    (tmp_path / "conftest.py").write_text(
        "from tests.support.clients.browser import pytest_runtest_makereport\n"
    )
    name = f"test_kept_{tmp_path.parent.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(TESTS)
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [sys.executable, *words, "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    kept = sorted(ARTIFACTS.glob(f"trace-{name}*.zip"))
    try:
        assert [one.name.rpartition("test_")[2] for one in kept] == [
            "fails-1.zip",
            "logs_an_error-1.zip",
        ], done.stdout
        for one in kept:
            with zipfile.ZipFile(one) as trace:
                assert "trace.trace" in trace.namelist()
    finally:
        for one in kept:
            one.unlink()
