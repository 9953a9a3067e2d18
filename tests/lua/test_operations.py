"""trim.lua, fence.lua, restore.lua, remember.lua, open.lua, mirror.lua, history.lua."""

import pytest
import redis

from scoreboard.model import SLOT_COUNT, digest_of, pack
from scoreboard.store.keys import ACTIONS, COMMITS_PREFIX, GROUP
from tests.support.clients.scripts import KEYS, LAYOUT, Scripts, text

from .conftest import on_the_real_server

TRIM = [KEYS.events, KEYS.meta]
COMMITS = COMMITS_PREFIX + "main"
SWAP = [KEYS.board, KEYS.shadow, KEYS.events, KEYS.meta, KEYS.changes]


def ids(scripts: Scripts) -> list[str]:
    return [text(position) for position, _ in scripts.client.xrange(KEYS.events)]


def deliver(scripts: Scripts, count: int) -> list[str]:
    reply = scripts.client.xreadgroup(GROUP, "one", {KEYS.events: ">"}, count=count)
    return [text(position) for position, _ in reply[0][1]]


@pytest.fixture
def streamed(opened: Scripts) -> Scripts:
    """Return an open partition with ten events in its stream, none delivered."""
    opened.submit(*((f"user{n}", "1", n + 1) for n in range(10)))
    return opened


def trim(scripts: Scripts, got: list[str], *, first: int, last: int, epoch: int = 1) -> int:
    args = (GROUP, scripts.history, epoch, got[-1], first, last, COMMITS, *got)
    removed, _ = scripts.run("trim", TRIM, *args)
    return removed


@on_the_real_server
def test_trim_acknowledges_removes_and_stores_the_committed_position(streamed: Scripts) -> None:
    got = deliver(streamed, 6)

    assert trim(streamed, got, first=1, last=6) == 6

    assert len(ids(streamed)) == 4
    assert streamed.client.xpending(KEYS.events, GROUP)["pending"] == 0
    assert text(streamed.client.hget(KEYS.meta, "committed")) == "1:6"


@on_the_real_server
def test_trim_publishes_a_new_committed_position(streamed: Scripts) -> None:
    got = deliver(streamed, 6)
    with streamed.client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(COMMITS)
        listener.get_message(timeout=1)

        trim(streamed, got, first=1, last=6)
        trim(streamed, got, first=1, last=6)

        message = listener.get_message(timeout=1)
        assert message is not None
        assert text(message["data"]) == "1:6"
        assert listener.get_message(timeout=0.05) is None


@on_the_real_server
def test_trim_returns_how_many_subscribers_wait_for_commits(streamed: Scripts) -> None:
    got = deliver(streamed, 6)

    def receivers(last: int) -> int:
        args = (GROUP, streamed.history, 1, got[-1], 1, last, COMMITS, *got)
        return streamed.run("trim", TRIM, *args)[1]

    assert receivers(2) == 0
    assert receivers(2) == -1, "the position has not moved"
    with streamed.client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(COMMITS)
        listener.get_message(timeout=1)
        assert receivers(6) == 1


@on_the_real_server
def test_trim_stops_before_the_oldest_pending_entry(streamed: Scripts) -> None:
    got = deliver(streamed, 6)

    trim(streamed, [*got[:2], *got[3:]], first=1, last=6)

    assert ids(streamed)[0] == got[2]


@on_the_real_server
def test_trim_keeps_undelivered_entries(streamed: Scripts) -> None:
    everything = ids(streamed)
    got = deliver(streamed, 3)

    # The last id is one that was not delivered, as after a failover to a server behind.
    assert trim(streamed, [*got, everything[-1]], first=1, last=3) == 3
    assert ids(streamed) == everything[3:]


