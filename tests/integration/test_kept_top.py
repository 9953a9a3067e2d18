"""The kept top of a board: current for its readers, and no call to Redis while nothing changes.

Most tests keep it for a minute, so that only the rule under test can end it.
"""

import asyncio
import functools
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import redis
import redis.asyncio as aioredis

from api.endpoints import board_reader
from api.endpoints.board_reader import BoardReader
from api.endpoints.event_streams import EventStreams
from scoreboard.broadcast.watcher import BoardWatcher
from scoreboard.ledger.name_cache import NameCache
from scoreboard.model import Action, Board, Layout, Partition, Window
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import REGISTRY
from scoreboard.security.tokens import Verifier
from scoreboard.store.board_directory import BoardDirectory
from scoreboard.store.boards import Boards
from scoreboard.store.client import make_client
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from tests.support.eventually import eventually_async
from tests.support.servers.api import (
    LEADERBOARD_PATH,
    ApiClient,
    StartApi,
    api_settings,
    open_boards,
)
from tests.support.servers.stores import OwnValkey

SERVER = "update:score:any"
KEYS = PartitionKeys(Partition("main"))


@pytest.fixture
def long_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_reader, "TOP_TTL_S", 60.0)


def sent() -> int:
    """Return how many reads were sent to Redis in batches by this process."""
    samples = [sample for family in REGISTRY.collect() for sample in family.samples]
    return int(sum(one.value for one in samples if one.name == "scoreboard_read_batch_reads_sum"))


async def top(client: ApiClient, **params: object) -> dict[str, int]:
    """Read the leaderboard; return scores by user."""
    answer = await client.get(LEADERBOARD_PATH, params=dict(params))
    assert answer.status_code == 200, answer.text
    return {row["userId"]: row["score"] for row in answer.json()["leaderboard"]}


async def total(client: ApiClient) -> int:
    return int((await client.get(LEADERBOARD_PATH)).json()["total"])


async def wait_kept(client: ApiClient) -> None:
    """Wait until the top is kept."""

    async def is_kept() -> bool:
        await top(client)
        before = sent()
        await top(client)
        return sent() == before

    await eventually_async(is_kept)


async def add(client: ApiClient, user: str, points: int) -> None:
    headers = client.bearer("server", SERVER)
    assert (await client.update(user, "x:1", headers=headers, points=points)).status_code == 200


@pytest.mark.usefixtures("long_kept")
async def test_a_kept_top_serves_all_its_windows_without_redis(start_api: StartApi) -> None:
    client = await start_api()
    for number in range(12):
        await add(client, f"user{number}", 100 - number)
    await wait_kept(client)
    before = sent()
    for offset in range(10):
        for limit in range(1, 11 - offset):
            answer = await client.get(LEADERBOARD_PATH, params={"offset": offset, "limit": limit})
            body = answer.json()
            assert [row["rank"] for row in body["leaderboard"]] == [
                *range(offset + 1, offset + limit + 1)
            ]
            assert (body["total"], body["seq"]) == (12, 12)
            tag = {"If-None-Match": answer.headers["etag"]}
            assert (await client.get(LEADERBOARD_PATH, headers=tag)).status_code == 304
    await asyncio.gather(*(top(client, names="true") for _ in range(5)))
    assert sent() == before
    assert len(await top(client, offset=5, limit=10)) == 7
    assert sent() == before + 1


@pytest.mark.usefixtures("long_kept")
async def test_an_own_update_is_seen_at_once(start_api: StartApi) -> None:
    client = await start_api()
    for number in range(12):
        await add(client, f"user{number}", 100 + number)
    await wait_kept(client)
    for number in range(12, 40):
        # A low score is not announced: only its own receipt tells.
        points = number if number % 2 else 100 + number
        await add(client, f"user{number}", points)
        assert await total(client) == number + 1
    again = await client.update(
        "user12", "x:1", headers=client.bearer("server", SERVER), points=112
    )
    assert again.json()["replayed"]
    before = sent()
    await top(client)
    assert sent() == before + 1, "the first update may be another process's"


@pytest.mark.usefixtures("long_kept")
async def test_an_update_by_another_process_is_seen_when_announced(start_api: StartApi) -> None:
    client, other = await start_api(), await start_api(open=())
    await add(other, "alice", 5)
    await wait_kept(client)
    await add(other, "bob", 7)

    async def is_seen() -> bool:
        return await top(client) == {"alice": 5, "bob": 7}

    await eventually_async(is_seen)


