"""What this version does with data that the next one may write: ignore additions, refuse the rest.

CONTRIBUTING.md (Two versions side by side) is the rule. The rolling upgrade to a changed copy of
this version is in test_rolling_upgrade.py.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import redis
import redis.asyncio as aioredis

from scoreboard import events
from scoreboard.errors import UnexpectedReply
from scoreboard.model import ActionKind, Partition
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.security.secret_backends import parse
from scoreboard.store.keys import ACTIONS
from scoreboard.store.store import Store
from scoreboard.store.subscription import Subscription
from tests.support.clients.scripts import KEYS, LAYOUT, Scripts
from tests.support.eventually import eventually_async

RECORD = {b"q": b"1", b"u": b"alice", b"a": b"win:1", b"d": b"5", b"s": b"5", b"e": b"1"}


@pytest.fixture
def scripts(redis_url: str) -> Scripts:
    made = Scripts(redis.Redis.from_url(redis_url), is_real=True)
    made.open()
    return made


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator["aioredis.Redis"]:
    async with aioredis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def test_an_added_field_of_a_stream_record_is_ignored() -> None:
    known = events.decode(b"1-1", RECORD)

    assert isinstance(known, events.Event)
    assert events.decode(b"1-1", RECORD | {b"z": b"next"}) == known


def test_another_kind_of_stream_record_is_kept_and_not_counted() -> None:
    found = events.decode(b"1-1", RECORD | {b"k": b"z"})

    assert isinstance(found, events.BadRecord)
    assert found.fields == RECORD | {b"k": b"z"}


def test_an_added_part_of_a_remembered_answer_is_ignored(scripts: Scripts) -> None:
    """Otherwise the action would count again in Redis, with another answer."""
    scripts.submit(("alice", "win:1", 10))
    (key,) = scripts.client.keys("*:seen:*")
    for digest, record in scripts.client.hgetall(key).items():
        scripts.client.hset(key, digest, record + b":next:1")

    assert scripts.submit(("alice", "win:1", 10)) == [["replayed", 10, 10, 1]]


def test_an_added_part_of_the_committed_position_is_ignored(scripts: Scripts) -> None:
    """Otherwise an update that waits for PostgreSQL would get 503 although it is committed."""
    scripts.submit(("alice", "win:1", 10))
    scripts.client.hset(KEYS.meta, "committed", "1:1:next")
    keys, args = scripts.submit_call(("alice", "win:1", 10))

    assert scripts.run("submit", keys, *args)[0][4] == 1


async def test_an_added_part_of_the_committed_position_does_not_hide_it(
    scripts: Scripts, client: "aioredis.Redis"
) -> None:
    await client.hset(KEYS.meta, "committed", "1:1:next")

    assert (await Store(client).state(Partition("main"))).committed_seq == 1


def test_added_fields_of_a_partition_are_ignored(scripts: Scripts) -> None:
    scripts.client.hset(KEYS.meta, mapping={"next": "1", "next:2": "x"})

    assert scripts.submit(("alice", "win:1", 10)) == [["applied", 10, 10, 1]]
    assert scripts.run("leaderboard", [KEYS.board, KEYS.meta], 0, 10)[:3] == [1, 1, 1]


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [("state", "open-next", "FENCED"), ("layout", f"{LAYOUT}:next", "UNINIT")],
)
def test_another_meaning_of_a_partition_is_refused(
    scripts: Scripts, field: str, value: str, code: str
) -> None:
    scripts.client.hset(KEYS.meta, field, value)
    keys, args = scripts.submit_call(("alice", "win:1", 10))

    assert scripts.refuses("submit", keys, *args).startswith(code)
    assert scripts.events() == []


async def test_an_added_part_of_a_notification_is_ignored(
    redis_url: str, client: "aioredis.Redis"
) -> None:
    """Otherwise viewers would wait for the next reconciliation, up to five seconds."""
    changes: list[str] = []
    ups: list[int] = []
    subscription = Subscription(
        Settings(redis_url=Secret(redis_url)),
        [KEYS.changes],
        name="test",
        on_change=changes.append,
        on_up=lambda: ups.append(1),
        on_down=lambda: None,
    )
    task = asyncio.create_task(subscription.run())
    try:
        await eventually_async(lambda: ups)
        for message in ("1:2:next", "next 1:2", "1:2:" + "x" * 64, "1:3"):
            await client.publish(KEYS.changes, message)
        await eventually_async(lambda: len(changes) >= 2)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    assert changes == [KEYS.changes, KEYS.changes]


async def test_added_facts_of_the_catalogue_are_ignored(client: "aioredis.Redis") -> None:
    added = {":next": "x", ":n": "7", "win:next": "x"}
    await client.hset(ACTIONS, mapping={"win": "10", ":version": "3", **added})

    assert await Store(client).kinds() == {"win": ActionKind(10)}


async def test_other_points_of_the_catalogue_are_refused(client: "aioredis.Redis") -> None:
    await client.hset(ACTIONS, mapping={"win": "10:next"})

    with pytest.raises(UnexpectedReply):
        await Store(client).kinds()


def test_an_added_member_of_a_secret_is_ignored() -> None:
    found = parse("a secret", '{"username": "api_a", "password": "x", "next": {"a": [1]}}', "1")

    assert (found.username, found.password.reveal()) == ("api_a", "x")
