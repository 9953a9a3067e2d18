"""submit.lua: each outcome and refusal, the order of equal scores, exact numbers."""

import random

import pytest
import redis

from scoreboard.model import SCORE_MAX, SLOT_COUNT, pack
from scoreboard.store.keys import ACTIVE
from tests.lua.conftest import on_the_real_server
from tests.support.clients.scripts import KEYS, LAYOUT, Scripts, text


def test_a_first_action_is_applied(opened: Scripts) -> None:
    rows = opened.submit(("alice", "win:1", 10, 0, "req-1"))

    assert rows == [["applied", 10, 10, 1]]
    assert opened.board() == [("alice", pack(10, SLOT_COUNT - 1))]
    assert opened.events() == [
        {"q": "1", "u": "alice", "a": "win:1", "d": "10", "s": "10", "e": "1", "t": "req-1"}
    ]
    assert text(opened.client.hget(KEYS.meta, "seq")) == "1"


def test_a_replay_returns_the_first_score_and_changes_nothing(opened: Scripts) -> None:
    opened.submit(("alice", "win:1", 10), ("alice", "win:2", 10))
    before = opened.snapshot()

    assert opened.submit(("alice", "win:1", 10)) == [["replayed", 10, 10, 1]]
    assert opened.snapshot() == before


@pytest.mark.parametrize(
    ("committed", "known"),
    [
        (None, [0, 0, 0]),
        ("1:0", [0, 0, 0]),
        ("1:1", [1, 0, 0]),
        ("1:2", [1, 1, 0]),
        ("2:9", [0, 0, 0]),
        ("1:x", [0, 0, 0]),
    ],
)
def test_a_replay_reports_whether_its_change_is_committed(
    opened: Scripts, committed: str | None, known: list[int]
) -> None:
    opened.submit(("alice", "win:1", 10), ("bob", "win:1", 10))
    opened.client.hdel(KEYS.meta, "committed")
    if committed:
        opened.client.hset(KEYS.meta, "committed", committed)
    keys, args = opened.submit_call(*((user, "win:1", 10) for user in ("alice", "bob", "new")))

    assert [row[4] for row in opened.run("submit", keys, *args)] == known


def test_a_repeat_within_one_call_counts_once(opened: Scripts) -> None:
    rows = opened.submit(("alice", "win:1", 10), ("alice", "win:1", 10), ("bob", "win:1", 10))

    assert rows == [["applied", 10, 10, 1], ["replayed", 10, 10, 1], ["applied", 10, 10, 2]]


def test_other_stated_points_are_a_conflict(opened: Scripts) -> None:
    opened.submit(("alice", "win:1", 10, 1))
    before = opened.snapshot()

    assert opened.submit(("alice", "win:1", 20, 1)) == [["conflict", 10, 10, 1]]
    assert opened.snapshot() == before


def test_catalogue_points_may_change_between_attempts(opened: Scripts) -> None:
    opened.submit(("alice", "win:1", 10))

    assert opened.submit(("alice", "win:1", 20)) == [["replayed", 10, 10, 1]]


def test_an_action_of_the_previous_generation_is_a_replay(opened: Scripts) -> None:
    generation = opened.generation
    keys, args = opened.submit_call(("alice", "win:1", 10))
    opened.run("submit", keys, *args)
    opened.client.rename(keys[6], keys[7])  # as at the end of a generation

    assert opened.generation == generation, "the clock crossed a generation during the test"
    assert opened.submit(("alice", "win:1", 10)) == [["replayed", 10, 10, 1]]


def test_busy_at_the_cap_still_answers_replays(opened: Scripts) -> None:
    opened.cap = 2
    rows = opened.submit(("a", "1", 1), ("b", "1", 1), ("c", "1", 1), ("a", "1", 1))

    assert [row[0] for row in rows] == ["applied", "applied", "busy", "replayed"]
    assert opened.client.xlen(KEYS.events) == 2
    assert opened.submit(("c", "1", 1)) == [["busy", 1, 0, 0]]
    opened.cap = 3
    assert opened.submit(("c", "1", 1)) == [["applied", 1, 1, 3]]


