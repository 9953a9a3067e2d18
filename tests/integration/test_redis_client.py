"""The client's connections on a real server: a cancelled call ends as cancelled, at any moment."""

import asyncio

from scoreboard.redis_client import make_client
from scoreboard.settings import Secret, Settings

STEPS = 40
"""More turns of the loop than one call takes."""


async def test_a_cancellation_is_never_dropped(redis_url: str) -> None:
    """Incident: a relay survived its task group's cancellation, and the api hung while stopping.

    redis-py sends through ``asyncio.wait_for``, which before Python 3.12 drops a cancellation that
    arrives in the same turn of the loop as the result (python/cpython#86296).
    """
    client = make_client(Settings(redis_url=Secret(redis_url)), name="test", connections=1)
    dropped = []
    try:
        for steps in range(STEPS):
            await client.ping()
            call = asyncio.create_task(client.execute_command("ECHO", "x" * 10))
            for _ in range(steps):
                await asyncio.sleep(0)
            was_under_way = call.cancel()
            await asyncio.wait({call})
            if was_under_way and not call.cancelled():
                dropped.append(steps)
    finally:
        await client.aclose()
    assert not dropped
