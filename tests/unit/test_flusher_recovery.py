"""Comparison of the positions in PostgreSQL and Redis, with and without a fence."""

import pytest

from flusher.recovery import Finding, compare_positions
from scoreboard.ledger.positions import Position
from scoreboard.store.partitions import GAP_FENCE, REWIND_FENCE, PartitionState

COMMITTED = Position(epoch=3, seq=50, stream_id="9-0")


def state(epoch: int = 3, seq: int = 50, *, fence: str = "") -> PartitionState:
    return PartitionState(epoch=epoch, seq=seq, is_open=not fence, fence=fence)


@pytest.mark.parametrize(
    ("found", "finding"),
    [
        (state(0, 0), Finding.EMPTY),
        (state(), Finding.FINE),
        (state(seq=70), Finding.FINE),
        (state(epoch=4), Finding.FINE),
        (state(seq=49), Finding.REWOUND),
        (state(epoch=2, seq=70), Finding.OLD_EPOCH),
        (state(epoch=2, fence="operator:1"), Finding.WAIT),
        (state(seq=49, fence="operator:1"), Finding.FINE),
        (state(fence="operator:1"), Finding.FINE),
        (state(seq=49, fence=GAP_FENCE), Finding.FINE),
        (state(fence=REWIND_FENCE), Finding.RESUME),
        (state(epoch=2, fence=f"{REWIND_FENCE}:0a1b"), Finding.RESUME),
    ],
)
def test_compare_positions_returns_the_finding(found: PartitionState, finding: Finding) -> None:
    assert compare_positions(COMMITTED, found) is finding


def test_only_lost_data_starts_a_recovery() -> None:
    assert {one for one in Finding if one.is_rewind} == {
        Finding.REWOUND,
        Finding.OLD_EPOCH,
        Finding.RESUME,
    }
