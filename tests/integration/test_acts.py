"""Acts of administrators: applied once, undone once, audited, and known to every check."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from scoreboard.errors import OperatorMistake, RedisUnavailable, ScoreOutOfRange, WaitTimeout
from scoreboard.ledger import positions
from scoreboard.ledger.acts import ActFilter, select_acts
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.pool import connect
from scoreboard.ledger.positions import lock_operator
from scoreboard.model import Action, Board, Layout, Partition, Rules, partition_of, unpack_score
from scoreboard.moderation import acts as acts_module
from scoreboard.moderation import plans
from scoreboard.moderation.acts import Done, Moderator
from scoreboard.moderation.plans import BanChange, Correction, Request, Undo, Void, WindowVoid
from scoreboard.recovery.reseed import SESSION, reseed
from scoreboard.recovery.verify import verify
from scoreboard.runtime.settings import Settings
from scoreboard.store.client import make_client
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from tests.support.clients.commands import Run
from tests.support.eventually import eventually_async
from tests.support.servers.flushers import (
    act,
    check_invariants,
    flushing,
    is_drained,
    make_board,
    query,
    store_of,
)

pytestmark = pytest.mark.slow

PLAYED = [
    ("alice", "win:1", 30),
    ("alice", "win:2", 5),
    ("bob", "win:1", 20),
    ("carol", "win:1", 20),
]


class World:
    """A board with a flusher, and the acts on it."""

    def __init__(self, settings: Settings, board: Board) -> None:
        self.settings = settings
        self.board = board

    async def play(self, *actions: tuple[str, str, int]) -> None:
        for one in actions:
            [receipt] = await act(self.settings, Action(*one))
            assert not isinstance(receipt, BaseException), receipt
        await self.drained()

    async def drained(self) -> None:
        await eventually_async(
            lambda: is_drained(self.settings, partitions=self.board.layout.partitions)
        )

    async def perform(self, request: Request, reason: str = "test") -> Done:
        async def use(moderator: Moderator) -> Done:
            return await moderator.perform(request, await moderator.plan(request), reason=reason)

        return await self.moderate(use)

    async def moderate(self, use: Callable[[Moderator], Any]) -> Any:
        connection = await connect(self.settings, name="test", autocommit=True)
        try:
            async with store_of(self.settings) as store:
                board = await select_board(connection, "main")
                moderator = Moderator(store, connection, board, actor="me", stream_cap=1000)
                return await use(moderator)
        finally:
            await connection.close()

    async def score(self, user: str) -> int | None:
        client = make_client(self.settings, name="test")
        try:
            number = partition_of(user, self.board.layout.partitions)
            packed = await client.zscore(PartitionKeys(Partition("main", number)).board, user)
            return None if packed is None else unpack_score(int(packed))
        finally:
            await client.aclose()

    async def check(self) -> None:
        """Check the invariants, and that a full verification finds nothing."""
        await self.drained()
        client = make_client(self.settings, name="test")
        connection = await connect(self.settings, name="test", autocommit=True, **SESSION)
        try:
            board = await select_board(connection, "main")
            verdict = await verify(client, connection, board, sample=None, report=lambda *_: None)
            assert (verdict.drifted, verdict.findings) == ((), ())
        finally:
            await connection.close()
            await client.aclose()

    async def reseed(self) -> None:
        connection = await connect(self.settings, name="test", autocommit=True, **SESSION)
        try:
            async with store_of(self.settings) as store:
                board = await select_board(connection, "main")
                numbers = range(board.layout.partitions)
                await reseed(store, connection, board, list(numbers), actor="test")
        finally:
            await connection.close()

    def states(self) -> dict[str, str]:
        rows = query(self.settings, "SELECT id FROM acts")

        async def read() -> dict[str, str]:
            connection = await connect(self.settings, name="test")
            try:
                return {
                    one.id: one.state
                    for one in await select_acts(connection, ActFilter(), limit=100)
                }
            finally:
                await connection.close()

        found = asyncio.run(read())
        assert len(found) == len(rows)
        return found


@pytest.fixture(params=[1, 3], ids=["one partition", "three partitions"])
async def world(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[World]:
    """Yield a board of one or three partitions on which four actions counted, with a flusher."""
    board = await make_board(settings, Board(layout=Layout(partitions=request.param)))
    async with flushing(settings):
        world = World(settings, board)
        await world.play(*PLAYED)
        yield world


async def test_a_correction_is_in_the_ledger_with_actor_and_reason(world: World) -> None:
    done = await world.perform(Correction("alice", -10), "a bug")

    assert (done.score, done.is_committed) == (25, True)
    assert await world.score("alice") == 25
    check_invariants(
        world.settings,
        [*PLAYED, ("alice", f"act:{done.act_id}", -10)],
        partitions=world.board.layout.partitions,
    )
    [row] = query(world.settings, "SELECT kind, delta, actor, reason FROM acts")
    assert row == ("correct", -10, "me", "a bug")
    [(action, actor, detail)] = query(
        world.settings, "SELECT action, actor, detail FROM audit_log WHERE action LIKE 'act%%'"
    )
    assert (action, actor) == ("act correct", "me")
    assert (detail["act"], detail["user"], detail["reason"]) == (done.act_id, "alice", "a bug")
    await world.check()


async def test_an_act_survives_a_reseed_and_cannot_be_applied_again(world: World) -> None:
    done = await world.perform(Correction("alice", -10))
    await world.reseed()
    assert await world.score("alice") == 25

    await world.moderate(lambda moderator: moderator.resume(done.act_id))

    await world.check()
    assert await world.score("alice") == 25


async def test_an_undo_is_done_once_and_is_not_undone(world: World) -> None:
    done = await world.perform(Correction("alice", -10))

    undone = await world.perform(Undo(done.act_id))

    assert undone.score == 35
    with pytest.raises(OperatorMistake, match=f"undone by act {undone.act_id}"):
        await world.perform(Undo(done.act_id))
    with pytest.raises(OperatorMistake, match="repeat that act"):
        await world.perform(Undo(undone.act_id))
    await world.check()


async def test_a_correction_out_of_the_bounds_is_refused_and_audited(world: World) -> None:
    with pytest.raises(ScoreOutOfRange, match="The score of bob is 20; -21"):
        await world.perform(Correction("bob", -21))
    assert await world.score("bob") == 20
    actions = query(world.settings, "SELECT action FROM audit_log WHERE action LIKE 'act%%'")
    assert actions == [("act correct",), ("act refuse",)]
    # A refused act is not pending: the next one is possible, also an undo is refused for good.
    [(act_id,)] = query(world.settings, "SELECT id FROM acts")
    with pytest.raises(OperatorMistake, match="was refused"):
        await world.moderate(lambda moderator: moderator.resume(act_id))
    with pytest.raises(OperatorMistake, match="was refused"):
        await world.perform(Undo(act_id))
    assert (await world.perform(Correction("bob", -20))).score == 0
    await world.check()


async def test_a_void_takes_back_one_action_once(world: World) -> None:
    done = await world.perform(Void("alice", "win:1"))

    assert done.score == 5
    with pytest.raises(OperatorMistake, match=f"voided by act {done.act_id}"):
        await world.perform(Void("alice", "win:1"))
    with pytest.raises(OperatorMistake, match="is an act"):
        await world.perform(Void("alice", f"act:{done.act_id}"))
    # A repeat of the voided action still gets its first answer.
    [receipt] = await act(world.settings, Action("alice", "win:1", 30))
    assert not isinstance(receipt, BaseException)
    assert (receipt.score, receipt.replayed) == (30, True)
    assert (await world.perform(Undo(done.act_id))).score == 35
    assert (await world.perform(Void("alice", "win:1"))).score == 5
    await world.check()


async def test_a_late_duplicate_of_a_voided_action_counts_nothing(world: World) -> None:
    await world.perform(Void("alice", "win:1"))
    client = make_client(world.settings, name="test")
    keys = [key async for key in client.scan_iter("*:seen:*")]
    await client.delete(*keys)
    await client.aclose()

    await act(world.settings, Action("alice", "win:1", 30))

    async def is_corrected() -> bool:
        return await world.score("alice") == 5

    await eventually_async(is_corrected)
    await world.check()


async def test_a_window_is_voided_as_one_act_without_what_is_voided_already(world: World) -> None:
    [(since, until)] = query(
        world.settings,
        "SELECT min(occurred_at), max(occurred_at) + INTERVAL '1 ms' FROM score_events",
    )
    await world.perform(Correction("alice", 7))
    single = await world.perform(Void("alice", "win:2"))
    window = WindowVoid("alice", since, until)

    done = await world.perform(window)

    assert done.score == 7
    assert query(world.settings, "SELECT action_id FROM act_actions ORDER BY 1") == [
        ("win:1",),
        ("win:2",),
    ]
    with pytest.raises(OperatorMistake, match=f"voided by act {done.act_id}"):
        await world.perform(Void("alice", "win:1"))
    with pytest.raises(plans.NotFound):
        await world.perform(window)
    assert (await world.perform(Undo(done.act_id))).score == 37
    assert (await world.perform(Undo(single.act_id))).score == 42
    assert (await world.perform(window)).score == 7
    await world.check()


async def test_a_void_after_a_correction_never_goes_below_the_bounds(world: World) -> None:
    await world.perform(Correction("bob", -15))
    with pytest.raises(ScoreOutOfRange, match="The score of bob is 5; -20"):
        await world.perform(Void("bob", "win:1"))
    assert await world.score("bob") == 5
    # The refused void voided nothing.
    await world.perform(Correction("bob", 15))
    assert (await world.perform(Void("bob", "win:1"))).score == 0
    await world.check()


async def test_an_act_that_was_interrupted_is_completed_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command dies after it recorded the act, or after Redis applied it."""

    async def lost(*_: object, **__: object) -> None:
        raise RedisUnavailable

    for applies_before in (False, True):
        with monkeypatch.context() as patch:
            if applies_before:
                patch.setattr(Moderator, "_is_committed", lost)
            else:
                patch.setattr(Store, "act", lost)
            with pytest.raises(RedisUnavailable):
                await world.perform(Correction("alice", -5))
        [(act_id,)] = query(world.settings, "SELECT id FROM acts ORDER BY at DESC LIMIT 1")
        if not applies_before:
            with pytest.raises(OperatorMistake, match="complete it first"):
                await world.perform(Correction("alice", -1))
            with pytest.raises(OperatorMistake, match="not in the ledger yet"):
                await world.perform(Undo(act_id))
        for _ in range(2):
            await world.moderate(lambda moderator, act_id=act_id: moderator.resume(act_id))
    assert await world.score("alice") == 25
    await world.check()


