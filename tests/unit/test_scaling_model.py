"""The model of scaling: what a load needs, and how costs are told apart."""

import msgspec
import pytest

from tests.bench.rows import Row
from tests.bench.scale.model import (
    CORES_MAX,
    HALF,
    OPERATIONS,
    VIEWERS_MAX,
    Costs,
    Counts,
    Load,
    predict,
    split,
    use,
    writes_per_s,
)
from tests.bench.scale.plan import costs_of, render_plans

COSTS = Costs(
    **dict.fromkeys(OPERATIONS, 10.0),
    writes=((1000.0, 900.0), (4000.0, 1200.0), (10000.0, 600.0)),
    cycles_per_s=1200.0,
)
LOADS = [
    Load(updates_per_s=updates, viewers=viewers, ranks_per_s=ranks)
    for updates in (0, 1, 900, 5_000, 40_000, 300_000)
    for viewers in (0, 1, 7_000, 400_000)
    for ranks in (0, 2_000)
]


def test_a_small_load_needs_one_primary_and_a_second_process_of_each_kind() -> None:
    plan = predict(Load(updates_per_s=100, viewers=100), COSTS)

    assert plan.counts == Counts(primaries=1, partitions=1, apis=2, streamers=2, flushers=2)


def test_no_streamer_runs_for_no_viewers() -> None:
    assert predict(Load(updates_per_s=100), COSTS).counts.streamers == 0


@pytest.mark.parametrize("load", LOADS)
def test_each_primary_and_process_is_planned_at_half_a_core_at_most(load: Load) -> None:
    plan = predict(load, COSTS)
    counts, cores = plan.counts, plan.cores

    assert cores.redis <= HALF * counts.primaries
    assert cores.api <= HALF * (counts.apis - 1), "one may fail"
    assert cores.flusher <= HALF * (counts.flushers - 1)
    assert cores.streamer <= HALF * max(0, counts.streamers - 1)
    assert load.viewers <= VIEWERS_MAX * max(0, counts.streamers - 1)
    assert counts.partitions >= counts.primaries


@pytest.mark.parametrize("name", ["updates_per_s", "viewers", "ranks_per_s", "frames_per_s"])
def test_a_larger_load_does_not_need_less(name: str) -> None:
    for load in LOADS:
        more = msgspec.structs.replace(load, **{name: 3 * getattr(load, name)})
        less = msgspec.structs.asdict(predict(load, COSTS).counts)
        found = msgspec.structs.asdict(predict(more, COSTS).counts)
        assert all(found[part] >= count for part, count in less.items()), (load, less, found)


def test_the_use_of_a_load_is_the_sum_of_its_operations() -> None:
    load = Load(updates_per_s=1000, viewers=100, frames_per_s=5, changes_per_s=0)
    costs = msgspec.structs.replace(COSTS, streamer_board=1000, streamer_frame=7, flusher_batch=900)

    cores = use(load, Counts(), costs)

    assert cores.streamer == pytest.approx((5 * 1000 + 5 * 100 * 7) / 1e6)
    assert cores.flusher == pytest.approx((1000 * 10 + 9 * 900) / 1e6)
    assert cores.api == pytest.approx((1000 * 10 + 900 * 10) / 1e6)


def test_a_load_that_nothing_carries_is_refused() -> None:
    with pytest.raises(ValueError, match="no number of processes"):
        predict(Load(updates_per_s=1e6 * CORES_MAX), COSTS)


def test_ranks_of_one_board_are_limited_because_each_partition_is_read() -> None:
    with pytest.raises(ValueError, match="no number of processes"):
        predict(Load(updates_per_s=0, ranks_per_s=1e6 * HALF), COSTS)


def test_few_updates_are_written_alone_and_many_together() -> None:
    assert writes_per_s(COSTS, 0) == 0
    assert writes_per_s(COSTS, 500) == pytest.approx(450)
    assert writes_per_s(COSTS, 2500) == pytest.approx(1050)
    assert writes_per_s(COSTS, 7000) == pytest.approx(900)
    assert writes_per_s(COSTS, 1e6) == 600


def test_two_bills_tell_two_prices() -> None:
    assert split((10, 10, 10 * 3 + 10 * 200), (1000, 50, 1000 * 3 + 50 * 200)) == pytest.approx(
        (3, 200)
    )


def test_a_price_is_not_negative() -> None:
    assert split((10, 10, 100), (1000, 50, 20_000)) == (pytest.approx(20_100 / 1010), 0.0)
    assert split((10, 10, 1000), (1000, 50, 100)) == (0.0, pytest.approx(1100 / 60))


def test_bills_of_the_same_proportions_are_refused() -> None:
    with pytest.raises(ValueError, match="same proportions"):
        split((1, 2, 30), (10, 20, 300))


def test_costs_are_the_medians_of_the_published_rows() -> None:
    rows = [
        Row("cost", "system", {"operation": name}, "CPU", "µs", [1.0, 10.0, 500.0])
        for name in OPERATIONS
    ]
    for point, (rate, of) in enumerate(COSTS.writes):
        for metric, value in (("updates", rate), ("writes", of)):
            rows.append(Row("batching", "system", {"point": point}, metric, "/s", [value]))

    assert costs_of(rows) == COSTS


def test_the_table_has_a_line_of_each_load() -> None:
    table = render_plans(COSTS, [Load(updates_per_s=1000, viewers=5000)])

    assert table.split("\n")[2].startswith("| 1,000 | 5,000 | 1 | 1 | 2 | 2 | 2 | 0.0")
