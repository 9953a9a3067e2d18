"""Seasons in the scripts: an action is in one season, and a season ends once."""

import pytest
import redis

from scoreboard.model import SCORE_MAX, Rules, digest_of, shard_of, unpack_score
from scoreboard.store.keys import ACTIVE
from tests.support.clients.scripts import KEYS, LAYOUT, Scripts, text

from .conftest import on_the_real_server

pytestmark = on_the_real_server
RULES = Rules(season="daily", time_zone="UTC")
TURN = [KEYS.board, KEYS.events, KEYS.meta, KEYS.changes, KEYS.banned]
NEVER = 2**40


def season(name: str, start: int, end: int) -> str:
    return f"{name}:{start}:{end}"


FIRST = season("FIRST", 0, NEVER)


def end_season(scripts: Scripts, *, ago: int = 1) -> tuple[str, str]:
    """Let the first season end some seconds ago; return it and the one of now."""
    now = scripts.now()
    ended = season("FIRST", 0, now - ago)
    scripts.client.hset(KEYS.meta, "season", ended)
    return ended, season("SECOND", now - ago, now + 1000)


def turn(scripts: Scripts, *seasons: str) -> list[str]:
    return [text(one) for one in scripts.run("turn", TURN, *seasons)]


def scores(scripts: Scripts) -> list[tuple[str, int]]:
    return [(user, unpack_score(packed)) for user, packed in scripts.board()]


def meta(scripts: Scripts, name: str) -> str:
    return text(scripts.client.hget(KEYS.meta, name) or b"")


@pytest.fixture
def played(scripts: Scripts) -> Scripts:
    """Return an open partition with seasons: alice 30, bob 20."""
    scripts.use_rules(RULES)
    scripts.open(season=FIRST)
    scripts.submit(("alice", "1", 30), ("bob", "1", 20))
    return scripts


def test_each_record_says_its_season(played: Scripts) -> None:
    keys, args = played.submit_call(("alice", "2", 1, 1, "request"))
    played.run("submit", keys, *args)

    assert [one["p"] for one in played.events()] == [FIRST] * 3
    assert played.events()[-1]["t"] == "request"


def test_an_ended_season_accepts_nothing_and_says_what_it_was(played: Scripts) -> None:
    ended, _ = end_season(played)
    before = played.snapshot()
    keys, args = played.submit_call(("alice", "2", 1), ("alice", "1", 30))

    refusal = played.refuses("submit", keys, *args)

    word, fact, *_ = refusal.split()
    assert word == "SEASON"
    assert fact.rpartition(":")[0] == ended
    assert abs(int(fact.rpartition(":")[2]) - played.now()) <= 1
    assert played.snapshot() == before


def test_the_last_second_of_a_season_belongs_to_it(played: Scripts) -> None:
    now = played.now()
    played.client.hset(KEYS.meta, "season", season("FIRST", 0, now + 100))
    assert played.submit(("alice", "2", 1))[0][0] == "applied"
    played.client.hset(KEYS.meta, "season", season("FIRST", 0, now))
    keys, args = played.submit_call(("alice", "3", 1))
    assert played.refuses("submit", keys, *args).startswith("SEASON ")


def test_a_turn_empties_the_board_once_and_actions_count_in_the_next_season(
    played: Scripts,
) -> None:
    ended, following = end_season(played)
    played.client.hset(KEYS.meta, "sweep:20", 7)

    assert turn(played, ended, following) == ["turned", following]
    assert scores(played) == []
    assert meta(played, "sweep:20") == ""
    assert (meta(played, "season"), meta(played, "seq")) == (following, "3")
    assert played.events()[-1] == {"q": "3", "e": "1", "k": "s", "p": following}
    played.submit(("bob", "2", 5))
    after = played.snapshot()
    for seasons in ((ended, following), (ended, season("THIRD", played.now(), NEVER))):
        assert turn(played, *seasons) == ["unchanged", following]
    assert played.snapshot() == after
    assert scores(played) == [("bob", 5)]
    assert played.events()[-1]["p"] == following


def test_a_repeat_after_the_turn_gets_the_first_answer(played: Scripts) -> None:
    turn(played, *end_season(played))

    assert played.submit(("alice", "1", 30)) == [["replayed", 30, 30, 1]]
    assert scores(played) == []


def test_a_board_is_not_turned_ahead_of_time_or_back(played: Scripts) -> None:
    now = played.now()
    before = played.snapshot()
    future = season("SECOND", NEVER, NEVER + 10)
    assert turn(played, FIRST, future) == ["unchanged", FIRST]
    assert played.snapshot() == before
    # The clock was set back: the season begins in the future, and stays.
    later = season("LATER", now + 500, now + 1000)
    played.client.hset(KEYS.meta, "season", later)
    assert played.submit(("alice", "2", 1))[0][0] == "applied"
    assert turn(played, season("FIRST", 0, now), season("S", now, now + 500)) == [
        "unchanged",
        later,
    ]


@pytest.mark.parametrize(
    "seasons",
    [
        ("", FIRST),
        ("FIRST:0:9", ""),
        ("FIRST:0:9", "S:8:20"),
        ("FIRST:0:9", "S:20:20"),
        ("FIRST:0:9", "s:9:20"),
        ("FIRST:0:x", "S:9:20"),
    ],
)
def test_seasons_that_do_not_follow_each_other_are_refused(
    played: Scripts, seasons: tuple[str, str]
) -> None:
    before = played.snapshot()
    assert played.refuses("turn", TURN, *seasons).startswith("BADARG ")
    assert played.snapshot() == before


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("season", None, "UNINIT"),
        ("epoch", None, "UNINIT"),
        ("state", "fenced", "FENCED"),
        ("state", "archived", "ARCHIVED"),
    ],
)
def test_a_partition_that_accepts_nothing_does_not_turn(
    played: Scripts, field: str, value: str | None, code: str
) -> None:
    seasons = end_season(played)
    if value is None:
        played.client.hdel(KEYS.meta, field)
    else:
        played.client.hset(KEYS.meta, field, value)
    before = played.snapshot()
    assert played.refuses("turn", TURN, *seasons).startswith(f"{code} ")
    assert played.snapshot() == before


