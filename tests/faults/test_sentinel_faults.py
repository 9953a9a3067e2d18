"""Faults of servers with sentinels under load. Longer campaigns: ``make test-cluster``."""

from pathlib import Path

import pytest

from tests.faults.campaign import run_on
from tests.faults.sentinel_faults import SENTINEL_FAULTS
from tests.faults.sentinel_stack import SentinelStack

SHORT = (
    "primary_killed_without_commits",
    "flusher_killed",
    "replica_killed",
    "primary_paused_until_replaced",
    "api_killed",
    "sentinel_away_in_a_failover",
)
FAILOVERS = 3


@pytest.mark.timeout(240)
async def test_no_acknowledged_action_is_lost_or_doubled_with_sentinels(tmp_path: Path) -> None:
    """Check the invariants with replicated updates, on two boards."""
    schedule = [SENTINEL_FAULTS[name] for name in SHORT]

    report = await run_on(SentinelStack(tmp_path), tmp_path, schedule, seed=5, clients=12)

    assert report.violations == []
    assert report.faults == list(SHORT)
    assert report.failovers == FAILOVERS
    assert report.acknowledged > 200
    assert report.acts > 0
