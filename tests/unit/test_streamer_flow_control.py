"""FlowControl: holding boards, ack-pacing, stalled viewers, keepalive pings."""

from scoreboard.runtime.settings import Secret, Settings
from streamer.connection.flow_control import FAST_FOR_S, KEEPALIVE, FlowControl

SETTINGS = Settings(redis_url=Secret("redis://test"))


def flow_control_at(now_s: float = 100.0) -> FlowControl:
    return FlowControl(SETTINGS, now_s)


def ping(flow: FlowControl, at_s: float, answered_s: float) -> None:
    flow.ping_sent(at_s)
    assert flow.pong_received(KEEPALIVE, SETTINGS, answered_s)


def test_full_buffer_holds_boards_and_starts_ack_pacing() -> None:
    flow = flow_control_at()
    flow.pause(101.0)
    assert flow.is_held

    flow.resume()

    assert not flow.is_held
    assert flow.is_ack_paced


def test_long_round_trip_starts_ack_pacing() -> None:
    flow = flow_control_at()
    ping(flow, 130.0, 130.9)
    assert not flow.is_ack_paced

    ping(flow, 160.0, 161.1)

    assert flow.is_ack_paced


def test_only_the_awaited_pong_releases_the_next_board() -> None:
    flow = flow_control_at()
    flow.await_pong(b"7", 101.0)

    assert not flow.pong_received(b"6", SETTINGS, 101.1)
    assert not flow.pong_received(KEEPALIVE, SETTINGS, 101.1)
    assert flow.is_held
    assert flow.pong_received(b"7", SETTINGS, 101.2)
    assert not flow.is_held
    assert not flow.pong_received(b"7", SETTINGS, 101.3)


def test_pong_does_not_release_a_full_buffer() -> None:
    flow = flow_control_at()
    flow.await_pong(b"7", 101.0)
    flow.pause(101.0)
    flow.pong_received(b"7", SETTINGS, 101.2)
    assert flow.is_held
    flow.resume()
    assert not flow.is_held


def test_fast_round_trips_end_ack_pacing() -> None:
    flow = flow_control_at()
    ping(flow, 110.0, 112.0)
    ping(flow, 120.0, 120.1)
    assert flow.is_ack_paced
    ping(flow, 130.0, 130.7)  # neither slow nor fast: the period restarts
    ping(flow, 130.7 + FAST_FOR_S - 2, 130.7 + FAST_FOR_S - 1)
    assert flow.is_ack_paced

    ping(flow, 200.0, 200.1)
    ping(flow, 200.1 + FAST_FOR_S, 200.2 + FAST_FOR_S)

    assert not flow.is_ack_paced


def test_viewer_that_takes_no_data_is_stalled() -> None:
    paused, unacked = flow_control_at(), flow_control_at()
    paused.pause(100.0)
    unacked.await_pong(b"1", 100.0)

    for flow in (paused, unacked):
        assert not flow.is_stalled(SETTINGS, 100.0 + SETTINGS.slow_viewer_s - 0.1)
        assert flow.is_stalled(SETTINGS, 100.0 + SETTINGS.slow_viewer_s)
        assert flow.next_deadline_s(SETTINGS) <= 100.0 + SETTINGS.slow_viewer_s


def test_pings_are_jittered_and_not_sent_behind_a_full_buffer() -> None:
    due = [flow_control_at().next_deadline_s(SETTINGS) - 100.0 for _ in range(200)]
    assert min(due) >= SETTINGS.ping_s * 0.8
    assert max(due) <= SETTINGS.ping_s * 1.2
    assert max(due) - min(due) > 2.0

    flow = flow_control_at()
    flow.pause(120.0)
    assert not flow.is_ping_due(200.0)
    flow.resume()
    assert flow.is_ping_due(200.0)
    flow.ping_sent(200.0)
    assert not flow.is_ping_due(300.0)


def test_unanswered_ping_becomes_overdue() -> None:
    flow = flow_control_at()
    flow.ping_sent(200.0)

    assert not flow.is_pong_overdue(SETTINGS, 200.0 + SETTINGS.pong_timeout_s - 0.1)
    assert flow.is_pong_overdue(SETTINGS, 200.0 + SETTINGS.pong_timeout_s)
