"""The generated reference pages match the code."""

import subprocess
import sys

from tests.support.repository import ROOT


def test_the_reference_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, f"run: make reference\n{done.stdout}{done.stderr}"
