"""Limits on the whole way: what exceeds them is held, listed, released or voided, each once."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import msgspec
import pytest

from scoreboard.errors import (
    ActionConflict,
    NotFound,
    OperatorMistake,
    RedisUnavailable,
    ScoreOutOfRange,
)
from scoreboard.ledger import dead_letters
from scoreboard.ledger.boards import select_board, set_board_limits
from scoreboard.ledger.held import HeldAction, HeldFilter, select_held
from scoreboard.ledger.pool import connect
from scoreboard.model import (
    NO_LIMITS,
    Action,
    Board,
    Layout,
    Limits,
    Partition,
    Receipt,
    Rules,
    partition_of,
)
from scoreboard.moderation import acts as acts_module
from scoreboard.moderation.plans import Correction, Release, Undo, Void
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import REGISTRY
from scoreboard.store.client import make_client
from scoreboard.store.store import Store
from tests.support.clients.commands import Run
from tests.support.eventually import eventually_async
from tests.support.servers.flushers import (
    act,
    check_invariants,
    flushing,
    make_board,
    query,
    store_of,
)

from .test_acts import World, flush

pytestmark = pytest.mark.slow

DAY_S = 86_400
LIMITS = Limits(100, 250, DAY_S)
WHY = ("--reason", "checked")


@pytest.fixture(autouse=True)
def count_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a flusher count held actions every half second, and not every half minute."""
    monkeypatch.setattr("flusher.search.SCAN_EVERY_S", 0.5)


