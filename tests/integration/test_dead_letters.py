"""Dead letters are applied once or discarded, and both stores agree afterwards."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import redis

from scoreboard.errors import OperatorMistake
from scoreboard.ledger import dead_letters
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.pool import connect
from scoreboard.model import (
    SCORE_MAX,
    Action,
    Board,
    Layout,
    Partition,
    Receipt,
    pack,
    partition_of,
    unpack_score,
)
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.keys import PartitionKeys
from tests.support.clients.commands import Run, with_database
from tests.support.eventually import eventually_async
from tests.support.servers.flushers import (
    KEYS,
    act,
    check_invariants,
    dispatching,
    flushing,
    is_drained,
    make_board,
    query,
)

pytestmark = pytest.mark.slow

BAD = ("bob", "win:bad", 7)
GOOD = [("alice", "win:1", 5), ("bob", "win:1", 5), ("carol", "win:1", 12)]


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url), database_url=Secret(database_url), flusher_metrics_port=0
    )


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis[str]"]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def refuse_bad(settings: Settings) -> None:
    """Add a constraint with which the ledger refuses one action."""
    query(
        settings,
        "ALTER TABLE score_events ADD CONSTRAINT too_strict CHECK (action_id <> 'win:bad')",
    )


def allow_bad(settings: Settings) -> None:
    query(settings, "ALTER TABLE score_events DROP CONSTRAINT too_strict")


async def make_dead_letter(settings: Settings, *, board: Board | None = None) -> None:
    """Acknowledge four actions, one of which the flusher cannot store."""
    await make_board(settings, board)
    refuse_bad(settings)
    partitions = (board or Board()).layout.partitions
    async with flushing(settings):
        await act(settings, *(Action(*one) for one in [*GOOD, BAD]))
        await eventually_async(lambda: is_drained(settings, partitions=partitions))
    [(count,)] = query(settings, "SELECT count(*) FROM dead_events")
    assert count == 1


async def flush_until(settings: Settings, check: Any) -> None:
    async with flushing(settings):
        await eventually_async(check)
        await eventually_async(lambda: is_drained(settings))


def score_of(client: "redis.Redis[str]", user: str, partition: int = 0) -> int | None:
    packed = client.zscore(PartitionKeys(Partition("main", partition)).board, user)
    return None if packed is None else unpack_score(int(packed))


def open_corrections(settings: Settings) -> int:
    [(count,)] = query(
        settings,
        "SELECT count(*) FROM rejected_events"
        " WHERE corrected_at IS NULL AND reason <> 'correction'",
    )
    return count


def test_an_applied_dead_letter_gets_one_ledger_row(command: Run, settings: Settings) -> None:
    asyncio.run(make_dead_letter(settings))
    [entry] = json.loads(command("dead", "list", "--json").out)
    assert (entry["user_id"], entry["action_id"], entry["delta"]) == BAD
    assert "too_strict" in entry["reason"]
    assert "win:bad" in command("dead", "list").out
    assert command("verify", "--full").code == 0
    number = str(entry["id"])

    refused = command("dead", "apply", number, "--yes")
    assert refused.code == 5
    assert "it still cannot be stored: 23514 too_strict" in refused.out
    assert json.loads(command("dead", "list", "--json").out) == [entry]
    allow_bad(settings)
    before = query(settings, "SELECT count(*) FROM audit_log")
    dry = command("dead", "apply", number, "--dry-run", "--json")
    assert (dry.code, json.loads(dry.out)[0]["outcome"]) == (0, "applied")
    assert query(settings, "SELECT count(*) FROM audit_log") == before
    assert command("dead", "apply", number).code == 5, (
        "it requires a confirmation, and there is no terminal"
    )

    done = command("dead", "apply", number, "--yes", "--json")

    assert (done.code, json.loads(done.out)[0]["outcome"]) == (0, "applied")
    check_invariants(settings, [*GOOD, BAD])
    assert command("verify", "--full").code == 0
    assert json.loads(command("dead", "list", "--json").out) == []
    [kept] = json.loads(command("dead", "list", "--resolved", "--json").out)
    assert (kept["resolution"], bool(kept["resolved_by"])) == ("applied", True)
    [(detail,)] = query(settings, "SELECT detail FROM audit_log WHERE action = 'dead apply'")
    assert (detail["user"], detail["action"], detail["delta"]) == BAD
    again = command("dead", "apply", number, "--yes")
    assert (again.code, "already resolved" in again.out) == (5, True)
    assert command("dead", "apply", "999", "--yes").code == 3
    check_invariants(settings, [*GOOD, BAD])


def test_a_replay_of_an_applied_action_does_not_count_again(
    command: Run, settings: Settings
) -> None:
    asyncio.run(make_dead_letter(settings, board=Board(layout=Layout(1, 1, 1))))
    allow_bad(settings)
    assert command("dead", "apply", "--all", "--yes").code == 0

    async def repeat() -> None:
        async with flushing(settings):

            async def counts_again() -> bool:
                [receipt] = await act(settings, Action(*BAD))
                assert isinstance(receipt, Receipt)
                return not receipt.replayed

            await eventually_async(counts_again, every_s=0.2)
            await eventually_async(lambda: is_drained(settings) and not open_corrections(settings))

    asyncio.run(repeat())
    check_invariants(settings, [*GOOD, BAD])
    assert command("verify", "--full").code == 0


def test_a_dead_letter_whose_repeat_counted_is_a_duplicate(
    command: Run, settings: Settings, client: "redis.Redis[str]"
) -> None:
    asyncio.run(make_dead_letter(settings, board=Board(layout=Layout(1, 1, 1))))
    allow_bad(settings)

    async def repeat() -> None:
        async with flushing(settings):

            async def counts_again() -> bool:
                [receipt] = await act(settings, Action(*BAD))
                return isinstance(receipt, Receipt) and not receipt.replayed

            await eventually_async(counts_again, every_s=0.2)
            await eventually_async(lambda: is_drained(settings))

    asyncio.run(repeat())
    assert score_of(client, "bob") == 5 + 7 + 7
    assert command("verify", "--full").code == 0

    done = command("dead", "apply", "--all", "--yes", "--json")

    assert json.loads(done.out)[0]["outcome"] == "duplicate"
    assert len(json.loads(command("verify", "--full", "--json").out)["known"]) == 1
    asyncio.run(flush_until(settings, lambda: not open_corrections(settings)))
    assert score_of(client, "bob") == 12
    assert command("verify", "--full").code == 0


def test_a_redelivered_and_stored_dead_letter_is_not_unresolved(
    command: Run, settings: Settings, client: "redis.Redis[str]"
) -> None:
    asyncio.run(make_dead_letter(settings))
    allow_bad(settings)
    [(seq,)] = query(settings, "SELECT seq FROM dead_events")
    user, action, delta = BAD
    fields = {"q": seq, "u": user, "a": action, "d": delta, "s": 12, "e": 1}
    client.xadd(KEYS.events, fields)

    def is_recovered() -> bool:
        rows = query(settings, "SELECT count(*) FROM score_events")
        # The seq was committed before, which looks like a rewind: the flusher reseeds.
        return rows == [(len(GOOD) + 1,)] and client.hget(KEYS.meta, "epoch") == "2"

    asyncio.run(flush_until(settings, is_recovered))

    assert score_of(client, "bob") == 12
    assert command("verify", "--full").code == 0
    assert command("reseed", "--force", "--yes").code == 0
    assert score_of(client, "bob") == 12
    done = command("dead", "apply", "--all", "--yes", "--json")
    assert json.loads(done.out)[0]["outcome"] == "duplicate"
    asyncio.run(flush_until(settings, lambda: not open_corrections(settings)))
    assert score_of(client, "bob") == 12
    check_invariants(settings, [*GOOD, BAD])


@pytest.mark.parametrize("partitions", [1, 3])
def test_redis_is_corrected_after_a_discard(
    partitions: int, command: Run, settings: Settings, client: "redis.Redis[str]"
) -> None:
    asyncio.run(make_dead_letter(settings, board=Board(layout=Layout(partitions=partitions))))
    number = str(json.loads(command("dead", "list", "--json").out)[0]["id"])
    assert command("dead", "discard", number, "--yes").code == 2, "a reason is required"
    for wrong in (" ", "a" * 501, "a\nb", "\u202egnp.exe"):
        assert command("dead", "discard", number, "--reason", wrong, "--yes").code == 2
    reason = "یک \u200cآزمایش 👩\u200d🚀"

    done = command("dead", "discard", number, "--reason", reason, "--yes")

    assert done.code == 0
    verdict = json.loads(command("verify", "--full", "--json").out)
    assert [(one["redis"], one["wanted"]) for one in verdict["known"]] == [(12, 5)]
    assert not verdict["drifted"]

    async def correct() -> None:
        async with flushing(settings):
            await eventually_async(
                lambda: (
                    is_drained(settings, partitions=partitions) and not open_corrections(settings)
                ),
            )

    asyncio.run(correct())
    check_invariants(settings, GOOD, partitions=partitions)
    assert command("verify", "--full").code == 0
    [kept] = json.loads(command("dead", "list", "--resolved", "--json").out)
    assert (kept["resolution"], kept["resolved_reason"]) == ("discarded", reason)
    assert reason in command("dead", "list", "--resolved").out


def test_a_user_whose_only_action_is_discarded_is_removed_from_the_board(
    command: Run, settings: Settings, client: "redis.Redis[str]"
) -> None:
    async def prepare() -> None:
        await make_board(settings)
        refuse_bad(settings)
        async with flushing(settings):
            await act(settings, Action("dave", "win:bad", 9), Action("alice", "win:1", 5))
            await eventually_async(lambda: is_drained(settings))

    asyncio.run(prepare())
    assert score_of(client, "dave") == 9

    assert command("dead", "discard", "--all", "--reason", "x", "--yes").code == 0
    asyncio.run(flush_until(settings, lambda: not open_corrections(settings)))

    assert score_of(client, "dave") is None
    check_invariants(settings)
    assert command("verify", "--full").code == 0


def test_a_discard_after_a_correction_is_still_corrected(
    command: Run, settings: Settings, client: "redis.Redis[str]"
) -> None:
    """That correction used the earlier expected score and must not close the later one."""
    asyncio.run(make_dead_letter(settings))
    seq = int(client.hget(KEYS.meta, "seq") or 0)
    client.zadd(KEYS.board, {"bob": pack(11, 3)})
    client.hset(KEYS.meta, "seq", seq + 1)
    fields = {"q": seq + 1, "u": "bob", "a": f"correction:{seq}", "d": -1, "s": 11, "e": 1}
    client.xadd(KEYS.events, {**fields, "k": "c"})

    assert command("dead", "discard", "--all", "--reason", "x", "--yes").code == 0
    asyncio.run(flush_until(settings, lambda: score_of(client, "bob") == 5))

    assert command("verify", "--full").code == 0


def test_a_reseed_restores_dead_letters_and_their_records(
    command: Run, settings: Settings, client: "redis.Redis[str]"
) -> None:
    asyncio.run(make_dead_letter(settings))
    client.flushall()

    assert command("reseed").code == 0

    assert score_of(client, "bob") == 12
    assert command("verify", "--full").code == 0
    [receipt] = asyncio.run(act(settings, Action(*BAD)))
    assert isinstance(receipt, Receipt)
    assert (receipt.replayed, receipt.score) == (True, 12)
    allow_bad(settings)
    assert command("dead", "apply", "--all", "--yes").code == 0
    assert command("verify", "--full").code == 0
    check_scores = query(
        settings,
        "SELECT u.external_id, s.score FROM scores s JOIN users u ON u.id = s.user_id ORDER BY 1",
    )
    assert check_scores == [("alice", 5), ("bob", 12), ("carol", 12)]
    shown = client.zrange(KEYS.board, 0, -1, desc=True)
    assert shown == ["carol", "bob", "alice"]


def test_a_reseed_after_a_discard_leaves_nothing_to_correct(
    command: Run, settings: Settings, client: "redis.Redis[str]"
) -> None:
    asyncio.run(make_dead_letter(settings))
    assert command("dead", "discard", "--all", "--reason", "x", "--yes").code == 0
    query(settings, "UPDATE boards SET partitions = 2")

    assert command("reseed").code == 0

    assert open_corrections(settings) == 0
    assert score_of(client, "bob", 0) in {5, None}
    assert command("verify", "--full").code == 0


def test_an_undecodable_entry_counts_with_the_supplied_values(
    command: Run, settings: Settings, client: "redis.Redis[str]"
) -> None:
    async def prepare() -> None:
        await make_board(settings)
        await act(settings, *(Action(*one) for one in GOOD))
        client.xadd(KEYS.events, {"u": "alice", "a": "win:lost", "d": "ten", "q": "x"})
        client.xadd(KEYS.events, {"hello": "w\xf6rld"})
        async with flushing(settings):
            await eventually_async(lambda: is_drained(settings))

    asyncio.run(prepare())
    first, second = json.loads(command("dead", "list", "--json").out)
    assert (first["user_id"], first["delta"]) == ("alice", None)

    missing = command("dead", "apply", str(first["id"]), "--yes")
    assert (missing.code, "add --delta" in missing.out) == (5, True)
    all_of_them = command("dead", "apply", "--all", "--yes", "--json")
    assert all_of_them.code == 5
    assert [one["outcome"] for one in json.loads(all_of_them.out)] == ["refused"] * 2
    assert command("dead", "apply", "1", "2", "--delta", "3", "--yes").code == 2
    bad = command("dead", "apply", str(first["id"]), "--delta", "3", "--user", "a b", "--yes")
    assert bad.code == 5

    done = command("dead", "apply", str(first["id"]), "--delta", "10", "--yes")
    assert done.code == 0, done
    assert command("dead", "discard", str(second["id"]), "--reason", "invalid", "--yes").code == 0

    verdict = json.loads(command("verify", "--full", "--json").out)
    assert [(one["redis"], one["wanted"]) for one in verdict["known"]] == [(5, 15)]
    assert not verdict["drifted"]
    asyncio.run(flush_until(settings, lambda: not open_corrections(settings)))
    check_invariants(settings, [*GOOD, ("alice", "win:lost", 10)])
    assert command("verify", "--full").code == 0
    assert command("reseed", "--force", "--yes").code == 0
    assert command("verify", "--full").code == 0


def test_a_late_duplicate_right_after_a_resolution_is_corrected(
    command: Run, settings: Settings, client: "redis.Redis[str]"
) -> None:
    """Its seq is that of the resolution's row."""

    async def prepare() -> None:
        await make_board(settings)
        await act(settings, Action("alice", "win:1", 5))
        client.xadd(KEYS.events, {"u": "alice", "a": "win:lost", "d": "ten", "q": "x"})
        async with flushing(settings):
            await eventually_async(lambda: is_drained(settings))

    async def repeat() -> None:
        async with flushing(settings):
            [receipt] = await act(settings, Action("alice", "win:lost", 10))
            assert isinstance(receipt, Receipt)
            assert not receipt.replayed
            await eventually_async(lambda: is_drained(settings) and score_of(client, "alice") == 15)

    asyncio.run(prepare())
    client.zincrby(
        KEYS.board, pack(10, 0), "alice"
    )  # Redis has counted the entry that cannot be decoded
    number = str(json.loads(command("dead", "list", "--json").out)[0]["id"])
    assert command("dead", "apply", number, "--delta", "10", "--yes").code == 0
    asyncio.run(flush_until(settings, lambda: not open_corrections(settings)))

    asyncio.run(repeat())

    check_invariants(settings, [("alice", "win:1", 5), ("alice", "win:lost", 10)])
    assert command("verify", "--full").code == 0


