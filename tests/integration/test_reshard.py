"""Reshards of an open board: nothing is lost or doubled, reads go on, and every step can fail."""

import asyncio
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace

from scoreboard.errors import (
    Banned,
    Busy,
    DatabaseUnavailable,
    Fenced,
    OperatorMistake,
    OutcomeUnknown,
    RedisUnavailable,
    Uninitialised,
    WaitTimeout,
)
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.pool import connect
from scoreboard.model import (
    DEFAULT_RULES,
    Action,
    Board,
    Layout,
    Limits,
    Partition,
    Receipt,
    Rules,
    partition_of,
)
from scoreboard.moderation.plans import BanChange, Correction
from scoreboard.recovery.board_changes import change_board
from scoreboard.recovery.reseed import SESSION, reseed
from scoreboard.recovery.reshard import Resharded, reshard
from scoreboard.recovery.verify import verify
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.client import make_client
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from tests.support.clients.commands import Run
from tests.support.clients.viewer import Connect, StartStreamer
from tests.support.data.boards import fence
from tests.support.eventually import eventually_async
from tests.support.servers.flushers import (
    FlusherProcess,
    check_invariants,
    dispatching,
    flushing,
    is_drained,
    make_board,
    query,
    store_of,
)

from .test_acts import World

pytestmark = pytest.mark.slow

USERS = [f"user{number}" for number in range(40)]


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url), database_url=Secret(database_url), flusher_metrics_port=0
    )


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    async with store_of(settings) as store:
        yield store


async def do_reshard(
    settings: Settings, partitions: int, board: str = "main", **how: Any
) -> Resharded:
    async with (
        store_of(settings) as store,
        await connect(settings, name="test", **SESSION) as connection,  # pyright: ignore[reportArgumentType]
    ):
        return await reshard(store, connection, board, partitions, actor="test", **how)


class Load:
    """Users who act one after the other, and readers who look at the board all the time."""

    def __init__(self, dispatcher: Dispatcher, store: Store) -> None:
        self.dispatcher = dispatcher
        self.store = store
        self.acknowledged: list[tuple[Action, Receipt]] = []
        self.refused: list[float] = []
        self.read_times: list[float] = []
        self.failed_reads = 0
        self.longest_read_s = 0.0
        self.is_over = False

    async def play(self, user: str) -> None:
        number = 0
        while not self.is_over:
            action = Action(user, f"play:{number}", 1 + number % 3)
            try:
                receipt = await self.dispatcher.submit("main", action)
            except (Fenced, Busy, Uninitialised, OutcomeUnknown):
                self.refused.append(time.monotonic())
                await asyncio.sleep(0.01)  # pace: the player repeats
                continue
            self.acknowledged.append((action, receipt))
            number += 1
            await asyncio.sleep(0.1)  # pace: of the player

    async def read(self) -> None:
        """A read finds all users, once each, in order, with scores that never fall."""
        scores: dict[str, int] = {}
        while not self.is_over:
            began_s = time.monotonic()
            try:
                window = await self.store.leaderboard("main", limit=len(USERS) + 1)
                user = USERS[len(self.read_times) % len(USERS)]
                standing = await self.store.standing("main", user, around=2)
            except Uninitialised:
                self.failed_reads += 1
                continue
            self.longest_read_s = max(self.longest_read_s, time.monotonic() - began_s)
            found = {row.user_id: row.score for row in window.rows}
            assert len(found) == len(window.rows) == window.total == len(USERS)
            assert [row.score for row in window.rows] == sorted(found.values(), reverse=True)
            assert all(found[user] >= score for user, score in scores.items())
            scores = found
            assert standing.total == len(USERS)
            assert len(standing.neighbours) == 5
            self.read_times.append(time.monotonic())
            await asyncio.sleep(0)


