"""TimingWheel: entries come up within one slot after their deadline."""

from streamer.fanout.timing_wheel import TimingWheel


class Entry:
    def __init__(self, name: str) -> None:
        self.name = name
        self.slot = 0


def names(wheel: TimingWheel[Entry], now_s: float) -> list[str]:
    return [entry.name for entry in wheel.advance(now_s)]


def test_entry_comes_up_once_after_its_deadline() -> None:
    wheel: TimingWheel[Entry] = TimingWheel(100.0)
    wheel.schedule(Entry("a"), 102.5)

    assert names(wheel, 102.9) == []
    assert names(wheel, 103.0) == ["a"]
    assert names(wheel, 200.0) == []


def test_past_deadline_comes_up_in_the_next_slot() -> None:
    wheel: TimingWheel[Entry] = TimingWheel(100.0)
    wheel.schedule(Entry("late"), 50.0)

    assert names(wheel, 101.0) == ["late"]


def test_only_an_earlier_deadline_moves_an_entry() -> None:
    wheel: TimingWheel[Entry] = TimingWheel(100.0)
    entry = Entry("a")
    wheel.schedule(entry, 120.0)
    wheel.schedule(entry, 105.0)
    wheel.schedule(entry, 110.0)

    assert names(wheel, 106.0) == ["a"]
    assert names(wheel, 200.0) == []


def test_alternating_deadlines_do_not_accumulate_references() -> None:
    wheel: TimingWheel[Entry] = TimingWheel(100.0)
    entry = Entry("a")
    for _ in range(1000):
        wheel.schedule(entry, 110.0)
        wheel.schedule(entry, 130.0)

    assert len(wheel) == 1


def test_all_missed_slots_come_up() -> None:
    wheel: TimingWheel[Entry] = TimingWheel(100.0)
    for second in range(10):
        wheel.schedule(Entry(str(second)), 100.0 + second)

    assert names(wheel, 111.0) == [str(second) for second in range(10)]


def test_entry_rescheduled_during_advance_waits_for_its_next_slot() -> None:
    wheel: TimingWheel[Entry] = TimingWheel(100.0)
    entry = Entry("again")
    wheel.schedule(entry, 100.5)
    served = 0
    for due in wheel.advance(102.0):
        served += 1
        wheel.schedule(due, 102.5)

    assert served == 1
    assert names(wheel, 103.0) == ["again"]


def test_slots_can_be_narrow() -> None:
    wheel: TimingWheel[Entry] = TimingWheel(100.0, width_s=0.1)
    wheel.schedule(Entry("a"), 100.25)

    assert names(wheel, 100.29) == []
    assert names(wheel, 100.31) == ["a"]