def test_a_board_with_seasons_and_without_its_season_accepts_nothing(played: Scripts) -> None:
    for value in ("", "FIRST", "FIRST:0:soon", "FIRST:0:1e9"):
        played.client.hset(KEYS.meta, "season", value)
        keys, args = played.submit_call(("alice", "2", 1))
        assert played.refuses("submit", keys, *args).startswith("UNINIT ")


def test_banned_users_begin_a_season_without_a_score(played: Scripts) -> None:
    played.client.hset(KEYS.banned, mapping={"eve": 70, "mallory": -1})
    turn(played, *end_season(played))
    assert played.client.hgetall(KEYS.banned) == {b"eve": b"-1", b"mallory": b"-1"}


def test_an_action_that_states_its_season_counts_only_in_it(played: Scripts) -> None:
    seasons = "1 FIRST 2 SECOND"
    actions = (("alice", "2", 1), ("bob", "2", 1), ("carol", "1", 1))
    assert [row[0] for row in played.submit(*actions, seasons=seasons)] == [
        "applied",
        "closed",
        "applied",
    ]
    turn(played, *end_season(played))
    before = played.snapshot()
    assert played.submit(("dave", "1", 1), seasons="1 FIRST") == [["closed", 1, 0, 0]]
    assert played.snapshot() == before
    # A repeat of an action that counted gets its first answer, whatever the season.
    assert played.submit(("alice", "2", 1), seasons="1 FIRST")[0][0] == "replayed"


@pytest.mark.parametrize("seasons", ["FIRST", "2 FIRST", "1 first", "1 FIRST x"])
def test_invalid_seasons_are_refused(played: Scripts, seasons: str) -> None:
    before = played.snapshot()
    keys, args = played.submit_call(("alice", "2", 1), seasons=seasons)
    assert played.refuses("submit", keys, *args).startswith("BADARG ")
    assert played.snapshot() == before


def test_seasons_and_traces_go_together(played: Scripts) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    actions = (("alice", "2", 1), ("bob", "2", 1))
    found = played.submit(*actions, traces=f"1 {trace}", seasons="2 OTHER")
    assert [row[0] for row in found] == ["applied", "closed"]
    assert played.events()[-1]["w"] == trace
    assert played.events()[-1]["p"] == FIRST


def test_a_turn_is_announced(played: Scripts) -> None:
    played.client.xtrim(KEYS.events, maxlen=0)
    listener = played.client.pubsub()
    listener.subscribe(ACTIVE, KEYS.changes)
    for _ in range(2):
        listener.get_message(timeout=1)

    turn(played, *end_season(played))

    messages = [listener.get_message(timeout=1) for _ in range(2)]
    assert [text(one["data"]) for one in messages if one] == ["1:3", KEYS.events]
    listener.close()


def test_a_read_says_its_season(played: Scripts) -> None:
    assert text(played.run("leaderboard", [KEYS.board, KEYS.meta], 0, 10)[6]) == FIRST


def act(scripts: Scripts, decided_in: str) -> list[object]:
    digest = digest_of("main", "alice", "act:1")
    generation, shard = scripts.generation, shard_of(digest, LAYOUT.seen_shards)
    keys = [*TURN, *(KEYS.dedup_shard(generation + step, shard) for step in (1, 0, -1))]
    args = [generation, str(scripts.layout), 1000, "alice", "act:1", digest, 5, 0, SCORE_MAX]
    word, *numbers = scripts.run("act", keys, *args, -1, decided_in)
    return [text(word), *numbers]


def test_an_act_counts_only_in_the_season_in_which_it_was_decided(played: Scripts) -> None:
    before = played.snapshot()
    assert act(played, "EARLIER")[0] == "closed"
    assert played.snapshot() == before
    ended, following = end_season(played)
    with pytest.raises(redis.ResponseError, match="SEASON FIRST"):
        act(played, "FIRST")
    turn(played, ended, following)
    assert act(played, "SECOND") == ["applied", 5, 5, 4]
    assert played.events()[-1]["p"] == following


def test_a_correction_for_an_earlier_season_is_refused(played: Scripts) -> None:
    ended, following = end_season(played)
    turn(played, ended, following)
    last = text(played.client.xrevrange(KEYS.events, count=1)[0][0])
    call = (played.history, 1, 3, last, 0)
    before = played.snapshot()
    for wrong in (ended, ""):
        refusal = played.refuses("repair", TURN, *call, wrong, "alice", 30, 0, 0)
        assert refusal.startswith("STALE ")
    assert played.snapshot() == before
    assert text(played.run("repair", TURN, *call, following, "alice", 7, 0, 0)[0][0]) == "corrected"
    assert played.events()[-1]["p"] == following


def test_a_partition_is_opened_with_a_season_exactly_if_its_board_has_some(
    scripts: Scripts,
) -> None:
    keys = [KEYS.board, KEYS.shadow, KEYS.events, KEYS.meta, KEYS.changes]
    scripts.fence("T")
    for rules, given in ((RULES, ""), (RULES, "FIRST"), (Rules(), FIRST)):
        scripts.use_rules(rules)
        args = ("T", 1, 0, "0-0", "g", str(scripts.layout), 1, 0, "open", given)
        assert scripts.refuses("open", keys, *args).startswith("BADARG ")