@pytest.mark.parametrize(
    ("held", "delta"), [(0, -1), (SCORE_MAX, 1), (SCORE_MAX - 5, 6), (5, -6), (1, SCORE_MAX)]
)
def test_a_score_out_of_range_is_refused_and_not_remembered(
    opened: Scripts, held: int, delta: int
) -> None:
    if held:
        opened.submit(("alice", "first", held))
    before = opened.snapshot()

    assert opened.submit(("alice", "next", delta)) == [["range", delta, held, 0]]
    assert opened.snapshot() == before


@pytest.mark.parametrize("score", [1, 1_000_000, SCORE_MAX])
def test_the_first_to_reach_a_score_stays_ahead(opened: Scripts, score: int) -> None:
    for user in ("zoe", "adam", "mia"):
        opened.submit((user, "1", score))

    assert opened.board() == [
        ("zoe", pack(score, SLOT_COUNT - 1)),
        ("adam", pack(score, SLOT_COUNT - 2)),
        ("mia", pack(score, SLOT_COUNT - 3)),
    ]


def test_a_user_with_score_zero_stays_on_the_board(opened: Scripts) -> None:
    opened.submit(("alice", "up", 5))

    assert opened.submit(("alice", "down", -5)) == [["applied", -5, 0, 2]]
    assert opened.board() == [("alice", pack(0, SLOT_COUNT - 1))]


def test_a_score_that_runs_out_of_slots_recovers_those_of_users_who_left(opened: Scripts) -> None:
    opened.client.zadd(KEYS.board, {f"u{n:02}": pack(7, 60 - n) for n in range(41)})

    opened.submit(("late", "1", 7))
    first = dict(opened.board())
    opened.submit(("later", "1", 7), ("last", "1", 7))

    assert first["u15"] == pack(7, SLOT_COUNT - 16), "sixteen are moved at a time"
    assert first["u16"] == pack(7, 44)
    assert first["late"] == pack(7, 19)
    order = [user for user, _ in opened.board()]
    assert order == [*(f"u{n:02}" for n in range(41)), "late", "later", "last"]
    assert dict(opened.board())["last"] == pack(7, SLOT_COUNT - 44)
    assert "sweep:7" not in [text(field) for field in opened.client.hkeys(KEYS.meta)]


def test_every_dedup_shard_has_a_fixed_expiry(opened: Scripts) -> None:
    keys, args = opened.submit_call(("alice", "win:1", 10))
    opened.run("submit", keys, *args)
    opened.client.expire(keys[6], 100)

    opened.run("submit", *_second(opened))

    seen = opened.client.keys("*:seen:*")
    assert seen
    assert all(0 < opened.client.ttl(key) <= 2 * LAYOUT.seen_seconds + 60 for key in seen)
    assert opened.client.ttl(keys[6]) <= 100


def _second(opened: Scripts) -> tuple[object, ...]:
    keys, args = opened.submit_call(("alice", "win:2", 10), ("alice", "win:3", 10))
    return (keys, *args)


@on_the_real_server
def test_dedup_shards_expire_if_the_user_may_not_call_exists(opened: Scripts) -> None:
    """The user of an older version's ACL."""
    rules = ("on", "nopass", "~*", "&*", "+@all", "-exists")
    opened.client.execute_command("ACL", "SETUSER", "older", *rules)
    pool = opened.client.connection_pool.connection_kwargs
    with redis.Redis(host=pool["host"], port=pool["port"], username="older", password="x") as older:
        keys, args = opened.submit_call(("alice", "win:1", 10), ("bob", "win:1", 10))
        Scripts(older, is_real=True).run("submit", keys, *args)
    opened.client.execute_command("ACL", "DELUSER", "older")

    seen = opened.client.keys("*:seen:*")
    assert seen
    assert all(0 < opened.client.ttl(key) <= 2 * LAYOUT.seen_seconds + 60 for key in seen)


