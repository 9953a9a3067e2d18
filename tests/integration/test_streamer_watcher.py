"""BoardWatcher and Subscription end when cancelled, at any moment."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
import redis

from scoreboard.broadcast.state import BoardState
from scoreboard.broadcast.watcher import BoardWatcher
from scoreboard.model import Board, Layout, Partition
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import REGISTRY
from scoreboard.store.client import make_client
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from scoreboard.store.subscription import Subscription
from tests.support.clients.viewer import streamer_settings
from tests.support.data.boards import open_board, open_partition
from tests.support.eventually import eventually_async
from tests.support.fakes.proxy import MakeProxy

STEPS = 120
"""More iterations of the loop than connecting, subscribing and a first read take."""

CHANGES = PartitionKeys(Partition("main")).changes


class Listener:
    def board_changed(self, state: BoardState, noticed_at_s: float) -> None: ...

    def status_changed(self, state: BoardState) -> None: ...

    def access_changed(self, state: BoardState) -> None: ...

    def least_gap_s(self, board: str) -> float:
        return 0.0


@pytest.fixture
async def settings(redis_url: str, jwks_file: object) -> Settings:
    settings = streamer_settings(redis_url, jwks_file=jwks_file, frame_interval_ms=1)
    client = make_client(settings, name="test")
    await open_board(Store(client), scores=[("ada", 10)])
    await client.aclose()
    return settings


@pytest.fixture
async def busy(settings: Settings) -> AsyncIterator[None]:
    """Publish changes continuously, so that the loops are never idle."""
    client = make_client(settings, name="test")

    async def publish() -> None:
        while True:
            await client.publish(CHANGES, "1:1")

    publishing = asyncio.create_task(publish())
    yield
    publishing.cancel()
    await asyncio.wait({publishing})
    await client.aclose()


async def ends_when_cancelled(task: "asyncio.Task[None]", within_s: float = 30.0) -> bool:
    task.cancel()
    await asyncio.wait({task}, timeout=within_s)
    if not task.done():
        return False
    return task.cancelled()


@pytest.mark.usefixtures("busy")
async def test_watcher_ends_whenever_it_is_cancelled(settings: Settings) -> None:
    """Incident: a watcher did not end with its task group, and the api hung at shutdown."""
    not_ended = []
    for steps in range(STEPS):
        task = asyncio.create_task(BoardWatcher(settings, Listener(), name="test").run())
        for _ in range(steps):
            await asyncio.sleep(0)
        if not await ends_when_cancelled(task):
            not_ended.append(steps)

    assert not_ended == []


@pytest.mark.usefixtures("busy")
async def test_busy_watcher_ends_whenever_it_is_cancelled(
    settings: Settings,
) -> None:
    not_ended = []
    for steps in range(0, STEPS, 2):
        watcher = BoardWatcher(settings, Listener(), name="test")
        task = asyncio.create_task(watcher.run())
        await eventually_async(lambda watcher=watcher: watcher.is_ready, every_s=0.001)
        for _ in range(steps):
            await asyncio.sleep(0)
        if not await ends_when_cancelled(task):
            not_ended.append(steps)

    assert not_ended == []


@pytest.mark.usefixtures("busy")
async def test_subscription_ends_whenever_it_is_cancelled(settings: Settings) -> None:
    not_ended = []
    for steps in range(STEPS):
        changes = Subscription(
            settings,
            [CHANGES],
            name="test",
            on_change=lambda _: None,
            on_up=lambda: None,
            on_down=lambda: None,
        )
        task = asyncio.create_task(changes.run())
        for _ in range(steps):
            await asyncio.sleep(0)
        if not await ends_when_cancelled(task):
            not_ended.append(steps)

    assert not_ended == []


@pytest.mark.parametrize("fault", ["refuse", "freeze"])
async def test_watcher_without_redis_ends_at_once(
    settings: Settings, make_proxy: MakeProxy, redis_url: str, fault: str, jwks_file: object
) -> None:
    proxy = await make_proxy(int(redis_url.rpartition(":")[2].partition("/")[0]))
    through = streamer_settings(proxy.through(redis_url), jwks_file=jwks_file)
    watcher = BoardWatcher(through, Listener(), name="test")
    task = asyncio.create_task(watcher.run())
    await eventually_async(lambda: watcher.is_ready)
    getattr(proxy, fault)()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.7):
            await task
    began_s = time.monotonic()

    assert await ends_when_cancelled(task)
    assert time.monotonic() - began_s < 2


async def test_a_board_that_was_never_read_has_an_age(settings: Settings, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as server:
        server.set(PartitionKeys(Partition("main")).meta, "of another type")
    watcher = BoardWatcher(settings, Listener(), name="test")
    task = asyncio.create_task(watcher.run())
    await watcher.wait_for_first_reads()

    def age_s() -> float | None:
        return REGISTRY.get_sample_value("scoreboard_board_age_seconds", {"board": "main"})

    first_s = age_s()
    assert first_s is not None
    assert first_s < 30
    await eventually_async(lambda: (age_s() or 0) > first_s)
    assert await ends_when_cancelled(task)


async def test_a_board_that_was_read_while_its_partitions_opened_is_soon_live(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Incident: a read after the first of several partitions had opened found the others empty.

    The watcher did not hear them open, because it did not know the new layout yet.
    """
    monkeypatch.setattr("scoreboard.broadcast.watcher.RECONCILE_S", 60.0)
    board = Board(layout=Layout(3))
    client = make_client(settings, name="test")
    watcher = BoardWatcher(settings, Listener(), name="test")
    task = asyncio.create_task(watcher.run())
    state = watcher.states["main"]
    try:
        await eventually_async(lambda: state.stale_reason is None and state.message is not None)
        await open_partition(Store(client), board, 0)
        await eventually_async(lambda: state.stale_reason == "uninitialised")

        for number in (1, 2):
            await open_partition(Store(client), board, number)

        await eventually_async(lambda: state.stale_reason is None, within_s=10)
        assert state.message is not None
        assert state.message.epoch == 2 + 1 + 1
    finally:
        task.cancel()
        await asyncio.wait({task})
        await client.aclose()
