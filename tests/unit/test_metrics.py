"""The kinds of metrics that this project adds to prometheus_client."""

import math
import random

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from scoreboard.runtime import telemetry
from scoreboard.runtime.collectors import LoopHistogram, Readings

BUCKETS = (0.01, 0.1, 1.0, 60.0)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> CollectorRegistry:
    """Return a registry of this test, in place of the process's."""
    made = CollectorRegistry()
    monkeypatch.setattr("scoreboard.runtime.telemetry.REGISTRY", made)
    monkeypatch.setattr("scoreboard.runtime.collectors.REGISTRY", made)
    monkeypatch.setattr("scoreboard.runtime.telemetry.METRICS", {})
    return made


def samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    """Return the value of each sample by its suffix and bucket."""
    text = generate_latest(registry).decode()
    return {
        (sample.name.rpartition("_")[2], sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("seed", range(20))
def test_a_batch_of_delays_is_counted_as_if_each_was_observed(
    registry: CollectorRegistry, seed: int
) -> None:
    chance = random.Random(seed)
    batched, plain_registry = (
        LoopHistogram("delay_seconds", "Delays", BUCKETS).series(),
        CollectorRegistry(),
    )
    plain = Histogram(
        "scoreboard_delay_seconds", "Delays", registry=plain_registry, buckets=BUCKETS
    )

    for _ in range(5):
        now_ms = 1_767_225_600_000 + chance.randrange(10**6)
        # Also delays equal to a bound, and times in the future.
        delays_ms = [chance.choice([-50, 0, 1, 10, 11, 100, 1000, 60_000, 10**7]) for _ in range(8)]
        delays_ms = sorted(delays_ms[: chance.randrange(9)], reverse=True)
        batched.observe_delays([now_ms - delay for delay in delays_ms], now_ms)
        for delay in delays_ms:
            plain.observe(max(0, delay) / 1000)

    expected = samples(plain_registry)
    assert samples(registry) == pytest.approx(expected)
    assert expected["count", ""] == expected["bucket", "+Inf"]


def test_a_histogram_of_the_event_loop_exports_as_the_plain_one(
    registry: CollectorRegistry,
) -> None:
    ours = LoopHistogram("wait_seconds", "Waits", BUCKETS, "route", "status")
    plain_registry = CollectorRegistry()
    names = ("route", "status")
    plain = Histogram(
        "scoreboard_wait_seconds", "Waits", names, buckets=BUCKETS, registry=plain_registry
    )
    for number, value in enumerate([0.0, 0.005, 0.01, 0.010001, 0.5, 1.0, 60, 61]):
        labels = (f"/route{number % 2}", "200")
        ours.series(*labels).observe(value)
        plain.labels(*labels).observe(value)

    assert generate_latest(registry) == generate_latest(plain_registry)
    assert dict(ours.counts()) == {("/route0", "200"): 4, ("/route1", "200"): 4}


def test_children_of_known_values_begin_with_zero_and_are_made_once(
    registry: CollectorRegistry,
) -> None:
    family = telemetry.counter("faults_total", "Faults", "kind")
    faults = telemetry.Children(family, "gap", "rewind")

    assert registry.get_sample_value("scoreboard_faults_total", {"kind": "gap"}) == 0
    faults["other"].inc()
    assert faults["other"] is faults["other"]
    assert isinstance(faults["gap"], Counter)
    assert registry.get_sample_value("scoreboard_faults_total", {"kind": "other"}) == 1


def test_a_state_is_unknown_until_it_is_measured(registry: CollectorRegistry) -> None:
    state = telemetry.state_gauge("server_up", "1 if it answers")

    assert math.isnan(registry.get_sample_value("scoreboard_server_up") or 0)
    state.set(1)
    assert registry.get_sample_value("scoreboard_server_up") == 1


def test_readings_are_read_at_each_scrape(registry: CollectorRegistry) -> None:
    values = {("api",): 1.0}
    Readings("counter", "errors_total", "Errors", ("pool",), values.items)

    assert registry.get_sample_value("scoreboard_errors_total", {"pool": "api"}) == 1
    values["api",] = 2.0
    assert registry.get_sample_value("scoreboard_errors_total", {"pool": "api"}) == 2


def test_no_created_series_are_exported(registry: CollectorRegistry) -> None:
    telemetry.counter("things_total", "Things").inc()
    telemetry.histogram("time_seconds", "Time", BUCKETS).observe(1)

    assert b"_created" not in generate_latest(registry)
