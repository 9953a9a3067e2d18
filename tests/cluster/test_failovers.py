"""Primaries are replaced under load, and services follow the promoted replicas."""

from pathlib import Path

import pytest

from tests.faults.campaign import run_on
from tests.faults.cluster_faults import CLUSTER_FAULTS
from tests.faults.cluster_stack import ClusterStack

pytestmark = pytest.mark.slow


@pytest.mark.timeout(240)
async def test_killed_primaries_are_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    schedule = [CLUSTER_FAULTS["primary_killed"]] * 4

    report = await run_on(ClusterStack(tmp_path), tmp_path, schedule, clients=12)

    assert report.violations == []
    assert report.failovers == 4
    assert report.acknowledged > 500


@pytest.mark.timeout(240)
async def test_planned_failovers_of_all_primaries_lose_nothing(tmp_path: Path) -> None:
    schedule = [CLUSTER_FAULTS["failovers_of_all_primaries"]] * 3

    report = await run_on(ClusterStack(tmp_path), tmp_path, schedule, clients=12)

    assert report.violations == []
    assert report.failovers == 9
    assert max(report.recoveries_s) < 5
