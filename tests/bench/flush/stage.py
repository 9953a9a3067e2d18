"""Servers, boards and full streams for the flush benchmark."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import redis

from cli.embedded.servers import EmbeddedPostgres, EmbeddedValkey
from scoreboard.ledger.migrations import migrate
from scoreboard.model import Layout, Partition
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.keys import GROUP, PartitionKeys


@dataclass(frozen=True)
class Servers:
    """Servers with the durability of a deployment."""

    valkey: EmbeddedValkey
    postgres: EmbeddedPostgres

    def settings(self, board: str) -> Settings:
        return Settings(
            redis_url=Secret(self.valkey.url),
            database_url=Secret(self.postgres.url),
            boards=(board,),
            flusher_metrics_port=0,
            log_level="warning",
        )


@contextmanager
def servers() -> Iterator[Servers]:
    """Start a Valkey and a PostgreSQL that sync to disk, in a temporary folder."""
    with TemporaryDirectory(prefix="scoreboard-bench-") as name:
        folder = Path(name)
        settings = {"shared_buffers": "256MB", "max_wal_size": "4GB"}
        with (
            EmbeddedValkey(folder / "valkey") as valkey,
            EmbeddedPostgres(folder / "postgres", settings=settings) as postgres,
        ):
            migrate(postgres.url)
            yield Servers(valkey, postgres)


def make_board(stage: Servers, board: str) -> Partition:
    """Create an empty, open board in both stores."""
    partition = Partition(board)
    keys = PartitionKeys(partition)
    with psycopg.connect(stage.postgres.url) as connection:
        connection.execute("INSERT INTO boards VALUES (%s, 1, 43200, 64, true)", (board,))
        connection.execute("INSERT INTO flush_state VALUES (%s, 0, 1, 0, '0-0')", (board,))
    with redis.Redis.from_url(stage.valkey.url) as client:
        facts = {"epoch": 1, "seq": 0, "state": "open", "layout": str(Layout()), "public": 1}
        client.hset(keys.meta, mapping=facts)
        client.xgroup_create(keys.events, GROUP, id="0", mkstream=True)
    return partition


def fill(stage: Servers, partition: Partition, events: int, users: int) -> None:
    """Write events to the stream as lua/submit.lua does."""
    keys = PartitionKeys(partition)
    held = [0] * users
    with redis.Redis.from_url(stage.valkey.url) as client:
        for start in range(0, events, 5000):
            with client.pipeline(transaction=False) as pipe:
                for seq in range(start + 1, min(start + 5000, events) + 1):
                    user = (seq * 7919) % users
                    held[user] += 10
                    fields = {
                        "q": seq,
                        "u": f"user-{user:06}",
                        "a": f"win:{seq:016}",
                        "d": 10,
                        "s": held[user],
                        "e": 1,
                        "t": f"request-{seq:012}",
                    }
                    pipe.xadd(keys.events, fields)
                pipe.hset(keys.meta, "seq", seq)
                pipe.execute()


def check(stage: Servers, board: str, events: int) -> None:
    """Fail if an event was lost or counted twice."""
    with psycopg.connect(stage.postgres.url) as connection:
        counted = connection.execute(
            "SELECT count(*), (SELECT sum(score) FROM scores WHERE board = %(b)s),"
            " sum(delta) FROM score_events WHERE board = %(b)s",
            {"b": board},
        ).fetchone()
    assert counted == (events, counted[1], counted[1]), (counted, events)
