"""Ids of requests: whose wins, and which forms are taken from outside."""

import pytest

from scoreboard.request_ids import RequestIds


def test_the_first_safe_id_is_taken() -> None:
    ids = RequestIds()

    assert ids.choose("gateway-1", "client-01") == "gateway-1"
    assert ids.choose(None, "client-01") == "client-01"
    assert ids.choose("short", "client-01") == "client-01"


@pytest.mark.parametrize(
    "text",
    ["", "short", "x" * 129, "has space", "line\nbreak", "ends-here\n", "ünicode-1", "a;b;c;d;e"],
)
def test_an_unsafe_id_is_replaced(text: str) -> None:
    chosen = RequestIds().choose(text)

    assert chosen != text
    assert RequestIds().choose(chosen) == chosen, "a new id has the safe form itself"


def test_new_ids_differ() -> None:
    ids, others = RequestIds(), RequestIds()

    assert len({ids.choose(), ids.choose(), others.choose(), others.choose()}) == 4