@pytest.fixture(params=[1, 3], ids=["one partition", "three partitions"])
async def world(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[World]:
    """Yield a board with limits and a flusher; alice has 60 points and a held action."""
    layout = Layout(partitions=request.param)
    board = await make_board(settings, Board(layout=layout, limits=LIMITS))
    async with flushing(settings):
        world = World(settings, board)
        await world.play(("alice", "win:1", 60), ("bob", "win:1", 100), ("alice", "win:2", 101))
        yield world


async def submit(world: World, user: str, action: str, points: int, **more: Any) -> Receipt:
    rules = world.board.layout.rules
    [receipt] = await act(world.settings, Action(user, action, points, rules=rules, **more))
    assert isinstance(receipt, Receipt), receipt
    return receipt


async def held(world: World, **chosen: Any) -> list[HeldAction]:
    connection = await connect(world.settings, name="test", autocommit=True)
    try:
        return await select_held(connection, HeldFilter(**chosen), limit=100)
    finally:
        await connection.close()


async def states(world: World) -> list[tuple[str, str, str]]:
    return [(one.user_id, one.action_id, one.state) for one in await held(world)]


async def forget(world: World) -> None:
    """End the dedup window."""
    client = make_client(world.settings, name="test")
    keys = [key async for key in client.scan_iter("*:seen:*")]
    await client.delete(*keys)
    await client.aclose()


async def configure(world: World, limits: Limits, *, is_redis_only: bool = False) -> None:
    """Set limits in both stores, or in Redis only."""
    if not is_redis_only:
        async with await connect(world.settings, name="test") as connection:
            await set_board_limits(connection, "main", limits)
    async with store_of(world.settings) as store:
        for number in range(world.board.layout.partitions):
            board = msgspec.structs.replace(world.board, limits=limits)
            await store.configure(Partition("main", number), board)


async def void(world: World, held_id: int) -> None:
    await world.moderate(lambda moderator: moderator.void_held(held_id, reason="a bot"))


def check(world: World) -> None:
    check_invariants(world.settings, partitions=world.board.layout.partitions)


async def test_what_exceeds_a_limit_is_recorded_and_counts_nothing(world: World) -> None:
    assert not (await submit(world, "alice", "win:3", 40)).held
    over = await submit(world, "carol", "win:1", 1000, request_id="request")
    assert (over.score, over.held, over.replayed) == (0, True, False)
    await submit(world, "alice", "win:4", 100)
    window = await submit(world, "alice", "win:5", 100)
    assert (window.score, window.held) == (200, True)
    await world.drained()

    found = await held(world)
    assert [(one.user_id, one.action_id, one.delta, one.score, one.limit) for one in found] == [
        ("alice", "win:2", 101, 60, "action"),
        ("carol", "win:1", 1000, 0, "action"),
        ("alice", "win:5", 100, 200, "window"),
    ]
    assert {one.state for one in found} == {"held"}
    assert await world.score("carol") is None
    assert query(world.settings, "SELECT request_id FROM held_actions ORDER BY id")[1] == (
        "request",
    )
    assert [one.id for one in await held(world, limit_kind="window")] == [found[2].id]
    assert [one.id for one in await held(world, user_id="carol", state="held")] == [found[1].id]
    assert await held(world, board="other") == []
    await world.check()
    check(world)


async def test_a_repeat_gets_the_first_answer_also_after_a_reseed_and_a_release(
    world: World,
) -> None:
    async def repeat() -> None:
        again = await submit(world, "alice", "win:2", 101, stated=True)
        assert (again.score, again.held, again.replayed) == (60, True, True)
        [error] = await act(world.settings, Action("alice", "win:2", 5, stated=True))
        assert isinstance(error, ActionConflict)
        assert error.detail == "This actionId was already sent with 101 points"

    await repeat()
    await world.reseed()
    await repeat()
    [one] = await held(world)
    await world.perform(Release(one.id))
    await repeat()
    await world.reseed()
    await repeat()
    assert await world.score("alice") == 161
    assert (await submit(world, "alice", "win:9", 101)).held, "a reseed keeps the limits"
    await world.check()
    check(world)


async def test_a_release_adds_the_points_once_and_is_undone(world: World) -> None:
    [one] = await held(world)
    done = await world.perform(Release(one.id))

    assert (done.score, done.is_committed) == (161, True)
    assert await states(world) == [("alice", "win:2", "released")]
    with pytest.raises(OperatorMistake, match=f"released by act {done.act_id}"):
        await world.perform(Release(one.id))
    with pytest.raises(OperatorMistake, match="released by act"):
        await void(world, one.id)
    assert query(world.settings, "SELECT kind, delta, detail->>'action' FROM acts") == [
        ("release", 101, "win:2")
    ]
    assert query(world.settings, "SELECT action FROM audit_log ORDER BY seq DESC LIMIT 1") == [
        ("act release",)
    ]
    # The window does not count it.
    assert not (await submit(world, "alice", "win:7", 100)).held

    assert (await world.perform(Undo(done.act_id))).score == 160
    assert await states(world) == [("alice", "win:2", "held")]
    assert (await world.perform(Release(one.id))).score == 261
    await world.check()
    check(world)


async def test_a_void_is_final_and_changes_no_score(world: World) -> None:
    [one] = await held(world)
    await void(world, one.id)

    [voided] = await held(world)
    assert (voided.state, voided.voided_by, voided.voided_reason) == ("voided", "me", "a bot")
    for _ in range(2):
        with pytest.raises(OperatorMistake, match="voided by me before"):
            await void(world, one.id)
        with pytest.raises(OperatorMistake, match="voided by me before"):
            await world.perform(Release(one.id))
    assert await world.score("alice") == 60
    assert query(world.settings, "SELECT detail->>'action' FROM audit_log ORDER BY seq DESC")[
        0
    ] == ("win:2",)
    assert (await submit(world, "alice", "win:2", 101)).held
    await world.check()


@pytest.mark.parametrize("decision", ["none", "release", "void"])
async def test_a_repeat_after_the_dedup_window_counts_nothing(world: World, decision: str) -> None:
    """Redis may count it, if the limits are others now; the ledger does not."""
    [one] = await held(world)
    expected = 60
    if decision == "release":
        await world.perform(Release(one.id))
        expected = 161
    elif decision == "void":
        await void(world, one.id)
    await forget(world)
    again = await submit(world, "alice", "win:2", 101)  # held again, at another place
    assert (again.held, again.replayed) == (True, False)
    await forget(world)
    await configure(world, NO_LIMITS)
    late = await submit(world, "alice", "win:2", 101)
    assert (late.held, late.score) == (False, expected + 101)

    async def is_corrected() -> bool:
        return await world.score("alice") == expected

    await eventually_async(is_corrected)
    await world.check()
    check(world)
    assert len(await held(world)) == 1
    rejected = query(
        world.settings, "SELECT count(*) FROM rejected_events WHERE action_id = 'win:2'"
    )
    assert rejected == [(2,)]


async def test_what_waits_for_a_decision_is_measured(world: World) -> None:
    await eventually_async(lambda: measured() == (1, True), 10)
    [one] = await held(world)
    [(age_s,)] = query(
        world.settings, "SELECT extract(epoch FROM now() - occurred_at) FROM held_actions"
    )
    query(world.settings, "UPDATE held_actions SET occurred_at = now() - INTERVAL '3 days'")
    await eventually_async(lambda: (held_age_s() or 0) >= 3 * DAY_S, 10)
    assert age_s < DAY_S
    done = await world.perform(Release(one.id))
    await eventually_async(lambda: measured() == (0, False), 10)
    await world.perform(Undo(done.act_id))
    await eventually_async(lambda: measured() == (1, True), 10)
    await void(world, one.id)
    await eventually_async(lambda: measured() == (0, False), 10)


def measured() -> tuple[float | None, bool]:
    """Return how many actions wait, and whether one has an age."""
    return REGISTRY.get_sample_value("scoreboard_held_actions"), bool(held_age_s())


def held_age_s() -> float | None:
    return REGISTRY.get_sample_value("scoreboard_held_oldest_age_seconds")


async def test_a_counted_action_that_is_repeated_late_is_not_held(world: World) -> None:
    await configure(world, Limits(per_action=10))
    await forget(world)
    again = await submit(world, "alice", "win:1", 60)
    assert (again.held, again.score) == (True, 60)
    await world.drained()

    assert [one.action_id for one in await held(world)] == ["win:2"]
    await world.check()
    check(world)


async def test_the_first_entry_of_an_action_decides_within_a_batch(settings: Settings) -> None:
    """The dedup window ended while the flusher was away."""
    world = World(settings, await make_board(settings, Board(limits=Limits(per_action=10))))
    for user, limits in (("ann", LIMITS), ("bob", Limits(per_action=10))):
        await configure(world, limits)
        await submit(world, user, "win:1", 50)
        await forget(world)
        other = Limits(per_action=10) if limits == LIMITS else NO_LIMITS
        await configure(world, other)
        await submit(world, user, "win:1", 50)
        await forget(world)
    async with flushing(settings):
        await world.check()
        assert await states(world) == [("bob", "win:1", "held")]
        assert await world.score("ann") == 50
        check_invariants(settings, [("ann", "win:1", 50)])


async def test_two_operators_decide_once(world: World) -> None:
    [one] = await held(world)
    results = await asyncio.gather(
        *(world.perform(Release(one.id)) for _ in range(2)),
        *(void(world, one.id) for _ in range(2)),
        return_exceptions=True,
    )

    assert sum(not isinstance(result, BaseException) for result in results) == 1, results
    assert sum(isinstance(result, OperatorMistake) for result in results) == 3
    [(_, _, state)] = await states(world)
    assert await world.score("alice") == (161 if state == "released" else 60)
    await world.check()


async def test_a_release_that_was_interrupted_is_resumed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: object, **__: object) -> None:
        raise RedisUnavailable

    [one] = await held(world)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "act", lost)
        with pytest.raises(RedisUnavailable):
            await world.perform(Release(one.id))
    [pending] = await held(world)
    assert pending.state == "pending"
    with pytest.raises(OperatorMistake, match="released by act"):
        await void(world, one.id)
    for _ in range(2):
        await world.moderate(lambda moderator: moderator.resume(str(pending.act_id)))
    assert await world.score("alice") == 161
    assert await states(world) == [("alice", "win:2", "released")]
    await world.check()


