"""act.lua and exclude.lua: a score changes once, within its bounds, and banned users stay off."""

import pytest
import redis

from scoreboard.model import SCORE_MAX, digest_of, shard_of, unpack_score
from tests.support.clients.scripts import KEYS, LAYOUT, Scripts, text

from .conftest import on_the_real_server

pytestmark = on_the_real_server


def act_call(
    scripts: Scripts,
    user: str,
    delta: int,
    *,
    action: str = "act:1",
    generation: int | None = None,
    layout: str = "",
    bounds: tuple[int, int] = (0, SCORE_MAX),
    moved_from: int = -1,
) -> tuple[list[str], list[object]]:
    generation = scripts.generation if generation is None else generation
    digest = digest_of("main", user, action)
    shard = shard_of(digest, LAYOUT.seen_shards)
    keys = [KEYS.board, KEYS.events, KEYS.meta, KEYS.changes, KEYS.banned]
    keys += [KEYS.dedup_shard(generation + step, shard) for step in (1, 0, -1)]
    args = [generation, layout or str(LAYOUT), scripts.cap, user, action, digest, delta, *bounds]
    args.append(moved_from)
    return keys, args


def act(scripts: Scripts, *call: object, **options: object) -> list[object]:
    keys, args = act_call(scripts, *call, **options)
    word, *numbers = scripts.run("act", keys, *args)
    return [text(word), *numbers]


def scores(scripts: Scripts) -> list[tuple[str, int]]:
    return [(user, unpack_score(packed)) for user, packed in scripts.board()]


@pytest.fixture
def played(opened: Scripts) -> Scripts:
    """Return an open partition: alice 30, bob 20, carol 20."""
    opened.submit(("alice", "1", 30), ("bob", "1", 20), ("carol", "1", 20))
    return opened


def test_an_act_is_an_ordinary_record_of_the_stream_and_ranks_as_an_arrival(
    played: Scripts,
) -> None:
    assert act(played, "alice", -10) == ["applied", -10, 20, 4]

    assert scores(played) == [("bob", 20), ("carol", 20), ("alice", 20)]
    assert played.events()[-1] == {
        "q": "4",
        "u": "alice",
        "a": "act:1",
        "d": "-10",
        "s": "20",
        "e": "1",
    }
    played.submit(("dave", "1", 20))
    assert scores(played)[-1] == ("dave", 20)


def test_a_repeat_gets_the_first_answer_also_in_the_next_generation(played: Scripts) -> None:
    first = act(played, "alice", -10)
    before = played.snapshot()

    for generation in (played.generation - 1, played.generation):
        again = act(played, "alice", -10, generation=generation)
        assert again == ["replayed", *first[1:]]
    assert played.snapshot() == before


@pytest.mark.parametrize(
    ("delta", "bounds"), [(-31, (0, SCORE_MAX)), (-21, (10, SCORE_MAX)), (11, (0, 40))]
)
def test_an_act_that_leaves_the_bounds_changes_nothing(
    played: Scripts, delta: int, bounds: tuple[int, int]
) -> None:
    before = played.snapshot()

    assert act(played, "alice", delta, bounds=bounds) == ["range", delta, 30, 0]

    assert played.snapshot() == before


def test_a_change_is_published(played: Scripts) -> None:
    with played.client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(KEYS.changes)
        listener.get_message(timeout=1)
        act(played, "alice", -1)
        message = listener.get_message(timeout=1)
    assert message is not None
    assert text(message["data"]) == "1:4"


def test_a_banned_user_is_corrected_off_the_board_and_cannot_score(played: Scripts) -> None:
    played.client.zrem(KEYS.board, "alice")
    played.client.hset(KEYS.banned, "alice", 30)

    assert act(played, "alice", -10) == ["applied", -10, 20, 4]

    assert scores(played) == [("bob", 20), ("carol", 20)]
    assert text(played.client.hget(KEYS.banned, "alice")) == "20"
    before = played.snapshot()
    assert played.submit(("alice", "2", 5)) == [["banned", 5, 0, 0]]
    assert played.snapshot() == before
    assert played.submit(("alice", "1", 30)) == [["replayed", 30, 30, 1]]
    assert played.submit(("alice", "2", 5), ("bob", "2", 1))[1][0] == "applied"


