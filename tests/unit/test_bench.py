"""The parts of the load generator without I/O: criteria, schedule, histogram, measurement."""

import random
from typing import Any

import pytest

from cli.bench.generator.http_load import _parse
from cli.bench.generator.latencies import Latencies
from cli.bench.generator.measurement import Measurement, Snapshot
from cli.bench.generator.requests import Reads, Updates, User
from cli.bench.generator.schedule import Schedule, Window
from cli.bench.report.criteria import parse_criterion
from cli.bench.report.results import Costs, compute_costs, find_marks


@pytest.mark.parametrize(
    ("text", "figures", "is_met"),
    [
        ("p99>50ms", {"p99": 50.1}, True),
        ("p99>50ms", {"p99": 50.0}, False),
        ("p99.99 > 0.2s", {"p99.99": 201.0}, True),
        ("p50<800us", {"p50": 0.79}, True),
        ("mean>800µs", {"mean": 0.79}, False),
        ("max>1s", {"max": 1000.5}, True),
        ("errors>0.1%", {"errors": 0.002}, True),
        ("errors>0.5", {"errors": 0.4}, False),
        ("rate<1000", {"rate": 999.0}, True),
        ("cpu>120us", {"cpu": 0.121}, True),
        ("cpu>120us", {"cpu": None}, True),
    ],
)
def test_a_criterion_compares_a_figure_with_its_limit(
    text: str, figures: dict[str, float | None], is_met: bool
) -> None:
    assert parse_criterion(text).is_met_by(figures) is is_met


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("p99", "not of the form"),
        ("p99>=50ms", "not of the form"),
        ("p99>-1ms", "not of the form"),
        ("p95>50ms", "not a figure"),
        ("p99>50", "has the unit"),
        ("p99>50%", "has the unit"),
        ("errors>1ms", "has the unit"),
        ("rate<5/s", "has the unit"),
        ("p99>50ms;max>1s", "not of the form"),
        ("", "not of the form"),
        ("p99>\u0663ms", "not of the form"),
        ("errors>5", "below 100%"),
        ("errors>100%", "below 100%"),
    ],
)
def test_an_unreadable_criterion_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_criterion(text)


def test_percentiles_of_a_known_distribution_are_within_three_digits() -> None:
    latencies = Latencies()
    values = [number / 1e5 for number in range(1, 100_001)]  # 10 µs … 1 s, evenly
    random.Random(7).shuffle(values)
    for value in values:
        latencies.record(value)
    found = latencies.summary()
    assert found.count == 100_000
    expected = {"p50": 500.0, "p90": 900.0, "p99": 990.0, "p99.9": 999.0, "p99.99": 999.9}
    assert found.percentiles_ms == pytest.approx(expected, rel=0.001)
    assert found.max_ms == 1000.0
    assert found.mean_ms == pytest.approx(500.005, abs=0.001)


def test_no_percentile_exceeds_the_maximum() -> None:
    latencies = Latencies()
    latencies.record(0.1234567)
    found = latencies.summary()
    assert set(found.percentiles_ms.values()) == {found.max_ms}


def test_latencies_outside_of_the_range_count_at_its_ends() -> None:
    latencies = Latencies()
    latencies.record(0.0)
    latencies.record(3600.0)
    assert latencies.count == 2


def test_a_schedule_has_every_request_once_whenever_it_is_read() -> None:
    schedule = Schedule(1000, 100.0, 102.0)
    clock = random.Random(3)
    now_s, times = 100.0, []
    while not schedule.is_over:
        times += schedule.due(now_s)
        now_s += clock.choice([0.0001, 0.003, 0.4])
    assert times == pytest.approx([100 + n / 1000 for n in range(2000)])
    assert schedule.due(now_s + 10) == []


def test_a_late_reader_gets_the_intended_times_and_not_its_own() -> None:
    schedule = Schedule(10, 0.0, 2.0)
    assert schedule.due(0.0) == [0.0]
    assert schedule.due(1.05) == pytest.approx([n / 10 for n in range(1, 11)])


def test_only_requests_intended_within_the_window_are_measured() -> None:
    measurement = Measurement(Window(10.0, 20.0))
    measurement.record(1, 9.9, 10.5, "applied")  # of the warm-up
    measurement.record(2, 10.0, 10.5, "applied")
    measurement.record(3, 19.9, 22.0, "applied")  # answered after the end
    measurement.record(4, 20.0, 20.1, "applied")
    assert measurement.completed == 4
    assert measurement.outcomes == {"applied": 2}
    assert measurement.latencies.summary().max_ms == pytest.approx(2100)


