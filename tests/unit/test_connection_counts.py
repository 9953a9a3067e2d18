"""Limits on open connections, as the api's event streams use them."""

import pytest

from scoreboard.broadcast.admission import ConnectionCounts
from scoreboard.errors import Overloaded, ScoreboardError, TooManyConnections

HERE, THERE = "192.0.2.1", "192.0.2.2"


def make(**limits: int) -> ConnectionCounts:
    return ConnectionCounts(
        "streams", **({"capacity": 10, "per_address": 10, "per_subject": 10} | limits)
    )


@pytest.mark.parametrize(
    ("limit", "address", "subject", "error", "text"),
    [
        ("capacity", THERE, "bob", Overloaded, "This server is at its limit of streams"),
        ("per_address", HERE, "bob", TooManyConnections, "At most 1 streams per address"),
        ("per_subject", THERE, "alice", TooManyConnections, "At most 1 streams per user"),
    ],
)
def test_a_refused_connection_leaves_no_count(
    limit: str, address: str, subject: str, error: type[ScoreboardError], text: str
) -> None:
    counts = make(**{limit: 1})
    counts.admit(HERE, "alice")

    with pytest.raises(error, match=text):
        counts.admit(address, subject)

    counts.release(HERE, "alice")
    assert counts.is_empty
    counts.admit(address, subject)


def test_a_released_connection_can_be_admitted_again() -> None:
    counts = make(capacity=2)
    counts.admit(HERE, None)
    counts.admit(HERE, "alice")
    counts.release(HERE, "alice")

    counts.admit(HERE, "alice")

    assert counts.total == 2