async def test_two_operators_at_once_are_serialised(world: World) -> None:
    request = Void("alice", "win:1")
    results = await asyncio.gather(
        *(world.perform(request) for _ in range(3)), return_exceptions=True
    )

    assert sum(isinstance(one, Done) for one in results) == 1
    assert sum(isinstance(one, OperatorMistake) for one in results) == 2
    assert await world.score("alice") == 5
    more = await asyncio.gather(*(world.perform(Correction("alice", 1)) for _ in range(3)))
    assert sorted(one.score or 0 for one in more) == [6, 7, 8]
    await world.check()


async def test_an_operator_does_not_wait_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positions, "LOCK_S", 0.2)
    connection = await connect(world.settings, name="test", autocommit=True)
    number = partition_of("alice", world.board.layout.partitions)
    assert await lock_operator(connection, Partition("main", number))
    with pytest.raises(OperatorMistake, match="Another operator"):
        await world.perform(Correction("alice", -1))
    await connection.close()
    assert query(world.settings, "SELECT count(*) FROM acts") == [(0,)]


async def test_without_a_flusher_an_act_is_applied_and_committed_later(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acts_module, "COMMIT_S", 0.2)
    monkeypatch.setattr(plans, "COMMIT_S", 0.2)
    world = World(settings, await make_board(settings))
    async with flushing(settings):
        await world.play(*PLAYED)
    await act(settings, Action("alice", "win:3", 1))

    done = await world.perform(Correction("alice", -6))

    assert (done.score, done.is_committed) == (30, False)
    with pytest.raises(WaitTimeout, match="is the flusher running"):
        await world.perform(Void("bob", "win:9"))
    with pytest.raises(OperatorMistake, match="complete it first"):
        await world.perform(Correction("alice", -1))
    async with flushing(settings):
        await world.check()
    assert await world.score("alice") == 30