def test_values_are_allowed_for_undecodable_entries_only_and_ids_or_all_are_required(
    command: Run, settings: Settings
) -> None:
    asyncio.run(make_dead_letter(settings))
    allow_bad(settings)
    number = str(json.loads(command("dead", "list", "--json").out)[0]["id"])

    restated = command("dead", "apply", number, "--delta", "1000", "--yes")

    assert (restated.code, "can be decoded" in restated.out) == (5, True)
    assert command("dead", "apply", "--yes").code == 2
    assert command("dead", "apply", number, "--all", "--yes").code == 2
    assert command("dead", "apply", "0", "--yes").code == 2
    assert command("dead", "list", "--board", "nosuch").code == 3
    assert command("dead", "apply", number, "--board", "nosuch", "--yes").code == 3
    query(settings, "INSERT INTO boards VALUES ('other', 1, 60, 1, true)")
    assert command("dead", "apply", number, "--board", "other", "--yes").code == 3


async def test_concurrent_resolutions_count_a_dead_letter_once(settings: Settings) -> None:
    await make_dead_letter(settings)
    allow_bad(settings)
    [(number,)] = query(settings, "SELECT id FROM dead_events")

    async def resolve(actor: str) -> str:
        async with await connect(settings, name="test") as connection:
            board = await select_board(connection, "main")
            try:
                if actor == "three":
                    done = await dead_letters.discard(
                        connection, board, number, actor=actor, reason="race"
                    )
                else:
                    done = await dead_letters.apply(connection, board, number, actor=actor)
            except OperatorMistake as error:
                return error.detail
            return done.outcome

    more = [(f"user{place}", "win:1", 5) for place in range(200)]
    async with flushing(settings), dispatching(settings) as dispatcher:
        outcomes = await asyncio.gather(
            *(resolve(actor) for actor in ("one", "two", "three")),
            *(dispatcher.submit("main", Action(*one)) for one in more),
        )
        results = [outcome for outcome in outcomes if isinstance(outcome, str)]
        assert sum("already resolved" in outcome for outcome in results) == 2
        await eventually_async(lambda: is_drained(settings) and not open_corrections(settings))
    counted = "applied" in results
    check_invariants(settings, [*GOOD, *more, *([BAD] if counted else [])])


