"""The client's connections on a real server: cancellation at any moment, and Unix sockets."""

import asyncio
from pathlib import Path

from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.client import make_client
from scoreboard.store.durability import check_durability
from scoreboard.store.pipelined_connection import PipelinedConnection
from tests.support.servers.stores import OwnValkey

STEPS = 40
"""More iterations of the loop than one call takes."""


async def test_a_cancellation_is_not_dropped(redis_url: str) -> None:
    """Incident: a watcher did not end with its task group, and the api hung at shutdown.

    redis-py sends through ``asyncio.wait_for``, which before Python 3.12 drops a cancellation that
    arrives in the same iteration of the loop as the result (python/cpython#86296).
    """
    client = make_client(Settings(redis_url=Secret(redis_url)), name="test", connections=1)
    dropped = []
    try:
        for steps in range(STEPS):
            await client.ping()
            call = asyncio.create_task(client.execute_command("ECHO", "x" * 10))
            for _ in range(steps):
                await asyncio.sleep(0)
            was_running = call.cancel()
            await asyncio.wait({call})
            if was_running and not call.cancelled():
                dropped.append(steps)
    finally:
        await client.aclose()
    assert not dropped


async def test_redis_is_reached_over_a_unix_socket(own_valkey: OwnValkey, tmp_path: Path) -> None:
    """Incident: unix:// was a valid address, and each connection ended in a TypeError."""
    socket = tmp_path / "valkey.sock"
    server = own_valkey(settings={"unixsocket": str(socket), "unixsocketperm": "700"})
    url = f"unix://:{server.password}@{socket}?db=0"
    settings = Settings(redis_url=Secret(url))
    client, link = make_client(settings, name="test"), PipelinedConnection(settings, name="test")

    try:
        durability = await check_durability(client)
        await link.connect()
        replies = await link.exchange([("PING",)])
    finally:
        await link.close()
        await client.aclose()

    assert durability.is_safe
    assert replies == ["PONG"]
