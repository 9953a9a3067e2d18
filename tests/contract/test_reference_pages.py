"""The generated reference pages match the code."""

import subprocess
import sys

import pytest

from tests.support.reference import SERVICES, metrics_of
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


@pytest.mark.parametrize("service", SERVICES)
def test_each_metric_has_a_meaning_a_unit_and_what_is_normal(service: str) -> None:
    metrics = metrics_of(service)

    assert metrics
    assert [one.name for one in metrics if not (one.about and one.unit and one.normal)] == []
