"""Redis's clock jumps: stream ids stay in the future, ledger rows do not."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
import redis

from scoreboard.model import Action
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.keys import GROUP
from tests.support.clients.commands import Run
from tests.support.eventually import eventually_async
from tests.support.servers.flushers import (
    KEYS,
    act,
    check_invariants,
    flushing,
    is_drained,
    make_board,
    query,
)

HOUR_MS = 3_600_000
JUMPS_MS = [HOUR_MS, 400 * 365 * 24 * HOUR_MS, 300_000_000_000_000]


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url), database_url=Secret(database_url), flusher_metrics_port=0
    )


def jump(settings: Settings, ms: int) -> None:
    """Move the last stream id, as a jump of the clock does."""
    with redis.Redis.from_url(settings.redis_url.reveal()) as client:
        client.execute_command("XSETID", KEYS.events, f"{int(time.time() * 1000) + ms}-0")


async def play(settings: Settings, actions: list[tuple[str, str, int]]) -> None:
    """Submit actions one after the other, so that equal scores have an order."""
    for action in actions:
        await act(settings, Action(*action))
    await eventually_async(lambda: is_drained(settings))


@pytest.mark.parametrize("jump_ms", JUMPS_MS, ids=["an hour", "400 years", "beyond the calendar"])
async def test_rows_are_at_most_a_minute_ahead_and_in_order(
    jump_ms: int, settings: Settings
) -> None:
    await make_board(settings)
    before = [(user, "win:1", 5) for user in ("dave", "alice")]
    after = [(user, "win:1", 5) for user in ("carol", "bob", "erin")]
    async with flushing(settings):
        await play(settings, before)
        jump(settings, jump_ms)
        await play(settings, after)
    async with flushing(settings):  # a new session, without knowledge of the jump
        await play(settings, [("frank", "win:1", 5)])

    check_invariants(settings, [*before, *after, ("frank", "win:1", 5)])
    latest = datetime.now(UTC) + timedelta(minutes=1)
    moments = query(settings, "SELECT occurred_at FROM score_events ORDER BY seq")
    assert all(moment <= latest for (moment,) in moments)
    assert moments == sorted(moments)
    assert query(settings, "SELECT 1 FROM dead_events") == []


async def test_row_times_do_not_decrease_with_postgresqls_clock(settings: Settings) -> None:
    await make_board(settings)
    async with flushing(settings):
        await play(settings, [("zoe", "win:1", 5)])
        # As rows would be after PostgreSQL's clock was an hour ahead together with Redis's.
        [(clock,)] = query(
            settings,
            "UPDATE flush_state SET clock = now() + INTERVAL '1 hour' RETURNING clock",
        )
        await play(settings, [("yves", "win:1", 5), ("adam", "win:1", 5)])

    check_invariants(settings, [("zoe", "win:1", 5), ("yves", "win:1", 5), ("adam", "win:1", 5)])
    moments = query(settings, "SELECT occurred_at FROM score_events ORDER BY seq")
    assert moments[0] < (clock,)
    assert moments[1:] == [(clock,), (clock,)], "their seq orders them"


def test_a_reseed_after_a_clock_jump_restores_records_and_order(
    command: Run, settings: Settings, redis_url: str
) -> None:
    actions = [(user, "win:1", 5) for user in ("dave", "alice", "carol")]

    async def prepare() -> None:
        await make_board(settings)
        async with flushing(settings):
            await play(settings, actions[:1])
            jump(settings, 90 * 24 * HOUR_MS)
            await play(settings, actions[1:])

    asyncio.run(prepare())
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        client.flushall()
        assert command("reseed").code == 0
        assert client.zrange(KEYS.board, 0, -1, desc=True) == ["dave", "alice", "carol"]
        assert client.xinfo_groups(KEYS.events)[0]["name"] == GROUP
    for action in actions:
        [receipt] = asyncio.run(act(settings, Action(*action)))
        assert getattr(receipt, "replayed", False), action
    assert command("verify", "--full").code == 0
