"""A caller paused between reading and writing changes nothing when it resumes.

A lease or a lock may have ended meanwhile, another flusher or operator may have finished the work,
or another server may have taken over. Each test pauses a caller at such a point, makes that change,
and resumes the caller.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis

from flusher.late_duplicates import correct_late_duplicates
from flusher.partition import PartitionFlusher
from flusher.writer import Writer
from scoreboard.errors import DatabaseUnavailable, Outdated, ScoreboardError
from scoreboard.ledger.pool import connect
from scoreboard.model import Action, ActionKind, Board, Partition, unpack_score
from scoreboard.recovery.mirror import mirror_catalogue
from scoreboard.recovery.reseed import SESSION, reseed
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.keys import GROUP, PartitionKeys
from scoreboard.store.partitions import Trimmed
from scoreboard.store.store import Store
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
from tests.support.servers.stores import OwnValkey

MAIN = Partition("main")
KEYS = PartitionKeys(MAIN)


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url),
        database_url=Secret(database_url),
        flusher_metrics_port=0,
        flush_linger_ms=0,
        flush_linger_unawaited_ms=0,
    )


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis[str]"]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    async with store_of(settings) as store:
        yield store


class PausingStore:
    """A store that pauses its caller before one kind of call."""

    def __init__(self, store: Store, method: str) -> None:
        self._store = store
        self._method = method
        self.is_reached = asyncio.Event()
        self.resume = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name != self._method:
            return method

        async def paused(*args: Any, **options: Any) -> Any:
            if not options.get("is_dry"):
                self.is_reached.set()
                await self.resume.wait()
            return await method(*args, **options)

        return paused


def end_sessions(settings: Settings, name: str) -> None:
    """End sessions of PostgreSQL, as its timeouts or a failover do."""
    query(
        settings,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = %s AND datname = current_database()",
        f"scoreboard-{name}",
    )


def score_of(client: "redis.Redis[str]", user: str) -> int:
    return unpack_score(int(client.zscore(KEYS.board, user) or 0))


async def test_an_outdated_correction_does_not_lower_a_score(
    settings: Settings, store: Store, client: "redis.Redis[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was paused before its correction; another flusher corrected and committed 100 more."""
    await make_board(settings)
    first = Action("alice", "win:1", 10)
    with monkeypatch.context() as patch:

        async def correct_nothing(*_: object) -> bool:
            return True

        patch.setattr("flusher.partition.correct_late_duplicates", correct_nothing)
        async with flushing(settings):
            await act(settings, first)
            await eventually_async(lambda: is_drained(settings))
            for key in client.keys("*:seen:*"):
                client.delete(key)
            await act(settings, first)
            await eventually_async(lambda: is_drained(settings))
    pausing: Any = PausingStore(store, "repair")
    writer = await Writer.open(settings, MAIN)
    outdated = asyncio.create_task(correct_late_duplicates(writer, pausing, MAIN, 1))
    await pausing.is_reached.wait()
    end_sessions(settings, "flusher")
    async with flushing(settings):
        await eventually_async(lambda: score_of(client, "alice") == 10)
        await act(settings, Action("alice", "win:2", 100))
        await eventually_async(lambda: is_drained(settings))

        pausing.resume.set()
        with pytest.raises((Outdated, DatabaseUnavailable)):
            await outdated
        await writer.aclose()

        assert score_of(client, "alice") == 110
        await eventually_async(lambda: is_drained(settings))
    check_invariants(settings, [("alice", "win:1", 10), ("alice", "win:2", 100)])


async def test_an_outdated_operator_does_not_set_a_fence(
    settings: Settings, store: Store, client: "redis.Redis[str]"
) -> None:
    await make_board(settings)
    pausing: Any = PausingStore(store, "fence")
    older = await connect(settings, name="older", **SESSION)
    outdated = asyncio.create_task(reseed(pausing, older, Board(), [0], actor="older"))
    await pausing.is_reached.wait()
    end_sessions(settings, "older")
    async with await connect(settings, name="newer", **SESSION) as newer:
        await eventually_async(
            lambda: (
                query(
                    settings,
                    "SELECT 1 FROM pg_locks l JOIN"
                    " pg_database d ON d.oid = l.database AND d.datname = current_database()"
                    " WHERE locktype = 'advisory'",
                )
                == []
            )
        )
        await reseed(store, newer, Board(), [0], actor="newer")

    pausing.resume.set()
    with pytest.raises(Outdated):
        await outdated
    await older.close()

    assert client.hget(KEYS.meta, "state") == "open"
    assert client.hget(KEYS.meta, "epoch") == "2"