async def test_a_change_that_is_not_announced_is_seen_within_a_second(
    start_api: StartApi, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start_api()
    await add(client, "alice", 5)
    monkeypatch.setattr(board_reader, "TOP_TTL_S", 60.0)
    await wait_kept(client)
    with redis.Redis.from_url(redis_url) as server:
        server.zadd(KEYS.board, {"bob": 1})
        server.hset(KEYS.meta, "seq", 2)
    assert await total(client) == 1, "it is kept"
    monkeypatch.setattr(board_reader, "TOP_TTL_S", 1.0)
    await add(client, "carol", 1)  # the top is read again, and kept for a second
    assert await total(client) == 3
    with redis.Redis.from_url(redis_url) as server:
        server.zadd(KEYS.board, {"dave": 1})
        server.hset(KEYS.meta, "seq", 4)

    async def is_seen() -> bool:
        return await total(client) == 4

    await eventually_async(is_seen)


@pytest.mark.usefixtures("long_kept")
async def test_responses_do_not_go_back(start_api: StartApi) -> None:
    client, other = await start_api(), await start_api(open=())
    for number in range(12):
        await add(other, f"user{number}", 100 + number)
    await wait_kept(client)
    for number in range(12, 20):
        await add(other, f"user{number}", 1)  # not announced
        seen = (await client.get(f"/api/scores/users/user{number}")).json()
        assert seen["seq"] == number + 1
        after = (await client.get(LEADERBOARD_PATH)).json()
        assert (after["seq"], after["total"]) == (number + 1, number + 1)
        await wait_kept(client)


@pytest.mark.usefixtures("long_kept")
@pytest.mark.parametrize("partitions", [1, 3])
async def test_a_new_epoch_is_seen(
    start_api: StartApi, redis_url: str, partitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.broadcast.watcher.RECONCILE_S", 60.0)
    client = await start_api()
    await wait_kept(client)
    await open_boards(redis_url, Board(layout=Layout(partitions)), epoch=7)

    async def is_seen() -> bool:
        return (await client.get(LEADERBOARD_PATH)).json()["epoch"] == 7 * partitions

    await eventually_async(is_seen)
    await wait_kept(client)
    other = await start_api(open=())
    for number in range(6):  # on every partition
        await add(other, f"user{number}", 5)

        async def has_all(wanted: int = number + 1) -> bool:
            return await total(client) == wanted

        await eventually_async(has_all)
        await wait_kept(client)


@pytest.mark.usefixtures("long_kept")
async def test_a_board_that_becomes_private_is_refused_while_its_top_is_kept(
    start_api: StartApi, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start_api()
    await wait_kept(client)
    before = sent()
    with redis.Redis.from_url(redis_url) as server:
        server.hset(KEYS.meta, "public", 0)
    monkeypatch.setattr(board_reader, "BOARD_TTL_S", 0.0)

    async def is_refused() -> bool:
        return (await client.get(LEADERBOARD_PATH)).status_code == 401

    await eventually_async(is_refused)
    headers = client.bearer("alice", "read:leaderboard")
    answer = await client.get(LEADERBOARD_PATH, headers=headers)
    assert answer.headers["cache-control"] == "private, no-store"
    assert sent() == before


@pytest.mark.usefixtures("long_kept")
async def test_nothing_is_kept_while_changes_are_not_announced(
    start_api: StartApi, own_valkey: OwnValkey
) -> None:
    url = own_valkey().url
    client = await start_api(url=url)
    await wait_kept(client)
    with redis.Redis.from_url(url) as server:
        server.execute_command("ACL", "SETUSER", "default", "-subscribe")
        server.client_kill_filter(_type="pubsub")

        async def is_read_each_time() -> bool:
            before = sent()
            for _ in range(3):
                await top(client)
            return sent() == before + 3

        await eventually_async(is_read_each_time)
        server.execute_command("ACL", "SETUSER", "default", "+subscribe")
    await wait_kept(client)


class Held(Boards):
    """Reads of windows, whose answers are held back while ``go`` is not set."""

    def __init__(self, client: aioredis.Redis) -> None:
        super().__init__(client)
        self.has_read = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def leaderboard(self, board: str, *, offset: int = 0, limit: int = 10) -> Window:
        window = await super().leaderboard(board, offset=offset, limit=limit)
        self.has_read.set()
        await self.go.wait()
        return window


@asynccontextmanager
async def reading(settings: Settings) -> AsyncIterator[tuple[BoardReader, Held, BoardWatcher]]:
    client = make_client(settings, name="test")
    store = Held(client)
    directory = BoardDirectory(settings, Store(client))
    streams = EventStreams(settings, Verifier(settings), asyncio.Event(), directory)
    reader = BoardReader(store, directory, NameCache(None), streams.watcher, streams.watch)
    task = asyncio.create_task(streams.run())
    try:
        yield reader, store, streams.watcher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.aclose()


@pytest.mark.usefixtures("long_kept")
@pytest.mark.parametrize("told_by", ["announcement", "receipt", "another read"])
async def test_a_read_that_a_change_overtakes_is_not_kept(
    redis_url: str, jwks_file: Path, told_by: str
) -> None:
    await open_boards(redis_url, scores=[(f"user{n}", 100 - n) for n in range(10)])
    settings = api_settings(redis_url, jwks_file)
    dispatcher = Dispatcher(settings)
    sending = asyncio.create_task(dispatcher.run())
    async with reading(settings) as (reader, store, watcher):
        read = functools.partial(reader.leaderboard, "main", limit=10, offset=0, names=False)
        await read()
        await eventually_async(lambda: watcher.hears("main", 1))

        store.go.clear()
        overtaken = asyncio.create_task(read())
        await store.has_read.wait()
        before = watcher.generation("main")
        # Only changes of the watched rows are announced.
        points = 1000 if told_by == "announcement" else 1
        await dispatcher.submit("main", Action("alice", "x:1", points))
        if told_by == "announcement":
            await eventually_async(lambda: watcher.generation("main") > before)
        elif told_by == "receipt":
            reader.note_update("main")
        else:
            assert b"alice" in (await reader.standing("main", "alice", around=0)).body
        store.go.set()
        assert (await overtaken).etag == 'W/"1-0"'
        assert (await read()).etag == 'W/"1-1"'
        store.has_read.clear()
        assert (await read()).etag == 'W/"1-1"'
        assert not store.has_read.is_set(), "it is kept"
    dispatcher.close()
    await sending


class Model:
    """What concurrent callers of one api may see.

    A user's score is at least the sum of the updates that were answered when the read was sent, and
    at most the sum of those sent until it was answered. A read is not older than a read or an
    update answered before it was sent.
    """

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.updates = 0
        self.seq = 0
        self.checked = 0

    async def update(self, client: ApiClient, user: str, action: str, points: int) -> None:
        self.sent[user] += points
        headers = client.bearer("server", SERVER)
        answer = await client.update(user, action, headers=headers, points=points)
        if answer.status_code == 200:
            self.answered[user] += points
            self.updates += 1
        else:
            assert answer.status_code == 503, answer.text

    async def read(self, client: ApiClient, path: str, **params: int) -> None:
        seq, least = max(self.seq, self.updates), self.answered.copy()
        answer = await client.get(path, params=params)
        user = path.rpartition("/")[2]
        if answer.status_code == 404 and user not in least:
            return
        if answer.status_code == 503:
            return
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["seq"] >= seq
        assert body["total"] >= len(least)
        self.seq = max(self.seq, body["seq"])
        if path == LEADERBOARD_PATH:
            rows = body["leaderboard"]
            first, most = params["offset"] + 1, params["limit"]
            assert len(rows) == max(0, min(most, body["total"] - first + 1))
        else:
            assert body["userId"] == user
            rows = body.get("neighbours") or [body]
            first = rows[0]["rank"]
            assert body["rank"] in {row["rank"] for row in rows if row["userId"] == user}
        assert [row["rank"] for row in rows] == [*range(first, first + len(rows))]
        scores = [row["score"] for row in rows]
        assert scores == sorted(scores, reverse=True)
        for row in rows:
            assert least[row["userId"]] <= row["score"] <= self.sent[row["userId"]]
        self.checked += 1


@pytest.mark.slow
@pytest.mark.usefixtures("long_kept")
@pytest.mark.parametrize(("partitions", "faults"), [(1, False), (1, True), (3, False)])
async def test_concurrent_reads_and_updates_agree_with_a_model(
    start_api: StartApi, own_valkey: OwnValkey, partitions: int, *, faults: bool
) -> None:
    url = own_valkey().url
    client = await start_api(url=url, open=(Board(layout=Layout(partitions=partitions)),))
    rng, model, numbers = random.Random(7), Model(), itertools.count()
    users = [f"user{number}" for number in range(40)]

    async def one() -> None:
        user = rng.choice(users)
        match rng.randrange(4):
            case 0:
                await model.update(client, user, f"x:{next(numbers)}", rng.randrange(1, 4))
            case 1:
                await model.read(client, f"/api/scores/users/{user}", around=rng.randrange(3))
            case _:
                offset = rng.randrange(4)
                await model.read(
                    client, LEADERBOARD_PATH, offset=offset, limit=rng.randrange(1, 14)
                )

    async def caller() -> None:
        for _ in range(40):
            if rng.random() < 0.1:  # the caller leaves, at any moment
                with suppress(TimeoutError):
                    async with asyncio.timeout(rng.random() / 50):
                        await one()
            else:
                await one()

    async def break_often(server: "redis.Redis[bytes]") -> None:
        while True:
            await asyncio.sleep(0.1)  # pace: of the faults
            server.script_flush()
            server.client_kill_filter(_type=rng.choice(["pubsub", "normal"]), skipme=True)

    with redis.Redis.from_url(url) as server:
        breaking = asyncio.create_task(break_often(server)) if faults else None
        async with asyncio.TaskGroup() as group:
            for _ in range(12):
                group.create_task(caller())
        if breaking is not None:
            breaking.cancel()
    assert model.checked > 100
