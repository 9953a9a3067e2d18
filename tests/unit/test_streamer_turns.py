"""Turns of watched users: all of them, once a second, spread over it, and together by board."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise

from scoreboard.model import BATCH_MAX
from streamer.fanout.places import Places, PlaceWatch, WatchedUser
from streamer.fanout.turns import EARLY, PERIOD_S, SPARE, TICK_S, Turns

LATEST_S = PERIOD_S + 2 * TICK_S


class Viewer:
    """A viewer that takes nothing."""

    def push_places(self) -> bool:
        return False


class Watching:
    """Viewers of one process, at a time that tests set."""

    def __init__(self) -> None:
        self.places = Places(10_000, lambda: None)
        self.turns = Turns(self.places)
        self.now_s = 0.0
        self.watches: dict[str, PlaceWatch] = {}

    def join(self, board: str, *names: str) -> None:
        for name in names:
            watch = self.watches[name] = PlaceWatch(self.places, Viewer())
            watch.replace(board, [name])
        while found := self.places.next_new(BATCH_MAX):
            self.turns.begin(found[1], self.now_s)

    def leave(self, *names: str) -> None:
        for name in names:
            self.watches.pop(name).close()

    def ticks(self, until_s: float) -> Iterator[list[list[WatchedUser]]]:
        """Tick until a time; yield the users of each board that are read."""
        while self.now_s < until_s:
            yield list(self.turns.take(self.now_s).values())
            self.now_s = self.turns.next_s(self.now_s)


def names(count: int, prefix: str = "user") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def test_turns_of_users_that_came_together_spread_over_the_second() -> None:
    process = Watching()
    process.join("main", *names(2000))
    sizes: list[int] = []
    read: dict[str, list[float]] = defaultdict(list)
    for boards in process.ticks(10.5):
        users = [user for board in boards for user in board]
        sizes.append(len(users))
        for user in users:
            read[user.user_id].append(process.now_s)
    assert max(sizes) <= 2000 * TICK_S * SPARE + BATCH_MAX
    assert len(read) == 2000
    for times in read.values():
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert len(gaps) >= 8
        assert min(gaps) >= EARLY * PERIOD_S - 1e-9
        # In the first second each waits for its share; after that nobody is late.
        assert max(gaps[2:]) <= LATEST_S


def test_a_board_is_looked_at_once_a_second_whenever_its_viewers_came() -> None:
    process = Watching()
    for number in range(20):
        for board in range(30):
            process.join(f"board{board}", f"{board}-{number}")
        process.now_s += 0.043
        list(process.ticks(process.now_s))
    list(process.ticks(4.0))
    looks = Counter[str]()
    read = Counter[str]()
    for boards in process.ticks(9.0):
        looks.update(users[0].board.name for users in boards)
        read.update(user.user_id for users in boards for user in users)
    assert set(looks.values()) <= {4, 5, 6}
    assert set(read.values()) <= {4, 5, 6}
    assert (len(looks), len(read)) == (30, 600)


def test_a_tick_that_comes_late_takes_more() -> None:
    process = Watching()
    process.join("main", *names(2000))
    list(process.ticks(5.0))
    process.now_s += 0.6
    (users,) = process.turns.take(process.now_s).values()
    assert len(users) >= 1000
    assert 0.5 <= process.turns.late_s <= 0.7


def test_who_has_left_is_not_read_and_not_kept() -> None:
    process = Watching()
    process.join("main", *names(100))
    list(process.ticks(1.5))
    process.leave(*names(99))
    process.join("main", "user1")
    left = {user.user_id for boards in process.ticks(4.0) for users in boards for user in users}
    assert left == {"user99", "user1"}
    assert len(process.turns._queue) <= 4
    process.leave("user99", "user1")
    list(process.ticks(6.0))
    assert not process.turns._queue
    assert not process.places.boards