@asynccontextmanager
async def under_load(settings: Settings) -> AsyncIterator[Load]:
    """Play and read on the board during the block; every reader and player ends well."""
    async with (
        dispatching(settings) as dispatcher,
        store_of(settings) as store,
        asyncio.TaskGroup() as group,
    ):
        load = Load(dispatcher, store)
        for user in USERS:
            receipt = await dispatcher.submit("main", action := Action(user, "first", 5))
            load.acknowledged.append((action, receipt))
        players = [group.create_task(load.play(user)) for user in USERS]
        readers = [group.create_task(load.read()) for _ in range(2)]
        yield load
        load.is_over = True
        await asyncio.gather(*players, *readers)


async def check_sound(settings: Settings, partitions: int, load: Load) -> None:
    """PostgreSQL, Redis and the receipts agree; each action is remembered with its first answer."""
    await eventually_async(lambda: is_drained(settings, partitions=partitions))
    wanted = [(one.user_id, one.action_id, one.delta) for one, _ in load.acknowledged]
    check_invariants(settings, wanted, partitions=partitions, is_resized=True)
    await check_verified(settings)
    await check_repeats(settings, load)


async def check_repeats(settings: Settings, load: Load) -> None:
    async with dispatching(settings) as dispatcher:
        again: list[Receipt] = []
        for start in range(0, len(load.acknowledged), 1000):
            some = load.acknowledged[start : start + 1000]
            again += await asyncio.gather(
                *(dispatcher.submit("main", action) for action, _ in some)
            )
    for (action, first), repeat in zip(load.acknowledged, again, strict=True):
        assert repeat.replayed, action
        assert repeat.score == first.score, action
        assert repeat.committed, action


async def check_verified(settings: Settings, name: str = "main") -> None:
    client = make_client(settings, name="test")
    async with client, await connect(settings, name="test", **SESSION) as connection:  # pyright: ignore[reportArgumentType]
        board = await select_board(connection, name)
        verdict = await verify(client, connection, board, sample=None, report=lambda *_: None)
    assert not verdict.drifted
    assert not verdict.findings


@pytest.mark.parametrize("sizes", [(1, 4), (4, 1), (2, 3), (4, 2, 4), (3, 1, 2, 1)], ids=str)
async def test_a_board_is_resharded_while_it_is_used(
    sizes: tuple[int, ...], settings: Settings
) -> None:
    await make_board(settings, Board(layout=Layout(partitions=sizes[0])))
    async with flushing(settings):
        async with under_load(settings) as load:
            for before, size in itertools.pairwise(sizes):
                read = len(load.read_times)
                await eventually_async(lambda read=read: len(load.read_times) > read + 20)
                done = await do_reshard(settings, size)
                assert (done.before, done.partitions, done.users) == (before, size, len(USERS))
                assert done.pause_s < 3
            played = len(load.acknowledged)
            await eventually_async(lambda: len(load.acknowledged) > played + 2 * len(USERS))
        await check_sound(settings, sizes[-1], load)
    assert load.failed_reads == 0
    assert load.longest_read_s < 1


@pytest.mark.parametrize("last", [0, 1])
async def test_no_read_mixes_old_and_new_partitions(last: int, settings: Settings) -> None:
    """The partitions open one after the other; here, readers come in between."""
    await make_board(settings, Board(layout=Layout(partitions=2)))
    async with flushing(settings):
        async with under_load(settings) as load:
            real = Store.open
            others: list[int] = []

            async def open_last(
                store: Store, partition: Partition, *more: Any, **named: Any
            ) -> Any:
                if partition.number == last:
                    await eventually_async(lambda: len(others) == 2)
                    await asyncio.sleep(0.3)  # pace: readers come in between
                reply = await real(store, partition, *more, **named)
                others.append(partition.number)
                return reply

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Store, "open", open_last)
                await do_reshard(settings, 3)
            read = len(load.read_times)
            await eventually_async(lambda: len(load.read_times) > read + 20)
        await check_sound(settings, 3, load)
    assert load.failed_reads == 0
    assert load.longest_read_s >= 0.2, "a read has waited"


