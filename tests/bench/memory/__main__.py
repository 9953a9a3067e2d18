"""`make bench-memory`: bytes of Redis per user, per remembered action and per waiting action.

Submits one action of each user through the dispatcher to a real server without a flusher, then
divides the memory of the board, of the remembered actions and of the stream by their number.
"""

import argparse
import asyncio
import tempfile
import uuid
from pathlib import Path

import redis

from cli.embedded.servers import EmbeddedValkey
from scoreboard.model import Action, Partition
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.client import make_client
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from tests.support.data.boards import open_board
from tests.support.servers.flushers import act

PAGE = 2000
KEYS = PartitionKeys(Partition("main"))


async def fill(settings: Settings, users: int) -> None:
    """Submit one action of each user."""
    async with make_client(settings, name="bench") as client:
        await open_board(Store(client))
    for first in range(0, users, PAGE):
        actions = [
            Action(f"auth0|{number:024x}", f"win:{uuid.uuid4()}", number % 1000 + 1)
            for number in range(first, min(first + PAGE, users))
        ]
        await act(settings, *actions)


def main() -> None:
    """Fill a server and print the bytes of each kind of key per entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=200_000)
    users = parser.parse_args().users
    with (
        tempfile.TemporaryDirectory(prefix="scoreboard-bench-") as folder,
        EmbeddedValkey(Path(folder) / "valkey", settings={"appendfsync": "no"}) as valkey,
        redis.Redis.from_url(valkey.url) as client,
    ):
        asyncio.run(fill(Settings(redis_url=Secret(valkey.url)), users))
        kinds = {
            "user on the board": [KEYS.board],
            "remembered action": list(client.scan_iter("sb:{main:0}:seen:*")),
            "action waiting in the stream": [KEYS.events],
        }
        for kind, keys in kinds.items():
            used = sum(client.memory_usage(key, samples=0) or 0 for key in keys)
            print(f"{kind:30} {used / users:6.0f} bytes")


if __name__ == "__main__":
    main()
