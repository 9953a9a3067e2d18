"""trim.lua, fence.lua, restore.lua, remember.lua, open.lua."""

import pytest

from scoreboard.keys import GROUP
from scoreboard.model import SLOT_COUNT, digest_of, pack
from tests.support.scripts import KEYS, LAYOUT, Scripts, text

from .conftest import on_the_real_server

TRIM = [KEYS.events, KEYS.meta]
SWAP = [KEYS.board, KEYS.shadow, KEYS.events, KEYS.meta, KEYS.changes]


def ids(scripts: Scripts) -> list[str]:
    return [text(position) for position, _ in scripts.client.xrange(KEYS.events)]


def deliver(scripts: Scripts, count: int) -> list[str]:
    reply = scripts.client.xreadgroup(GROUP, "one", {KEYS.events: ">"}, count=count)
    return [text(position) for position, _ in reply[0][1]]


@pytest.fixture
def streamed(opened: Scripts) -> Scripts:
    """An open partition with ten events in its stream, none delivered."""
    opened.submit(*((f"user{n}", "1", n + 1) for n in range(10)))
    return opened


def test_trimming_cuts_what_is_committed_and_acknowledged(streamed: Scripts) -> None:
    got = deliver(streamed, 6)
    streamed.client.xack(KEYS.events, GROUP, *got)

    assert streamed.run("trim", TRIM, GROUP, got[-1], 1, 0) == 6
    assert len(ids(streamed)) == 4


def test_trimming_stops_before_the_oldest_pending_entry(streamed: Scripts) -> None:
    got = deliver(streamed, 6)
    streamed.client.xack(KEYS.events, GROUP, *got[:2], *got[3:])

    assert streamed.run("trim", TRIM, GROUP, got[-1], 1, 0) == 2
    assert ids(streamed)[0] == got[2]


def test_trimming_never_cuts_what_was_not_delivered(streamed: Scripts) -> None:
    everything = ids(streamed)
    got = deliver(streamed, 3)
    streamed.client.xack(KEYS.events, GROUP, *got)

    # A Redis that came back older: PostgreSQL has committed ids this stream gave out anew.
    assert streamed.run("trim", TRIM, GROUP, everything[-1], 1, 0) == 3
    assert ids(streamed) == everything[3:]


def test_trimming_without_a_group_or_a_stream_cuts_nothing(scripts: Scripts) -> None:
    assert scripts.run("trim", TRIM, GROUP, "5-0", 1, 7) == 0
    scripts.client.xadd(KEYS.events, {"q": "1"})

    assert scripts.run("trim", TRIM, GROUP, "99999999999999-0", 1, 7) == 0
    assert scripts.client.xlen(KEYS.events) == 1


def test_trimming_wants_a_stream_id(opened: Scripts) -> None:
    for args in [("soon", 1, 1), ("5-0", "x", 1), ("5-0", 1, "x"), ("5-0", 1, 1, "soon")]:
        assert opened.refuses("trim", TRIM, GROUP, *args).startswith("BADARG ")


def test_trimming_acknowledges_and_says_how_far_postgres_is(streamed: Scripts) -> None:
    got = deliver(streamed, 6)

    assert streamed.run("trim", TRIM, GROUP, got[-1], 1, 6, *got) == 6
    assert streamed.run("trim", TRIM, GROUP, got[-1], 1, 4) == 0, "it never goes back"
    assert streamed.run("trim", TRIM, GROUP, got[-1], 2, 9) == 0, "of another epoch it is silent"

    assert streamed.client.xpending(KEYS.events, GROUP)["pending"] == 0
    assert text(streamed.client.hget(KEYS.meta, "committed")) == "1:6"


def test_thousands_of_entries_are_acknowledged_in_one_call(opened: Scripts) -> None:
    opened.cap = 10_000
    for start in range(0, 5120, 64):
        opened.submit(*((f"user{number}", "1", 1) for number in range(start, start + 64)))
    got = deliver(opened, 5120)

    assert opened.run("trim", TRIM, GROUP, got[-1], 1, 5120, *got) == 5120


def test_a_fence_says_where_the_partition_stood(scripts: Scripts) -> None:
    assert scripts.run("fence", [KEYS.meta], "T") == [0, 0]
    scripts.open(epoch=3, seq=7)

    assert scripts.run("fence", [KEYS.meta], "U") == [3, 7]
    assert text(scripts.client.hget(KEYS.meta, "state")) == "fenced"
    assert scripts.refuses("fence", [KEYS.meta], "").startswith("BADARG ")


def test_a_fenced_board_can_still_be_read(opened: Scripts) -> None:
    opened.submit(("alice", "1", 5))
    opened.run("fence", [KEYS.meta], "T")

    assert opened.run("leaderboard", [KEYS.board, KEYS.meta], 0, 10)[2] == 1