async def run_armed(settings: Settings, point: str, partitions: int) -> int:
    """Run the command in a process that is killed at a point; return its exit code."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.killed_command", point),
        *("board", "reshard", "main", "--yes", "--partitions", str(partitions)),
        env={
            **{name: text for name, text in os.environ.items() if "SCOREBOARD" not in name},
            "REDIS_URL": settings.redis_url.reveal(),
            "DATABASE_URL": settings.database_url.reveal(),
        },
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode is not None
    assert b"Traceback" not in errors, errors.decode()
    return process.returncode


LOADING = [
    *("before:stage:1", "after:stage:2", "after:restore:1", "before:restore:4"),
    *("after:remember:9", "before:fence:1", "after:fence:1", "before:record_epochs:1"),
]
"""Points before the change is recorded: the board goes on with the partitions that it had."""

SWITCHING = [
    *("after:record_epochs:1", "before:exclude:2", "after:set_gains:1"),
    *("before:open:1", "after:open:1", "after:open:2"),
]
"""Points from the transaction to the opening: only the next run opens the board."""


DIRECTIONS = itertools.cycle([(2, 3), (3, 2)])


@pytest.mark.parametrize(
    ("point", "sizes"),
    [
        *zip([*LOADING, *SWITCHING, "before:mirror_board:1"], DIRECTIONS, strict=False),
        *(("before:open:1", (3, 2)), ("after:open:1", (3, 2)), ("after:open:2", (2, 3))),
        *(("before:retire:1", (3, 1)), ("after:retire:1", (3, 1))),
    ],
    ids=str,
)
async def test_a_killed_reshard_is_completed_by_the_next_run(
    point: str, sizes: tuple[int, int], settings: Settings
) -> None:
    before, size = sizes
    await make_board(settings, Board(layout=Layout(partitions=before)))
    async with flushing(settings):
        async with under_load(settings) as load:
            killed = await run_armed(settings, point, size)
            assert killed == -signal.SIGKILL
            played, read = len(load.acknowledged), len(load.read_times)
            if point not in SWITCHING and "fence" not in point and "record" not in point:
                await eventually_async(lambda: len(load.acknowledged) > played + len(USERS))
            if "open" not in point:
                await eventually_async(lambda: len(load.read_times) > read + 20)
                assert load.failed_reads == 0, "reads go on"

            with suppress(OperatorMistake):  # nothing was left to do
                done = await do_reshard(settings, size)
                assert (done.partitions, done.users) == (size, len(USERS))

            played, read = len(load.acknowledged), len(load.read_times)
            await eventually_async(lambda: len(load.acknowledged) > played + len(USERS))
            await eventually_async(lambda: len(load.read_times) > read + 20)
        await check_sound(settings, size, load)
    with pytest.raises(OperatorMistake, match=f"has {size} partitions? already"):
        await do_reshard(settings, size)


@pytest.mark.parametrize("point", ["interrupt:restore:4", "interrupt:fence:2"])
async def test_an_interrupted_reshard_lets_the_board_go_on(point: str, settings: Settings) -> None:
    await make_board(settings, Board(layout=Layout(partitions=2)))
    async with flushing(settings):
        async with under_load(settings) as load:
            assert await run_armed(settings, point, 3) == 130
            played = len(load.acknowledged)
            await eventually_async(lambda: len(load.acknowledged) > played + 2 * len(USERS))
        await check_sound(settings, 2, load)
    async with store_of(settings) as store:
        states = await store.states("main")
        assert [state.fence for state in states.values() if state.epoch] == ["", ""]
        assert states[2].is_retired


async def test_an_interruption_of_the_last_step_comes_after_it(settings: Settings) -> None:
    await make_board(settings, Board(layout=Layout(partitions=2)))
    async with flushing(settings):
        async with under_load(settings) as load:
            assert await run_armed(settings, "interrupt:record_epochs:1", 3) == 130
            played = len(load.acknowledged)
            await eventually_async(lambda: len(load.acknowledged) > played + 2 * len(USERS))
        await check_sound(settings, 3, load)


async def test_without_a_flusher_nothing_changes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.recovery.reshard.PATIENCE_S", 0.3)
    await make_board(settings, Board(layout=Layout(partitions=2)))
    async with under_load(settings) as load:
        with pytest.raises(WaitTimeout, match="board main goes on with its 2 partitions"):
            await do_reshard(settings, 3)
        played = len(load.acknowledged)
        await eventually_async(lambda: len(load.acknowledged) > played + len(USERS))
    assert not load.refused
    async with flushing(settings):
        await check_sound(settings, 2, load)


async def test_a_flusher_that_stops_during_the_pause_ends_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.recovery.reshard.STALL_S", 0.3)
    await make_board(settings, Board(layout=Layout(partitions=2)))
    async with under_load(settings) as load:
        async with AsyncExitStack() as flusher:
            await flusher.enter_async_context(flushing(settings))
            real = Store.fence

            async def stop_and_fence(store: Store, *arguments: Any, **named: Any) -> Any:
                await flusher.aclose()
                played = len(load.acknowledged)
                await eventually_async(lambda: len(load.acknowledged) > played)
                return await real(store, *arguments, **named)

            with monkeypatch.context() as patch:
                patch.setattr(Store, "fence", stop_and_fence)
                with pytest.raises(WaitTimeout, match="goes on with its 2 partitions"):
                    await do_reshard(settings, 3)
        played = len(load.acknowledged)
        await eventually_async(lambda: len(load.acknowledged) > played + len(USERS))
    async with flushing(settings):
        await check_sound(settings, 2, load)


async def test_a_release_is_repeated_until_redis_answers(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.recovery.reshard.STALL_S", 0.3)
    await make_board(settings, Board(layout=Layout(partitions=2)))
    lost = away_for(monkeypatch, 2)
    with pytest.raises(WaitTimeout, match="goes on with its 2 partitions"):
        await fail_in_the_pause(settings, monkeypatch)
    assert next(lost) > 2
    async with store_of(settings) as store:
        assert all(state.is_open for state in (await store.states("main")).values() if state.epoch)


async def test_a_board_that_cannot_be_let_go_on_is_told_and_completed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.recovery.reshard.STALL_S", 0.3)
    monkeypatch.setattr("scoreboard.recovery.reshard.RELEASE_S", 0.5)
    await make_board(settings, Board(layout=Layout(partitions=2)))
    async with flushing(settings):
        await eventually_async(lambda: is_drained(settings, partitions=2))
        with monkeypatch.context() as patch:
            away_for(patch, 1000)
            with pytest.raises(RedisUnavailable, match="run the command again"):
                await fail_in_the_pause(settings, patch)
        assert (await do_reshard(settings, 3)).partitions == 3


def away_for(monkeypatch: pytest.MonkeyPatch, times: int) -> Iterator[int]:
    """Let releases fail some times; return the counter of releases."""
    counter = itertools.count()
    real = Store.release

    async def release(store: Store, *arguments: Any) -> None:
        if next(counter) < times:
            raise RedisUnavailable("no answer")
        await real(store, *arguments)

    monkeypatch.setattr(Store, "release", release)
    return counter


async def fail_in_the_pause(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reshard a board whose drain never ends."""

    async def wait(*_: Any, **__: Any) -> None:
        raise WaitTimeout("stalled")

    monkeypatch.setattr("scoreboard.recovery.reshard.wait_until_drained", wait)
    await do_reshard(settings, 3)


