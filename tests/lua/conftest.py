"""The script suite runs on two servers: fakeredis, and the real Valkey from the wheel."""

from collections.abc import Iterator

import fakeredis
import pytest
import redis

from tests.support.clients.scripts import Scripts

on_the_real_server = pytest.mark.parametrize("scripts", ["valkey"], indirect=True)
"""For scripts that use commands which fakeredis does not have."""


@pytest.fixture(params=["fakeredis", "valkey"])
def scripts(request: pytest.FixtureRequest) -> Iterator[Scripts]:
    """Return scripts on an empty server."""
    if request.param == "valkey":
        url = request.getfixturevalue("redis_url")
        with redis.Redis.from_url(url) as client:
            yield Scripts(client, is_real=True)
    else:
        with fakeredis.FakeRedis(server_type="redis", version=(7, 4)) as client:
            yield Scripts(client, is_real=False)


@pytest.fixture
def opened(scripts: Scripts) -> Scripts:
    """Return scripts on a server with an open, empty partition."""
    scripts.open()
    return scripts