def test_a_banned_hash_of_another_type_stops_no_batch(played: Scripts) -> None:
    played.client.set(KEYS.banned, "x")
    rows = played.submit(("bob", "2", 1), ("new", "1", 5))
    assert [row[0] for row in rows] == ["applied", "applied"]


def test_a_layout_with_the_lowest_score_first(played: Scripts) -> None:
    layout = f"{LAYOUT}:add:lowest:0:100:nobody:catalogue"
    played.client.hset(KEYS.meta, "layout", layout)
    played.client.delete(KEYS.board)
    assert act(played, "alice", 7, layout=layout, bounds=(0, 100))[:3] == ["applied", 7, 7]
    assert act(played, "bob", 3, layout=layout, bounds=(0, 100))[:3] == ["applied", 3, 3]
    assert act(played, "bob", 5, layout=layout, action="act:2")[:3] == ["applied", 5, 8]
    assert [user for user, _ in played.board()] == ["alice", "bob"]


def refused(scripts: Scripts, **options: object) -> str:
    before = scripts.snapshot()
    keys, args = act_call(scripts, "alice", -1, **options)
    answer = scripts.refuses("act", keys, *args)
    assert scripts.snapshot() == before
    return answer.partition(" ")[0]


def test_refusals_change_nothing(played: Scripts) -> None:
    assert refused(played, generation=played.generation - 2) == "STALE"
    assert refused(played, generation=played.generation + 1) == "STALE"
    assert refused(played, layout="2:1000:4") == "STALE"
    keys, args = act_call(played, "alice", 0)
    assert played.refuses("act", keys, *args).startswith("BADARG ")
    played.cap = 3
    assert refused(played) == "LAG"
    played.fence("T")
    assert refused(played) == "FENCED"
    played.client.hdel(KEYS.meta, "epoch")
    assert refused(played) == "UNINIT"


@pytest.mark.parametrize("name", ["board", "events", "banned"])
def test_a_key_of_another_type_fails_before_the_first_write(played: Scripts, name: str) -> None:
    played.client.delete(getattr(KEYS, name))
    played.client.set(getattr(KEYS, name), "x")
    before = played.snapshot()
    keys, args = act_call(played, "alice", 1)
    with pytest.raises(redis.ResponseError):
        played.run("act", keys, *args)
    assert played.snapshot() == before


def exclude(scripts: Scripts, token: str, first: int, *page: object) -> int:
    return scripts.run("exclude", [KEYS.meta, KEYS.banned], token, first, *page)


def test_exclude_replaces_the_banned_users_under_the_fence(played: Scripts) -> None:
    played.client.set(KEYS.banned, "x")
    played.fence("T")
    assert exclude(played, "T", 1, "alice", 30) == 1
    assert exclude(played, "T", 0, "bob", -1) == 2
    assert exclude(played, "T", 1, "carol", 20) == 1
    names = [KEYS.meta, KEYS.banned]
    assert played.refuses("exclude", names, "U", 1).startswith("FENCE ")
    assert played.refuses("exclude", names, "T", 1, "alice").startswith("BADARG ")
    assert played.refuses("exclude", names, "T", 1, "alice", "1.5").startswith("BADARG ")
    assert played.client.hlen(KEYS.banned) == 1


def test_a_delta_that_was_computed_from_another_score_changes_nothing(played: Scripts) -> None:
    before = played.snapshot()
    assert act(played, "alice", 5, moved_from=29) == ["moved", 5, 30, 0]
    assert act(played, "dave", 5, moved_from=1) == ["moved", 5, 0, 0]
    assert played.snapshot() == before

    assert act(played, "alice", 5, moved_from=30) == ["applied", 5, 35, 4]
    assert act(played, "alice", 5, moved_from=30) == ["replayed", 5, 35, 4]
    assert act(played, "dave", 5, moved_from=0) == ["applied", 5, 5, 5]