async def test_a_record_that_waits_for_a_lock_ends_the_pause(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.recovery.reshard.CHANGE_STATEMENT_S", 0.5)
    await make_board(settings, Board(layout=Layout(partitions=2)))
    async with flushing(settings):
        with psycopg.connect(settings.database_url.reveal()) as other:
            other.execute("SELECT FROM boards WHERE board = 'main' FOR NO KEY UPDATE")
            async with asyncio.timeout(10):
                with pytest.raises(DatabaseUnavailable, match="run the command again"):
                    await do_reshard(settings, 3)
        assert (await do_reshard(settings, 3)).partitions == 3


async def test_a_list_that_cannot_be_copied_does_not_fail_a_reshard(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_board(settings, Board(layout=Layout(partitions=2)))

    async def write(*_: Any) -> None:
        raise RedisUnavailable("no answer")

    async with flushing(settings):
        with monkeypatch.context() as patch:
            patch.setattr(Store, "write_boards", write)
            done = await do_reshard(settings, 3)
        assert (done.partitions, done.is_listed) == (3, False)
        assert (await do_reshard(settings, 2)).is_listed


async def test_flushers_come_and_go_during_reshards(settings: Settings, tmp_path: Path) -> None:
    await make_board(settings, Board(layout=Layout(partitions=2)))
    with (
        FlusherProcess(settings, tmp_path / "first") as first,
        FlusherProcess(settings, tmp_path / "second") as second,
    ):
        async with under_load(settings) as load:

            async def disturb() -> None:
                for flusher in itertools.cycle((first, second)):
                    await asyncio.to_thread(flusher.kill)
                    await asyncio.sleep(0.2)  # pace: of the faults
                    await asyncio.to_thread(flusher.start)
                    await asyncio.sleep(0.8)  # pace: of the faults

            disturbing = asyncio.create_task(disturb())
            for size in (3, 1, 4, 2):
                for _ in range(5):
                    with suppress(WaitTimeout):  # the board goes on, and it is tried again
                        await do_reshard(settings, size)
                        break
            disturbing.cancel()
            with suppress(asyncio.CancelledError):
                await disturbing
        await asyncio.to_thread(first.kill)
        await asyncio.to_thread(first.start)
        await check_sound(settings, 2, load)
    assert load.failed_reads == 0


async def test_a_flusher_serves_new_partitions_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flusher.search.SEARCH_EVERY_S", 600.0)
    await make_board(settings, Board(layout=Layout(partitions=1)))
    async with flushing(settings), dispatching(settings) as dispatcher:
        await do_reshard(settings, 3)
        for user in USERS:
            await dispatcher.submit("main", Action(user, "win:1", 5))
        await eventually_async(lambda: is_drained(settings, partitions=3))


async def test_other_operators_wait_or_are_refused(settings: Settings) -> None:
    board = await make_board(settings, Board(layout=Layout(partitions=2)))
    async with flushing(settings):
        async with under_load(settings) as load, store_of(settings) as store:
            refused: list[str] = []

            async def interfere(step: str, _done: int, _total: int) -> None:
                async with await connect(settings, name="other", **SESSION) as connection:  # pyright: ignore[reportArgumentType]
                    for attempt in (
                        lambda: reseed(store, connection, board, [0, 1], actor="other"),
                        lambda: reshard(store, connection, "main", 4, actor="other"),
                        lambda: change_board(store, connection, "main", actor="other"),
                    ):
                        with pytest.raises(OperatorMistake, match="Another operator"):
                            await attempt()
                        refused.append(step)

            others: list[asyncio.Task[None]] = []

            def report(step: str, done: int, total: int) -> None:
                if step == "scores" and not others:
                    others.append(asyncio.create_task(interfere(step, done, total)))

            real = Store.remember

            async def remember_after(store: Store, *arguments: Any, **named: Any) -> Any:
                await others[0]
                return await real(store, *arguments, **named)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Store, "remember", remember_after)
                done = await do_reshard(settings, 3, report=report)
            assert len(refused) == 3
            assert done.partitions == 3
        await check_sound(settings, 3, load)


async def test_a_board_that_is_not_open_is_not_resharded(settings: Settings) -> None:
    await make_board(settings, Board(layout=Layout(partitions=2)))
    async with store_of(settings) as store:
        await fence(store, Partition("main", 1), "other:1")
        with pytest.raises(OperatorMistake, match="not open with its 2 partitions") as refusal:
            await do_reshard(settings, 3)
        assert "scoreboard reseed --board main" in refusal.value.hint
        assert (await store.state(Partition("main", 1))).fence == "other:1"
    with pytest.raises(OperatorMistake, match="Board main is not open"):
        await do_reshard(settings, 1)


RULES = {
    "add": DEFAULT_RULES,
    "best": Rules(operator="best"),
    "last": Rules(operator="last"),
    "lowest": Rules(operator="best", order="lowest"),
    "seasons": Rules(season="daily", time_zone="UTC"),
}


@pytest.mark.parametrize("sizes", [(1, 3), (3, 2)], ids=str)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
async def test_scores_order_and_answers_are_kept_with_all_rules(
    rules: Rules, sizes: tuple[int, int], settings: Settings
) -> None:
    before, size = sizes
    await make_board(settings, Board(layout=Layout(before, rules=rules)))
    chance = random.Random(7)
    actions = [
        Action(chance.choice(USERS), f"play:{number}", chance.randint(1, 9), rules=rules)
        for number in range(600)
    ]
    async with flushing(settings), dispatching(settings) as dispatcher:
        first = [await dispatcher.submit("main", action) for action in actions[:500]]
        upcoming, turn = iter(actions[500:]), asyncio.Lock()
        real = Store.remember

        async def play_meanwhile(store: Store, *arguments: Any, **named: Any) -> Any:
            nonlocal upcoming
            async with turn:
                if (action := next(upcoming, None)) is not None:
                    try:
                        first.append(await dispatcher.submit("main", action))
                    except Fenced:  # the last step of the reshard
                        upcoming = iter(())
            return await real(store, *arguments, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Store, "remember", play_meanwhile)
            await do_reshard(settings, size)
        assert len(first) > 510
        async with store_of(settings) as store:
            window = await store.leaderboard("main", limit=100)
        scores = {action.user_id: one.score for action, one in zip(actions, first, strict=False)}
        assert {row.user_id: row.score for row in window.rows} == scores

        await eventually_async(lambda: is_drained(settings, partitions=size))
        await check_verified(settings)
        held: dict[str, int] = {}
        for action, receipt in zip(actions, first, strict=False):
            # Only Redis remembers a value that changed nothing, and not in another partition.
            if held.get(action.user_id) != receipt.score:
                repeat = await dispatcher.submit("main", action)
                assert (repeat.score, repeat.replayed) == (receipt.score, True), action
            held[action.user_id] = receipt.score


async def test_equals_of_partitions_that_are_committed_at_another_pace_keep_their_order(
    settings: Settings,
) -> None:
    """Incident: the first of two equals was committed, and so loaded, after the second one."""
    await make_board(settings, Board(layout=Layout(partitions=2)))
    first, second = (
        next(user for user in USERS if partition_of(user, 2) == number) for number in (1, 0)
    )
    async with flushing(settings), dispatching(settings) as dispatcher:
        for user in USERS:
            await dispatcher.submit("main", Action(user, "win:1", 5))
        await eventually_async(lambda: is_drained(settings, partitions=2))
        with psycopg.connect(settings.database_url.reveal()) as blocker:
            blocker.execute("SELECT FROM flush_state WHERE part = 1 FOR UPDATE")
            for user in (first, second):
                await dispatcher.submit("main", Action(user, "win:2", 4))
                await asyncio.sleep(0.01)  # pace: they do not arrive in one ms
            await eventually_async(
                lambda: query(settings, "SELECT 1 FROM score_events WHERE action_id = 'win:2'")
            )
            real = Store.remember

            async def commit_and_remember(store: Store, *arguments: Any, **named: Any) -> Any:
                blocker.rollback()
                return await real(store, *arguments, **named)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Store, "remember", commit_and_remember)
                await do_reshard(settings, 1)
        async with store_of(settings) as store:
            window = await store.leaderboard("main", limit=2)
        assert [row.user_id for row in window.rows] == [first, second]
        await check_verified(settings)


