"""Waiting for PostgreSQL: who is told, who is not, and that every wait ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from scoreboard.commits import Commits
from scoreboard.errors import OutcomeUnknown
from scoreboard.keys import PartitionKeys
from scoreboard.live import Live
from scoreboard.model import Action, Receipt
from scoreboard.settings import Secret, Settings
from tests.support.api import StartApi
from tests.support.boards import fence
from tests.support.eventually import eventually_async
from tests.support.flushing import MAIN, act, flushing, live_of, make_board, positions


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url), database_url=Secret(database_url), flusher_metrics_port=0
    )


@asynccontextmanager
async def waiting(live: Live, *, limit_s: float = 10.0) -> AsyncIterator[Commits]:
    commits = Commits(live, limit_s=limit_s)
    task = asyncio.create_task(commits.run())
    try:
        yield commits
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_who_waits_is_told_when_postgres_has_it(settings: Settings) -> None:
    await make_board(settings)
    async with live_of(settings) as live, waiting(live) as commits:
        (first, second) = await act(settings, Action("alice", "1", 5), Action("bob", "1", 5))
        assert isinstance(first, Receipt)
        assert isinstance(second, Receipt)
        waits = [
            asyncio.create_task(commits.wait("main", user, receipt.seq))
            for user, receipt in [("bob", second), ("alice", first), ("alice", first)]
        ]
        await asyncio.wait(waits, timeout=0.1)
        assert not any(task.done() for task in waits), "nobody has committed anything"

        async with flushing(settings):
            await asyncio.gather(*waits)

        assert positions(settings) == {0: 2}
        await commits.wait("main", "alice", first.seq)


async def test_a_wait_ends_and_says_that_it_is_not_known(settings: Settings) -> None:
    await make_board(settings)
    async with live_of(settings) as live, waiting(live, limit_s=0.1) as commits:
        (receipt,) = await act(settings, Action("alice", "1", 5))
        assert isinstance(receipt, Receipt)

        for _ in range(3):
            with pytest.raises(OutcomeUnknown):
                await commits.wait("main", "alice", receipt.seq)

        assert [watch.waiting for watch in commits._watches.values()] == [[]], "nothing piles up"


async def test_in_a_new_epoch_nobody_is_told_that_an_action_of_the_old_one_is_safe(
    settings: Settings,
) -> None:
    await make_board(settings)
    async with live_of(settings) as live, waiting(live) as commits:
        (receipt,) = await act(settings, Action("alice", "1", 5))
        assert isinstance(receipt, Receipt)
        wait = asyncio.create_task(commits.wait("main", "alice", receipt.seq))
        await eventually_async(lambda: any(watch.epoch == 1 for watch in commits._watches.values()))
        await fence(live, MAIN, "test")
        await live._client.delete(PartitionKeys(MAIN).events)  # as where its disk was lost
        await live.restore(MAIN, "test", [], first=True)
        board = await live.board("main")
        await live.open(MAIN, "test", board, epoch=2, seq=receipt.seq, stream_id="0-0", members=0)

        with pytest.raises(OutcomeUnknown):
            await wait


async def test_the_api_answers_once_postgres_has_the_action(
    settings: Settings, start_api: StartApi
) -> None:
    await make_board(settings)
    client = await start_api(open=(), acknowledge="committed", commit_timeout_s=0.3)

    unknown = await client.update("alice", "win:1")
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


async def test_a_board_that_is_not_loaded_is_not_waited_for_without_end(settings: Settings) -> None:
    async with live_of(settings) as live, waiting(live) as commits:
        with pytest.raises(OutcomeUnknown):
            await commits.wait("main", "alice", 1)