@on_the_real_server
def test_trim_without_a_group_or_stream_removes_nothing(opened: Scripts) -> None:
    opened.client.delete(KEYS.events)
    assert trim(opened, ["5-0"], first=1, last=7) == 0
    opened.client.xadd(KEYS.events, {"q": "1"})

    assert trim(opened, ["99999999999999-0"], first=1, last=8) == 0
    assert opened.client.xlen(KEYS.events) == 1


@on_the_real_server
@pytest.mark.parametrize(
    "changed", [{1: "0123"}, {2: 2}, {4: 8}], ids=["history", "epoch", "a gap before it"]
)
def test_trim_changes_nothing_for_an_outdated_caller(
    streamed: Scripts, changed: dict[int, object]
) -> None:
    got = deliver(streamed, 9)
    trim(streamed, got[:6], first=1, last=6)
    before = streamed.snapshot()
    args: list[object] = [GROUP, streamed.history, 1, got[-1], 7, 9, COMMITS, *got[6:]]
    for place, value in changed.items():
        args[place] = value

    assert streamed.refuses("trim", TRIM, *args).startswith("STALE ")
    assert streamed.snapshot() == before
    assert streamed.client.xpending(KEYS.events, GROUP)["pending"] == 3


@on_the_real_server
def test_repeated_trims_never_lower_the_position(streamed: Scripts) -> None:
    got = deliver(streamed, 6)
    trim(streamed, got, first=1, last=6)

    assert trim(streamed, got[:4], first=1, last=4) == 0
    assert text(streamed.client.hget(KEYS.meta, "committed")) == "1:6"


@on_the_real_server
def test_trim_accepts_known_gaps_and_entries_without_a_seq(
    streamed: Scripts,
) -> None:
    got = deliver(streamed, 9)
    trim(streamed, got[:2], first=1, last=2)
    streamed.client.xdel(KEYS.events, got[3])
    streamed.client.xadd(KEYS.events, {"invalid": "1"})

    assert trim(streamed, got[2:7], first=0, last=7) == 4
    assert text(streamed.client.hget(KEYS.meta, "committed")) == "1:7"
    assert trim(streamed, [*got[7:], *deliver(streamed, 9)], first=0, last=10) == 4
    assert ids(streamed) == []


@on_the_real_server
@pytest.mark.parametrize("is_whole", [True, False])
def test_entries_of_a_deleted_consumer_are_not_trimmed_after_invalid_records(
    streamed: Scripts, is_whole: bool
) -> None:
    """The group counts the entry as delivered and not pending, but it is not committed."""
    deliver(streamed, 10)
    streamed.client.xgroup_delconsumer(KEYS.events, GROUP, "one")
    streamed.client.xadd(KEYS.events, {"invalid": "1"})
    streamed.submit(("late", "1", 1))
    got = deliver(streamed, 2)
    before = streamed.snapshot()

    args = (GROUP, streamed.history, 1, got[-1], 11 if is_whole else 0, 11, COMMITS, *got)

    assert streamed.refuses("trim", TRIM, *args).startswith("STALE ")
    assert streamed.snapshot() == before


@on_the_real_server
def test_trim_is_refused_for_an_empty_partition(scripts: Scripts) -> None:
    args = (GROUP, scripts.history, 1, "5-0", 1, 1, COMMITS)

    assert scripts.refuses("trim", TRIM, *args).startswith("UNINIT ")


@on_the_real_server
def test_trim_needs_a_stream_id(opened: Scripts) -> None:
    good: list[object] = [GROUP, opened.history, 1, "5-0", 1, 1, COMMITS, "5-0"]
    for place, value in [(3, "soon"), (2, "x"), (4, "x"), (5, "x"), (7, "soon")]:
        args = [*good[:place], value, *good[place + 1 :]]
        assert opened.refuses("trim", TRIM, *args).startswith("BADARG ")


@on_the_real_server
def test_thousands_of_entries_are_acknowledged_in_one_call(opened: Scripts) -> None:
    opened.cap = 10_000
    for start in range(0, 5120, 64):
        opened.submit(*((f"user{number}", "1", 1) for number in range(start, start + 64)))
    got = deliver(opened, 5120)

    assert trim(opened, got, first=1, last=5120) == 5120


