"""Faults of a cluster under load. Longer campaigns: ``make test-cluster``."""

from pathlib import Path

import pytest

from tests.faults.campaign import run_on
from tests.faults.cluster_faults import CLUSTER_FAULTS
from tests.faults.cluster_stack import ClusterStack
from tests.faults.mutations import CLUSTER_MUTATIONS, Mutation, mutated_copy

SHORT = (
    "board_migrated",
    "primary_killed",
    "slot_migrated_by_keys",
    "failover_requested",
    "primary_isolated_without_commits",
    "flusher_killed",
    "primary_lost_with_its_host",
    "replica_killed",
    "primary_paused_until_replaced",
    "api_killed",
)
FAILOVERS = 5


@pytest.mark.timeout(240)
async def test_no_acknowledged_action_is_lost_or_doubled_on_a_cluster(tmp_path: Path) -> None:
    """Check the invariants with replicated updates, on four boards."""
    schedule = [CLUSTER_FAULTS[name] for name in SHORT]

    report = await run_on(ClusterStack(tmp_path), tmp_path, schedule, seed=5, clients=12)

    assert report.violations == []
    assert report.faults == list(SHORT)
    assert report.failovers == FAILOVERS
    assert report.acknowledged > 1000
    assert report.acts > 5


@pytest.mark.parametrize("mutation", CLUSTER_MUTATIONS, ids=lambda mutation: mutation.name)
async def test_mutations_are_detected(tmp_path: Path, mutation: Mutation) -> None:
    stack = ClusterStack(tmp_path, source=mutated_copy(mutation, tmp_path / "source"))
    schedule = [CLUSTER_FAULTS[name] for name in mutation.faults]

    report = await run_on(stack, tmp_path, schedule, clients=12)

    assert any(sentence.startswith(mutation.breaks) for sentence in report.violations), (
        report.violations
    )
