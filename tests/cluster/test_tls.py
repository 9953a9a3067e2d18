"""The whole system on a cluster that clients reach by TLS only."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import psycopg
import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from scoreboard.model import Partition, partition_of
from scoreboard.store.keys import PartitionKeys
from tests.support.eventually import eventually_async
from tests.support.fakes.tls import Authority
from tests.support.servers.clusters import Cluster, Node
from tests.support.servers.system import CLUSTER_PARTITIONS, System, run_command

USERS = [f"user-{number}" for number in range(30)]


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster", authority=Authority(tmp_path, "authority")) as cluster:
        yield cluster


@pytest.fixture
def on_tls(tmp_path: Path, encrypted: Cluster) -> Iterator[System]:
    """Return a running system whose services have no other address of Redis."""
    system = System(tmp_path / "system")
    system.replicated, system.partitions = encrypted, CLUSTER_PARTITIONS
    with system:
        yield system


async def update_all(system: System, action: str) -> None:
    """Update every user, so every primary; repeat each update until it is counted."""
    async with httpx.AsyncClient(base_url=system.api, headers=system.game_server()) as client:
        for user in USERS:

            async def is_counted(user: str = user) -> bool:
                body = {"userId": user, "actionId": action}
                reply = await client.post("/api/scores/update", json=body)
                assert reply.status_code in {200, 503}, reply.text
                return reply.status_code == 200

            await eventually_async(is_counted)


@asynccontextmanager
async def watching(system: System) -> AsyncIterator[dict[str, int]]:
    """Watch the board; the scores of its first ten users."""
    shown: dict[str, int] = {}
    subprotocols = [Subprotocol("scoreboard.v1")]
    async with connect(system.ws, subprotocols=subprotocols, compression=None) as socket:

        async def read() -> None:
            async for frame in socket:
                message = msgspec.json.decode(frame)
                if message["type"] == "leaderboard":
                    shown.clear()
                    shown.update({row["userId"]: row["score"] for row in message["leaderboard"]})

        task = asyncio.create_task(read())
        try:
            yield shown
        finally:
            await socket.close()
            await task


def owner_of(cluster: Cluster, user: str) -> Node:
    partition = Partition("main", partition_of(user, CLUSTER_PARTITIONS))
    return cluster.primary_of(PartitionKeys(partition).meta)


@pytest.mark.timeout(120)
async def test_updates_reads_and_viewers_survive_a_failover(
    on_tls: System, encrypted: Cluster
) -> None:
    primaries = encrypted.primaries()
    assert {owner_of(encrypted, user) for user in USERS} == set(primaries)

    async with watching(on_tls) as shown:
        await update_all(on_tls, "win:1")
        await eventually_async(lambda: list(shown.values()) == [10] * 10)

        lost = owner_of(encrypted, USERS[0])
        await asyncio.to_thread(lost.kill)
        await asyncio.to_thread(encrypted.wait_until_promoted, instead_of=lost)
        await update_all(on_tls, "win:2")
        await eventually_async(lambda: list(shown.values()) == [20] * 10)

    async with httpx.AsyncClient(base_url=on_tls.api) as client:
        found = (await client.get(f"/api/scores/users/{USERS[0]}?around=5")).json()
    assert (found["score"], found["total"]) == (20, len(USERS))

    def is_committed() -> bool:
        with psycopg.connect(on_tls.postgres.url) as connection:
            row = connection.execute("SELECT count(*) FROM score_events").fetchone()
            return row == (2 * len(USERS),)

    await eventually_async(is_committed)
    await asyncio.to_thread(lost.start)
    await asyncio.to_thread(encrypted.wait_until_complete)
    verified = on_tls.run("verify", "--full")
    assert verified.returncode == 0, verified.stdout
    promoted = owner_of(encrypted, USERS[0])
    assert promoted is not lost
    assert all(encrypted.terminators[node].seen for node in (*primaries, promoted))


def test_a_certificate_of_an_unknown_authority_is_refused(
    encrypted: Cluster, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")

    def check(url: str) -> str:
        away = "postgresql://nobody@127.0.0.1:1/scores"
        found = run_command("config", "check", REDIS_URL=url, DATABASE_URL=away).stdout
        return next(line for line in found.splitlines() if line.startswith("redis\t"))

    assert check(encrypted.url) == "redis\tok"
    unknown = check(f"{encrypted.url.partition('?')[0]}?ssl_ca_certs={other.path}")
    assert "certificate verify failed" in unknown, unknown
