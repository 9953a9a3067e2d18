"""repair.lua: scores are set to the expected ones once, and users keep their order."""

import pytest

from scoreboard.model import SCORE_MAX, Rules, unpack_score
from scoreboard.store.keys import ACTIVE
from tests.support.clients.scripts import KEYS, Scripts, text

from .conftest import on_the_real_server

pytestmark = on_the_real_server

ALL = [KEYS.board, KEYS.events, KEYS.meta, KEYS.changes, KEYS.banned]
ExpectedScore = tuple[str, int, list[str]]


def repair(
    scripts: Scripts,
    *expected_scores: ExpectedScore,
    committed: str = "0-0",
    seq: int = 0,
    dry: int = 0,
) -> list[list[object]]:
    rows = scripts.run(
        "repair", ALL, scripts.history, 1, seq, committed, dry, "", *flat(expected_scores)
    )
    return [[text(row[0]), *row[1:]] for row in rows]


def flat(expected_scores: tuple[ExpectedScore, ...]) -> list[object]:
    return [
        value
        for user, score, order in expected_scores
        for value in (user, score, 0, len(order), *order)
    ]


def scores(scripts: Scripts) -> list[tuple[str, int]]:
    return [(user, unpack_score(packed)) for user, packed in scripts.board()]


def last_id(scripts: Scripts) -> str:
    return text(scripts.client.xrange(KEYS.events)[-1][0])


@pytest.fixture
def played(opened: Scripts) -> Scripts:
    """Return an open partition: alice 30, bob 20 and carol 20, all committed."""
    opened.submit(("alice", "1", 30), ("bob", "1", 20), ("carol", "1", 20))
    return opened


def test_a_score_that_is_too_high_is_lowered_and_published(played: Scripts) -> None:
    listener = played.client.pubsub()
    listener.subscribe(KEYS.changes)
    listener.get_message(timeout=1)

    done = repair(played, ("alice", 25, []), committed=last_id(played), seq=3)

    assert done == [["corrected", -5, 25, 4]]
    assert scores(played) == [("alice", 25), ("bob", 20), ("carol", 20)]
    assert played.events()[-1] == {
        "q": "4",
        "u": "alice",
        "a": "correction:3",
        "d": "-5",
        "s": "25",
        "e": "1",
        "k": "c",
    }
    message = listener.get_message(timeout=1)
    assert message is not None
    assert text(message["data"]) == "1:4"
    listener.close()


def test_a_second_run_changes_nothing(played: Scripts) -> None:
    committed = last_id(played)
    repair(played, ("alice", 25, []), committed=committed)
    before = played.snapshot()

    assert repair(played, ("alice", 25, []), committed=committed) == [["unchanged", 0, 25, 0]]
    assert played.snapshot() == before


def test_actions_not_yet_committed_are_added_and_corrections_are_not(played: Scripts) -> None:
    committed = last_id(played)
    played.submit(("alice", "2", 7), ("bob", "2", 1))
    repair(played, ("alice", 25, []), committed=committed)

    again = repair(played, ("alice", 25, []), ("bob", 20, []), committed=committed)

    assert again == [["unchanged", 0, 32, 0], ["unchanged", 0, 21, 0]]
    assert ("alice", 32) in scores(played)


def test_a_dry_run_reports_differences_and_writes_nothing(played: Scripts) -> None:
    before = played.snapshot()

    found = repair(played, ("alice", 25, []), ("bob", 20, []), committed=last_id(played), dry=1)

    assert found == [["differs", -5, 25, 0], ["unchanged", 0, 20, 0]]
    assert played.snapshot() == before


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([], ["bob", "carol", "alice"]),
        (["alice", "bob", "carol"], ["alice", "bob", "carol"]),
        (["bob", "alice", "carol"], ["bob", "alice", "carol"]),
        (["bob", "absent", "carol", "alice"], ["bob", "carol", "alice"]),
        (["alice"], ["alice", "bob", "carol"]),
    ],
)
def test_a_corrected_user_is_placed_in_the_order_of_postgres(
    played: Scripts, order: list[str], expected: list[str]
) -> None:
    repair(played, ("alice", 20, order), committed=last_id(played))

    assert scores(played) == [(user, 20) for user in expected]
    played.submit(("dave", "1", 20))
    assert scores(played)[-1] == ("dave", 20), "a later user ranks last"


def test_users_with_newer_actions_rank_last_in_stream_order(
    played: Scripts,
) -> None:
    committed = last_id(played)
    played.submit(("dave", "1", 20), ("alice", "2", 1), ("erin", "1", 20))

    repair(played, ("alice", 19, ["bob", "carol"]), committed=committed)

    assert [user for user, _ in scores(played)] == ["bob", "carol", "dave", "alice", "erin"]


def test_a_corrected_user_is_placed_last_among_many_equals(opened: Scripts) -> None:
    opened.cap = 5000
    opened.submit(("alice", "1", 30))
    for start in range(0, 576, 64):
        opened.submit(*((f"user{number}", "1", 20) for number in range(start, start + 64)))
    committed = last_id(opened)

    repair(opened, ("alice", 20, ["alice"]), committed=committed)

    assert scores(opened)[-1] == ("alice", 20)
    assert len(opened.board()) == 577