async def test_a_season_that_ends_meanwhile_is_not_mixed_with_the_next_one(
    settings: Settings,
) -> None:
    rules = RULES["seasons"]
    await make_board(settings, Board(layout=Layout(2, rules=rules)))
    async with flushing(settings), dispatching(settings) as dispatcher:
        for user in USERS:
            await dispatcher.submit("main", Action(user, "old", 5, rules=rules))
        await eventually_async(lambda: is_drained(settings, partitions=2))
        real = Store.fence
        turned: list[int] = []

        async def turn_and_fence(
            store: Store, partition: Partition, *more: Any, **named: Any
        ) -> Any:
            if partition.number not in turned:
                turned.append(partition.number)
                client = store._client
                meta = PartitionKeys(partition).meta
                name, start, _ = str(await client.hget(meta, "season")).split(":")
                await client.hset(meta, "season", f"{name}X:{start}:{int(time.time())}")
                await store.turn(partition, rules)
                user = next(one for one in USERS if partition_of(one, 2) == partition.number)
                await dispatcher.submit("main", Action(user, "new", 7, rules=rules))
            return await real(store, partition, *more, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Store, "fence", turn_and_fence)
            done = await do_reshard(settings, 3)

        assert (len(turned), done.users) == (2, 2)
        async with store_of(settings) as store:
            window = await store.leaderboard("main", limit=100)
        assert [row.score for row in window.rows] == [7, 7]
        await eventually_async(lambda: is_drained(settings, partitions=3))
        await check_verified(settings)


