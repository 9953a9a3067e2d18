"""viewers.lua: the sum over all processes that are alive, and nothing left of the others."""

import pytest
import redis

from tests.support.clients.scripts import Scripts

COUNTS = "sb:{main:0}:viewers"


def call(scripts: Scripts, process: str, count: int, lifetime: int = 16) -> int:
    return scripts.run("viewers", [COUNTS], process, count, lifetime)


def age(scripts: Scripts, process: str, seconds: int) -> None:
    """Move the call of a process into the past."""
    second, _, count = scripts.client.hget(COUNTS, process).decode().partition(":")
    scripts.client.hset(COUNTS, process, f"{int(second) - seconds}:{count}")


def fields(scripts: Scripts) -> set[str]:
    return {one.decode() for one in scripts.client.hkeys(COUNTS)}


def test_the_viewers_of_all_processes_are_added(scripts: Scripts) -> None:
    assert [call(scripts, "a", 3), call(scripts, "b", 4), call(scripts, "a", 5)] == [3, 7, 9]
    assert scripts.client.hlen(COUNTS) == 2
    assert 0 < scripts.client.ttl(COUNTS) <= 16


def test_a_process_that_does_not_call_falls_out(scripts: Scripts) -> None:
    for process, seconds in (("dead", 16), ("late", 14), ("ahead", -20), ("soon", -2)):
        call(scripts, process, 10)
        age(scripts, process, seconds)

    assert call(scripts, "a", 1) == 21
    assert fields(scripts) == {"a", "late", "soon"}


def test_a_process_without_viewers_leaves_nothing(scripts: Scripts) -> None:
    call(scripts, "a", 3)
    call(scripts, "b", 1)

    assert call(scripts, "a", 0) == 1
    assert fields(scripts) == {"b"}
    assert call(scripts, "b", 0) == 0
    assert not scripts.client.exists(COUNTS)


@pytest.mark.parametrize("value", ["", "many", "1:", ":5", "1e3:5", "5", "1:2:3"])
def test_an_unreadable_field_is_dropped(scripts: Scripts, value: str) -> None:
    scripts.client.hset(COUNTS, "odd", value)

    assert call(scripts, "a", 2) == 2
    assert fields(scripts) == {"a"}


@pytest.mark.parametrize(
    "args", [("", 1, 16), ("a", -1, 16), ("a", "x", 16), ("a", 1, 0), ("a", 1, "")]
)
def test_invalid_arguments_are_refused(scripts: Scripts, args: tuple[object, ...]) -> None:
    with pytest.raises(redis.exceptions.ResponseError, match="BADARG"):
        scripts.run("viewers", [COUNTS], *args)
    assert not scripts.client.exists(COUNTS)