async def test_an_act_whose_dead_letter_is_discarded_is_refused(
    command: Run, settings: Settings, client: "redis.Redis[str]"
) -> None:
    """Otherwise it stays pending, and other acts on the user are refused."""
    correct = ("score", "correct", "alice", "3", "--reason", "test", "--yes")
    await make_board(settings)
    query(settings, "ALTER TABLE score_events ADD CONSTRAINT strict CHECK (kind <> 'act')")
    async with flushing(settings):
        await act(settings, Action("alice", "win:1", 5))
        await eventually_async(lambda: is_drained(settings))
        await asyncio.to_thread(command, *correct)
        await eventually_async(lambda: bool(query(settings, "SELECT 1 FROM dead_events")))
    query(settings, "ALTER TABLE score_events DROP CONSTRAINT strict")
    [lost] = json.loads((await asyncio.to_thread(command, "act", "list", "--json")).out)
    assert lost["state"] == "pending"
    [entry] = json.loads((await asyncio.to_thread(command, "dead", "list", "--json")).out)

    done = await asyncio.to_thread(
        command, "dead", "discard", str(entry["id"]), "--reason", "x", "--yes"
    )
    assert done.code == 0, done.err

    [lost] = json.loads((await asyncio.to_thread(command, "act", "list", "--json")).out)
    assert lost["state"] == "refused"
    resumed = await asyncio.to_thread(command, "act", "resume", lost["id"])
    assert "was refused and changed nothing" in resumed.err
    async with flushing(settings):
        await eventually_async(lambda: open_corrections(settings) == 0)
        again = await asyncio.to_thread(command, *correct)
        await eventually_async(lambda: is_drained(settings))
    assert again.code == 0, again.err
    assert score_of(client, "alice") == 8
    check_invariants(settings)