def test_a_fence_returns_the_position(scripts: Scripts) -> None:
    assert scripts.fence("T") == [0, 0]
    scripts.open(epoch=3, seq=7)

    assert scripts.fence("U") == [3, 7]
    assert text(scripts.client.hget(KEYS.meta, "state")) == "fenced"


@pytest.mark.parametrize(
    "args", [(), ("",), ("T",), ("a token", 0, "", -1), ("T", "x", "", -1), ("T", 0, "", "x")]
)
def test_a_fence_needs_a_token_and_the_state_the_caller_read(
    opened: Scripts, args: tuple[object, ...]
) -> None:
    before = opened.snapshot()

    assert opened.refuses("fence", [KEYS.meta], *args).startswith("BADARG ")
    assert opened.snapshot() == before


@on_the_real_server
@pytest.mark.parametrize(
    ("meanwhile", "seen"),
    [
        ({"epoch": 2}, (1, "", -1)),
        ({"state": "fenced", "fence": "newer"}, (1, "", -1)),
        ({"state": "fenced", "fence": "newer"}, (1, "older", -1)),
        ({"committed": "1:8"}, (1, "", 7)),
    ],
)
def test_a_fence_of_an_outdated_caller_is_refused(
    opened: Scripts, meanwhile: dict[str, object], seen: tuple[object, ...]
) -> None:
    opened.client.hset(KEYS.meta, mapping=meanwhile)
    before = opened.snapshot()

    assert opened.refuses("fence", [KEYS.meta], "T", *seen).startswith("STALE ")
    assert opened.snapshot() == before


@on_the_real_server
def test_a_fence_with_the_committed_position_is_accepted(
    opened: Scripts,
) -> None:
    opened.client.hset(KEYS.meta, "committed", "1:7")

    assert opened.run("fence", [KEYS.meta], "T", 1, "", 7) == [1, 0]


def test_a_fenced_board_can_still_be_read(opened: Scripts) -> None:
    opened.submit(("alice", "1", 5))
    opened.fence("T")

    assert opened.run("leaderboard", [KEYS.board, KEYS.meta], 0, 10)[2] == 1


def test_pages_of_scores_accumulate_and_the_first_empties_the_shadow(scripts: Scripts) -> None:
    scripts.fence("T")
    scripts.client.zadd(KEYS.shadow, {"left by a killed run": 1})
    pair = [KEYS.meta, KEYS.shadow]

    assert scripts.run("restore", pair, "T", 1, pack(9, 5), "alice") == 1
    assert scripts.run("restore", pair, "T", 0, pack(8, 5), "bob", pack(7, 5), "carol") == 3


@on_the_real_server
def test_an_operator_without_the_fence_changes_nothing(opened: Scripts) -> None:
    opened.fence("T")
    before = opened.snapshot()
    swap = ("U", 2, 0, "0-0", GROUP, str(LAYOUT), 1, 0)
    seen = KEYS.dedup_shard(1, 1)

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
    scripts.fence("T")
    scripts.run("restore", [KEYS.meta, KEYS.shadow], "T", 1, pack(40, SLOT_COUNT - 1), "alice")
    seen = [KEYS.meta, KEYS.dedup_shard(scripts.generation, shard)]
    expiry = scripts.now() + 500
    assert scripts.run("remember", seen, "T", 1, expiry, digest, "30:40:12") == 1

    scripts.run("open", SWAP, "T", 5, 12, "77-3", GROUP, str(LAYOUT), 0, 1)

    assert scripts.submit(("alice", "old", 30)) == [["replayed", 30, 40, 12]]
    assert scripts.submit(("alice", "new", 2)) == [["applied", 2, 42, 13]]
    assert 0 < scripts.client.ttl(seen[1]) <= 500


