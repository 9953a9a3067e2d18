"""`make bench-reseed`: reseeds and verifies a board of a million users.

The servers run as in production (fsync on). The output has users per second and the CPU time of
this process, which shows whether the machine was busy.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import psycopg
import redis
from psycopg import sql

from cli.embedded.servers import EmbeddedPostgres, EmbeddedValkey
from scoreboard.ledger.migrations import migrate
from scoreboard.ledger.pool import connect
from scoreboard.model import Board
from scoreboard.recovery.reseed import SESSION, choose_partitions, report_nothing, reseed
from scoreboard.recovery.verify import verify
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.client import make_client
from scoreboard.store.store import Store
from tests.bench.rows import Recorder
from tests.bench.tables import Published, render

METRICS = (
    ("reseed", "time", "s", "reseed_s"),
    ("reseed", "users", "/s", "users_per_s"),
    ("reseed", "CPU of the command", "s", "reseed_cpu_s"),
    ("verify --full", "time", "s", "verify_s"),
    ("verify --full", "users", "/s", "verified_per_s"),
    ("verify --full", "CPU of the command", "s", "verify_cpu_s"),
)

FILL = (
    "INSERT INTO boards VALUES ('main', 1, 43200, 64, TRUE)",
    """
    INSERT INTO users (id, external_id)
    SELECT gen_random_uuid(), 'auth0|user-' || number FROM generate_series(1, {users}) number
    """,
    """
    INSERT INTO score_events
    SELECT 'main', id, 'win:' || gen_random_uuid(), 0, 1, row_number() OVER (), score, score,
           'win', NULL, CASE WHEN row_number() OVER () <= {actions} THEN now()
                             ELSE now() - interval '30 days' END
    FROM (SELECT id, 1 + (random() * 100000)::INT AS score FROM users) chosen
    """,
    """
    INSERT INTO scores
    SELECT 'main', user_id, delta, 1, occurred_at, seq FROM score_events
    """,
    "INSERT INTO flush_state VALUES ('main', 0, 1, {users}, '1-0')",
)


def fill(database_url: str, *, users: int, actions: int) -> None:
    """Create users with one score each, some with an action in the dedup window."""
    migrate(database_url)
    sizes = {"users": sql.Literal(users), "actions": sql.Literal(actions)}
    with psycopg.connect(database_url, autocommit=True) as connection:
        for statement in FILL:
            connection.execute(sql.SQL(statement).format(**sizes))
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")  # otherwise it would run during the measurement


async def measure(settings: Settings) -> dict[str, float]:
    """Reseed the empty board, then verify it completely; return the figures."""
    board = Board()
    client = make_client(settings, name="bench")
    try:
        async with await connect(settings, name="bench", **SESSION) as connection:
            store = Store(client)
            cpu_s = time.process_time()
            done = await reseed(
                store, connection, board, await choose_partitions(store, board), actor="bench"
            )
            reseed_cpu_s = time.process_time() - cpu_s
        cpu_s = time.process_time()
        async with await connect(settings, name="bench", **SESSION) as connection:
            verdict = await verify(client, connection, board, sample=None, report=report_nothing)
    finally:
        await client.aclose()
    assert verdict.is_sound, verdict.findings
    return {
        "users": done.users,
        "actions": done.actions,
        "reseed_s": round(done.duration_s, 2),
        "reseed_cpu_s": round(reseed_cpu_s, 2),
        "users_per_s": round(done.users / done.duration_s),
        "verify_cpu_s": round(time.process_time() - cpu_s, 2),
        "verify_s": round(verdict.duration_s, 2),
        "verified_per_s": round(verdict.users / verdict.duration_s),
    }


def run(recorder: Recorder, *, users: int, actions: int, rounds: int) -> None:
    """Fill a ledger once, then reseed and verify it in each round."""
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedValkey(Path(folder) / "valkey") as valkey,
        EmbeddedPostgres(Path(folder) / "postgres") as postgres,
        redis.Redis.from_url(valkey.url) as client,
    ):
        fill(postgres.url, users=users, actions=actions)
        settings = Settings(redis_url=Secret(valkey.url), database_url=Secret(postgres.url))
        for _ in range(rounds):
            client.flushall()
            with recorder.measurement():
                found = asyncio.run(measure(settings))
            sys.stderr.write(f"{json.dumps(found)}\n")
            parameters = {"users": users, "remembered actions": actions}
            for work, metric, unit, key in METRICS:
                recorder.add(work, "scoreboard", parameters, metric, unit, found[key])


def main() -> int:
    """Measure a ledger without and one with actions in the dedup window."""
    parser = argparse.ArgumentParser(prog="make bench-reseed", description=__doc__)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--actions", default="0,200000", help="within the dedup window, by comma")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="only check that everything works")
    chosen = parser.parse_args()
    recorder = Recorder("reseed")
    for actions in [500] if chosen.quick else map(int, chosen.actions.split(",")):
        users = 1_000 if chosen.quick else chosen.users
        run(recorder, users=users, actions=actions, rounds=chosen.rounds)
    print(render(Published(recorder.figures, {})))
    if chosen.json:
        recorder.write(chosen.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