async def test_an_act_that_redis_lost_with_its_data_is_resumed(settings: Settings) -> None:
    """Only the stream of an emptied Redis had it; the row of the act says that it is pending."""
    world = World(settings, await make_board(settings))
    async with flushing(settings):
        await world.play(*PLAYED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acts_module, "COMMIT_S", 0.0)
        done = await world.perform(Correction("alice", -6))
    client = make_client(settings, name="test")
    await client.flushdb()
    await client.aclose()
    async with flushing(settings):
        await world.reseed()
        assert await world.score("alice") == 35
        resumed = await world.moderate(lambda moderator: moderator.resume(done.act_id))
        assert (resumed.score, resumed.is_committed) == (29, True)
        await world.check()


@pytest.mark.parametrize(
    "rules",
    [
        Rules("best", "highest", 0, 100, "nobody", "stated"),
        Rules("best", "lowest", 0, 100, "nobody", "stated"),
        Rules("last", "highest", 0, 100, "nobody", "stated"),
    ],
    ids=str,
)
async def test_acts_on_boards_that_keep_values(settings: Settings, rules: Rules) -> None:
    """An act is a difference also where an action states the value."""
    world = World(settings, await make_board(settings, Board(layout=Layout(rules=rules))))
    values = (50, 30) if rules.order == "lowest" else (30, 50)

    async def state(action: str, value: int) -> int:
        [receipt] = await act(settings, Action("alice", action, value, rules=rules))
        assert not isinstance(receipt, BaseException), receipt
        return receipt.score

    async with flushing(settings):
        for number, value in enumerate(values):
            assert await state(f"run:{number}", value) == value
        await world.drained()
        voided = await world.perform(Void("alice", "run:1"))
        assert voided.score == values[0]
        with pytest.raises(ScoreOutOfRange):
            await world.perform(Correction("alice", 101 - values[0]))
        await world.check()
        better = 20 if rules.order == "lowest" else 70
        assert await state("run:2", better) == better
        if rules.order == "highest":
            assert (await world.perform(Undo(voided.act_id))).score == better + 20
        else:
            with pytest.raises(ScoreOutOfRange, match="out of 1 to 100"):
                await world.perform(Undo(voided.act_id))  # 0 would be the best value
        await world.perform(BanChange("alice", "ban"))
        await world.check()
        await world.reseed()
        await world.perform(BanChange("alice", "unban"))
        await world.check()