async def test_an_interrupted_resolution_changes_nothing(settings: Settings) -> None:
    await make_dead_letter(settings)
    allow_bad(settings)
    [(number,)] = query(settings, "SELECT id FROM dead_events")

    with failing_audit(settings):
        async with await connect(settings, name="test") as connection:
            board = await select_board(connection, "main")
            with pytest.raises(psycopg.Error):
                await dead_letters.apply(connection, board, number, actor="test")
            with pytest.raises(psycopg.Error):
                await dead_letters.discard(connection, board, number, actor="test", reason="x")

    check_rows = query(settings, "SELECT resolved_at, resolution FROM dead_events")
    assert check_rows == [(None, None)]
    assert query(settings, "SELECT count(*) FROM score_events") == [(len(GOOD),)]
    assert open_corrections(settings) == 0


@contextmanager
def failing_audit(settings: Settings) -> Iterator[None]:
    """Add a constraint with which the last statement of a resolution fails."""
    query(settings, "ALTER TABLE audit_log ADD CONSTRAINT broken CHECK (action NOT LIKE 'dead%%')")
    yield
    query(settings, "ALTER TABLE audit_log DROP CONSTRAINT broken")


def test_a_reseed_and_a_resolution_exclude_each_other(command: Run, settings: Settings) -> None:
    asyncio.run(make_dead_letter(settings))
    allow_bad(settings)

    async def hold(connection: Any) -> None:
        board = await select_board(connection, "main")
        await dead_letters.lock_board(connection, board)
        done = await asyncio.to_thread(command, "dead", "apply", "--all", "--yes")
        assert (done.code, "Another operator" in done.err) == (5, True)
        done = await asyncio.to_thread(command, "reseed", "--force", "--yes")
        assert done.code == 5

    with_database(settings, hold)
    started_at = time.monotonic()
    assert command("dead", "apply", "--all", "--yes").code == 0
    assert time.monotonic() - started_at < 30