async def test_a_fence_over_an_interrupted_run_is_accepted(
    settings: Settings, store: Store, client: "redis.Redis[str]"
) -> None:
    await make_board(settings)
    client.hset(KEYS.meta, mapping={"state": "fenced", "fence": "killed:0123"})

    async with await connect(settings, name="newer", **SESSION) as connection:
        await reseed(store, connection, Board(), [0], actor="jürgen müller")

    assert client.hget(KEYS.meta, "state") == "open"


@pytest.mark.parametrize("sign", ["rewind", "gap"])
async def test_an_outdated_flusher_does_not_set_a_fence(
    sign: str, settings: Settings, store: Store, client: "redis.Redis[str]"
) -> None:
    """It was paused after finding a rewind or a gap; its successor has repaired it since."""
    await make_board(settings)
    seen = await store.state(MAIN)
    changes = {"rewind": {"epoch": 2}, "gap": {"committed": "1:9", "seq": 9}}
    client.hset(KEYS.meta, mapping=changes[sign])

    with pytest.raises(Outdated):
        await store.fence(MAIN, f"flusher:{sign}", seen, committed=8)

    assert client.hget(KEYS.meta, "state") == "open"


async def test_an_older_copy_of_the_catalogue_does_not_replace_a_newer_one(
    settings: Settings, store: Store
) -> None:
    query(settings, "INSERT INTO actions VALUES ('win', 10, TRUE)")
    pausing: Any = PausingStore(store, "mirror_actions")
    older = await connect(settings, name="older")
    outdated = asyncio.create_task(mirror_catalogue(pausing, older))
    await pausing.is_reached.wait()
    end_sessions(settings, "older")
    query(settings, "UPDATE actions SET points = 20")
    async with await connect(settings, name="newer") as newer:
        await mirror_catalogue(store, newer)

    pausing.resume.set()
    with pytest.raises(ScoreboardError):
        await outdated
    await older.close()

    assert await store.kinds() == {"win": ActionKind(20)}


async def test_entries_read_by_a_former_leader_are_committed_without_new_ones(
    settings: Settings, client: "redis.Redis[str]"
) -> None:
    await make_board(settings)
    async with flushing(settings) as flusher:
        await act(settings, Action("alice", "win:1", 10))
        await eventually_async(lambda: is_drained(settings))
        # The read of a flusher whose lease has ended without its knowledge.
        taken = asyncio.create_task(
            asyncio.to_thread(
                client.xreadgroup, GROUP, "leader", {KEYS.events: ">"}, count=10, block=5000
            )
        )
        partition: PartitionFlusher = flusher.partitions[0]
        while not taken.done():
            await act(settings, Action("alice", f"win:{client.hget(KEYS.meta, 'seq')}2", 10))
        assert await taken
        assert partition.status.position is not None

        await eventually_async(lambda: is_drained(settings))


async def test_entries_of_another_server_are_acknowledged_only_after_a_new_read(
    database_url: str, own_valkey: OwnValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart changes the replication id, as a failover does."""
    valkey = own_valkey()
    settings = Settings(
        redis_url=Secret(valkey.url), database_url=Secret(database_url), flusher_metrics_port=0
    )
    await make_board(settings)
    is_reached, resume = asyncio.Event(), asyncio.Event()
    trim = Store.trim
    results: list[object] = []

    async def pausing(self: Store, *args: Any, **options: Any) -> Trimmed:
        is_reached.set()
        await resume.wait()
        try:
            result = await trim(self, *args, **options)
        except ScoreboardError as error:
            results.append(error)
            raise
        results.append(result)
        return result

    monkeypatch.setattr(Store, "trim", pausing)
    async with flushing(settings):
        await act(settings, Action("alice", "win:1", 10), Action("bob", "win:1", 10))
        await is_reached.wait()
        valkey.kill()
        await asyncio.to_thread(valkey.start)
        resume.set()
        await eventually_async(lambda: is_drained(settings))

    assert any(isinstance(result, Outdated) for result in results)
    assert results[-1] == Trimmed(removed=2, receivers=0)
    check_invariants(settings, [("alice", "win:1", 10), ("bob", "win:1", 10)])
