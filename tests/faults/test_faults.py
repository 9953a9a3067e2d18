"""Every fault once under load, and mutations that the checks must detect.

Longer campaigns: ``make faults`` (tests/faults/campaign.py).
"""

from pathlib import Path

import pytest

from scoreboard.model import Limits, Rules
from tests.faults.campaign import endless, run_campaign
from tests.faults.faults import FAULTS
from tests.faults.mutations import MUTATIONS, Mutation, mutated_copy


@pytest.mark.timeout(240)
async def test_no_acknowledged_action_is_lost_or_doubled_by_any_fault(tmp_path: Path) -> None:
    """Check I1, I2, I3, I5, I6, I7, I8, I9 and I10."""
    report = await run_campaign(tmp_path, endless(11)[: len(FAULTS)], seed=11, clients=8)

    assert report.violations == []
    assert sorted(report.faults) == sorted(FAULTS)
    assert report.acknowledged > 1000
    assert report.acts > 10


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "rules",
    [
        Rules("best", "lowest", points="stated"),
        Rules("last", "highest", points="stated"),
        Rules("add", "lowest", lowering="players", points="stated"),
    ],
    ids=str,
)
async def test_boards_with_rules_keep_every_acknowledged_action(
    tmp_path: Path, rules: Rules
) -> None:
    """Check the same on boards with other operators and the other order, with acts."""
    schedule = endless(5)[: len(FAULTS)]

    report = await run_campaign(tmp_path, schedule, seed=5, clients=8, rules=rules)

    assert report.violations == []
    assert report.acknowledged > 1000
    assert report.acts > 10


@pytest.mark.timeout(240)
async def test_a_board_with_seasons_and_limits_holds_or_counts_every_acknowledged_action(
    tmp_path: Path,
) -> None:
    """Check the same with seasons of 7 s, while actions exceed a limit and an operator acts."""
    schedule = endless(3)[: len(FAULTS)]
    rules = Rules(season="cron:*/7 * * * * *", time_zone="UTC")
    limits = Limits(45, 300, 10)

    report = await run_campaign(tmp_path, schedule, seed=3, clients=8, rules=rules, limits=limits)

    assert report.violations == []
    assert report.acknowledged - report.held > 500
    assert report.held > 100
    assert report.acts > 10


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
async def test_mutations_are_detected(tmp_path: Path, mutation: Mutation) -> None:
    source = mutated_copy(mutation, tmp_path / "source")

    report = await run_campaign(
        tmp_path,
        [FAULTS[name] for name in mutation.faults],
        clients=6,
        source=source,
        settle_s=5,
    )

    assert any(sentence.startswith(mutation.breaks) for sentence in report.violations), (
        report.violations
    )
