"""Connection limits: counts, rates, their order, and the release of every count."""

import pytest

from scoreboard.broadcast.admission import TokenBucket
from scoreboard.errors import Overloaded, TooManyConnections
from scoreboard.runtime.settings import Secret, Settings
from streamer.handshake import admission as admission_module
from streamer.handshake.admission import Admission, Capacity, TokenBuckets

HERE, THERE = "192.0.2.1", "192.0.2.2"


def make(viewers: int = 10, **more: int) -> Admission:
    settings = Settings(redis_url=Secret("redis://test"), **more)
    return Admission(settings, Capacity(viewers, 10), 0.0)


def test_bucket_allows_its_burst_then_its_rate() -> None:
    bucket = TokenBucket(5.0, 20, 100.0)

    assert sum(bucket.take(100.0) for _ in range(30)) == 20
    assert sum(bucket.take(101.0) for _ in range(30)) == 5
    assert sum(bucket.take(1000.0) for _ in range(30)) == 20


def test_each_name_has_its_own_bucket() -> None:
    buckets = TokenBuckets(60, 0.0)

    assert sum(buckets.take("a", 0.0) for _ in range(100)) == 60
    assert buckets.take("b", 0.0)
    assert not buckets.take("a", 0.5)
    assert sum(buckets.take("a", 10.5) for _ in range(100)) == 10


def test_bucket_in_use_is_not_forgotten() -> None:
    buckets = TokenBuckets(60, 0.0)
    assert sum(buckets.take("a", 0.0) for _ in range(100)) == 60

    for second in range(1, 300):
        assert sum(buckets.take("a", float(second)) for _ in range(10)) == 1


def test_unused_buckets_are_forgotten_and_their_number_is_limited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission_module, "REMEMBERED_MAX", 100)
    buckets = TokenBuckets(60, 0.0)
    for number in range(1000):
        buckets.take(str(number), 0.0)
        assert len(buckets) <= 100

    buckets.take("a", 60.0)
    buckets.take("a", 120.0)

    assert len(buckets) == 1


def test_every_count_is_released() -> None:
    admission = make(viewers_per_address=2, viewers_per_subject=1)
    assert admission.add_handshake(HERE)
    assert admission.add_handshake(HERE)
    assert not admission.add_handshake(HERE)
    admission.add_address(HERE)
    admission.add_address(HERE)
    with pytest.raises(TooManyConnections, match="address"):
        admission.add_address(HERE)
    admission.add_viewer("alice", 0.0)
    with pytest.raises(TooManyConnections, match="user"):
        admission.add_viewer("alice", 0.0)
    admission.add_viewer(None, 0.0)

    assert not admission.is_empty
    for _ in range(2):
        admission.remove_handshake(HERE)
        admission.remove_address(HERE)
    admission.remove_viewer("alice")
    admission.remove_viewer(None)
    assert admission.is_empty


def test_only_accepted_handshakes_use_the_process_rate() -> None:
    admission = make(viewers=3, viewers_per_subject=1, new_viewers_burst=3)
    admission.add_viewer("alice", 0.0)

    for _ in range(10):
        with pytest.raises(TooManyConnections):
            admission.add_viewer("alice", 0.0)

    admission.add_viewer("bob", 0.0)
    admission.add_viewer("carol", 0.0)
    admission.remove_viewer("carol")
    with pytest.raises(Overloaded, match="at once"):
        admission.add_viewer("dave", 0.0)


def test_rejections_of_a_full_process_do_not_use_the_rate() -> None:
    admission = make(viewers=1, new_viewers_burst=2, new_viewers_per_second=1)
    admission.add_viewer(None, 0.0)
    for _ in range(10):
        with pytest.raises(Overloaded, match="limit of viewers"):
            admission.add_viewer(None, 0.0)

    admission.remove_viewer(None)
    admission.add_viewer(None, 0.0)


def test_retry_after_is_jittered() -> None:
    admission = make(viewers=1000, new_viewers_burst=1)
    admission.add_viewer(None, 0.0)
    waits = set()
    for _ in range(100):
        with pytest.raises(Overloaded) as caught:
            admission.add_viewer(None, 0.0)
        waits.add(caught.value.retry_after_s)

    assert len(waits) > 3
    assert min(waits) >= 1


def test_attempts_per_address_are_limited() -> None:
    admission = make(viewers_per_address=2)

    assert sum(admission.allow_attempt(HERE, 0.0) for _ in range(50)) == 12
    assert admission.allow_attempt(THERE, 0.0)
    assert sum(admission.allow_attempt(HERE, 30.0) for _ in range(50)) == 6


def test_expired_token_handshakes_per_address_are_limited() -> None:
    admission = make(expired_per_minute=2)

    assert [admission.allow_expired(HERE, 1.0) for _ in range(3)] == [True, True, False]
    assert admission.allow_expired(THERE, 1.0)
    assert admission.allow_expired(HERE, 61.0)