async def test_a_refused_release_holds_the_action_again(settings: Settings) -> None:
    rules = Rules(score_max=200)
    board = Board(layout=Layout(rules=rules), limits=Limits(per_action=100))
    world = World(settings, await make_board(settings, board))
    async with flushing(settings):
        assert (await submit(world, "ann", "win:1", 150)).held
        await submit(world, "ann", "win:2", 80)
        await world.drained()
        [one] = await held(world)
        with pytest.raises(ScoreOutOfRange, match="changed nothing"):
            await world.perform(Release(one.id))
        assert await states(world) == [("ann", "win:1", "held")]
        await world.perform(Correction("ann", -80))
        assert (await world.perform(Release(one.id))).score == 150
        await world.check()


@pytest.mark.parametrize(
    ("rules", "values"),
    [
        (Rules("best", points="stated"), (30, 50, 500, 60)),
        (Rules("best", "lowest", points="stated"), (500, 450, 50, 440)),
        (Rules("last", points="stated"), (30, 50, 500, 20)),
    ],
    ids=str,
)
async def test_a_released_value_becomes_the_score(
    settings: Settings,
    rules: Rules,
    values: tuple[int, ...],
) -> None:
    *first, held_value, later = values
    board = Board(layout=Layout(rules=rules), limits=Limits(per_action=100))
    world = World(settings, await make_board(settings, board))
    async with flushing(settings):
        for number, value in enumerate(first):
            assert not (await submit(world, "ann", f"run:{number}", value)).held
        assert (await submit(world, "ann", "run:held", held_value)).held
        await world.drained()
        [one] = await held(world)
        # The score changes after the plan: the act is refused, and the next one is right.
        plan = await world.moderate(lambda moderator: moderator.plan(Release(one.id)))
        act_once = Store.act

        async def late(store: Store, *args: Any, **options: Any) -> Any:
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(Store, "act", act_once)
                await submit(world, "ann", "run:later", later)
                return await store.act(*args, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Store, "act", late)
            with pytest.raises(OperatorMistake, match="try again"):
                await world.moderate(
                    lambda moderator: moderator.perform(Release(one.id), plan, reason="test")
                )
        assert [state for *_, state in await states(world)] == ["held"]
        done = await world.perform(Release(one.id))
        assert done.score == held_value
        await forget(world)
        await configure(world, NO_LIMITS)
        await submit(world, "ann", "run:held", held_value)
        await world.check()
        await world.reseed()
        await world.check()
        assert (await world.perform(Undo(done.act_id))).score == later
        await world.check()