@pytest.mark.parametrize("sizes", [(1, 3), (3, 2)], ids=str)
async def test_bans_limits_held_actions_and_acts_are_kept(
    sizes: tuple[int, int], settings: Settings
) -> None:
    before, size = sizes
    limits = Limits(100, 250, 86_400)
    board = await make_board(settings, Board(layout=Layout(partitions=before), limits=limits))
    async with flushing(settings), dispatching(settings) as dispatcher:
        world = World(settings, board)
        await world.play(*((user, "win:1", 90) for user in USERS))
        await world.play(*((user, "win:2", 101) for user in USERS[:9]))  # held: 100 is the most
        await world.play(*((user, "win:3", 90) for user in USERS))
        await world.perform(BanChange(USERS[0], "ban"))
        await world.perform(BanChange(USERS[1], "ban"))
        await world.perform(Correction(USERS[2], -10))
        await world.drained()

        done = await do_reshard(settings, size)
        world.board = replace(board, layout=Layout(partitions=size))

        assert done.users == len(USERS) - 2
        for user in USERS[:2]:
            assert await world.score(user) is None
            with pytest.raises(Banned):
                await dispatcher.submit("main", Action(user, "more", 1))
        assert await world.score(USERS[2]) == 170
        for user in USERS[2:]:
            # 180 of the 250 points of the window are gained.
            receipt = await dispatcher.submit("main", Action(user, "win:4", 71))
            assert receipt.held, user
            receipt = await dispatcher.submit("main", Action(user, "win:5", 70))
            assert not receipt.held, user
        for user in USERS[:9]:
            again = await dispatcher.submit("main", Action(user, "win:2", 101))
            assert (again.held, again.replayed) == (True, True)
        await world.perform(BanChange(USERS[0], "unban"))
        assert await world.score(USERS[0]) == 180
        await world.check()
        async with store_of(settings) as store:
            gains = [await store.gains(Partition("main", number)) for number in range(size)]
            assert {partition_of(user, size) for one in gains for user in one.points} == set(
                range(size)
            )
            client = store._client
            for number in range(size):
                assert await client.ttl(PartitionKeys(Partition("main", number)).gained) > 0


