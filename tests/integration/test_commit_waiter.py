"""CommitWaiter: confirmations, lost actions, and the end of every wait."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from cli.embedded.servers import EmbeddedValkey
from scoreboard.errors import OutcomeUnknown
from scoreboard.ledger.pool import connect
from scoreboard.model import Action, Board, Receipt
from scoreboard.recovery.reseed import SESSION, reseed
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.commit_waiter import CommitWaiter
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from tests.support.eventually import eventually_async
from tests.support.servers.api import StartApi
from tests.support.servers.flushers import (
    MAIN,
    act,
    dispatching,
    flushing,
    is_drained,
    make_board,
    positions,
    query,
    store_of,
)
from tests.support.servers.stores import OwnValkey

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url), database_url=Secret(database_url), flusher_metrics_port=0
    )


class Waiting(NamedTuple):
    """A dispatcher and the CommitWaiter for its actions."""

    dispatcher: Dispatcher
    commits: CommitWaiter

    async def act(self, user: str, action: str = "1") -> Receipt:
        return await self.dispatcher.submit("main", Action(user, action, 5))

    async def confirm(self, user: str, receipt: Receipt, action: str = "1") -> Receipt:
        return await self.commits.confirm("main", Action(user, action, 5), receipt)


@asynccontextmanager
async def waiting(
    settings: Settings, store: Store, *, limit_s: float = 10.0
) -> AsyncIterator[Waiting]:
    async with dispatching(settings) as dispatcher:
        within = msgspec.structs.replace(settings, commit_timeout_s=limit_s)
        commits = CommitWaiter(within, store, dispatcher)
        task = asyncio.create_task(commits.run())
        try:
            yield Waiting(dispatcher, commits)
        finally:
            task.cancel()
            await asyncio.wait({task})


def waits(commits: CommitWaiter) -> int:
    return sum(len(waiters.waiting) for waiters in commits._waiters.values())


async def test_a_wait_ends_when_postgres_has_the_action(settings: Settings) -> None:
    await make_board(settings)
    async with store_of(settings) as store, waiting(settings, store) as one:
        first, second = await one.act("alice"), await one.act("bob")
        tasks = [
            asyncio.create_task(one.confirm(user, receipt))
            for user, receipt in [("bob", second), ("alice", first), ("alice", first)]
        ]
        await eventually_async(lambda: waits(one.commits) == 3)
        assert not any(task.done() for task in tasks), "nothing is committed"

        async with flushing(settings):
            confirmed = await asyncio.gather(*tasks)

        assert positions(settings) == {0: 2}
        assert {(receipt.seq, receipt.replayed, receipt.committed) for receipt in confirmed} == {
            (1, False, True),
            (2, False, True),
        }
        again = await one.act("alice")
        assert (again.replayed, again.committed) == (True, True)
        assert await one.confirm("alice", again) == again


@pytest.mark.one_server
async def test_the_announcement_of_a_commit_ends_the_wait(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.store.commit_waiter.READ_EVERY_S", 60.0)
    await make_board(settings)
    async with store_of(settings) as store, waiting(settings, store) as one, flushing(settings):
        await eventually_async(lambda: one.commits._announcements.is_up)
        for number in range(5):
            receipt = await one.act("alice", str(number))
            assert (await one.confirm("alice", receipt, str(number))).committed


@pytest.mark.one_server
async def test_a_lost_announcement_delays_a_wait_by_one_read(settings: Settings) -> None:
    await make_board(settings)
    async with store_of(settings) as store, waiting(settings, store) as one, flushing(settings):
        await eventually_async(lambda: one.commits._announcements.is_up)
        for server in one.commits._announcements._servers.values():
            server.subscription._on_change = lambda _channel: None
        receipt = await one.act("alice")

        assert (await one.confirm("alice", receipt)).committed


async def test_a_wait_ends_with_outcome_unknown(settings: Settings) -> None:
    await make_board(settings)
    async with store_of(settings) as store, waiting(settings, store, limit_s=0.1) as one:
        receipt = await one.act("alice")

        for _ in range(3):
            with pytest.raises(OutcomeUnknown):
                await one.confirm("alice", receipt)

        assert waits(one.commits) == 0, "ended waits are removed"


async def reseeded(settings: Settings) -> None:
    async with (
        await connect(settings, name="test", **SESSION) as connection,
        store_of(settings) as store,
    ):
        await reseed(store, connection, Board(), [0], actor="test")


async def test_a_reseed_confirms_committed_actions_and_lost_ones_are_applied_again(
    settings: Settings,
) -> None:
    await make_board(settings)
    async with store_of(settings) as store, waiting(settings, store) as one:
        kept = await one.act("alice")
        async with flushing(settings):
            await eventually_async(lambda: is_drained(settings))
        lost = await one.act("bob")
        tasks = [
            asyncio.create_task(one.confirm(user, receipt))
            for user, receipt in [("alice", kept), ("bob", lost)]
        ]
        await eventually_async(lambda: waits(one.commits) == 1)
        await store._client.delete(PartitionKeys(MAIN).events)  # as after the loss of the disk
        async with flushing(settings):
            await reseeded(settings)
            confirmed = await asyncio.gather(*tasks)

        assert [(receipt.seq, receipt.replayed) for receipt in confirmed] == [
            (1, False),
            (3, False),
        ]
        ledger = query(settings, "SELECT action_id, epoch, seq FROM score_events ORDER BY seq")
        assert ledger == [("1", 1, 1), ("1", 2, 3)]


class LaggingFailover:
    """Replaces the state of a Redis by an earlier one, as a failover to a lagging replica."""

    def __init__(self, server: EmbeddedValkey, kept: Path) -> None:
        self._server = server
        self._kept = kept
        self._files = server.folder.path / "appendonlydir"

    async def save_state(self) -> None:
        self._server.stop()
        shutil.copytree(self._files, self._kept)
        await asyncio.to_thread(self._server.start)

    async def fail_over(self) -> None:
        self._server.kill()
        shutil.rmtree(self._files)
        shutil.copytree(self._kept, self._files)
        await asyncio.to_thread(self._server.start)


@pytest.fixture
async def failing(
    own_valkey: OwnValkey, database_url: str, tmp_path: Path
) -> tuple[Settings, LaggingFailover]:
    server = own_valkey()
    settings = Settings(
        redis_url=Secret(server.url), database_url=Secret(database_url), flusher_metrics_port=0
    )
    await make_board(settings)
    await act(settings, Action("carol", "1", 5))
    async with flushing(settings):
        await eventually_async(lambda: is_drained(settings))
    failing = LaggingFailover(server, tmp_path / "kept")
    await failing.save_state()
    return settings, failing


async def test_another_action_with_the_same_seq_confirms_nothing(
    failing: tuple[Settings, LaggingFailover],
) -> None:
    """Alice's action got seq 2 and was lost; Bob's got seq 2 on the server behind."""
    settings, redis = failing
    async with store_of(settings) as store, waiting(settings, store) as one:
        lost = await one.act("alice")
        await redis.fail_over()
        other = await one.act("bob")
        assert lost.seq == other.seq
        async with flushing(settings):
            confirmed = await one.confirm("alice", lost)
            assert query(settings, "SELECT count(*) FROM score_events") == [(3,)]

    assert (confirmed.score, confirmed.seq, confirmed.replayed, confirmed.committed) == (
        5,
        3,
        False,
        True,
    )


async def test_a_failover_between_read_and_confirmation_confirms_nothing(
    failing: tuple[Settings, LaggingFailover], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seq 2 is read as committed; then another server answers."""
    settings, redis = failing
    wait_for_seq = CommitWaiter._wait_for_seq
    reads = 0

    async def wait_and_fail_over(self: CommitWaiter, *args: Any) -> None:
        nonlocal reads
        await wait_for_seq(self, *args)
        reads += 1
        if reads == 1:
            await redis.fail_over()

    monkeypatch.setattr(CommitWaiter, "_wait_for_seq", wait_and_fail_over)
    async with store_of(settings) as store, waiting(settings, store, limit_s=20) as one:
        receipt = await one.act("alice")
        # No flusher runs during the failover: it could fence the board before the confirmation.
        async with flushing(settings):
            await eventually_async(lambda: is_drained(settings))
        confirming = asyncio.create_task(one.confirm("alice", receipt))
        await eventually_async(lambda: reads == 1 and waits(one.commits) == 1)
        assert not confirming.done(), "the first read does not confirm"
        async with flushing(settings):
            confirmed = await confirming
            assert confirmed.committed
            assert reads >= 2
            rows = "SELECT count(*) FROM score_events WHERE action_id = '1'"
            assert query(settings, rows) == [(2,)]
            again = await one.act("alice")
    assert (again.score, again.replayed, again.committed) == (5, True, True)