def play(settings: Settings) -> None:
    async def work() -> None:
        world = World(settings, await make_board(settings))
        async with flushing(settings):
            await world.play(*PLAYED)

    asyncio.run(work())


def flush(settings: Settings) -> None:
    async def work() -> None:
        async with flushing(settings):
            await eventually_async(lambda: is_drained(settings))

    asyncio.run(work())


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for a flusher that the test starts later."""
    monkeypatch.setattr(acts_module, "COMMIT_S", 0.0)


@pytest.mark.usefixtures("patient")
def test_the_commands(command: Run, settings: Settings) -> None:
    play(settings)
    why = ("--reason", "bot")

    dry = command("score", "correct", "alice", "-20", *why, "--dry-run", "--json")
    assert dry.code == 0, dry.err
    shown = json.loads(dry.out)["preview"]
    assert shown["before"] == {"score": 35, "rank": 1}
    assert shown["after"] == {"score": 15, "rank": 3}
    assert [row["userId"] for row in shown["topAfter"]] == ["bob", "carol", "alice"]
    assert query(settings, "SELECT count(*) FROM acts") == [(0,)]
    text = command("score", "correct", "alice", "-20", *why, "--dry-run")
    assert "score 35 → 15, rank 1 → 3" in text.err
    assert text.out.splitlines()[0] == "1\talice\t35\tbob\t20"

    refused = command("score", "correct", "alice", "-20", *why)
    assert (refused.code, "--yes" in refused.err) == (5, True)
    assert command("score", "correct", "alice", "-36", *why, "--yes").code == 5
    assert command("score", "correct", "alice", "0", *why, "--yes").code == 2
    assert command("score", "correct", "alice", "5", "--yes").code == 2
    assert command("score", "correct", "alice", "5", "--reason", " ", "--yes").code == 5
    assert command("score", "correct", "alice", "5", *why, "--yes", "--board", "no").code == 3
    assert query(settings, "SELECT count(*) FROM acts") == [(0,)]

    done = command("score", "correct", "alice", "-20", *why, "--yes", "--json")
    assert done.code == 0, done.err
    act_id = json.loads(done.out)["act"]
    flush(settings)
    [listed] = json.loads(command("act", "list", "--user", "alice", "--json").out)
    assert (listed["id"], listed["state"], listed["reason"]) == (act_id, "applied", "bot")
    assert act_id in command("act", "list", "--board", "main").out
    assert command("act", "list", "--since", "2999-01-01").out == ""
    undone = command("act", "undo", act_id, "--reason", "a mistake", "--yes")
    assert undone.code == 0, undone.err
    flush(settings)
    assert command("act", "list", "--pending").out == ""
    assert command("act", "undo", act_id, "--reason", "again", "--yes").code == 5
    assert command("act", "undo", "nothing", "--reason", "again", "--yes").code == 3
    assert command("act", "resume", act_id).code == 0

    assert command("action", "void", "win:9", "--user", "bob", *why, "--yes").code == 3
    assert command("action", "void", "win:1", "--user", "bob", *why, "--yes").code == 0
    flush(settings)
    window = ("--user", "carol", "--from", "2020-01-01", "--to", "2999-01-01")
    assert command("window", "void", *window, *why, "--yes").code == 0
    assert (
        command("window", "void", "--user", "a", "--from", "2020", "--to", "2019", *why).code == 2
    )
    flush(settings)
    assert command("verify", "--full").code == 0
    assert command("audit", "verify").code == 0
    assert command("repair", "--dry-run").code == 0