@on_the_real_server
def test_opening_replaces_board_stream_and_meta_atomically(opened: Scripts) -> None:
    opened.submit(("old", "1", 5))
    trim(opened, deliver(opened, 1), first=1, last=1)
    opened.client.hset(KEYS.meta, "invalid", "x")
    opened.fence("T")
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
        "committed": "2:30",
    }
    assert opened.submit(("new", "2", 1)) == [["applied", 1, 10, 31]]


@on_the_real_server
def test_stream_ids_never_decrease_after_a_reopening(opened: Scripts) -> None:
    opened.submit(("alice", "1", 5))
    (last,) = deliver(opened, 1)
    trim(opened, [last], first=1, last=1)
    opened.fence("T")
    opened.run("open", SWAP, "T", 2, 1, "0-1", GROUP, str(LAYOUT), 1, 0)

    opened.submit(("alice", "2", 5))

    (after,) = ids(opened)
    assert [int(part) for part in after.split("-")] > [int(part) for part in last.split("-")]
    assert deliver(opened, 10) == [after]


@on_the_real_server
@pytest.mark.parametrize(
    "changed",
    [{1: 1}, {1: 0}, {1: "x"}, {2: -1}, {2: 4}, {3: "later"}, {5: "1:2"}, {6: 2}, {7: "x"}],
)
def test_opening_with_wrong_arguments_changes_nothing(
    opened: Scripts, changed: dict[int, object]
) -> None:
    opened.client.hset(KEYS.meta, "seq", 5)
    opened.fence("T")
    before = opened.snapshot()
    args: list[object] = ["T", 2, 5, "0-0", GROUP, str(LAYOUT), 1, 0]
    for place, value in changed.items():
        args[place] = value

    assert opened.refuses("open", SWAP, *args).startswith("BADARG ")
    assert opened.snapshot() == before


@on_the_real_server
def test_an_incomplete_shadow_is_not_opened(opened: Scripts) -> None:
    opened.fence("T")
    opened.run("restore", [KEYS.meta, KEYS.shadow], "T", 1, 5, "alice")

    refusal = opened.refuses("open", SWAP, "T", 2, 0, "0-0", GROUP, str(LAYOUT), 1, 2)

    assert refusal.startswith("FENCE ")


@on_the_real_server
@pytest.mark.parametrize("delivered", [0, 1, 2])
def test_opening_is_refused_with_uncommitted_entries(opened: Scripts, delivered: int) -> None:
    opened.submit(("alice", "1", 5), ("bob", "1", 5))
    if delivered:
        deliver(opened, delivered)
    opened.fence("T")
    before = opened.snapshot()

    refusal = opened.refuses("open", SWAP, "T", 2, 9, "0-0", GROUP, str(LAYOUT), 1, 0)

    assert refusal.startswith("LAG ")
    assert opened.snapshot() == before


@on_the_real_server
def test_opening_is_refused_for_a_stream_without_its_group(opened: Scripts) -> None:
    opened.submit(("alice", "1", 5))
    opened.client.xgroup_destroy(KEYS.events, GROUP)
    opened.fence("T")

    refusal = opened.refuses("open", SWAP, "T", 2, 9, "0-0", GROUP, str(LAYOUT), 1, 0)

    assert refusal.startswith("LAG ")


def test_the_later_of_two_catalogue_copies_remains(scripts: Scripts) -> None:
    def mirror(seen: int, **points: int) -> int:
        flat = [value for pair in points.items() for value in pair]
        return scripts.run("mirror", [ACTIONS], seen, "channel", *flat)

    assert mirror(0, win=10, old=1) == 1
    assert mirror(1, win=20) == 2

    refusal = scripts.refuses("mirror", [ACTIONS], 1, "channel", "win", 10)

    assert refusal.startswith("STALE ")
    held = {text(k): text(v) for k, v in scripts.client.hgetall(ACTIONS).items()}
    assert held == {"win": "20", ":version": "2"}