def test_pages_of_scores_add_up_and_the_first_drops_what_was_left(scripts: Scripts) -> None:
    scripts.run("fence", [KEYS.meta], "T")
    scripts.client.zadd(KEYS.shadow, {"left by a killed run": 1})
    pair = [KEYS.meta, KEYS.shadow]

    assert scripts.run("restore", pair, "T", 1, pack(9, 5), "alice") == 1
    assert scripts.run("restore", pair, "T", 0, pack(8, 5), "bob", pack(7, 5), "carol") == 3


@on_the_real_server
def test_an_operator_without_the_fence_changes_nothing(opened: Scripts) -> None:
    opened.run("fence", [KEYS.meta], "T")
    before = opened.snapshot()
    swap = ("U", 2, 0, "0-0", GROUP, str(LAYOUT), 1, 0)
    seen = KEYS.seen(1, 1)

    for script, keys, args in [
        ("restore", [KEYS.meta, KEYS.shadow], ("U", 1, 5, "eve")),
        ("remember", [KEYS.meta, seen], ("U", 1, 2_000_000_000, b"d" * 16, "1:1:1")),
        ("open", SWAP, swap),
    ]:
        assert opened.refuses(script, keys, *args).startswith("FENCE ")
    assert opened.snapshot() == before


@on_the_real_server
def test_remembered_actions_are_replays_after_opening(scripts: Scripts) -> None:
    digest = digest_of("main", "alice", "old")
    shard = int.from_bytes(digest[:4], "big") % LAYOUT.seen_shards
    scripts.run("fence", [KEYS.meta], "T")
    scripts.run("restore", [KEYS.meta, KEYS.shadow], "T", 1, pack(40, SLOT_COUNT - 1), "alice")
    seen = [KEYS.meta, KEYS.seen(scripts.generation, shard)]
    expiry = scripts.now() + 500
    assert scripts.run("remember", seen, "T", 1, expiry, digest, "30:40:12") == 1

    scripts.run("open", SWAP, "T", 5, 12, "77-3", GROUP, str(LAYOUT), 0, 1)

    assert scripts.submit(("alice", "old", 30)) == [["replayed", 30, 40, 12]]
    assert scripts.submit(("alice", "new", 2)) == [["applied", 2, 42, 13]]
    assert 0 < scripts.client.ttl(seen[1]) <= 500


@on_the_real_server
def test_opening_swaps_board_stream_and_meta_at_once(opened: Scripts) -> None:
    opened.submit(("old", "1", 5))
    opened.run("fence", [KEYS.meta], "T")
    opened.run("restore", [KEYS.meta, KEYS.shadow], "T", 1, pack(9, SLOT_COUNT - 1), "new")

    assert opened.run("open", SWAP, "T", 2, 30, "5-0", GROUP, str(LAYOUT), 1, 1) == 1

    assert opened.board() == [("new", pack(9, SLOT_COUNT - 1))]
    assert opened.client.exists(KEYS.shadow) == 0
    assert opened.client.xlen(KEYS.events) == 0
    facts = {text(k): text(v) for k, v in opened.client.hgetall(KEYS.meta).items()}
    assert facts == {
        "epoch": "2",
        "seq": "30",
        "state": "open",
        "layout": str(LAYOUT),
        "public": "1",
    }
    assert opened.submit(("new", "2", 1)) == [["applied", 1, 10, 31]]


@on_the_real_server
def test_stream_ids_never_go_back_over_a_reopening(opened: Scripts) -> None:
    opened.submit(("alice", "1", 5))
    (last,) = ids(opened)
    opened.run("fence", [KEYS.meta], "T")
    opened.run("open", SWAP, "T", 2, 1, "0-1", GROUP, str(LAYOUT), 1, 0)

    opened.submit(("alice", "2", 5))

    (after,) = ids(opened)
    assert [int(part) for part in after.split("-")] > [int(part) for part in last.split("-")]
    assert deliver(opened, 10) == [after]


@on_the_real_server
@pytest.mark.parametrize(
    "changed",
    [{1: 1}, {1: 0}, {1: "x"}, {2: -1}, {3: "later"}, {5: "1:2"}, {6: 2}, {7: "x"}],
)
def test_opening_with_wrong_arguments_changes_nothing(
    opened: Scripts, changed: dict[int, object]
) -> None:
    opened.run("fence", [KEYS.meta], "T")
    before = opened.snapshot()
    args: list[object] = ["T", 2, 0, "0-0", GROUP, str(LAYOUT), 1, 0]
    for place, value in changed.items():
        args[place] = value

    assert opened.refuses("open", SWAP, *args).startswith("BADARG ")
    assert opened.snapshot() == before


@on_the_real_server
def test_an_incomplete_shadow_is_not_opened(opened: Scripts) -> None:
    opened.run("fence", [KEYS.meta], "T")
    opened.run("restore", [KEYS.meta, KEYS.shadow], "T", 1, 5, "alice")

    refusal = opened.refuses("open", SWAP, "T", 2, 0, "0-0", GROUP, str(LAYOUT), 1, 2)

    assert refusal.startswith("FENCE ")
