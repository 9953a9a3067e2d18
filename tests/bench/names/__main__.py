"""Measure what names cost: CPU time of building a board, and of an import with its triggers.

    python -m tests.bench.names board
    python -m tests.bench.names import --users 1000000

Both print medians with the least and the most of the rounds. Imports run with and without the
triggers of migration 0027 in turn, on a PostgreSQL of its own, into an empty table. Their CPU time
is that of the server's process (Linux), which other programs on the machine change less than the
time that passes.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg

from cli.embedded.servers import EmbeddedPostgres
from scoreboard.broadcast.messages import encode
from scoreboard.broadcast.state import BoardState
from scoreboard.ledger import migrations, pool
from scoreboard.ledger.name_cache import NAMES_MAX, NameCache, _Cached
from scoreboard.ledger.users import Profile, PublicProfile, import_users
from scoreboard.model import Row, Window
from scoreboard.runtime.settings import Settings, load
from tests.support.servers.postgres_template import copy_postgres

BOARDS = 20_000


def settings_of(database_url: str) -> Settings:
    return load({"REDIS_URL": "redis://unused", "DATABASE_URL": database_url})


def report(what: str, values: list[float], unit: str) -> None:
    middle, least, most = statistics.median(values), min(values), max(values)
    print(f"{what}: {middle:.2f} ({least:.2f} to {most:.2f}) {unit}")


def windows(users: list[str]) -> Iterator[Window]:
    for seq in range(BOARDS):
        rows = tuple(Row(rank, user, 1000 - rank + seq) for rank, user in enumerate(users, 1))
        yield Window(1, seq, len(rows), rows, ((1, seq),))


def build(names: NameCache) -> float:
    """Return the CPU time of building and encoding a changed board, in µs."""
    users = [f"018f6d0e-5f2c-7c3a-9f57-3a1f6f0f9f{number:02}" for number in range(10)]
    state, made = BoardState("main"), list(windows(users))
    began_s = time.process_time()
    for window in made:  # as BoardWatcher does
        state.apply(window, 1, names.known(row.user_id for row in window.rows))
        state.rename(names.known(state.user_ids))
        assert state.message is not None
        encode(state.message)
    return (time.process_time() - began_s) / BOARDS * 1e6


def full_cache() -> NameCache:
    names, expires_at_s = NameCache(settings_of("postgresql://u@h/d")), time.monotonic() + 3600
    users = [f"018f6d0e-5f2c-7c3a-9f57-3a1f6f0f9f{number:02}" for number in range(10)]
    for user in (*users, *(f"other-{number}" for number in range(NAMES_MAX - 10))):
        names._known[user] = _Cached(PublicProfile(f"Player {user[-6:]}", None), expires_at_s)
    return names


def measure_boards(rounds: int) -> None:
    caches: dict[str, Callable[[], NameCache]] = {
        "without names": lambda: NameCache(None),
        "with ten names": full_cache,
    }
    found: dict[str, list[float]] = {name: [] for name in caches}
    for _ in range(rounds):
        for name, make in caches.items():
            found[name].append(build(make()))
    for name, values in found.items():
        report(name, values, "µs per board")


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def import_into(url: str, users: int) -> tuple[float, float]:
    """Import users; return the time that passed, and the CPU time of the server, in s."""
    profiles = [Profile(f"user-{number}", f"Player {number}") for number in range(users)]
    connection = await pool.connect(
        settings_of(url), name="bench", autocommit=False, statement_timeout="0"
    )
    pid = connection.info.backend_pid
    async with connection:
        began_s, used_s = time.monotonic(), cpu_s(pid)
        await import_users(connection, profiles)
        await connection.commit()
        return time.monotonic() - began_s, cpu_s(pid) - used_s


def measure_imports(rounds: int, users: int) -> None:
    found: dict[str, list[tuple[float, float]]] = {"without triggers": [], "with triggers": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedPostgres(copy_postgres(Path(folder) / "postgres"), fsync=True) as postgres,
    ):
        for number in range(rounds):
            for name, values in found.items():
                database = f"bench_{number}_{len(values)}_{name.partition(' ')[0]}"
                with psycopg.connect(postgres.url_of("postgres"), autocommit=True) as admin:
                    admin.execute(f"CREATE DATABASE {database}".encode())
                url = postgres.url_of(database)
                migrations.migrate(url)
                if name == "without triggers":
                    with psycopg.connect(url, autocommit=True) as owner:
                        owner.execute("DROP FUNCTION announce_names CASCADE")
                values.append(asyncio.run(import_into(url, users)))
                with psycopg.connect(postgres.url_of("postgres"), autocommit=True) as admin:
                    admin.execute(f"DROP DATABASE {database}".encode())
                    admin.execute("CHECKPOINT")
    for name, values in found.items():
        report(f"{users} users {name}: passed", [passed for passed, _ in values], "s")
        report(f"{users} users {name}: CPU of the server", [used for _, used in values], "s")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.names")
    parser.add_argument("what", choices=["board", "import"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--users", type=int, default=1_000_000)
    options = parser.parse_args()
    if options.what == "board":
        measure_boards(options.rounds)
    else:
        measure_imports(options.rounds, options.users)


if __name__ == "__main__":
    main()
