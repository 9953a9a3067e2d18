"""The system under `make soak`: every service as its own process on servers that sync to disk."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import psycopg
import redis

from cli.embedded.ports import find_free_port
from scoreboard.model import Partition
from scoreboard.runtime.settings import Settings
from scoreboard.store.keys import PartitionKeys
from tests.bench.api.stage import api_settings
from tests.bench.api.tokens import prepare
from tests.bench.flush.stage import Servers, make_board, servers
from tests.bench.machine import family_cpu_s
from tests.bench.resources.processes import service, use_of

BOARD = "main"
KEYS = PartitionKeys(Partition(BOARD))
MB = 1 << 20


@dataclass
class System:
    """Addresses and processes."""

    stage: Servers
    api_port: int
    ws_port: int
    pids: dict[str, int] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return self.stage.settings(BOARD)

    def memory(self) -> dict[str, tuple[float, int]]:
        """Return the resident MB and the open files of each process."""
        used = {name: use_of(pid) for name, pid in self.pids.items() if name != "PostgreSQL"}
        return {name: (use.rss_mb, use.files) for name, use in used.items()}

    def cpu_s(self) -> float:
        """Return the CPU time of all processes."""
        return sum(family_cpu_s(pid) for pid in self.pids.values())


@dataclass(frozen=True)
class Stored:
    """What the two stores hold."""

    redis_mb: float
    seen_mb: float
    """Of it, the remembered actions, which grow until the dedup window ends."""
    stream: int
    postgres_mb: float

    @property
    def rest_mb(self) -> float:
        return self.redis_mb - self.seen_mb


def read_stored(system: System) -> Stored:
    """Read the sizes of the stores."""
    with redis.Redis.from_url(system.stage.valkey.url) as client:
        seen = sum(client.memory_usage(key) or 0 for key in client.scan_iter(f"{KEYS.tag}:seen:*"))
        used = client.info("memory")["used_memory"]
        stream = client.xlen(KEYS.events)
    with psycopg.connect(system.stage.postgres.url) as database:
        row = database.execute("SELECT pg_database_size(current_database())").fetchone()
    assert row is not None
    return Stored(used / MB, seen / MB, stream, row[0] / MB)


@contextmanager
def running() -> Iterator[System]:
    """Run the whole system with an empty, open board."""
    with ExitStack() as stack:
        stage = stack.enter_context(servers())
        make_board(stage, BOARD)
        system = System(stage, find_free_port(), find_free_port())
        common = api_settings(stage.valkey.url, prepare(0)) | {"DATABASE_URL": stage.postgres.url}
        del common["SCOREBOARD_STREAM_CAP"]  # as in production
        common |= {
            "SCOREBOARD_VIEWERS_PER_ADDRESS": "100000",
            "SCOREBOARD_NEW_VIEWERS_PER_SECOND": "100000",
            "SCOREBOARD_NEW_VIEWERS_BURST": "100000",
            "SCOREBOARD_API_PORT": str(system.api_port),
            "SCOREBOARD_WS_PORT": str(system.ws_port),
        }
        probes = {"flusher": "FLUSHER", "streamer": "WS", "api": "API"}
        for name, prefix in probes.items():
            port = find_free_port()
            variables = common | {f"SCOREBOARD_{prefix}_METRICS_PORT": str(port)}
            system.pids[name] = stack.enter_context(service(name, variables, port)).pid
        for name, pid in (("Valkey", stage.valkey.pid), ("PostgreSQL", stage.postgres.pid)):
            assert pid is not None
            system.pids[name] = pid
        yield system
