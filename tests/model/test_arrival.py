"""Order of arrival at one score, on a script with few slots: exact within the limit, then by name.

The script's text is the real one; only the number of slots and of moves is smaller, so that many
times as many users as slots arrive and leave.
"""

import random
import re
from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scoreboard.model import SLOT_COUNT
from scoreboard.runtime import resources
from tests.support.clients.scripts import KEYS, Scripts

pytestmark = pytest.mark.slow

SLOTS, MOVES = 40, 4
LIMIT = SLOTS * (MOVES - 1) // (MOVES + 1)
"""The number of users with one score up to which the order is exact."""

SCORE = 1
OTHER_SCORES = 50
"""Users who leave the score get different scores, from this one on."""


class SmallBoard(Scripts):
    """Runs submit.lua with few slots; the random user names do not depend on arrival."""

    def __init__(self, client: "redis.Redis[str]") -> None:
        super().__init__(client, is_real=True)
        self.cap = 10**9
        text = resources.script("submit").decode()
        for name, value in [("SLOT_COUNT", SLOTS), ("MOVES", MOVES)]:
            text, count = re.subn(rf"(?m)^local {name} = \d+$", f"local {name} = {value}", text)
            assert count == 1
        self._texts = {"submit": text}
        self._digests: dict[str, str] = {}
        self._chance = random.Random(5)
        self._count = 0
        self.present: list[str] = []

    def run(self, name: str, keys: list[str], *args: object) -> object:
        if name not in self._digests:
            text = self._texts.get(name) or resources.script(name).decode()
            self._digests[name] = self.client.script_load(text)
        return self.client.evalsha(self._digests[name], len(keys), *keys, *args)

    def arrive(self, count: int = 1) -> None:
        for start in range(0, count, 64):
            users = [f"{self._chance.getrandbits(40):010x}" for _ in range(min(64, count - start))]
            self.submit(*((user, "arrive", SCORE) for user in users))
            self.present += users

    def leave(self, place: int) -> None:
        user = self.present.pop(place)
        self._count += 1
        self.submit((user, "leave", OTHER_SCORES + self._count))

    def order(self) -> list[str]:
        rows = self.client.zrange(KEYS.board, 0, -1, desc=True, withscores=True)
        return [user.decode() for user, packed in rows if int(packed) // SLOTS == SCORE]


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis[str]"]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def start(client: "redis.Redis[str]") -> SmallBoard:
    client.flushall()
    board = SmallBoard(client)
    board.open()
    return board


LEAVING = st.sampled_from(["first", "last", "middle", "any", "none", "half"])
PHASES = st.lists(st.tuples(LEAVING, st.integers(1, 60), st.integers(1, LIMIT)), max_size=6)


def test_the_order_of_arrival_is_exact_for_any_number_of_changes(
    client: "redis.Redis[str]",
) -> None:
    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(phases=PHASES, seed=st.integers(0, 2**32))
    def check(phases: list[tuple[str, int, int]], seed: int) -> None:
        board, chance = start(client), random.Random(seed)
        for leaving, arrivals, most in phases:
            for _ in range(arrivals):
                while len(board.present) >= most or (
                    board.present and leaving != "none" and chance.random() < 0.3
                ):
                    board.leave(place_of(leaving, len(board.present), chance))
                board.arrive()
                assert len(board.present) <= LIMIT
            assert board.order() == board.present

    check()


def place_of(leaving: str, count: int, chance: random.Random) -> int:
    match leaving:
        case "first":
            return 0
        case "last":
            return count - 1
        case "middle":
            return count // 2
        case "half":
            return chance.randrange((count + 1) // 2)
        case _:
            return chance.randrange(count)


@pytest.mark.parametrize("leaving", ["first", "last", "middle", "any", "half"])
@pytest.mark.parametrize("present", [1, 2, LIMIT // 2, LIMIT - 1, LIMIT])
def test_a_score_below_the_limit_never_runs_out_of_slots(
    client: "redis.Redis[str]", leaving: str, present: int
) -> None:
    """Eight times as many users as slots arrive, and as many leave."""
    board, chance = start(client), random.Random(3)
    board.arrive(present)
    for _ in range(8 * SLOTS):
        board.leave(place_of(leaving, len(board.present), chance))
        board.arrive()
    assert board.order() == board.present
    assert len({packed for _, packed in board.board()}) == len(board.board()), "one slot each"


def test_every_slot_is_used_if_no_user_leaves(client: "redis.Redis[str]") -> None:
    board = start(client)

    board.arrive(SLOTS)

    assert board.order() == board.present
    assert client.zcount(KEYS.board, SCORE * SLOTS, SCORE * SLOTS) == 1


def test_without_free_slots_the_last_is_shared_until_one_is_free(
    client: "redis.Redis[str]",
) -> None:
    board = start(client)
    board.arrive(SLOTS + 5)
    exact, shared = board.present[: SLOTS - 1], board.present[SLOTS - 1 :]

    assert board.order() == [*exact, *sorted(shared, reverse=True)]

    board.present = board.order()
    while len(board.present) > LIMIT // 2:
        board.leave(0)
    for _ in range(2 * SLOTS):
        board.arrive()
        board.leave(0)
    assert board.order() == board.present, "exact again"


def test_an_abandoned_sweep_changes_no_order(client: "redis.Redis[str]") -> None:
    """The order is unchanged for any stored position of a sweep."""
    board, chance = start(client), random.Random(9)
    board.arrive(10)
    values = ["0", "7", str(SLOTS), "99999", "abc", "-3"]
    for number in range(10 * SLOTS):
        board.leave(0)
        client.hset(KEYS.meta, f"sweep:{SCORE}", chance.choice([*values, str(number % SLOTS)]))
        before = board.order()
        board.arrive()
        assert [user for user in board.order() if user != board.present[-1]] == before


def test_the_documented_limit_follows_from_the_constants() -> None:
    text = resources.script("submit").decode()
    moves = int(re.findall(r"local MOVES = (\d+)", text)[0])
    limit = SLOT_COUNT * (moves - 1) // (moves + 1)

    assert limit == 1_850_428
    # A sweep must end before the slots below its start do.
    assert "local SWEEP_BELOW = SLOT_COUNT / 4" in text
    assert (limit - 2) / (moves - 1) < SLOT_COUNT / 4
    assert (LIMIT - 2) / (MOVES - 1) < SLOTS / 4