async def test_a_release_that_would_change_nothing_is_refused(settings: Settings) -> None:
    rules = Rules("best", points="stated")
    board = Board(layout=Layout(rules=rules), limits=Limits(per_action=100))
    world = World(settings, await make_board(settings, board))
    async with flushing(settings):
        assert (await submit(world, "ann", "run:1", 150)).held
        for value in (100, 200):
            await submit(world, "ann", f"run:{value}", value)
        await world.drained()
        [one] = await held(world)
        with pytest.raises(OperatorMistake, match="change nothing"):
            await world.perform(Release(one.id))


async def test_a_void_of_a_held_action_by_its_name_says_that_it_is_held(world: World) -> None:
    with pytest.raises(OperatorMistake, match="is held and counts nothing") as refused:
        await world.perform(Void("alice", "win:2"))
    [one] = await held(world)
    assert refused.value.hint == f"scoreboard held void {one.id}"
    with pytest.raises(NotFound):
        await world.perform(Void("alice", "win:9"))


async def test_an_emptied_redis_keeps_held_actions_and_limits(world: World) -> None:
    client = make_client(world.settings, name="test")
    await client.flushdb()
    await client.aclose()
    await world.reseed()

    again = await submit(world, "alice", "win:2", 101)
    assert (again.held, again.replayed) == (True, True)
    assert (await submit(world, "alice", "win:8", 101)).held
    await world.check()


async def test_verify_finds_limits_that_redis_does_not_apply(world: World) -> None:
    await configure(world, NO_LIMITS, is_redis_only=True)
    with pytest.raises(AssertionError, match="Redis has none, PostgreSQL 100:250:86400"):
        await world.check()
    await configure(world, LIMITS)
    await world.check()


async def test_dead_letters_of_an_older_flusher_are_applied_as_held_actions(
    world: World,
) -> None:
    """It does not know the kind of record, and keeps every byte."""
    number = partition_of("zoe", world.board.layout.partitions)
    raw = {"q": "1", "u": "zoe", "a": "win:1", "d": "500", "s": "0", "e": "1", "k": "h"}
    query(
        world.settings,
        "INSERT INTO dead_events (board, part, stream_id, raw_hash, raw, reason)"
        " VALUES ('main', %s, '5-1', '\\x00', %s, 'unknown kind of event')",
        number,
        json.dumps(raw | {"l": "action"}, separators=(",", ":")).encode(),
    )
    connection = await connect(world.settings, name="test", autocommit=True)
    board = await select_board(connection, "main")
    assert await dead_letters.sum_unresolved(connection, "main") == {}
    [entry] = await dead_letters.select_entries(connection, "main", after=0, limit=10)
    assert entry.is_held
    done = await dead_letters.apply(connection, board, entry.id, actor="me")
    await connection.close()

    assert done.outcome == "applied"
    assert ("zoe", "win:1", "held") in await states(world)
    assert await world.score("zoe") is None


