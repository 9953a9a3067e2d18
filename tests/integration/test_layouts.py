"""Layout changes: no action is accepted in a partition that is not read."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from scoreboard.errors import Fenced, OperatorMistake
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.pool import connect
from scoreboard.model import Action, Board, Layout, Partition, Receipt, partition_of
from scoreboard.recovery.reseed import SESSION, choose_partitions, find_unavailable, reseed
from scoreboard.recovery.verify import verify
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.client import make_client
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from tests.support.data.boards import fence
from tests.support.eventually import eventually_async
from tests.support.servers.flushers import (
    act,
    check_invariants,
    dispatching,
    flushing,
    is_drained,
    query,
)

pytestmark = pytest.mark.slow

USERS = [f"user{number}" for number in range(24)]


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url), database_url=Secret(database_url), flusher_metrics_port=0
    )


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    client = make_client(settings, name="test")
    yield Store(client)
    await client.aclose()


def set_layout(settings: Settings, layout: Layout) -> None:
    query(
        settings,
        "INSERT INTO boards VALUES ('main', %s, %s, %s, true) ON CONFLICT (board) DO UPDATE"
        " SET partitions = excluded.partitions, seen_seconds = excluded.seen_seconds,"
        " seen_shards = excluded.seen_shards",
        layout.partitions,
        layout.seen_seconds,
        layout.seen_shards,
    )


async def do_reseed(settings: Settings, store: Store, *, force: bool = False, **how: Any) -> None:
    async with await connect(settings, name="test", **SESSION) as connection:  # pyright: ignore[reportArgumentType]
        board = await select_board(connection, "main")
        numbers = await choose_partitions(store, board, force=force)
        await reseed(store, connection, board, numbers, actor="test", **how)


async def play(dispatcher: Dispatcher, part: str) -> list[tuple[str, str, int]]:
    """Submit one action per user; return the receipts."""
    actions = [Action(user, f"{part}:{user}", 5) for user in USERS]
    results = await asyncio.gather(
        *(dispatcher.submit("main", action) for action in actions), return_exceptions=True
    )
    for result in results:
        assert isinstance(result, Receipt | Fenced), result
    return [
        (action.user_id, action.action_id, action.delta)
        for action, result in zip(actions, results, strict=True)
        if isinstance(result, Receipt)
    ]


async def check_consistent(settings: Settings, partitions: int, wanted: list[Any]) -> None:
    await eventually_async(lambda: is_drained(settings, partitions=partitions))
    check_invariants(settings, wanted, partitions=partitions, is_resized=True)
    client = make_client(settings, name="test")
    async with await connect(settings, name="test", **SESSION) as connection:  # pyright: ignore[reportArgumentType]
        board = await select_board(connection, "main")
        verdict = await verify(client, connection, board, sample=None, report=lambda *_: None)
    await client.aclose()
    assert not verdict.drifted
    assert not verdict.findings


@pytest.mark.parametrize("sizes", [(4, 2), (4, 1), (1, 3), (2, 4), (4, 3, 1), (4, 2, 4)], ids=str)
async def test_an_api_with_an_old_layout_gets_the_new_one(
    sizes: tuple[int, ...], settings: Settings, store: Store
) -> None:
    set_layout(settings, Layout(partitions=sizes[0]))
    await do_reseed(settings, store)
    acknowledged: list[tuple[str, str, int]] = []
    async with dispatching(settings) as stale, flushing(settings):
        acknowledged += await play(stale, "first")
        known = stale._layouts["main"] if sizes[0] > 1 else Layout()
        for turn, size in enumerate(sizes[1:]):
            set_layout(settings, Layout(partitions=size))
            await do_reseed(settings, store)
            # A process with the old layout submits to each of the old partitions.
            for user in USERS:
                stale._layouts["main"] = known
                receipt = await stale.submit("main", Action(user, f"stale{turn}:{user}", 3))
                assert isinstance(receipt, Receipt)
                acknowledged.append((user, f"stale{turn}:{user}", 3))
                assert stale._layouts["main"].partitions == size
            acknowledged += await play(stale, f"turn{turn}")
            assert (await store.leaderboard("main", limit=0)).total == len(USERS)
            await check_consistent(settings, size, acknowledged)


async def test_a_new_epoch_is_above_the_sum_of_the_old_ones(
    settings: Settings, store: Store
) -> None:
    """Readers compare sums; a smaller sum would look like an older board."""
    set_layout(settings, Layout(partitions=4))
    await do_reseed(settings, store)
    async with flushing(settings):
        await do_reseed(settings, store, force=True)
        before = await store.leaderboard("main", limit=0)
        assert before.epoch == 8
        set_layout(settings, Layout(partitions=1))
        await do_reseed(settings, store)

    after = await store.leaderboard("main", limit=0)

    assert after.epoch > before.epoch
    assert len(after.positions) == 1


async def test_a_reader_with_an_old_layout_gets_all_users(settings: Settings, store: Store) -> None:
    other = make_client(settings, name="operator")
    set_layout(settings, Layout(partitions=2))
    await do_reseed(settings, store)
    async with flushing(settings), dispatching(settings) as dispatcher:
        await play(dispatcher, "first")
        assert (await store.leaderboard("main")).total == len(USERS)
        for size in (4, 1):
            set_layout(settings, Layout(partitions=size))
            await do_reseed(settings, Store(other))

            window = await store.leaderboard("main", limit=100)
            standings = [await store.standing("main", user, around=1) for user in USERS]

            assert sorted(row.user_id for row in window.rows) == sorted(USERS)
            assert {standing.total for standing in standings} == {len(USERS)}
    await other.aclose()


@pytest.mark.parametrize("step", ["fence", "drain", "restore", "retire", "open"])
async def test_an_interrupted_layout_change_is_completed_by_the_next_reseed(
    step: str, settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class InterruptedReseedError(Exception):
        pass

    set_layout(settings, Layout(partitions=4))
    await do_reseed(settings, store)
    async with flushing(settings), dispatching(settings) as stale:
        acknowledged = await play(stale, "first")
        old = stale._layouts["main"]
        set_layout(settings, Layout(partitions=3))
        calls = 0
        real = getattr(Store, "backlog" if step == "drain" else step)

        async def fail(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == (1 if step in {"drain", "retire"} else 2):
                raise InterruptedReseedError
            return await real(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(Store, "backlog" if step == "drain" else step, fail)
            with pytest.raises((InterruptedReseedError, ExceptionGroup)):
                await do_reseed(settings, store)
        acknowledged += await play(stale, "between")
        set_layout(settings, Layout(partitions=2))
        assert await find_unavailable(store, Board(layout=Layout(partitions=2))) == [0, 1]
        await do_reseed(settings, store)

        for user in USERS:
            stale._layouts["main"] = old
            await stale.submit("main", Action(user, f"stale:{user}", 3))
            acknowledged.append((user, f"stale:{user}", 3))
        await check_consistent(settings, 2, acknowledged)


async def test_a_running_flusher_drains_partitions_that_a_reseed_removes(
    settings: Settings, store: Store
) -> None:
    set_layout(settings, Layout(partitions=4))
    await do_reseed(settings, store)
    async with dispatching(settings) as dispatcher:
        acknowledged = await play(dispatcher, "first")
        set_layout(settings, Layout(partitions=1))

        async with flushing(settings) as flusher:
            await do_reseed(settings, store)
            await check_consistent(settings, 1, acknowledged)

            await eventually_async(
                lambda: (
                    sorted(
                        (partition.partition.number, partition.status.condition.value)
                        for partition in flusher.partitions
                    )
                    == [(0, "flushing"), (1, "retired"), (2, "retired"), (3, "retired")]
                )
            )


async def test_open_partitions_of_an_older_layout_are_found_and_counted(
    settings: Settings, store: Store
) -> None:
    set_layout(settings, Layout(partitions=2))
    await do_reseed(settings, store)
    async with dispatching(settings) as stale, flushing(settings):
        acknowledged = await play(stale, "first")
        await eventually_async(lambda: is_drained(settings, partitions=2))
        # As an earlier version of reseed did, which used only the partitions of the new layout.
        board = Board(layout=Layout(partitions=1))
        set_layout(settings, board.layout)
        partition = Partition("main")
        epoch, seq = await fence(store, partition, "old")
        await store.restore(partition, "old", [], first=True)
        await store.open(
            partition, "old", board, epoch=epoch + 1, seq=seq, stream_id="0-0", members=0
        )
        query(settings, "UPDATE flush_state SET epoch = epoch + 1 WHERE part = 0")
        lost = next(user for user in USERS if partition_of(user, 2) == 1)
        await stale.submit("main", Action(lost, "stale:1", 3))
        acknowledged.append((lost, "stale:1", 3))

        client = make_client(settings, name="test")
        async with await connect(settings, name="test", **SESSION) as connection:  # pyright: ignore[reportArgumentType]
            verdict = await verify(client, connection, board, sample=None, report=lambda *_: None)
        await client.aclose()
        assert ("layout", 1) in {(one.check, one.partition) for one in verdict.findings}

        await do_reseed(settings, store)
        await check_consistent(settings, 1, acknowledged)


async def test_the_dedup_window_changes_for_all_partitions_or_none(
    settings: Settings, store: Store
) -> None:
    set_layout(settings, Layout(partitions=2))
    await do_reseed(settings, store)
    async with dispatching(settings) as dispatcher, flushing(settings):
        acknowledged = await play(dispatcher, "first")
        set_layout(settings, Layout(2, 600, 8))
        async with await connect(settings, name="test", **SESSION) as connection:  # pyright: ignore[reportArgumentType]
            board = await select_board(connection, "main")
            with pytest.raises(OperatorMistake, match="layout of board main has changed"):
                await reseed(store, connection, board, [1], actor="test")
        await do_reseed(settings, store)

        for user, action, delta in acknowledged:
            receipt = await dispatcher.submit("main", Action(user, action, delta))
            assert receipt.replayed
        await check_consistent(settings, 2, acknowledged)


async def test_a_board_that_left_the_settings_is_still_flushed(
    settings: Settings, store: Store, redis_url: str
) -> None:
    set_layout(settings, Layout())
    await do_reseed(settings, store)
    acknowledged = [("alice", "a", 5)]
    await act(settings, Action(*acknowledged[0]))
    others = Settings(
        redis_url=Secret(redis_url),
        database_url=settings.database_url,
        boards=("other",),
        flusher_metrics_port=0,
    )
    async with flushing(others):
        await check_consistent(settings, 1, acknowledged)


async def test_a_retired_partition_keeps_only_the_layout(settings: Settings, store: Store) -> None:
    set_layout(settings, Layout(partitions=2))
    await do_reseed(settings, store)
    async with dispatching(settings) as dispatcher, flushing(settings):
        await play(dispatcher, "first")
        set_layout(settings, Layout(partitions=1))
        await do_reseed(settings, store)

    client = make_client(settings, name="test")
    keys = PartitionKeys(Partition("main", 1))
    facts = await client.hgetall(keys.meta)
    left = await client.exists(keys.board, keys.shadow, keys.events)
    await client.aclose()
    assert (facts["state"], facts["layout"], facts.get("epoch")) == ("retired", "1:43200:64", None)
    assert left == 0