def test_a_user_without_a_score_in_postgres_is_removed(played: Scripts) -> None:
    done = repair(played, ("alice", -1, []), committed=last_id(played))

    assert done == [["corrected", -30, 0, 4]]
    assert scores(played) == [("bob", 20), ("carol", 20)]


def test_a_user_lost_by_redis_is_restored(played: Scripts) -> None:
    done = repair(played, ("zoe", 22, []), committed=last_id(played))

    assert done == [["corrected", 22, 22, 4]]
    assert scores(played)[1] == ("zoe", 22)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ((1, 3, "soon", 0, "", "alice", 1, 0, 0), "BADARG"),
        ((1, "x", "0-0", 0, "", "alice", 1, 0, 0), "BADARG"),
        ((1, 3, "0-0", 0, "", "alice", 1, 0), "BADARG"),
        ((1, 3, "0-0", 0, "", "alice", 1, 0, 2, "bob"), "BADARG"),
        ((1, 3, "0-0", 0, "", "alice", "x", 0, 0), "BADARG"),
        ((1, 3, "0-0", 0, "", *(("alice", 1, 0, 0) * 65)), "BADARG"),
        ((2, 3, "0-0", 0, "", "alice", 1, 0, 0), "STALE"),
        ((1, 1, "0-0", 0, "", "alice", 1, 0, 0), "STALE"),
        ((1, 4, "0-0", 0, "", "alice", 1, 0, 0), "STALE"),
        ((1, 3, "0-0", 0, "", "bob", 20, 0, 0, "alice", SCORE_MAX, 0, 0), "RANGE"),
    ],
)
def test_refusals_change_nothing(played: Scripts, args: tuple[object, ...], code: str) -> None:
    played.client.hset(KEYS.meta, "committed", "1:2")
    before = played.snapshot()

    assert played.refuses("repair", ALL, played.history, *args).startswith(f"{code} ")
    assert played.snapshot() == before


def test_a_caller_that_read_the_stream_of_another_server_is_refused(played: Scripts) -> None:
    refusal = played.refuses("repair", ALL, "0123", 1, 3, "0-0", 0, "", "alice", 1, 0, 0)

    assert refusal.startswith("STALE ")


def test_an_outdated_flusher_lowers_no_score(played: Scripts) -> None:
    """The caller was paused at seq 3; another flusher committed 100 more."""
    committed = last_id(played)
    played.submit(("alice", "2", 100))
    played.client.xtrim(KEYS.events, maxlen=0)
    played.client.hset(KEYS.meta, "committed", "1:4")

    args = (1, 3, committed, 0, "", "alice", 30, 0, 0)
    refusal = played.refuses("repair", ALL, played.history, *args)

    assert refusal.startswith("STALE ")
    assert scores(played)[0] == ("alice", 130)


@pytest.mark.parametrize(
    "packed", [float("inf"), float("-inf"), -5, 1.5, 25 * 2**21 + 0.5, 2.0**60]
)
def test_an_invalid_packed_score_is_replaced(played: Scripts, packed: float) -> None:
    played.client.zadd(KEYS.board, {"alice": packed})

    (found,) = repair(played, ("alice", 25, []), committed=last_id(played), seq=3, dry=1)
    (done,) = repair(played, ("alice", 25, []), committed=last_id(played), seq=3)

    assert found[0] == "differs"
    assert (done[0], done[2]) == ("corrected", 25)
    assert scores(played)[0] == ("alice", 25)


def test_repair_restores_a_lost_member_with_score_zero(played: Scripts) -> None:
    (done,) = repair(played, ("zoe", 0, []), committed=last_id(played), seq=3)

    assert done == ["corrected", 0, 0, 4], "viewers need a position that they do not have"
    assert scores(played)[-1] == ("zoe", 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"u": "alice", "a": "1", "d": "7"},
        {"q": "9", "u": "alice", "d": "7", "s": "1", "e": "1"},
        {"q": "9", "u": "alice", "a": "1", "d": "1e1", "s": "1", "e": "1"},
        {"q": "x", "u": "alice", "a": "1", "d": "7", "s": "1", "e": "1"},
    ],
)
def test_invalid_entries_add_nothing(played: Scripts, fields: dict[str, str]) -> None:
    committed = last_id(played)
    played.client.xadd(KEYS.events, fields)

    assert repair(played, ("alice", 30, []), committed=committed, seq=3) == [
        ["unchanged", 0, 30, 0]
    ]


def test_too_many_new_entries_are_refused(played: Scripts) -> None:
    played.cap = 5000
    for start in range(0, 1024, 64):
        played.submit(*((f"user{number}", "1", 1) for number in range(start, start + 64)))

    refusal = played.refuses("repair", ALL, played.history, 1, 0, "0-0", 0, "", "alice", 1, 0, 0)

    assert refusal.startswith("LAG ")