def test_refusals_are_counted_without_latency_and_timeouts_with_theirs() -> None:
    measurement = Measurement(Window(0.0, 20.0))
    measurement.record(1, 1.0, 1.001, "429 rate-limited")
    measurement.record(2, 1.0, 11.0, "timeout")
    measurement.record(3, 1.0, 1.003, "applied")
    measurement.record_unsent(1.0)
    found = measurement.latencies.summary()
    assert (found.count, found.max_ms) == (2, 10_000)
    assert measurement.error_share == 0.75
    assert measurement.unknown == [2]


@pytest.mark.parametrize(
    ("data", "parsed"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", (200, b"{}", False)),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}", None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n", None),
        (
            b"HTTP/1.1 503 x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            (503, b"", True),
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            (200, b"{}", False),
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", None),
        # A chunk may end as the last one does.
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{} 0\r\n\r\n", None),
    ],
)
def test_a_response_is_parsed_when_it_is_complete(data: bytes, parsed: object) -> None:
    assert _parse(data) == parsed


def test_the_same_number_is_the_same_update_and_others_differ() -> None:
    users = [User("a", "secret-a"), User("b", "secret-b")]
    updates = Updates("host", users, board="bench-1", run="x", points=None)
    assert updates.request(4) == updates.request(4)
    assert len({updates.request(number) for number in range(100)}) == 100
    assert "secret" not in repr(users)
    head, _, body = updates.request(3).partition(b"\r\n\r\n")
    assert b"?board=bench-1 " in head
    assert body == b'{"userId":"b","actionId":"win:x-3"}'
    assert b"Content-Length: %d" % len(body) in head


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 25), (0.9, 90), (1.0, 100)])
def test_reads_are_mixed_in_the_requested_share(share: float, count: int) -> None:
    reads = Reads("host", [User("a", "t")], board=None, leaderboard_share=share)
    sent = [reads.request(number) for number in range(100)]
    assert sum(b"/leaderboard" in one for one in sent) == count


def measured(*, late: int = 0, unsent: int = 0, outcome: str = "applied") -> Measurement:
    measurement = Measurement(Window(0.0, 10.0))
    for number in range(100):
        measurement.record(number, 1.0, 1.001, outcome)
    measurement.late, measurement.unsent = late, unsent
    return measurement


def costs(**figures: Any) -> Costs:
    return Costs(**({"cpu_us": {}, "generator_cores": 0.1, "generator_us": 20.0,
                     "foreign_share": 0.0} | figures))  # fmt: skip


@pytest.mark.parametrize(
    ("measurement", "spent", "mark"),
    [
        (measured(), costs(), None),
        (measured(), costs(generator_cores=0.9), "the generator is the limit: it used 90%"),
        (measured(late=2), costs(), "the generator is the limit: it sent 2 requests later"),
        (measured(late=1), costs(), None),
        (measured(unsent=1), costs(), "1 requests were due and never sent"),
        (measured(outcome="429 rate-limited"), costs(), "requests were limited"),
        (measured(outcome="404 not-found"), costs(), "no request succeeded"),
        (measured(), costs(foreign_share=0.3), "other programs used 30%"),
        (measured(), costs(foreign_share=None), None),
    ],
)
def test_a_result_is_marked_if_its_figures_may_not_be_those_of_the_system(
    measurement: Measurement, spent: Costs, mark: str | None
) -> None:
    marks = find_marks(measurement, spent, is_busy=False, was_stopped=False)
    assert len(marks) == (mark is not None)
    assert mark is None or mark in marks[0]


def test_cpu_time_is_shared_by_the_operations_between_two_snapshots() -> None:
    first = Snapshot(10.0, 1000, {"api": 1.0, "generator": 2.0, "machine": 50.0, "gone": 1.0})
    last = Snapshot(12.0, 3000, {"api": 1.1, "generator": 3.0, "machine": 52.5, "new": 1.0})
    found = compute_costs(first, last, cores=2)
    assert found.cpu_us == {"api": 50.0}
    assert (found.generator_cores, found.generator_us) == (0.5, 500.0)
    assert found.foreign_share == 0.35