@on_the_real_server
def test_actions_before_a_failed_xadd_are_complete(opened: Scripts) -> None:
    """Another program has used almost the last possible stream id."""
    last = 2**64 - 1
    opened.client.xadd(KEYS.events, {"x": "y"}, id=f"{last}-{last - 2}")
    users = ("alice", "bob", "carol", "dave")
    keys, args = opened.submit_call(*((user, "win:1", 10) for user in users))

    assert "exhausted" in opened.refuses("submit", keys, *args)

    assert [user for user, _ in opened.board()] == ["alice", "bob"]
    assert [event["u"] for event in opened.events()[1:]] == ["alice", "bob"]
    assert text(opened.client.hget(KEYS.meta, "seq")) == "2"
    assert opened.submit(("bob", "win:1", 10)) == [["replayed", 10, 10, 2]]
    before = opened.snapshot()
    keys, args = opened.submit_call(("carol", "win:1", 10))
    assert "exhausted" in opened.refuses("submit", keys, *args)
    assert opened.snapshot() == before


@on_the_real_server
@pytest.mark.parametrize("seed", range(8))
def test_a_batch_gives_the_same_as_its_actions_one_by_one(opened: Scripts, seed: int) -> None:
    chance = random.Random(seed)
    actions = [
        (
            f"user{chance.randrange(6)}",
            f"act:{chance.randrange(20)}",
            chance.choice([-2, -1, 1, 2, 3]),
            chance.randrange(2),
        )
        for _ in range(64)
    ]
    single = [row for action in actions for row in opened.submit(action)]
    expected = ([user for user, _ in opened.board()], opened.events())
    opened.client.flushall()
    opened.open()

    batched: list[list[object]] = []
    while len(batched) < len(actions):
        size = chance.randint(1, 40)
        batched += opened.submit(*actions[len(batched) : len(batched) + size])

    assert batched == single
    assert ([user for user, _ in opened.board()], opened.events()) == expected
    assert {row[0] for row in single} == {"applied", "replayed", "conflict", "range"}


def test_an_emptied_redis_accepts_nothing(scripts: Scripts) -> None:
    keys, args = scripts.submit_call(("alice", "win:1", 10))

    assert scripts.refuses("submit", keys, *args).startswith("UNINIT ")
    assert scripts.snapshot() == {}


def test_a_fenced_partition_accepts_nothing_not_even_replays(opened: Scripts) -> None:
    opened.submit(("alice", "win:1", 10))
    opened.fence("T")
    before = opened.snapshot()
    keys, args = opened.submit_call(("alice", "win:1", 10))

    assert opened.refuses("submit", keys, *args).startswith("FENCED ")
    assert opened.snapshot() == before


def test_another_generation_is_refused_with_the_time(opened: Scripts) -> None:
    keys, args = opened.submit_call(("alice", "win:1", 10), generation=7)

    refusal = opened.refuses("submit", keys, *args)

    code, time_s, *_ = refusal.split()
    assert code == "BUCKET"
    assert abs(int(time_s) - opened.now()) <= 2
    assert opened.board() == []


def test_another_layout_is_refused_with_the_current_one(opened: Scripts) -> None:
    keys, args = opened.submit_call(("alice", "win:1", 10), layout="2:1000:4")

    assert opened.refuses("submit", keys, *args).split()[:2] == ["LAYOUT", str(LAYOUT)]
    assert opened.board() == []


@pytest.mark.parametrize("delta", ["0", "1.5", "ten", str(SCORE_MAX + 1), "nan", ""])
def test_an_invalid_delta_is_refused_before_any_write(opened: Scripts, delta: str) -> None:
    before = opened.snapshot()
    keys, args = opened.submit_call(("bob", "1", 1), ("alice", "win:1", delta))

    assert opened.refuses("submit", keys, *args).startswith("BADARG ")
    assert opened.snapshot() == before


