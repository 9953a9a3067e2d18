"""The leases of a process: its share, one at a time, and none without Redis."""

from flusher.leases import YIELD_EVERY_S, Leases
from scoreboard.model import Partition

PARTITIONS = [Partition("main", number) for number in range(5)]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def yielded(leases: Leases, clock: Clock, flushers: int, tries: int = 20) -> int:
    """Yield leases for as long as they must be; return how many."""
    count = 0
    for _ in range(tries):
        clock.now_s += YIELD_EVERY_S
        if leases.must_yield(PARTITIONS[count], flushers):
            leases.leave(PARTITIONS[count])
            count += 1
    return count


def leading(clock: Clock) -> Leases:
    leases = Leases(PARTITIONS, clock)
    for partition in PARTITIONS:
        leases.take(partition)
    return leases


def test_a_single_flusher_keeps_all_partitions() -> None:
    clock = Clock()
    assert yielded(leading(clock), clock, 1) == 0
    assert yielded(leading(clock), clock, 0) == 0


def test_a_process_keeps_its_share_rounded_up() -> None:
    clock = Clock()
    assert yielded(leading(clock), clock, 2) == 2
    assert yielded(leading(clock), clock, 3) == 3
    assert yielded(leading(clock), clock, 9) == 4


def test_one_lease_is_yielded_at_a_time() -> None:
    clock = Clock()
    leases = leading(clock)
    assert leases.must_yield(PARTITIONS[0], 5)
    assert not leases.must_yield(PARTITIONS[1], 5)
    clock.now_s = YIELD_EVERY_S
    assert leases.must_yield(PARTITIONS[1], 5)


def test_a_lease_that_takes_long_to_release_is_not_followed_by_one_too_many() -> None:
    """A partition is led until its batch is committed, which may take longer than YIELD_EVERY_S."""
    clock = Clock()
    leases = leading(clock)
    decisions = []
    for partition in PARTITIONS:
        decisions.append(leases.must_yield(partition, 2))
        clock.now_s += YIELD_EVERY_S
    assert decisions.count(True) == 2


def test_without_redis_every_lease_is_yielded_that_another_wants() -> None:
    leases = leading(Clock())
    leases.is_redis_up = False
    assert not leases.must_yield(PARTITIONS[0], 1)
    assert leases.must_yield(PARTITIONS[0], 2)
    assert leases.must_yield(PARTITIONS[1], 2)


def test_the_lease_of_an_unreachable_partition_is_yielded_if_another_wants_it() -> None:
    clock = Clock()
    leases = Leases(PARTITIONS[:1], clock)
    leases.take(PARTITIONS[0])
    assert not leases.must_yield(PARTITIONS[0], 2)
    assert not leases.must_yield(PARTITIONS[0], 1, is_unreachable=True)
    assert leases.must_yield(PARTITIONS[0], 2, is_unreachable=True)
