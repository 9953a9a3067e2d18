"""Corrections, verify and repair under load: thousands of actions wait for PostgreSQL meanwhile."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import redis

from flusher.late_duplicates import correct_late_duplicates
from flusher.writer import Writer
from scoreboard.errors import Busy, WaitTimeout
from scoreboard.ledger.pool import connect
from scoreboard.model import Action, Board, Partition, pack, unpack_score
from scoreboard.recovery.repair import repair
from scoreboard.recovery.reseed import SESSION, report_nothing
from scoreboard.recovery.verify import Drift, Verdict, verify
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.client import make_client
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from tests.support.eventually import eventually_async
from tests.support.servers.flushers import (
    act,
    check_invariants,
    dispatching,
    flushing,
    is_drained,
    make_board,
    query,
    store_of,
)

pytestmark = pytest.mark.slow

MAIN = Partition("main")
KEYS = PartitionKeys(MAIN)
LAG = 3000
Client = redis.Redis


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url),
        database_url=Secret(database_url),
        flusher_metrics_port=0,
        flush_linger_ms=0,
        flush_linger_unawaited_ms=0,
        dispatch_waiting=10_000,
    )


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    async with store_of(settings) as store:
        yield store


def many(count: int, *, users: int = 200, prefix: str = "lag") -> list[Action]:
    return [Action(f"user{n % users}", f"{prefix}:{n}", 1) for n in range(count)]


async def flushed(settings: Settings, *actions: Action) -> None:
    async with flushing(settings):
        await act(settings, *actions)
        await eventually_async(lambda: is_drained(settings))


async def verified(settings: Settings, *, sample: int | None = None) -> Verdict:
    client = make_client(settings, name="test")
    try:
        async with await connect(settings, name="test", **SESSION) as connection:
            return await verify(client, connection, Board(), sample=sample, report=report_nothing)
    finally:
        await client.aclose()


@asynccontextmanager
async def playing(dispatcher: Dispatcher, *, players: int = 20) -> AsyncIterator[None]:
    """Submit actions continuously, thousands per second, until the block ends."""
    is_done = False

    async def play(player: int) -> None:
        number = 0
        while not is_done:
            number += 1
            await dispatcher.submit("main", Action(f"user{player}", f"play:{number}", 1))

    async with asyncio.TaskGroup() as tasks:
        for player in range(players):
            tasks.create_task(play(player))
        try:
            yield
        finally:
            is_done = True


def faults(verdict: Verdict) -> list[str]:
    """Return the users and checks that a verification reports."""
    return [*(one.user_id for one in verdict.drifted), *(one.check for one in verdict.findings)]


async def test_verify_and_repair_complete_while_thousands_wait(
    settings: Settings, store: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.recovery.verify.CATCH_UP_S", 1.0)
    monkeypatch.setattr(
        "scoreboard.recovery.verify.BACKLOG_S", 0.0
    )  # no flusher runs, which verify reports
    await make_board(settings)
    await flushed(settings, *many(200, prefix="first"))
    await act(settings, *many(LAG))
    async with dispatching(settings) as dispatcher, playing(dispatcher):
        assert faults(await verified(settings)) == ["backlog"]
        client.zadd(KEYS.board, {"user199": pack(5, 0), "ghost": pack(7, 0)})
        client.zrem(KEYS.board, "user198")

        verdict = await verified(settings)
        async with await connect(settings, name="test") as connection:
            done = await repair(
                store, connection, Board(), verdict.drifted, actor="me", report=report_nothing
            )

        assert {one.user_id for one in verdict.drifted} == {"user199", "ghost", "user198"}
        assert {one.user_id: one.change for one in done} == {
            "user199": 1 + LAG // 200 - 5,
            "ghost": -7,
            "user198": 1 + LAG // 200,
        }
        assert faults(await verified(settings)) == ["backlog"]


async def test_late_duplicates_are_corrected_while_thousands_wait(
    settings: Settings, store: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_board(settings)
    first = many(200, prefix="first")
    await flushed(settings, *first)
    for key in client.keys("*:seen:*"):
        client.delete(key)
    async with uncorrected(monkeypatch):
        await flushed(settings, *first[:90])
    await act(settings, *many(LAG))

    writer = await Writer.open(settings, MAIN)
    pages = 0
    while await correct_late_duplicates(writer, store, MAIN, 1):
        pages += 1
        # The flusher does this with the corrections' records; here they stay in the stream.
        query(settings, "UPDATE rejected_events SET corrected_at = now() WHERE user_id IN"
              " (SELECT user_id FROM rejected_events WHERE corrected_at IS NULL"
              " ORDER BY user_id LIMIT 64)")  # fmt: skip
        assert pages < 10
    await writer.aclose()

    for number in range(90):
        packed = int(client.zscore(KEYS.board, f"user{number}"))
        assert unpack_score(packed) == 1 + LAG // 200
    async with flushing(settings):
        await eventually_async(lambda: is_drained(settings))
    check_invariants(settings, [(a.user_id, a.action_id, a.delta) for a in [*first, *many(LAG)]])


@asynccontextmanager
async def uncorrected(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    async def correct_nothing(*_: object) -> bool:
        return True

    with monkeypatch.context() as patch:
        patch.setattr("flusher.partition.correct_late_duplicates", correct_nothing)
        yield


async def test_a_running_flusher_corrects_under_steady_load(
    settings: Settings, client: Client
) -> None:
    await make_board(settings)
    first = many(200, prefix="first")
    await flushed(settings, *first)
    for key in client.keys("*:seen:*"):
        client.delete(key)
    async with dispatching(settings) as dispatcher, flushing(settings):
        await asyncio.gather(*(dispatcher.submit("main", one) for one in many(LAG)))
        async with playing(dispatcher):
            await asyncio.gather(*(dispatcher.submit("main", one) for one in first))
            await eventually_async(lambda: are_corrected(settings, 200))
        await eventually_async(lambda: is_drained(settings))
    check_invariants(settings)


def are_corrected(settings: Settings, count: int) -> bool:
    ((late, still_open),) = query(
        settings,
        "SELECT count(*), count(*) FILTER (WHERE corrected_at IS NULL) FROM rejected_events"
        " WHERE reason = 'late_duplicate'",
    )
    return (late, still_open) == (count, 0)


@pytest.mark.parametrize("seed", range(3))
async def test_the_order_is_exact_after_a_repair_with_a_large_backlog(
    seed: int, settings: Settings, store: Store, client: Client
) -> None:
    """Many users have few scores and some drift; after the flush both stores rank equally."""
    chance = random.Random(seed)
    await make_board(settings)
    await flushed(settings, *(Action(f"user{n}", "first", chance.randint(1, 4)) for n in range(60)))
    fill = [Action(f"filler{n % 50}", f"fill:{n}", 1000) for n in range(1500)]
    moves = [
        Action(f"user{chance.randrange(60)}", f"move:{n}", chance.choice([1, 1, 2]))
        for n in range(60)
    ]
    async with dispatching(settings) as dispatcher:
        for start in range(0, 60, 10):
            await asyncio.gather(
                *(dispatcher.submit("main", one) for one in fill[start * 25 : start * 25 + 250])
            )
            for one in moves[start : start + 10]:
                await asyncio.gather(dispatcher.submit("main", one), return_exceptions=True)
    for user in chance.sample(range(60), 12):
        client.zadd(
            KEYS.board, {f"user{user}": pack(chance.randint(30, 39), chance.randrange(2**21))}
        )

    drifted = (await verified(settings)).drifted
    async with await connect(settings, name="test") as connection:
        await repair(store, connection, Board(), drifted, actor="me", report=report_nothing)
    async with flushing(settings):
        await eventually_async(lambda: is_drained(settings))
    assert drifted
    check_invariants(settings)


@pytest.mark.parametrize("sample", [None, 20])
async def test_a_drift_to_the_committed_score_is_found(
    sample: int | None, settings: Settings, client: Client
) -> None:
    """Alice's last action is not committed, and Redis has lost it again."""
    await make_board(settings)
    await flushed(settings, Action("alice", "first", 5))
    await act(settings, Action("alice", "second", 3))
    client.zadd(KEYS.board, {"alice": pack(5, 0)})

    verdict = await verified(settings, sample=sample)

    assert verdict.drifted == (Drift("alice", 0, 5, 8),)


async def test_too_many_uncommitted_entries_are_reported(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.store.corrections.ENTRIES_MAX", 1000)
    monkeypatch.setattr("scoreboard.recovery.verify.CATCH_UP_S", 0.3)
    await make_board(settings)
    await flushed(settings, Action("alice", "first", 1))
    await act(settings, *many(2100))

    with pytest.raises(Busy, match="More than 1000"):
        await store.read_uncommitted(MAIN, epoch=1, seq=1, stream_id="0-1")
    with pytest.raises(WaitTimeout, match="More than 1000"):
        await verified(settings)