def test_more_than_64_actions_are_refused(opened: Scripts) -> None:
    keys, args = opened.submit_call(*((f"user{n}", "1", 1) for n in range(65)))

    assert opened.refuses("submit", keys, *args).startswith("BADARG ")
    assert len(opened.submit(*((f"user{n}", "1", 1) for n in range(64)))) == 64


def test_a_key_of_a_wrong_type_fails_before_the_first_write(opened: Scripts) -> None:
    keys, args = opened.submit_call(("bob", "1", 1), ("alice", "win:1", 1))
    opened.client.set(keys[-2], "no hash")
    before = opened.snapshot()

    assert "WRONGTYPE" in opened.refuses("submit", keys, *args)
    assert opened.snapshot() == before


def test_a_stream_that_was_empty_is_announced(opened: Scripts) -> None:
    with opened.client.pubsub() as subscription:
        subscription.subscribe(ACTIVE)
        subscription.get_message(timeout=1)

        opened.submit(("alice", "1", 1), ("bob", "1", 1))
        opened.submit(("alice", "2", 1))  # it has entries
        opened.client.xtrim(KEYS.events, maxlen=0)
        opened.submit(("alice", "2", 1))  # a replay adds none
        opened.submit(("alice", "3", 1))

        messages = [subscription.get_message(timeout=0.2) for _ in range(3)]
    assert [text(one["data"]) if one else None for one in messages] == [KEYS.events] * 2 + [None]


@on_the_real_server
def test_a_user_who_may_not_announce_a_stream_can_submit(scripts: Scripts) -> None:
    """Users of an older version's ACL."""
    scripts.open()
    scripts.client.execute_command(
        "ACL", "SETUSER", "older", "on", ">x", "~*", "+@all", "resetchannels", "&sb:{*}:changes"
    )
    url = scripts.client.connection_pool.connection_kwargs
    try:
        with redis.Redis(
            host=url["host"], port=url["port"], username="older", password="x"
        ) as older:
            done = Scripts(older, is_real=True).submit(("alice", "1", 1))
    finally:
        scripts.client.execute_command("ACL", "DELUSER", "older")

    assert done == [["applied", 1, 1, 1]]
    assert len(scripts.events()) == 1


def test_changes_are_published_once_and_only_if_the_top_may_differ(opened: Scripts) -> None:
    with opened.client.pubsub() as subscription:
        subscription.subscribe(KEYS.changes)
        subscription.get_message(timeout=1)

        opened.submit(*((f"user{n}", "1", 100 + n) for n in range(10)))
        opened.submit(("low", "1", 1))  # eleventh: not published
        opened.submit(("user0", "1", 100))  # a replay: not published
        opened.submit(("low", "2", 200))  # now first
        opened.submit(("user9", "down", -109))  # leaves the top
        opened.submit(("user9", "up", 1))  # still below it

        messages = [subscription.get_message(timeout=0.2) for _ in range(4)]
    announced = [text(message["data"]) for message in messages if message]
    assert announced == ["1:10", "1:12", "1:13"]


def test_a_score_without_free_slots_is_swept_at_once(opened: Scripts) -> None:
    """An earlier version may have left such a score."""
    opened.client.zadd(KEYS.board, {f"u{n:03}": pack(7, 999 - n) for n in range(1000)})

    opened.submit(("b", "1", 7), ("c", "1", 7), ("a", "1", 7))

    assert [user for user, _ in opened.board()][-4:] == ["u999", "b", "c", "a"]


def test_a_sweep_that_moves_watched_rows_is_published(opened: Scripts) -> None:
    """On a board of several partitions it may change the order of equals."""
    opened.client.zadd(KEYS.board, {f"u{n:02}": pack(7, 100 - n) for n in range(20)})
    with opened.client.pubsub() as subscription:
        subscription.subscribe(KEYS.changes)
        subscription.get_message(timeout=1)

        opened.submit(("late", "1", 7))
        opened.submit(("later", "1", 7))  # moves those behind the watched rows

        messages = [subscription.get_message(timeout=0.2) for _ in range(2)]
    assert [text(message["data"]) for message in messages if message] == ["1:1"]


