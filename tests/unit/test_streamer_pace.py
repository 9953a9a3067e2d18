"""Who can take a board now, whose boards wait for a pong, and who is given up."""

from scoreboard.runtime.settings import Secret, Settings
from streamer.connection.pace import CALM_S, KEEPALIVE, FlowControl

SETTINGS = Settings(redis_url=Secret("redis://test"))


def pace_at(now_s: float = 100.0) -> FlowControl:
    return FlowControl(SETTINGS, now_s)


def ping(pace: FlowControl, at_s: float, answered_s: float) -> None:
    pace.pinged(at_s)
    assert pace.take_pong(KEEPALIVE, SETTINGS, answered_s)


def test_a_full_buffer_holds_boards_back_and_makes_the_next_ones_wait_for_pongs() -> None:
    pace = pace_at()
    pace.pause(101.0)
    assert pace.is_held

    pace.resume()

    assert not pace.is_held
    assert pace.is_watched


def test_a_long_round_trip_makes_boards_wait_and_a_short_one_does_not() -> None:
    pace = pace_at()
    ping(pace, 130.0, 130.9)
    assert not pace.is_watched

    ping(pace, 160.0, 161.1)

    assert pace.is_watched


def test_an_awaited_pong_lets_the_next_board_go_and_any_other_does_not() -> None:
    pace = pace_at()
    pace.await_pong(b"7", 101.0)

    assert not pace.take_pong(b"6", SETTINGS, 101.1)
    assert not pace.take_pong(KEEPALIVE, SETTINGS, 101.1)
    assert pace.is_held
    assert pace.take_pong(b"7", SETTINGS, 101.2)
    assert not pace.is_held
    assert not pace.take_pong(b"7", SETTINGS, 101.3)


def test_a_pong_does_not_empty_the_buffer() -> None:
    pace = pace_at()
    pace.await_pong(b"7", 101.0)
    pace.pause(101.0)
    pace.take_pong(b"7", SETTINGS, 101.2)
    assert pace.is_held
    pace.resume()
    assert not pace.is_held


def test_calm_round_trips_for_long_enough_end_the_watch() -> None:
    pace = pace_at()
    ping(pace, 110.0, 112.0)
    ping(pace, 120.0, 120.1)
    assert pace.is_watched
    ping(pace, 130.0, 130.7)  # neither slow nor calm: the time begins anew
    ping(pace, 130.7 + CALM_S - 2, 130.7 + CALM_S - 1)
    assert pace.is_watched

    ping(pace, 200.0, 200.1)
    ping(pace, 200.1 + CALM_S, 200.2 + CALM_S)

    assert not pace.is_watched


def test_too_long_without_taking_anything_is_stuck() -> None:
    paused, unacked = pace_at(), pace_at()
    paused.pause(100.0)
    unacked.await_pong(b"1", 100.0)

    for pace in (paused, unacked):
        assert not pace.is_stuck(SETTINGS, 100.0 + SETTINGS.slow_viewer_s - 0.1)
        assert pace.is_stuck(SETTINGS, 100.0 + SETTINGS.slow_viewer_s)
        assert pace.due_s(SETTINGS) <= 100.0 + SETTINGS.slow_viewer_s


def test_pings_come_around_their_interval_and_not_behind_a_full_buffer() -> None:
    due = [pace_at().due_s(SETTINGS) - 100.0 for _ in range(200)]
    assert min(due) >= SETTINGS.ping_s * 0.8
    assert max(due) <= SETTINGS.ping_s * 1.2
    assert max(due) - min(due) > 2.0

    pace = pace_at()
    pace.pause(120.0)
    assert not pace.wants_ping(200.0)
    pace.resume()
    assert pace.wants_ping(200.0)
    pace.pinged(200.0)
    assert not pace.wants_ping(300.0)


def test_an_unanswered_ping_is_silence() -> None:
    pace = pace_at()
    pace.pinged(200.0)

    assert not pace.is_silent(SETTINGS, 200.0 + SETTINGS.pong_timeout_s - 0.1)
    assert pace.is_silent(SETTINGS, 200.0 + SETTINGS.pong_timeout_s)
