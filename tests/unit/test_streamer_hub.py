"""Everyone who can take it is offered the newest frame, whoever comes and goes meanwhile."""

import json
import random

from hypothesis import given
from hypothesis import strategies as st

from scoreboard.broadcast.messages import Leaderboard, Status
from streamer.connection.framing import ping_frame, text_frame
from streamer.fanout.hub import Channel, Hub

NEVER_S = 1e9


class Watcher:
    """A viewer that notes what it was shown."""

    def __init__(self, room: Channel) -> None:
        self.room = room
        self.index = -1
        self.seen = room.frame
        self.beats = 0
        self.pushes = 0
        room.add(self)

    def push(self) -> None:
        self.pushes += 1
        self.seen = self.room.frame

    def beat(self, frame: bytes) -> None:
        self.beats += 1


def board(seq: int) -> Leaderboard:
    return Leaderboard("main", 1, seq, 0, ())


def room_of(count: int) -> tuple[Channel, list[Watcher]]:
    room = Channel("main", lambda: None)
    room.show(board(0), 0.0, 0.0)
    return room, [Watcher(room) for _ in range(count)]


def clock() -> float:
    return 0.0


def test_a_lap_shows_the_frame_to_everyone_once_and_ends() -> None:
    room, watchers = room_of(120)
    room.show(board(1), 0.0, 0.0)

    assert room.turn(1000, clock, NEVER_S) == 120
    assert not room.is_in_lap
    assert [one.pushes for one in watchers] == [1] * 120


def test_a_turn_ends_with_its_number_and_with_its_time() -> None:
    room, _ = room_of(300)
    room.show(board(1), 0.0, 0.0)

    assert room.turn(70, clock, NEVER_S) == 70
    assert room.turn(1000, lambda: 1.0, until_s=0.5) == 50
    assert room.is_in_lap


def test_a_newer_frame_in_mid_lap_is_what_the_rest_get_and_then_the_first() -> None:
    room, watchers = room_of(100)
    room.show(board(1), 0.0, 0.0)
    room.turn(50, clock, NEVER_S)
    room.show(board(2), 0.0, 0.0)

    room.turn(50, clock, NEVER_S)

    assert [one.seen is room.frame for one in watchers] == [False] * 50 + [True] * 50
    room.turn(50, clock, NEVER_S)
    assert all(one.seen is room.frame for one in watchers)
    assert not room.is_in_lap


@given(st.integers(0, 2**32))
def test_whoever_leaves_during_a_lap_nobody_is_left_out(seed: int) -> None:
    chance = random.Random(seed)
    room, watchers = room_of(chance.randint(1, 40))
    for seq in range(1, 6):
        room.show(board(seq), 0.0, 0.0)
        while room.is_in_lap:
            room.turn(chance.randint(1, 7), clock, NEVER_S)
            for _ in range(chance.randint(0, 3)):
                if watchers and chance.random() < 0.5:
                    room.remove(watchers.pop(chance.randrange(len(watchers))))
                elif chance.random() < 0.4:
                    watchers.append(Watcher(room))
        assert all(one.seen is room.frame for one in watchers)
        assert sorted(one.index for one in watchers) == list(range(len(watchers)))


def test_a_heartbeat_says_where_the_held_frame_stands_and_gives_way_to_a_board() -> None:
    room, watchers = room_of(60)
    room.beat(15.0, at_ms=7)
    room.turn(50, clock, NEVER_S)
    assert sum(one.beats for one in watchers) == 50

    room.show(board(1), 0.0, 0.0)
    room.turn(100, clock, NEVER_S)

    assert sum(one.beats for one in watchers) == 50
    assert all(one.seen is room.frame for one in watchers)


def test_no_heartbeat_before_there_is_a_board() -> None:
    room = Channel("main", lambda: None)
    room.beat(15.0, at_ms=7)

    assert not room.is_in_lap


def test_a_paced_frame_is_the_board_with_a_ping_that_carries_its_number() -> None:
    room, _ = room_of(0)
    room.show(board(5), 0.0, 0.0)

    assert room.paced == room.frame + ping_frame(room.ack)
    first = room.ack
    room.show(board(6), 0.0, 0.0)
    assert room.ack != first


def test_rooms_share_a_turn() -> None:
    woken: list[int] = []
    hub = Hub(("main", "weekly"), lambda: woken.append(1))
    watchers = [Watcher(room) for room in hub.rooms.values() for _ in range(80)]
    for room in hub.rooms.values():
        room.show(board(1), 0.0, 0.0)

    hub.turn(100, clock, NEVER_S)

    assert [sum(one.pushes for one in watchers[:80]), sum(one.pushes for one in watchers[80:])] == [
        50,
        50,
    ]
    assert len(woken) == 2
    assert hub.viewer_count == 160


def test_a_status_is_kept_for_those_who_join_later() -> None:
    room, _ = room_of(1)
    room.tell(Status("stale", "unreachable"))

    assert room.is_stale
    assert json.loads(room.status[2:]) == {
        "type": "status",
        "state": "stale",
        "reason": "unreachable",
    }
    room.tell(Status("live"))
    assert not room.is_stale


def test_frames_of_every_size_have_the_shortest_head() -> None:
    assert text_frame(b"x" * 125)[:2] == bytes([0x81, 125])
    assert text_frame(b"x" * 126)[:4] == bytes([0x81, 126, 0, 126])
    assert text_frame(b"x" * 65_535)[:4] == bytes([0x81, 126, 255, 255])
    assert text_frame(b"x" * 65_536)[:10] == bytes([0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0])
