"""Limits on who may connect: counts, rates, their order, and that everything is given back."""

import pytest

from scoreboard.errors import Overloaded, TooManyConnections
from scoreboard.runtime.settings import Secret, Settings
from streamer.handshake import admission as admission_module
from streamer.handshake.admission import Admission, Bucket, Buckets, Capacity

HERE, THERE = "192.0.2.1", "192.0.2.2"


def make(viewers: int = 10, **more: int) -> Admission:
    settings = Settings(redis_url=Secret("redis://test"), **more)
    return Admission(settings, Capacity(viewers, 10), 0.0)


def test_a_bucket_gives_a_burst_and_then_its_rate() -> None:
    bucket = Bucket(5.0, 20, 100.0)

    assert sum(bucket.take(100.0) for _ in range(30)) == 20
    assert sum(bucket.take(101.0) for _ in range(30)) == 5
    assert sum(bucket.take(1000.0) for _ in range(30)) == 20


def test_names_have_buckets_of_their_own_that_fill_up_again() -> None:
    buckets = Buckets(60, 0.0)

    assert sum(buckets.take("a", 0.0) for _ in range(100)) == 60
    assert buckets.take("b", 0.0)
    assert not buckets.take("a", 0.5)
    assert sum(buckets.take("a", 10.5) for _ in range(100)) == 10


def test_a_bucket_in_use_is_not_forgotten() -> None:
    buckets = Buckets(60, 0.0)
    assert sum(buckets.take("a", 0.0) for _ in range(100)) == 60

    for second in range(1, 300):
        assert sum(buckets.take("a", float(second)) for _ in range(10)) == 1


def test_unused_buckets_are_forgotten_and_their_number_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission_module, "REMEMBERED_MAX", 100)
    buckets = Buckets(60, 0.0)
    for number in range(1000):
        buckets.take(str(number), 0.0)
        assert len(buckets) <= 100

    buckets.take("a", 60.0)
    buckets.take("a", 120.0)

    assert len(buckets) == 1


def test_every_count_taken_is_given_back() -> None:
    admission = make(viewers_per_address=2, viewers_per_subject=1)
    assert admission.take_handshake(HERE)
    assert admission.take_handshake(HERE)
    assert not admission.take_handshake(HERE)
    admission.take_address(HERE)
    admission.take_address(HERE)
    with pytest.raises(TooManyConnections, match="address"):
        admission.take_address(HERE)
    admission.take_place("alice", 0.0)
    with pytest.raises(TooManyConnections, match="user"):
        admission.take_place("alice", 0.0)
    admission.take_place(None, 0.0)

    assert not admission.is_empty
    for _ in range(2):
        admission.give_handshake(HERE)
        admission.give_address(HERE)
    admission.give_place("alice")
    admission.give_place(None)
    assert admission.is_empty


def test_the_rate_of_the_process_is_charged_only_by_who_is_let_in() -> None:
    admission = make(viewers=3, viewers_per_subject=1, new_viewers_burst=3)
    admission.take_place("alice", 0.0)

    for _ in range(10):
        with pytest.raises(TooManyConnections):
            admission.take_place("alice", 0.0)

    admission.take_place("bob", 0.0)
    admission.take_place("carol", 0.0)
    admission.give_place("carol")
    with pytest.raises(Overloaded, match="at once"):
        admission.take_place("dave", 0.0)


def test_a_full_process_charges_nobody() -> None:
    admission = make(viewers=1, new_viewers_burst=2, new_viewers_per_second=1)
    admission.take_place(None, 0.0)
    for _ in range(10):
        with pytest.raises(Overloaded, match="limit of viewers"):
            admission.take_place(None, 0.0)

    admission.give_place(None)
    admission.take_place(None, 0.0)


def test_a_storm_is_told_to_come_back_at_different_times() -> None:
    admission = make(viewers=1000, new_viewers_burst=1)
    admission.take_place(None, 0.0)
    waits = set()
    for _ in range(100):
        with pytest.raises(Overloaded) as caught:
            admission.take_place(None, 0.0)
        waits.add(caught.value.retry_after_s)

    assert len(waits) > 3
    assert min(waits) >= 1


def test_an_address_may_try_a_few_times_a_minute_per_viewer_it_may_have() -> None:
    admission = make(viewers_per_address=2)

    assert sum(admission.may_try(HERE, 0.0) for _ in range(50)) == 12
    assert admission.may_try(THERE, 0.0)
    assert sum(admission.may_try(HERE, 30.0) for _ in range(50)) == 6


def test_expired_tokens_of_one_address_are_told_so_a_few_times_a_minute() -> None:
    admission = make(expired_per_minute=2)

    assert [admission.may_expire(HERE, 1.0) for _ in range(3)] == [True, True, False]
    assert admission.may_expire(THERE, 1.0)
    assert admission.may_expire(HERE, 61.0)