async def test_a_wait_for_a_lost_seq_ends_at_once(
    failing: tuple[Settings, LaggingFailover],
) -> None:
    settings, redis = failing
    async with store_of(settings) as store, waiting(settings, store) as one:
        receipts = [await one.act("alice", str(n)) for n in range(5)]
        last = asyncio.create_task(one.confirm("alice", receipts[-1], "4"))
        await eventually_async(lambda: waits(one.commits) == 1)
        await redis.fail_over()
        async with flushing(settings):
            confirmed = await last

    assert (confirmed.score, confirmed.seq) == (5, 2), "the four before it are lost in the failover"


async def test_the_api_answers_once_postgres_has_the_action(
    settings: Settings, start_api: StartApi
) -> None:
    await make_board(settings)
    impatient = await start_api(open=(), acknowledge="committed", commit_timeout_s=0.3)
    client = await start_api(open=(), acknowledge="committed", commit_timeout_s=15)

    unknown = await impatient.update("alice", "win:1")
    async with flushing(settings):
        known = await client.update("alice", "win:1")
        fresh = await client.update("alice", "win:2")
        committed = positions(settings)

    assert unknown.status_code == 503
    assert unknown.json()["type"].endswith("/outcome-unknown")
    assert unknown.headers["retry-after"] == "1"
    assert known.json() == {"success": True, "newScore": 10, "replayed": True}
    assert fresh.json() == {"success": True, "newScore": 20, "replayed": False}
    assert committed == {0: 2}


async def test_waiting_for_an_unloaded_board_has_a_limit(settings: Settings) -> None:
    async with store_of(settings) as store, waiting(settings, store) as one:
        with pytest.raises(OutcomeUnknown):
            await one.confirm("alice", Receipt(5, 1, replayed=False))