def test_a_board_is_created_with_limits(command: Run, settings: Settings) -> None:
    for wrong in (
        ("--max-points-per-window", "5"),
        ("--max-points-per-window", "5", "--window", "1h", "--operator", "best"),
    ):
        assert command("board", "create", "arena", *wrong).code == 5, wrong
    assert query(settings, "SELECT count(*) FROM boards") == [(0,)]
    limits = ("--max-points-per-action", "50", "--max-points-per-window", "70", "--window", "1h")
    done = command("board", "create", "arena", *limits)
    assert done.code == 0, done.err
    [one] = json.loads(command("board", "list", "--json").out)
    assert one["limits"] == {"per_action": 50, "per_window": 70, "window_s": 3600}
    sent = asyncio.run(act(settings, Action("alice", "win:1", 51), board="arena"))
    assert [one.held for one in cast("list[Receipt]", sent)] == [True]


def test_the_commands(command: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts_module, "COMMIT_S", 0.0)
    asyncio.run(make_board(settings))
    assert command("board", "set", "main").code == 2
    alone = command("board", "set", "main", "--max-points-per-window", "5")
    assert (alone.code, "give --max-points-per-window and --window" in alone.err) == (5, True)
    assert command("board", "set", "main", "--max-points-per-action", "0").code == 2
    assert command("board", "set", "main", "--window", "1 hour").code == 2
    assert (
        command("board", "set", "main", "--window", "none", "--max-points-per-window", "1").code
        == 2
    )
    done = command(
        *("board", "set", "main", "--max-points-per-action", "100"),
        *("--max-points-per-window", "250", "--window", "1d"),
    )
    assert done.code == 0, done.err
    [one] = json.loads(command("board", "list", "--json").out)
    assert one["limits"] == {"per_action": 100, "per_window": 250, "window_s": DAY_S}
    assert "100 per action, 250 in 86400 s" in command("board", "show", "main").out
    assert query(settings, "SELECT detail->'after'->>'per_window' FROM audit_log") == [("250",)]

    async def play() -> list[Any]:
        return await act(settings, *(Action(f"user{n}", f"win:{n}", 100 + n) for n in range(5)))

    assert [one.held for one in asyncio.run(play())] == [False, True, True, True, True]
    flush(settings)
    listed = json.loads(command("held", "list", "--json").out)
    ids = [str(one["id"]) for one in listed]
    assert [one["delta"] for one in listed] == [101, 102, 103, 104]
    assert command("held", "list", "--user", "user1", "--exceeds", "action").out.count("\n") == 1
    assert command("held", "list", "--exceeds", "window").out == ""
    assert command("held", "list", "--since", "2999-01-01", "--state", "all").out == ""

    assert command("held", "release", *WHY).code == 2
    assert command("held", "release", ids[0], "--user", "user1", *WHY).code == 2
    assert command("held", "release", ids[0], "--yes").code == 2
    assert command("held", "release", ids[0], *WHY).code == 5  # nobody confirms
    dry = command("held", "release", *ids[:2], *WHY, "--dry-run", "--json")
    assert dry.code == 0, dry.err
    first, second = json.loads(dry.out)
    assert (first["outcome"], first["preview"]["after"]) == (
        "would be released",
        {"score": 101, "rank": 1},
    )
    assert second["delta"] == 102
    assert query(settings, "SELECT count(*) FROM acts") == [(0,)]

    done = command("held", "release", *ids[:2], "999", *WHY, "--yes", "--json")
    assert done.code == 5
    assert [one["outcome"] for one in json.loads(done.out)] == ["released", "released", "refused"]
    flush(settings)
    void = command("held", "void", "--user", "user3", *WHY, "--dry-run")
    assert (void.code, "would be voided" in void.out) == (0, True)
    assert command("held", "void", "--user", "user3", *WHY, "--yes").code == 0
    assert command("held", "void", "--user", "user3", *WHY, "--yes").out == ""
    assert command("held", "void", ids[0], *WHY, "--yes").code == 5
    states = [
        one["state"] for one in json.loads(command("held", "list", "--json", "--state", "all").out)
    ]
    assert states == ["released", "released", "voided", "held"]
    act_id = json.loads(command("act", "list", "--user", "user1", "--json").out)[0]["id"]
    assert command("act", "undo", act_id, *WHY, "--yes").code == 0
    flush(settings)
    assert command("verify", "--full").code == 0
    assert command("audit", "verify").code == 0

    assert command("board", "set", "main", "--max-points-per-action", "none").code == 0
    assert command("board", "set", "main", "--max-points-per-window", "none").code == 0
    assert "per action" not in command("board", "show", "main").out
