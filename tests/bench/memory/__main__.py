"""`make bench-memory`: bytes per user and per action, in Redis's memory and on disks.

Submits one action of each user through the dispatcher to a real server without a flusher, then
divides the memory of the board, of the remembered actions and of the stream by their number. A
second part flushes actions and divides what PostgreSQL and Redis have written by their number.
"""

import argparse
import asyncio
import tempfile
import uuid
from pathlib import Path
from typing import LiteralString

import psycopg
import redis

from cli.embedded.servers import EmbeddedValkey
from scoreboard.model import Action, Partition
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.client import make_client
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from tests.bench.flush.__main__ import is_committed
from tests.bench.flush.stage import fill, make_board, servers
from tests.bench.resources.__main__ import flushing
from tests.bench.rows import Recorder
from tests.support.data.boards import open_board
from tests.support.eventually import eventually
from tests.support.servers.flushers import act

PAGE = 2000
KEYS = PartitionKeys(Partition("main"))


async def fill_memory(settings: Settings, users: int) -> None:
    """Submit one action of each user."""
    async with make_client(settings, name="bench") as client:
        await open_board(Store(client))
    for first in range(0, users, PAGE):
        actions = [
            Action(f"auth0|{number:024x}", f"win:{uuid.uuid4()}", number % 1000 + 1)
            for number in range(first, min(first + PAGE, users))
        ]
        await act(settings, *actions)


def disk(actions: int) -> dict[str, float]:
    """Flush actions of a tenth as many users; return the bytes on disk per action, and per user."""
    users = actions // 10
    with servers() as stage, psycopg.connect(stage.postgres.url, autocommit=True) as database:

        def read(query: LiteralString) -> int:
            row = database.execute(query).fetchone()
            assert row is not None
            return int(row[0])

        database.execute("CHECKPOINT")
        written = read("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')")
        fill(stage, make_board(stage, "disk"), actions, users)
        with flushing(stage, "disk"):
            eventually(lambda: is_committed(stage, "disk"), within_s=300)
        written = read("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')") - written
        ledger = read(
            "SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('score_events')"
        )
        others = read("SELECT pg_total_relation_size('users') + pg_total_relation_size('scores')")
    return {
        "action in the ledger": ledger / actions,
        "action in the write-ahead log": written / actions,
        "user in the tables users and scores": others / users,
    }


def main() -> None:
    """Fill a server and print the bytes of each kind of key per entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="only check that everything works")
    options = parser.parse_args()
    users = 1_000 if options.quick else options.users
    recorder = Recorder("memory", users=f"{users:,}")

    def show(work: str, kind: str, size: float) -> None:
        print(f"{kind:40} {size:6.0f} bytes")
        recorder.add(work, kind, {}, "size", "B", size)

    # Without rewrites, the size of the append-only file is what was written.
    settings = {"appendfsync": "no", "auto-aof-rewrite-percentage": "0"}
    with (
        tempfile.TemporaryDirectory(prefix="scoreboard-bench-") as folder,
        EmbeddedValkey(Path(folder) / "valkey", settings=settings) as valkey,
        redis.Redis.from_url(valkey.url) as client,
    ):
        asyncio.run(fill_memory(Settings(redis_url=Secret(valkey.url)), users))
        kinds = {
            "user on the board": [KEYS.board],
            "remembered action": list(client.scan_iter("sb:{main:0}:seen:*")),
            "action waiting in the stream": [KEYS.events],
        }
        size = client.info("persistence")["aof_current_size"]
        show("disk", "action in the append-only file", size / users)
        for kind, keys in kinds.items():
            used = sum(client.memory_usage(key, samples=0) or 0 for key in keys)
            show("memory of Redis", kind, used / users)
    for kind, size in disk(users).items():
        show("disk", kind, size)
    if options.json:
        recorder.write(options.json)


if __name__ == "__main__":
    main()
