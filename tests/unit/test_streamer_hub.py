"""Sweeps offer the newest frame to every viewer that can take data."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoreboard.broadcast.messages import Leaderboard, Status
from scoreboard.model import Span
from streamer.connection.framing import ping_frame, text_frame
from streamer.fanout.hub import Channel, Hub

NEVER_S = 1e9


class Viewer:
    """A viewer that records what it was sent."""

    is_compact = False

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.index = -1
        self.received = channel.frame
        self.heartbeats = 0
        self.pushes = 0
        channel.add(self)

    def push(self) -> None:
        self.pushes += 1
        self.received = self.channel.frame

    def push_heartbeat(self, frame: bytes) -> None:
        self.heartbeats += 1


def board(seq: int) -> Leaderboard:
    return Leaderboard("main", 1, seq, 0, ())


def channel_of(count: int) -> tuple[Channel, list[Viewer]]:
    channel = Channel("main", lambda: None)
    channel.publish(board(0), 0.0, 0.0)
    return channel, [Viewer(channel) for _ in range(count)]


def clock() -> float:
    return 0.0


def test_sweep_pushes_once_to_every_viewer() -> None:
    channel, viewers = channel_of(120)
    channel.publish(board(1), 0.0, 0.0)

    assert channel.run_turn(1000, clock, NEVER_S) == 120
    assert not channel.is_sweeping
    assert [one.pushes for one in viewers] == [1] * 120


def test_turn_ends_at_its_count_or_its_time() -> None:
    channel, _ = channel_of(300)
    channel.publish(board(1), 0.0, 0.0)

    assert channel.run_turn(70, clock, NEVER_S) == 70
    assert channel.run_turn(1000, lambda: 1.0, until_s=0.5) == 50
    assert channel.is_sweeping


def sweep(hub: Hub, now_s: float, used_s: float, limit: int = 1000) -> None:
    hub.note_turn(hub.run_turn(limit, clock, NEVER_S), now_s, used_s)


def test_gap_after_a_board_grows_with_its_sweep_and_ends() -> None:
    hub = Hub(("main",), lambda: None)
    channel = hub.channel("main")
    viewers = [Viewer(channel) for _ in range(100)]
    channel.publish(board(1), 10.0, 9.9)
    sweep(hub, 10.2, 0.04, limit=50)
    assert channel.cost.least_gap_s(10.1) == pytest.approx(0.2)
    sweep(hub, 10.5, 0.04, limit=50)
    assert channel.cost.least_gap_s(10.4) == pytest.approx(0.5)

    channel.publish_status(Status("live"))
    sweep(hub, 60.0, 0.04)
    assert channel.cost.least_gap_s(10.4) == pytest.approx(0.5), "only boards are paced"
    assert channel.cost.least_gap_s(10.6) == 0.0, "the time has passed"

    for viewer in viewers:
        channel.remove(viewer)
    channel.publish(board(2), 61.0, 60.9)
    assert channel.cost.least_gap_s(61.0) == 0.0


def test_a_window_that_rests_does_not_slow_its_board() -> None:
    hub = Hub(("main",), lambda: None)
    top, window = hub.channel("main"), hub.window("main", Span(20, 10))
    for channel in (top, window):
        Viewer(channel)
        channel.publish(board(1), 10.0, 9.9)
    sweep(hub, 11.5, 0.1)
    assert top.cost.least_gap_s(11.0) == pytest.approx(1.5)

    top.publish(board(2), 12.0, 11.9)
    sweep(hub, 12.1, 0.01)

    assert top.cost.least_gap_s(12.05) == pytest.approx(0.1)


def test_the_turns_of_several_windows_add_up_each_once() -> None:
    hub = Hub(("main",), lambda: None)
    channels = [hub.channel("main"), *(hub.window("main", Span(n, 10)) for n in (20, 30))]
    for channel in channels:
        for _ in range(50):
            Viewer(channel)
        channel.publish(board(1), 10.0, 9.9)
    cost = channels[0].cost

    sweep(hub, 10.1, 0.1, limit=100)
    assert cost.least_gap_s(10.1) == pytest.approx(0.2), "both channels of one turn"
    sweep(hub, 10.2, 0.1, limit=100)
    assert cost.least_gap_s(10.2) == pytest.approx(0.4)
    channels[1].publish(board(2), 10.3, 10.3)
    sweep(hub, 10.31, 0.05, limit=100)
    assert cost.least_gap_s(10.31) == pytest.approx(0.2), "0.1 is left of the read before"


def test_newer_frame_during_a_sweep_reaches_the_rest_then_the_first() -> None:
    channel, viewers = channel_of(100)
    channel.publish(board(1), 0.0, 0.0)
    channel.run_turn(50, clock, NEVER_S)
    channel.publish(board(2), 0.0, 0.0)

    channel.run_turn(50, clock, NEVER_S)

    assert [one.received is channel.frame for one in viewers] == [False] * 50 + [True] * 50
    channel.run_turn(50, clock, NEVER_S)
    assert all(one.received is channel.frame for one in viewers)
    assert not channel.is_sweeping


@given(st.integers(0, 2**32))
def test_every_viewer_gets_the_frame_if_others_join_or_leave_during_a_sweep(seed: int) -> None:
    chance = random.Random(seed)
    channel, viewers = channel_of(chance.randint(1, 40))
    for seq in range(1, 6):
        channel.publish(board(seq), 0.0, 0.0)
        while channel.is_sweeping:
            channel.run_turn(chance.randint(1, 7), clock, NEVER_S)
            for _ in range(chance.randint(0, 3)):
                if viewers and chance.random() < 0.5:
                    channel.remove(viewers.pop(chance.randrange(len(viewers))))
                elif chance.random() < 0.4:
                    viewers.append(Viewer(channel))
        assert all(one.received is channel.frame for one in viewers)
        assert sorted(one.index for one in viewers) == list(range(len(viewers)))


def test_board_replaces_a_heartbeat_sweep() -> None:
    channel, viewers = channel_of(60)
    channel.publish_heartbeat(15.0, at_ms=7)
    channel.run_turn(50, clock, NEVER_S)
    assert sum(one.heartbeats for one in viewers) == 50

    channel.publish(board(1), 0.0, 0.0)
    channel.run_turn(100, clock, NEVER_S)

    assert sum(one.heartbeats for one in viewers) == 50
    assert all(one.received is channel.frame for one in viewers)


def test_no_heartbeat_before_the_first_board() -> None:
    channel = Channel("main", lambda: None)
    channel.publish_heartbeat(15.0, at_ms=7)

    assert not channel.is_sweeping


def test_frame_with_ping_is_the_board_and_a_ping_with_its_number() -> None:
    channel, _ = channel_of(0)
    channel.publish(board(5), 0.0, 0.0)

    assert channel.frame_with_ping == channel.frame + ping_frame(channel.ack)
    first = channel.ack
    channel.publish(board(6), 0.0, 0.0)
    assert channel.ack != first


def test_channels_share_a_turn() -> None:
    woken: list[int] = []
    hub = Hub(("main", "weekly"), lambda: woken.append(1))
    viewers = [Viewer(channel) for channel in hub.channels.values() for _ in range(80)]
    for channel in hub.channels.values():
        channel.publish(board(1), 0.0, 0.0)

    hub.run_turn(100, clock, NEVER_S)

    assert [sum(one.pushes for one in viewers[:80]), sum(one.pushes for one in viewers[80:])] == [
        50,
        50,
    ]
    assert len(woken) == 2
    assert hub.viewer_count == 160


def test_a_turn_visits_only_sweeping_channels_and_ends_at_its_limits() -> None:
    hub = Hub((), lambda: None)
    names = [f"board-{number}" for number in range(300)]
    viewers = {name: Viewer(hub.channel(name)) for name in names}
    for name in names[:200]:
        hub.channels[name].publish(board(1), 0.0, 0.0)

    first = hub.run_turn(120, clock, NEVER_S)
    assert [channel.board for channel in first] == names[:120]
    late = hub.run_turn(120, lambda: 1.0, until_s=0.5)
    assert [channel.board for channel in late] == names[120:121]
    assert hub.is_sweeping
    rest = hub.run_turn(120, clock, NEVER_S)
    assert [channel.board for channel in rest] == names[121:200]
    assert not hub.is_sweeping
    assert hub.run_turn(120, clock, NEVER_S) == ()
    assert [one.pushes for one in viewers.values()] == [1] * 200 + [0] * 100


def test_channels_with_many_viewers_do_not_hold_up_others() -> None:
    hub = Hub(("main", "weekly"), lambda: None)
    for _ in range(1000):
        Viewer(hub.channels["main"])
    last = Viewer(hub.channels["weekly"])
    for channel in hub.channels.values():
        channel.publish(board(1), 0.0, 0.0)
    hub.run_turn(50, clock, NEVER_S)
    hub.channels["main"].publish(board(2), 0.0, 0.0)
    hub.run_turn(50, clock, NEVER_S)

    assert last.pushes == 1


def test_a_dropped_channel_leaves_nothing() -> None:
    hub = Hub(("main",), lambda: None)
    channel = hub.channel("golf")
    viewer = Viewer(channel)
    channel.publish(board(1), 0.0, 0.0)
    assert hub.drop("golf") == (channel,)
    channel.remove(viewer)

    assert hub.run_turn(100, clock, NEVER_S) == (channel,), "its spans end with its sweep"
    assert not hub.is_sweeping
    assert set(hub.channels) == {"main"}
    assert hub.drop("golf") == ()
    assert hub.channel("golf") is not channel


def test_status_is_kept_for_later_viewers() -> None:
    channel, _ = channel_of(1)
    channel.publish_status(Status("stale", "unreachable"))

    assert channel.is_stale
    assert json.loads(channel.status[2:]) == {
        "type": "status",
        "state": "stale",
        "reason": "unreachable",
    }
    channel.publish_status(Status("live"))
    assert not channel.is_stale


def test_frame_header_is_minimal_for_every_size() -> None:
    assert text_frame(b"x" * 125)[:2] == bytes([0x81, 125])
    assert text_frame(b"x" * 126)[:4] == bytes([0x81, 126, 0, 126])
    assert text_frame(b"x" * 65_535)[:4] == bytes([0x81, 126, 255, 255])
    assert text_frame(b"x" * 65_536)[:10] == bytes([0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0])