async def test_dead_letters_are_part_of_the_scores(settings: Settings) -> None:
    """Redis has counted them, PostgreSQL has not: a user keeps them in the new partition."""
    await make_board(settings, Board(layout=Layout(partitions=2)))
    async with flushing(settings), dispatching(settings) as dispatcher:
        for user in USERS:
            await dispatcher.submit("main", Action(user, "win:1", 5))
        await eventually_async(lambda: is_drained(settings, partitions=2))
        query(settings, "ALTER TABLE score_events ADD CONSTRAINT poison CHECK (delta <> 13)")
        for user in USERS[:8]:
            await dispatcher.submit("main", Action(user, "win:2", 13))
        await dispatcher.submit("main", Action("stranger", "win:2", 13))

        def are_dead() -> bool:
            return query(settings, "SELECT count(*) FROM dead_events") == [(9,)]

        await eventually_async(are_dead)
        query(settings, "ALTER TABLE score_events DROP CONSTRAINT poison")

        done = await do_reshard(settings, 3)

        assert done.users == len(USERS) + 1
        async with store_of(settings) as store:
            window = await store.leaderboard("main", limit=100)
            scores = {row.user_id: row.score for row in window.rows}
        assert scores == {
            **dict.fromkeys(USERS, 5),
            **dict.fromkeys(USERS[:8], 18),
            "stranger": 13,
        }
        for user in USERS[:8]:
            again = await dispatcher.submit("main", Action(user, "win:2", 13))
            assert (again.score, again.replayed) == (18, True)
        await check_verified(settings)