def make_foreign_dead_letters(settings: Settings, *deltas: int) -> None:
    """Make the flusher store dead letters of alice that are out of range."""

    async def flush() -> None:
        await make_board(settings)
        await act(settings, *(Action(*one) for one in GOOD))
        with redis.Redis.from_url(settings.redis_url.reveal()) as client:
            for seq, delta in enumerate(deltas, len(GOOD) + 1):
                fields = {"q": seq, "u": "alice", "a": f"foreign:{seq}", "d": delta, "s": 5, "e": 1}
                client.xadd(KEYS.events, fields)
                client.hset(KEYS.meta, "seq", seq)
        async with flushing(settings):
            await eventually_async(lambda: is_drained(settings))

    asyncio.run(flush())
    assert query(settings, "SELECT count(*) FROM dead_events") == [(len(deltas),)]


def drift(settings: Settings, client: "redis.Redis[str]", user: str) -> None:
    """Add six points in Redis only, as a late duplicate that is not yet corrected does."""
    client.zadd(KEYS.board, {user: pack(11, 3)})
    query(
        settings,
        "INSERT INTO rejected_events (board, part, user_id, action_id, epoch, seq, delta,"
        " score_after, reason, occurred_at) SELECT 'main', 0, id, 'late', 1, 1, 6, 11,"
        " 'late_duplicate', now() FROM users WHERE external_id = %s",
        user,
    )


