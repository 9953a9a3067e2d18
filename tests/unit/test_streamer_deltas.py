"""A client that applies deltas has the server's board, whichever frames it skips."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from scoreboard.broadcast.messages import Leaderboard
from scoreboard.model import TOP, Row, Span
from streamer.fanout.hub import DELTAS_MAX, Channel

NEVER_S = 1e9


class Client:
    """A viewer with its client: it may be held, and applies what it gets as the guide says."""

    def __init__(self, channel: Channel, *, is_compact: bool = True) -> None:
        self.channel = channel
        self.is_compact = is_compact
        self.is_held = False
        self.index = -1
        self.sent = b""
        self.kinds: list[str] = []
        self.sizes: list[int] = []
        self.epoch = self.seq = -1
        self.rows: list[dict[str, Any]] = []
        channel.add(self)
        self.push()

    def push(self) -> None:
        if self.is_held or self.sent is self.channel.frame:
            return
        data = self.channel.next_for(self.sent) if self.is_compact else self.channel.frame
        self.sent = self.channel.frame
        self.take(json.loads(data[data.index(b'{"type"') :]))
        self.sizes.append(len(data))

    def push_heartbeat(self, frame: bytes) -> None:
        raise AssertionError

    def take(self, message: dict[str, Any]) -> None:
        self.kinds.append(message["type"])
        if message["type"] == "leaderboard":
            self.rows = message["leaderboard"]
        else:
            assert (message["epoch"], message["base"]) == (self.epoch, self.seq), "not its board"
            first = self.channel.span.offset + 1
            by_rank = {row["rank"]: row for row in [*self.rows, *message["changes"]]}
            self.rows = [by_rank[rank] for rank in range(first, first + message["count"])]
        self.epoch, self.seq = message["epoch"], message["seq"]


def rows_of(scores: dict[str, int], span: Span) -> tuple[Row, ...]:
    ranking = sorted(scores.items(), key=lambda one: (-one[1], one[0]))
    return tuple(Row(rank, user, score) for rank, (user, score) in enumerate(ranking, 1))[
        span.offset : span.end
    ]


def sweep(channel: Channel) -> None:
    while channel.is_sweeping:
        channel.run_turn(10, lambda: 0.0, NEVER_S)


@given(st.integers(0, 2**32), st.sampled_from([TOP, Span(0, 25), Span(15, 10)]))
def test_a_client_has_the_board_of_the_server_after_any_skips(seed: int, span: Span) -> None:
    chance = random.Random(seed)
    channel = Channel("main", lambda: None, span)
    scores: dict[str, int] = {}
    epoch = seq = 1
    season: Any = UNSET
    clients: list[Client] = []
    for _ in range(chance.randint(1, 60)):
        seq += chance.randint(0, 3)
        match chance.randrange(24):
            case 0:
                epoch, seq = epoch + 1, chance.randint(0, 3)
            case 1:
                season = chance.choice([UNSET, "2026-W48", "2026-W49"])
            case 2:
                scores.clear()
            case 3:
                scores.pop(chance.choice([*scores, "none"]), None)
            case _:
                scores[f"user-{chance.randint(1, 40)}"] = chance.randint(1, 500)
        channel.publish(Leaderboard("main", epoch, seq, 0, rows_of(scores, span), season), 0, 0)
        for client in clients:
            client.is_held = chance.random() < 0.3
        sweep(channel)
        if chance.random() < 0.2:
            clients.append(Client(channel, is_compact=chance.random() < 0.8))
        elif clients and chance.random() < 0.05:
            channel.remove(clients.pop(chance.randrange(len(clients))))
    expected = json.loads(channel.frame[channel.frame.index(b'{"type"') :])["leaderboard"]
    for client in clients:
        client.is_held = False
        client.push()
        assert client.rows == expected
        assert client.is_compact or "delta" not in client.kinds


def test_every_twentieth_frame_is_whole() -> None:
    channel = Channel("main", lambda: None)
    scores = {f"user-{number}": 100 - number for number in range(10)}
    channel.publish(Leaderboard("main", 1, 0, 0, rows_of(scores, TOP)), 0, 0)
    client = Client(channel)
    for seq in range(1, 61):
        scores["user-9"] += 1
        channel.publish(Leaderboard("main", 1, seq, 0, rows_of(scores, TOP)), 0, 0)
        sweep(channel)

    assert client.kinds == ["leaderboard", *[*["delta"] * DELTAS_MAX, "leaderboard"] * 3]


def test_a_delta_is_sent_only_if_it_is_smaller() -> None:
    channel = Channel("main", lambda: None)
    for seq in range(4):
        rows = tuple(Row(rank, f"user-{seq}-{rank}", 100 - rank) for rank in range(1, 11))
        channel.publish(Leaderboard("main", 1, seq, 0, rows), 0, 0)
        if not seq:
            client = Client(channel)
        sweep(channel)

    assert client.kinds == ["leaderboard"] * 4


def test_no_delta_is_made_for_viewers_that_take_none() -> None:
    channel = Channel("main", lambda: None)
    Client(channel, is_compact=False)
    compact = Client(channel)
    channel.remove(compact)
    scores = {"ada": 1, "bob": 2}
    for seq in range(3):
        scores["ada"] += 1
        channel.publish(Leaderboard("main", 1, seq, 0, rows_of(scores, TOP)), 0, 0)
        assert channel.delta == b""


def test_a_joining_viewer_and_a_heartbeat_have_the_newest_number_of_viewers() -> None:
    channel = Channel("main", lambda: None)
    channel.publish(Leaderboard("main", 1, 1, 0, ()), 0, 0)
    assert b"viewers" not in channel.frame + channel.heartbeat(0)
    before = channel.frame

    channel.set_viewers(7)
    assert channel.frame is before, "nothing is sent again"
    assert b'"viewers":7' in channel.first_frame
    assert b'"viewers":7' in channel.heartbeat(0)
    channel.publish(Leaderboard("main", 1, 2, 0, ()), 0, 0)
    assert channel.frame is channel.first_frame
    assert b'"viewers":7' in channel.frame

    channel.set_viewers(UNSET)
    assert b"viewers" not in channel.first_frame


def test_another_number_of_viewers_sends_the_board_whole() -> None:
    channel = Channel("main", lambda: None)
    scores = {f"user{number}": 100 - number for number in range(10)}
    client = Client(channel)
    for seq in range(1, 7):
        if seq in {3, 6}:
            channel.set_viewers(seq if seq == 3 else UNSET)
        scores["user0"] += 1
        channel.publish(Leaderboard("main", 1, seq, 0, rows_of(scores, TOP)), 0, 0)
        client.push()
    assert client.kinds == ["leaderboard", "delta", "leaderboard", "delta", "delta", "leaderboard"]


@pytest.mark.parametrize(("rows", "most"), [(10, 0.4), (100, 0.1)])
def test_a_change_of_one_row_is_much_smaller_as_a_delta(rows: int, most: float) -> None:
    channel = Channel("main", lambda: None, Span(0, rows))
    scores = {f"018f6d0e-5f2c-7c3a-9f57-{n:012x}": 10_000 - 10 * n for n in range(rows)}
    channel.publish(Leaderboard("main", 1, 1, 0, rows_of(scores, Span(0, rows))), 0, 0)
    client = Client(channel)
    scores[next(iter(scores))] += 5
    channel.publish(Leaderboard("main", 1, 2, 0, rows_of(scores, Span(0, rows))), 0, 0)
    sweep(channel)

    full, delta = client.sizes
    assert delta < full * most