async def test_viewers_stay_and_follow_the_new_partitions(
    settings: Settings, start_streamer: StartStreamer, connect: Connect
) -> None:
    await make_board(settings, Board(layout=Layout(partitions=2)))
    async with flushing(settings), dispatching(settings) as dispatcher:
        for user in USERS:
            await dispatcher.submit("main", Action(user, "win:1", 5))
        streamer = await start_streamer(opened=False)
        await eventually_async(lambda: streamer.streamer.watcher.is_ready)
        viewer = await connect(streamer.port)
        await viewer.next("leaderboard")
        for turn, size in enumerate((3, 1)):
            await do_reshard(settings, size)
            for number in range(size):
                user = next(one for one in USERS if partition_of(one, size) == number)
                points = 100 * (1 + turn)
                receipt = await dispatcher.submit("main", Action(user, f"more:{size}", points))

                def is_shown(user: str = user, score: int = receipt.score) -> bool:
                    rows = viewer.messages[-1].get("leaderboard", ())
                    return any((row["userId"], row["score"]) == (user, score) for row in rows)

                async with asyncio.timeout(2):
                    while not is_shown():
                        await viewer.next()
    assert {one["type"] for one in viewer.messages} <= {"leaderboard", "update", "ping"}


def test_the_command(command: Run, settings: Settings) -> None:
    assert command("board", "create", "weekly", "--partitions", "2").code == 0

    done = command("board", "reshard", "weekly", "--partitions", "3", "--yes", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["partitions"] == 3
    again = command("board", "reshard", "weekly", "--partitions", "3", "--yes")
    assert again.code != 0
    assert "Board weekly has 3 partitions already" in again.err
    asked = command("board", "reshard", "weekly", "--partitions", "2")
    assert asked.code != 0, "it asks, and there is no terminal"
    back = command("board", "reshard", "weekly", "--partitions", "1", "--yes")
    assert "Board weekly has 1 partition: 0 users" in back.err, back.err
    assert command("board", "reshard", "none", "--partitions", "1", "--yes").code != 0
    (row,) = query(
        settings, "SELECT detail FROM audit_log WHERE action = 'board reshard' ORDER BY seq LIMIT 1"
    )
    assert row[0]["partitions"] == [0, 1, 2]
    assert command("verify", "--board", "weekly", "--full").code == 0