def test_a_copy_of_the_catalogue_has_the_rules_of_kinds(scripts: Scripts) -> None:
    rules = '{"scope":"scores:raid"}'
    assert scripts.run("mirror", [ACTIONS], 0, "channel", "raid", 10, "raid:rules", rules) == 1
    assert text(scripts.client.hget(ACTIONS, "raid:rules")) == rules
    assert scripts.run("mirror", [ACTIONS], 1, "channel", "raid", 10) == 2
    assert scripts.client.hget(ACTIONS, "raid:rules") is None


@pytest.mark.parametrize(
    "args",
    [
        (),
        (0,),
        ("x", "channel"),
        (0, "channel", "win"),
        (0, "t", "win", "x"),
        (0, "t", "win:rules", "{}", "win", "x"),
    ],
)
def test_a_copy_of_the_catalogue_needs_valid_points(
    scripts: Scripts, args: tuple[object, ...]
) -> None:
    assert scripts.refuses("mirror", [ACTIONS], *args).startswith("BADARG ")


def test_a_catalogue_of_another_type_is_replaced(scripts: Scripts) -> None:
    scripts.client.set(ACTIONS, "invalid")

    assert scripts.run("mirror", [ACTIONS], 0, "channel", "win", 10) == 1
    assert scripts.client.hgetall(ACTIONS)


@on_the_real_server
def test_history_returns_the_replication_id(scripts: Scripts) -> None:
    assert scripts.history == scripts.client.info("replication")["master_replid"]


@on_the_real_server
def test_a_server_that_hides_its_replication_id_is_still_trimmed(streamed: Scripts) -> None:
    got = deliver(streamed, 6)
    streamed.client.acl_setuser(
        "restricted", enabled=True, nopass=True, keys="*", categories=["+@all"], commands=["-info"]
    )
    try:
        port = streamed.client.connection_pool.connection_kwargs["port"]
        with redis.Redis(port=port, username="restricted", password="any") as client:
            restricted = Scripts(client, is_real=True)
            assert restricted.history == ""
            assert trim(restricted, got, first=1, last=6) == 6
    finally:
        streamed.client.acl_deluser("restricted")


RETIRE = [KEYS.meta, KEYS.board, KEYS.shadow, KEYS.events]


@on_the_real_server
def test_a_retired_partition_returns_the_new_layout_and_reads_as_empty(opened: Scripts) -> None:
    opened.submit(("alice", "1", 5))
    got = deliver(opened, 1)
    trim(opened, got, first=1, last=1)
    opened.fence("T")

    for _ in range(2):  # an answer may be lost
        assert opened.run("retire", RETIRE, "T", "3:60:1", GROUP) == 1

    keys, args = opened.submit_call(("alice", "1", 5))
    assert opened.refuses("submit", keys, *args).startswith("LAYOUT 3:60:1 ")
    assert opened.refuses("leaderboard", [KEYS.board, KEYS.meta], 0, 1).startswith("UNINIT ")
    assert not opened.client.exists(KEYS.board, KEYS.shadow, KEYS.events)


def test_a_retired_partition_of_a_board_with_seasons_returns_the_new_layout(
    opened: Scripts,
) -> None:
    """Without its season it looked empty, and a caller with the old layout was refused for ever."""
    layout = "3:60:1:add:highest:0:2147483647:nobody:catalogue:daily@UTC"
    opened.fence("T")
    opened.run("retire", RETIRE, "T", layout, GROUP)

    keys, args = opened.submit_call(("alice", "1", 5))
    assert opened.refuses("submit", keys, *args).startswith(f"LAYOUT {layout} ")


