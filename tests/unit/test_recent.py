"""The bounded dict of what a process keeps of boards."""

from scoreboard.runtime.recent import Recent


def test_the_least_recently_used_item_is_dropped() -> None:
    kept: Recent[int] = Recent(2)
    assert kept.keep("a", 1) == 1
    kept.keep("b", 2)
    assert kept.use("a") == 1
    kept.keep("c", 3)
    assert kept == {"a": 1, "c": 3}
    kept.keep("a", 4)
    kept.keep("d", 5)
    assert kept == {"a": 4, "d": 5}
    assert kept.use("b") is None


def test_an_item_that_is_kept_again_takes_no_room() -> None:
    kept: Recent[int] = Recent(2)
    for value in range(5):
        kept.keep("a", value)
    kept.keep("b", 0)
    assert kept == {"a": 4, "b": 0}