def test_dead_letters_out_of_range_do_not_block_corrections(
    command: Run, settings: Settings, client: "redis.Redis[str]"
) -> None:
    make_foreign_dead_letters(settings, SCORE_MAX, SCORE_MAX)
    number = str(json.loads(command("dead", "list", "--json").out)[0]["id"])
    assert command("dead", "discard", number, "--reason", "foreign", "--yes").code == 0
    drift(settings, client, "bob")

    asyncio.run(flush_until(settings, lambda: not open_corrections(settings)))

    assert score_of(client, "bob") == 5
    assert score_of(client, "alice") == 5
    assert command("verify", "--full").code == 0


def test_a_dead_letter_below_zero_removes_no_member(
    command: Run, settings: Settings, client: "redis.Redis[str]"
) -> None:
    make_foreign_dead_letters(settings, -50)
    drift(settings, client, "alice")

    asyncio.run(flush_until(settings, lambda: not open_corrections(settings)))

    assert score_of(client, "alice") == 5
    assert command("verify", "--full").code == 0
    assert command("reseed", "--force", "--yes").code == 0
    assert score_of(client, "alice") == 5


@pytest.mark.parametrize("raw", [b"nonsense", b"\xff", b'{"q": 1}', '{"u": "\u20ac"}'.encode()])
def test_an_undecodable_row_can_be_listed_and_discarded(
    raw: bytes, command: Run, settings: Settings, client: "redis.Redis[str]"
) -> None:
    make_foreign_dead_letters(settings, -50)
    query(settings, "UPDATE dead_events SET raw = %s", raw)
    drift(settings, client, "bob")

    asyncio.run(flush_until(settings, lambda: not open_corrections(settings)))
    assert score_of(client, "bob") == 5
    [entry] = json.loads(command("dead", "list", "--json").out)
    assert (entry["user_id"], entry["fields"]) == (None, {})
    assert command("verify", "--full").code == 0
    assert command("reseed", "--force", "--yes").code == 0
    number = str(entry["id"])
    assert command("dead", "apply", number, "--yes").code == 5
    assert command("dead", "discard", number, "--reason", "x", "--yes").code == 0
    assert json.loads(command("dead", "list", "--json").out) == []