@on_the_real_server
def test_a_partition_whose_stream_is_not_committed_is_not_retired(opened: Scripts) -> None:
    opened.submit(("alice", "1", 5))
    opened.fence("T")

    assert opened.refuses("retire", RETIRE, "T", "3:60:1", GROUP).startswith("LAG ")
    deliver(opened, 1)
    assert opened.refuses("retire", RETIRE, "T", "3:60:1", GROUP).startswith("LAG ")

    assert opened.client.zcard(KEYS.board) == 1
    assert text(opened.client.hget(KEYS.meta, "state")) == "fenced"


def test_retiring_needs_the_fence_and_a_layout(opened: Scripts) -> None:
    opened.fence("T")

    assert opened.refuses("retire", RETIRE, "U", "3:60:1", GROUP).startswith("FENCE ")
    assert opened.refuses("retire", RETIRE, "T", "three", GROUP).startswith("BADARG ")


def test_a_staged_partition_accepts_actions_and_can_be_loaded(opened: Scripts) -> None:
    assert opened.run("stage", [KEYS.meta], "T", 1, "") == 1

    opened.submit(("alice", "1", 5))
    assert opened.run("restore", [KEYS.meta, KEYS.shadow], "T", 1, pack(9, 5), "bob") == 1
    assert opened.refuses("restore", [KEYS.meta, KEYS.shadow], "U", 1).startswith("FENCE ")
    assert opened.run("fence", [KEYS.meta], "T", 1, "T", -1) == [1, 1]


def test_a_partition_that_is_staged_before_it_exists_reads_as_empty(scripts: Scripts) -> None:
    assert scripts.run("stage", [KEYS.meta], "T", 0, "") == 1

    keys, args = scripts.submit_call(("alice", "1", 5))
    assert scripts.refuses("submit", keys, *args).startswith("UNINIT ")
    assert scripts.refuses("leaderboard", [KEYS.board, KEYS.meta], 0, 1).startswith("UNINIT ")


@pytest.mark.parametrize(
    "args", [(), ("",), ("T",), ("a token", 1, ""), ("T", "x", ""), ("T", 1)], ids=str
)
def test_staging_needs_a_token_and_the_state_the_caller_read(
    opened: Scripts, args: tuple[object, ...]
) -> None:
    before = opened.snapshot()

    assert opened.refuses("stage", [KEYS.meta], *args).startswith("BADARG ")
    assert opened.snapshot() == before


@pytest.mark.parametrize("meanwhile", [{"epoch": 2}, {"fence": "newer"}], ids=str)
def test_staging_of_an_outdated_caller_is_refused(
    opened: Scripts, meanwhile: dict[str, object]
) -> None:
    opened.client.hset(KEYS.meta, mapping=meanwhile)
    before = opened.snapshot()

    assert opened.refuses("stage", [KEYS.meta], "T", 1, "").startswith("STALE ")
    assert opened.snapshot() == before


RELEASE = [KEYS.meta, KEYS.shadow]


@pytest.mark.parametrize("state", ["open", "archived"])
def test_a_released_partition_goes_on_with_what_it_holds(opened: Scripts, state: str) -> None:
    opened.submit(("alice", "1", 5))
    before = opened.snapshot()
    opened.fence("T")
    opened.run("restore", [KEYS.meta, KEYS.shadow], "T", 1, pack(9, 5), "bob")

    assert opened.run("release", RELEASE, "T", state) == 1

    assert text(opened.client.hget(KEYS.meta, "state")) == state
    if state == "open":
        assert opened.snapshot() == before
        opened.submit(("alice", "2", 5))


def test_a_release_needs_the_fence_and_a_partition(opened: Scripts) -> None:
    opened.fence("T")

    assert opened.refuses("release", RELEASE, "U", "open").startswith("FENCE ")
    assert opened.refuses("release", RELEASE, "T", "fenced").startswith("BADARG ")
    opened.client.hdel(KEYS.meta, "epoch")
    assert opened.refuses("release", RELEASE, "T", "open").startswith("UNINIT ")
    assert text(opened.client.hget(KEYS.meta, "state")) == "fenced"
