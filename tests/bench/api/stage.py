"""Starts the servers of `make bench-api` and measures one of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import redis

from scoreboard.model import Partition, pack
from scoreboard.runtime.settings import PREFIX, load
from scoreboard.store.client import make_client
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from tests.bench.api.tokens import Tokens, user_id
from tests.bench.machine import cpu_s, pin
from tests.support.data.boards import open_board
from tests.support.fakes.tokens import AUDIENCE, ISSUER

ROOT = Path(__file__).parents[3]
START_S = 20.0
PAGE = 5_000
SCORES = 100_003
"""Scores of a filled board are spread over 0 to SCORES - 1."""


class Work(NamedTuple):
    """What the client does.

    ``members`` users are on the board before. A server that remembers tokens is warm after
    ``warm_requests``. ``is_once``: each user sends one request, so that each token is new.
    """

    request: str
    users: int
    members: int = 0
    warm_requests: int = 0
    is_once: bool = False


WORKS = {
    "update": Work("update", 4_000, warm_requests=4_000),
    "update-many-users": Work("update", 100_000, warm_requests=100_000),
    "first-token": Work("update", 100_000, is_once=True),
    "leaderboard": Work("leaderboard", 4_000, 4_000),
    "user": Work("user", 4_000, 4_000),
    "user-million": Work("user", 1_000_000, 1_000_000),
}
MODULES = {
    "baseline": "tests.bench.api.baseline",
    "without-metrics": "tests.bench.api.without_metrics",
    "before": "api",
    "api": "api",
}


class NotMeasuredError(Exception):
    """A request was not answered as expected."""


def api_settings(redis_url: str, tokens: Tokens) -> dict[str, str]:
    """Return the environment of an api that accepts the benchmarks' load."""
    return {
        "REDIS_URL": redis_url,
        "SCOREBOARD_JWKS_FILE": str(tokens.jwks),
        "SCOREBOARD_UNKNOWN_KINDS": "default",
        "SCOREBOARD_ISSUER": ISSUER,
        "SCOREBOARD_AUDIENCE": AUDIENCE,
        "SCOREBOARD_RATE_LIMIT": "gateway",
        "SCOREBOARD_API_METRICS_PORT": "0",
        "SCOREBOARD_STREAM_CAP": "10000000",
        "SCOREBOARD_CONNECTIONS_PER_ADDRESS": "4096",
        "SCOREBOARD_LOG_LEVEL": "warning",
    }


@contextmanager
def server(
    name: str, environ: dict[str, str], core: int | None, before: Path | None = None
) -> Iterator[tuple[int, int]]:
    """Run a server; yield its pid and port. ``before`` is the clone of the server "before"."""
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        port = chosen.getsockname()[1]
    root, python = ROOT, sys.executable
    if name == "before":
        assert before is not None
        root, python = before, str(before / ".venv/bin/python")
    kept = {key: text for key, text in os.environ.items() if not key.startswith(PREFIX)}
    output = tempfile.TemporaryFile()  # noqa: SIM115 (closed below)
    process = subprocess.Popen(
        [python, "-m", MODULES[name], *([str(port)] if name == "baseline" else [])],
        cwd=root,
        env=kept | environ | {"SCOREBOARD_API_PORT": str(port)},
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    try:
        if core is not None:
            pin(process.pid, {core})
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline_s or process.poll() is not None:
                    raise
                time.sleep(0.05)
        yield process.pid, port
    except Exception as error:
        output.seek(0)
        error.add_note(output.read().decode(errors="replace")[-4000:])
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        output.close()


def measure(pid: int, redis_pid: int | None, plan: dict[str, Any]) -> dict[str, float]:
    """Run the client's plan; return its figures and the CPU time per request."""
    pids = [pid, redis_pid] if redis_pid else [pid]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bench.api.client"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(json.dumps(plan).encode())
        client.stdin.close()
        assert client.stdout.readline() == b"measuring\n"
        before_s = [cpu_s(one) for one in pids]
        assert client.stdout.readline() == b"measured\n"
        used_s = [cpu_s(one) - start_s for one, start_s in zip(pids, before_s, strict=True)]
        result = json.loads(client.stdout.readline())
    if result["failures"] or not result["done"]:
        raise NotMeasuredError(f"not every request was answered as expected: {result}")
    return {
        "cpu_us": used_s[0] / result["done"] * 1e6,
        "redis_cpu_us": used_s[-1] / result["done"] * 1e6,
        "rate": result["done"] / result["seconds"],
        "p50_ms": result["p50_ms"],
        "p99_ms": result["p99_ms"],
        "client_cpu_share": result["client_cpu_share"],
    }


async def open_main(url: str, members: int = 0) -> None:
    """Empty Redis and open the default board with a number of users."""
    with redis.Redis.from_url(url) as plain:
        plain.flushall()
        async with make_client(load({"REDIS_URL": url}), name="bench") as client:
            await open_board(Store(client))
        key = PartitionKeys(Partition("main")).board
        for first in range(0, members, PAGE):
            numbers = range(first, min(first + PAGE, members))
            plain.zadd(
                key, {user_id(one): pack(one * 7919 % SCORES, one // 1000) for one in numbers}
            )
