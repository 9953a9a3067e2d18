"""Connections to Redis by TLS share the context that makes them: to make one takes long."""

import asyncio
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis.asyncio as aioredis

from cli.embedded.servers import EmbeddedValkey
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store import tls
from scoreboard.store.client import make_client
from tests.support.fakes.tls import Authority, Terminator, terminating

CONNECTIONS = 8


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def encrypted(valkey_server: EmbeddedValkey, authority: Authority) -> Iterator[Terminator]:
    with terminating(valkey_server.port, authority.server("127.0.0.1")) as terminator:
        yield terminator


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[ssl.SSLContext]:
    """Collect the contexts that are made."""
    contexts: list[ssl.SSLContext] = []
    make = ssl.create_default_context

    def collect() -> ssl.SSLContext:
        contexts.append(make())
        return contexts[-1]

    monkeypatch.setattr(ssl, "create_default_context", collect)
    monkeypatch.setattr(tls, "_contexts", {})
    return contexts


async def connect_all(client: aioredis.Redis) -> None:
    """Use all connections of a client at the same time, and close them."""
    await asyncio.gather(*(client.client_id() for _ in range(CONNECTIONS)))
    await client.connection_pool.disconnect()


async def test_connections_share_a_context_until_a_certificate_changes(
    valkey_server: EmbeddedValkey,
    encrypted: Terminator,
    authority: Authority,
    made: list[ssl.SSLContext],
) -> None:
    query = f"ssl_ca_certs={authority.path}"
    url = f"rediss://:{valkey_server.password}@127.0.0.1:{encrypted.port}/0?{query}"
    settings = Settings(redis_url=Secret(url))
    async with make_client(settings, name="test", connections=CONNECTIONS) as client:
        await connect_all(client)
        await connect_all(client)
        assert encrypted.seen >= CONNECTIONS
        assert len(made) == 1

        os.utime(authority.path, ns=(0, 0))
        await connect_all(client)
        assert len(made) == 2
