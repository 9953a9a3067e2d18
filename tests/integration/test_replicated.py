"""Updates are acknowledged after a replica has them (docs/decisions/0006)."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest
import redis

from cli.embedded.servers import EmbeddedValkey
from scoreboard.errors import Fenced, OutcomeUnknown, UnsafeRedis
from scoreboard.model import Action, Board, Partition, Receipt, unpack_score
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.client import make_client
from scoreboard.store.durability import require_durability
from scoreboard.store.store import Store
from tests.integration.test_dispatcher import running
from tests.support.data.boards import fence, open_board
from tests.support.eventually import eventually, eventually_async
from tests.support.servers.stores import OwnValkey


@pytest.fixture
def pair(own_valkey: OwnValkey) -> Iterator[tuple[EmbeddedValkey, EmbeddedValkey]]:
    """Return a primary that refuses writes without its replica, and that replica, in sync."""
    primary = own_valkey(settings={"repl-diskless-sync-delay": "0"})
    replica = own_valkey(
        settings={"replicaof": f"127.0.0.1 {primary.port}", "masterauth": primary.password}
    )
    with redis.Redis.from_url(primary.url) as client:
        eventually(lambda: client.info("replication")["connected_slaves"] == 1)
        eventually(lambda: client.wait(1, 100) == 1)
        client.config_set("min-replicas-to-write", 1)
    yield primary, replica
    if replica.pid is not None:
        os.kill(replica.pid, signal.SIGCONT)


def settings_for(server: EmbeddedValkey, *, timeout_ms: int = 2000) -> Settings:
    return Settings(
        redis_url=Secret(server.url), acknowledge="replicated", replica_timeout_ms=timeout_ms
    )


async def test_acknowledged_updates_are_on_the_replica(
    pair: tuple[EmbeddedValkey, EmbeddedValkey],
) -> None:
    primary, replica = pair
    settings = settings_for(primary)
    client = make_client(settings, name="test")
    await require_durability(client, settings)
    await open_board(Store(client))
    await client.aclose()

    async with running(settings) as dispatcher:
        await asyncio.gather(
            *(dispatcher.submit("main", Action(f"user{n}", "1", n + 1)) for n in range(50))
        )
        await asyncio.to_thread(primary.kill)

    with redis.Redis.from_url(replica.url, decode_responses=True) as remaining:
        rows = remaining.zrange("sb:{main:0}:board", 0, -1, withscores=True)
    assert {user: unpack_score(int(packed)) for user, packed in rows} == {
        f"user{n}": n + 1 for n in range(50)
    }


async def test_a_stopped_replica_makes_every_outcome_unknown(
    pair: tuple[EmbeddedValkey, EmbeddedValkey],
) -> None:
    primary, replica = pair
    settings = settings_for(primary, timeout_ms=150)
    client = make_client(settings, name="test")
    await open_board(Store(client))
    await client.aclose()
    assert replica.pid is not None

    async with running(settings) as dispatcher:
        os.kill(replica.pid, signal.SIGSTOP)
        for _ in range(2):  # the second one is a replay, which writes nothing
            with pytest.raises(OutcomeUnknown):
                await dispatcher.submit("main", Action("alice", "1", 5))
        os.kill(replica.pid, signal.SIGCONT)

        async def repeated() -> Receipt | None:
            with suppress(OutcomeUnknown):
                return await dispatcher.submit("main", Action("alice", "1", 5))
            return None

        receipt = await eventually_async(repeated)

    assert (receipt.score, receipt.replayed) == (5, True)


async def test_a_primary_without_min_replicas_is_refused(own_valkey: OwnValkey) -> None:
    settings = settings_for(own_valkey())
    client = make_client(settings, name="test")

    with pytest.raises(UnsafeRedis, match=r"min-replicas-to-write is 0, must be 1.*0 replicas"):
        await require_durability(client, settings)
    await client.aclose()


async def test_a_refused_repeat_of_an_action_that_was_applied_has_an_unknown_outcome(
    pair: tuple[EmbeddedValkey, EmbeddedValkey],
) -> None:
    """The refusal concerns the repeat; the first call may have been applied."""
    primary, replica = pair
    settings = settings_for(primary, timeout_ms=600)
    assert replica.pid is not None
    async with make_client(settings, name="test") as client, running(settings) as dispatcher:
        store, partition = Store(client), Partition("main")
        await open_board(store)
        await dispatcher.submit("main", Action("alice", "win:1", 5))
        os.kill(replica.pid, signal.SIGSTOP)
        waiting = asyncio.ensure_future(dispatcher.submit("main", Action("alice", "win:2", 7)))
        await eventually_async(lambda: has_seq(store, partition, 2))
        await fence(store, partition, "test:1")

        with pytest.raises(OutcomeUnknown):
            await waiting

        assert (await store.state(partition)).seq == 2


async def test_a_call_that_a_server_refuses_keeps_its_answer_if_replicas_are_away(
    pair: tuple[EmbeddedValkey, EmbeddedValkey],
) -> None:
    primary, replica = pair
    settings = settings_for(primary, timeout_ms=1500)
    assert replica.pid is not None
    async with make_client(settings, name="test") as client, running(settings) as dispatcher:
        store = Store(client)
        await open_board(store)
        await open_board(store, Board("other"))
        await fence(store, Partition("other"), "test:1")
        await dispatcher.submit("main", Action("alice", "win:1", 5))
        os.kill(replica.pid, signal.SIGSTOP)

        found = await asyncio.gather(
            dispatcher.submit("main", Action("alice", "win:2", 7)),
            dispatcher.submit("other", Action("alice", "win:2", 7)),
            return_exceptions=True,
        )

        assert [type(one) for one in found] == [OutcomeUnknown, Fenced]


async def has_seq(store: Store, partition: Partition, seq: int) -> bool:
    return (await store.state(partition)).seq == seq
