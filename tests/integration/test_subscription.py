"""Channels of a subscription that are added and removed while it is up."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import redis.asyncio as aioredis

from scoreboard.runtime.settings import Settings
from scoreboard.store.subscription import Subscription
from tests.support.clients.viewer import streamer_settings
from tests.support.eventually import eventually_async
from tests.support.fakes.proxy import MakeProxy

FIRST, SECOND, THIRD = (f"sb:{{board-{number}:0}}:changes" for number in range(3))


class Calls:
    """Records what a subscription reports."""

    def __init__(self) -> None:
        self.changed: list[str] = []
        self.subscribed: list[str] = []
        self.ups = self.downs = 0

    def up(self) -> None:
        self.ups += 1

    def down(self) -> None:
        self.downs += 1


@pytest.fixture(autouse=True)
def no_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels must not wait for the next PING."""
    monkeypatch.setattr("scoreboard.store.subscription.PING_S", 14.0)


@pytest.fixture
async def settings(redis_url: str, jwks_file: object) -> Settings:
    return streamer_settings(redis_url, jwks_file=jwks_file)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[aioredis.Redis]:
    async with aioredis.Redis.from_url(redis_url, decode_responses=True, protocol=2) as client:
        yield client


@asynccontextmanager
async def subscribed(
    settings: Settings, *channels: str
) -> AsyncIterator[tuple[Subscription, Calls]]:
    calls = Calls()
    subscription = Subscription(
        settings,
        channels,
        name="test",
        on_change=calls.changed.append,
        on_up=calls.up,
        on_down=calls.down,
        on_subscribed=calls.subscribed.append,
    )
    task = asyncio.create_task(subscription.run())
    try:
        await eventually_async(lambda: subscription.is_up)
        yield subscription, calls
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})


def has_subscribers(client: aioredis.Redis, channel: str, count: int) -> Callable[..., object]:
    async def check() -> bool:
        return (await client.pubsub_numsub(channel))[0][1] == count

    return check


async def test_channels_are_added_and_removed_at_once(
    settings: Settings, client: aioredis.Redis
) -> None:
    async with subscribed(settings, FIRST) as (subscription, calls):
        assert subscription.hears([FIRST])
        assert not subscription.hears([FIRST, SECOND])
        subscription.want([SECOND, FIRST])
        await eventually_async(lambda: subscription.hears([FIRST, SECOND]), within_s=5)
        assert calls.subscribed == [SECOND]
        await client.publish(SECOND, "1:1")
        await eventually_async(lambda: calls.changed == [SECOND], within_s=5)

        subscription.drop([SECOND])
        assert not subscription.hears([SECOND])
        await eventually_async(has_subscribers(client, SECOND, 0), within_s=5)

        assert subscription.hears([FIRST])
        assert (calls.ups, calls.downs) == (1, 0)


async def test_a_channel_that_returns_at_once_is_heard(
    settings: Settings, client: aioredis.Redis
) -> None:
    async with subscribed(settings, FIRST, SECOND) as (subscription, calls):
        for pauses in range(12):
            before = len(calls.subscribed)
            subscription.drop([SECOND])
            for _ in range(pauses):
                await asyncio.sleep(0)
            subscription.want([SECOND])
            await eventually_async(lambda: subscription.hears([SECOND]), within_s=5)
            assert len(calls.subscribed) > before, "what was missed must be read"
            assert await client.publish(SECOND, "1:1") == 1
            await eventually_async(lambda: SECOND in calls.changed, within_s=5)
            calls.changed.clear()


async def test_channels_that_are_added_while_it_is_down_are_asked_for_later(
    settings: Settings, redis_url: str, make_proxy: MakeProxy, jwks_file: object
) -> None:
    proxy = await make_proxy(int(redis_url.rpartition(":")[2].partition("/")[0]))
    through = streamer_settings(proxy.through(redis_url), jwks_file=jwks_file)
    async with subscribed(through, FIRST, SECOND) as (subscription, calls):
        proxy.refuse()
        await eventually_async(lambda: calls.downs)
        subscription.want([THIRD])
        subscription.drop([SECOND])
        assert not subscription.hears([FIRST])
        await proxy.restore()

        await eventually_async(lambda: subscription.hears([FIRST, THIRD]))
        assert not subscription.hears([SECOND])
        assert calls.ups == 2


async def test_a_thousand_channels_are_confirmed_soon(
    settings: Settings, client: aioredis.Redis
) -> None:
    names = [f"sb:{{board-{number}:0}}:changes" for number in range(1000)]
    async with subscribed(settings, *names) as (subscription, calls):
        assert subscription.hears(names)
        assert calls.ups == 1
        subscription.drop(names[1:])
        await eventually_async(has_subscribers(client, names[-1], 0), within_s=10)
        assert subscription.hears(names[:1])