def test_packed_scores_are_exact_to_the_last_digit(opened: Scripts) -> None:
    opened.submit(("first", "1", SCORE_MAX), ("second", "1", SCORE_MAX))

    assert opened.board() == [("first", 2**52 - 1), ("second", 2**52 - 2)]
    assert opened.submit(("first", "down", -1)) == [["applied", -1, SCORE_MAX - 1, 3]]
    assert dict(opened.board())["first"] == pack(SCORE_MAX - 1, SLOT_COUNT - 1)


def trace(number: int) -> str:
    return f"00-4bf92f3577b34da6a3ce929d0e0e4736-{number:016x}-01"


def test_only_traced_actions_carry_a_traceparent(opened: Scripts) -> None:
    actions = [(f"user{n}", "win:1", 10, 0, f"req-{n}") for n in range(1, 5)]

    rows = opened.submit(*actions, traces=f"2 {trace(2)} 4 {trace(4)}")

    assert [row[0] for row in rows] == ["applied"] * 4
    fields = {event["u"]: event.get("w") for event in opened.events()}
    assert fields == {"user1": None, "user2": trace(2), "user3": None, "user4": trace(4)}
    assert [event["t"] for event in opened.events()] == ["req-1", "req-2", "req-3", "req-4"]


def test_a_traced_action_without_a_request_id_keeps_its_trace(opened: Scripts) -> None:
    opened.submit(("alice", "win:1", 10), traces=f"1 {trace(1)}")

    [event] = opened.events()
    assert event.get("w") == trace(1)
    assert "t" not in event


@pytest.mark.parametrize(
    "traces",
    [
        "garbage",
        f"0 {trace(1)}",
        f"3 {trace(1)}",
        f"1 {trace(1)[:-1]}",
        f"1 {trace(1)}0",
        f"1 {trace(1)} 2",
        f"1 {trace(1)}  2 {trace(2)}",
        f"1 {trace(1)} x",
        f"1.5 {trace(1)}",
        f"1 {trace(1).replace('-', '_')}",
        " ",
    ],
)
def test_an_invalid_list_of_traces_is_refused_before_any_write(
    opened: Scripts, traces: str
) -> None:
    before = opened.snapshot()
    keys, args = opened.submit_call(("alice", "1", 1), ("bob", "1", 1), traces=traces)

    assert opened.refuses("submit", keys, *args).startswith("BADARG ")
    assert opened.snapshot() == before


def test_a_replay_is_not_published_and_adds_no_record(opened: Scripts) -> None:
    opened.submit(("alice", "win:1", 10))
    before = opened.snapshot()

    assert opened.submit(("alice", "win:1", 10), traces=f"1 {trace(1)}") == [
        ["replayed", 10, 10, 1]
    ]
    assert opened.snapshot() == before


def test_traces_of_visible_changes_are_published_before_them(opened: Scripts) -> None:
    with opened.client.pubsub() as subscription:
        subscription.subscribe(KEYS.changes)
        subscription.get_message(timeout=1)

        users = [(f"user{n}", "1", 100 + n) for n in range(1, 21)]
        opened.submit(*users, traces=" ".join(f"{n} {trace(n)}" for n in range(1, 21)))
        opened.submit(("low", "1", 1), traces=f"1 {trace(99)}")  # not among the first ten
        opened.submit(("low", "2", 300), ("lower", "1", 1), traces=f"2 {trace(98)}")

        messages = [subscription.get_message(timeout=0.2) for _ in range(4)]
    announced = [text(message["data"]) for message in messages if message]
    # A batch is compared with the rows before it: all twenty of an empty board can be visible.
    traces = " ".join(trace(n) for n in range(1, 9))
    assert announced == [f"traces {traces}", "1:20", "1:23"]