def test_entries_summed_by_the_caller_are_not_added_again(played: Scripts) -> None:
    played.submit(("alice", "2", 7))
    up_to = last_id(played)
    played.submit(("alice", "3", 1))

    assert repair(played, ("alice", 37, []), committed=up_to, seq=3) == [["unchanged", 0, 38, 0]]


def test_an_empty_or_fenced_partition_is_refused(scripts: Scripts) -> None:
    call = (scripts.history, 1, 0, "0-0", 0, "", "a", 1, 0, 0)
    assert scripts.refuses("repair", ALL, *call).startswith("UNINIT ")
    scripts.open()
    scripts.fence("T")

    assert scripts.refuses("repair", ALL, *call).startswith("FENCED ")


def test_a_correction_of_an_empty_stream_is_announced(played: Scripts) -> None:
    committed = last_id(played)
    played.client.xtrim(KEYS.events, maxlen=0)
    listener = played.client.pubsub()
    listener.subscribe(ACTIVE)
    listener.get_message(timeout=1)

    repair(played, ("bob", 20, []), committed=committed, seq=3)  # unchanged: adds nothing
    repair(played, ("alice", 25, []), committed=committed, seq=3)
    repair(played, ("carol", 25, []), committed=last_id(played), seq=3)  # it has an entry

    messages = [listener.get_message(timeout=0.2) for _ in range(2)]
    assert [text(one["data"]) if one else None for one in messages] == [KEYS.events, None]
    listener.close()


@pytest.mark.parametrize(
    ("rules", "score", "expected"),
    [
        (Rules("last"), 500, 7),
        (Rules("last", "lowest"), 500, 7),
        (Rules("best"), 5, 7),
        (Rules("best"), 500, 500),
        (Rules("best", "lowest"), 500, 7),
        (Rules("best", "lowest"), 5, 5),
        (Rules("best", "lowest"), -1, 7),
    ],
    ids=str,
)
def test_a_value_that_is_not_committed_replaces_the_score_or_stays_behind_a_better_one(
    scripts: Scripts, rules: Rules, score: int, expected: int
) -> None:
    """The difference in its record belongs to a score that PostgreSQL does not have."""
    scripts.use_rules(rules)
    scripts.open()
    scripts.submit(("alice", "1", 7))

    ((outcome, change, found, _),) = repair(scripts, ("alice", score, []))

    assert found == expected
    assert (outcome, change) == (("unchanged", 0) if expected == 7 else ("corrected", expected - 7))
    assert [(u, rules.unpack_score(packed)) for u, packed in scripts.board()] == [
        ("alice", expected)
    ]


def ban(scripts: Scripts, user: str, score: int, banned: int, order: list[str]) -> list[object]:
    last = scripts.client.xrevrange(KEYS.events, count=1)
    args = (user, score, banned, len(order), *order)
    [row] = scripts.run(
        "repair", ALL, scripts.history, 1, 0, text(last[0][0]) if last else "0-0", 0, "", *args
    )
    return [text(row[0]), *row[1:]]


def test_a_banned_user_leaves_and_returns_to_its_place(played: Scripts) -> None:
    assert ban(played, "bob", 20, 1, []) == ["corrected", 0, 20, 4]
    assert scores(played) == [("alice", 30), ("carol", 20)]
    assert text(played.client.hget(KEYS.banned, "bob")) == "20"
    before = played.snapshot()
    assert ban(played, "bob", 20, 1, []) == ["unchanged", 0, 20, 0]
    assert played.snapshot() == before

    assert ban(played, "bob", 20, 0, ["bob", "carol"]) == ["corrected", 0, 20, 5]

    assert scores(played) == [("alice", 30), ("bob", 20), ("carol", 20)]
    assert played.client.hlen(KEYS.banned) == 0
    assert [(one["d"], one["s"], one["k"]) for one in played.events()[3:]] == [
        ("-20", "20", "c"),
        ("20", "20", "c"),
    ]


def test_the_score_of_a_banned_user_is_corrected_off_the_board(played: Scripts) -> None:
    ban(played, "bob", 20, 1, [])

    assert ban(played, "bob", 15, 1, []) == ["corrected", -5, 15, 5]

    assert text(played.client.hget(KEYS.banned, "bob")) == "15"
    assert played.events()[-1]["k"] == "c"
    assert scores(played) == [("alice", 30), ("carol", 20)]


def test_a_user_without_a_score_is_banned_and_never_shown(played: Scripts) -> None:
    assert ban(played, "dave", -1, 1, [])[0] == "corrected"
    assert text(played.client.hget(KEYS.banned, "dave")) == "-1"
    assert ban(played, "dave", -1, 1, [])[0] == "unchanged"
    assert ban(played, "dave", -1, 0, [])[0] == "corrected"
    assert "dave" not in dict(scores(played))
    assert played.client.hlen(KEYS.banned) == 0


def test_a_banned_user_that_an_older_version_put_on_the_board_leaves_again(played: Scripts) -> None:
    played.client.hset(KEYS.banned, "bob", 20)
    assert ban(played, "bob", 20, 1, [])[0] == "corrected"
    assert scores(played) == [("alice", 30), ("carol", 20)]