@pytest.mark.parametrize("how", ["apply", "discard"])
async def test_a_resolution_waits_for_a_correction_in_the_users_current_partition(
    how: str, settings: Settings
) -> None:
    """The correction has read the dead letters; it must not close the later resolution."""
    layout = Layout(partitions=3)
    assert partition_of("bob", layout.partitions) != 0
    await make_dead_letter(settings, board=Board(layout=layout))
    allow_bad(settings)
    [(number,)] = query(settings, "SELECT id FROM dead_events")
    board = Board(layout=Layout(partitions=1))
    partition = Partition("main", 0)

    async def resolve() -> None:
        async with await connect(settings, name="test") as connection:
            if how == "apply":
                await dead_letters.apply(connection, board, number, actor="test")
            else:
                await dead_letters.discard(connection, board, number, actor="test", reason="x")

    async with await connect(settings, name="test-corrector") as corrector:
        async with corrector.transaction():
            await corrector.execute(
                b"SELECT 1 FROM flush_state WHERE board = 'main' AND part = %s FOR UPDATE",
                (partition.number,),
            )
            resolving = asyncio.create_task(resolve())
            holder = corrector.info.backend_pid
            await eventually_async(
                lambda: query(
                    settings,
                    "SELECT 1 FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))",
                    holder,
                )
            )
            assert not resolving.done()
        await resolving
    assert query(settings, "SELECT count(*) FROM dead_events WHERE resolved_at IS NULL") == [(0,)]


def test_a_dead_letter_that_lowers_a_score_is_applied(command: Run, settings: Settings) -> None:
    lowering = ("bob", "win:bad", -3)

    async def make() -> None:
        await make_board(settings)
        refuse_bad(settings)
        async with flushing(settings):
            for one in [*GOOD, lowering]:
                await act(settings, Action(*one))
                await eventually_async(lambda: is_drained(settings))

    asyncio.run(make())
    allow_bad(settings)

    assert command("dead", "apply", "--all", "--yes").code == 0

    check_invariants(settings, [*GOOD, lowering])
