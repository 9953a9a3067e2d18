"""Measures the api and the baseline, or itself without metrics, in one run: `make bench-api`.

Both get the same requests from the same client, alternately and several times, on the same real
Valkey with appendfsync always. The output is the server's CPU time per applied update (user and
system, from /proc), which is least affected by other load, then throughput and latency.
"""

import asyncio
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import jwt
import redis
from cryptography.hazmat.primitives.asymmetric import rsa

from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedValkey
from scoreboard.runtime.settings import load
from scoreboard.store.client import make_client
from scoreboard.store.store import Store
from tests.support.data.boards import open_board
from tests.support.fakes.tokens import AUDIENCE, ISSUER, KeyPair

ROOT = Path(__file__).parents[3]
SERVERS = {
    "baseline": ["-m", "tests.bench.api.baseline"],
    "without-metrics": ["-m", "tests.bench.api.without_metrics"],
    "api": ["-m", "api"],
}
USERS = 500
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process, user and system, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def make_tokens(folder: Path) -> list[tuple[str, str]]:
    """Create a key set and a token for each user, as an identity provider with RS256 does."""
    key = KeyPair(
        kid="bench",
        algorithm="RS256",
        private=rsa.generate_private_key(public_exponent=65537, key_size=2048),
    )
    (folder / "jwks.json").write_text(json.dumps({"keys": [key.jwk]}), encoding="utf-8")
    now_s = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "iat": now_s, "exp": now_s + 7200}
    claims |= {"scope": "update:score read:leaderboard"}
    users = [f"auth0|user{number:06d}" for number in range(USERS)]
    return [
        (user, jwt.encode(claims | {"sub": user}, key.private, "RS256", {"kid": key.kid}))
        for user in users
    ]


@contextmanager
def server(name: str, environ: dict[str, str], core: int | None) -> Iterator[tuple[int, int]]:
    """Run a server; yield its pid and port."""
    port = find_free_port()
    command = [sys.executable, *SERVERS[name], *([str(port)] if name == "baseline" else [])]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environ | {"SCOREBOARD_API_PORT": str(port)}
    )
    try:
        if core is not None:
            os.sched_setaffinity(process.pid, {core})
        deadline_s = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline_s or process.poll() is not None:
                    raise
                time.sleep(0.05)
        yield process.pid, port
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def measure(pid: int, plan: dict[str, Any]) -> dict[str, float]:
    """Run the client's plan; return its figures and the server's CPU time per update."""
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
        before_s = cpu_s(pid)
        assert client.stdout.readline() == b"measured\n"
        used_s = cpu_s(pid) - before_s
        result = json.loads(client.stdout.readline())
    if result["failures"] or not result["done"]:
        raise click.ClickException(f"not every update was applied: {result}")
    return {
        "cpu_us": used_s / result["done"] * 1e6,
        "rate": result["done"] / result["seconds"],
        "p50_ms": result["p50_ms"],
        "p99_ms": result["p99_ms"],
        "client_cpu_share": result["client_cpu_share"],
    }


async def open_main(url: str) -> None:
    client = make_client(load({"REDIS_URL": url}), name="bench")
    await open_board(Store(client))
    await client.aclose()


@click.command()
@click.option("--connections", default="1,16,64,256", help="Numbers of connections, by comma.")
@click.option("--repeat", default=3, help="Runs of each; the median is shown.")
@click.option(
    "--seconds", default=4.0, help="Measured seconds of a run, after a second of warming."
)
@click.option("--rate", default=0.0, help="Open loop: requests per second; 0 for closed loop.")
@click.option(
    "--against",
    type=click.Choice([name for name in SERVERS if name != "api"]),
    default="baseline",
    help="What to compare the api with.",
)
@click.option("--only", type=click.Choice(list(SERVERS)), help="Measure one server.")
@click.option("--json", "as_json", is_flag=True, help="Print every run as JSON.")
def main(
    connections: str,
    repeat: int,
    seconds: float,
    rate: float,
    against: str,
    only: str | None,
    as_json: bool,
) -> None:
    """Compare the update path of the api with a plain implementation."""
    cores = sorted(os.sched_getaffinity(0))
    server_core, client_core = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
    names = [only] if only else [against, "api"]
    runs: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="scoreboard-bench-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        valkey = stack.enter_context(EmbeddedValkey(folder / "valkey"))
        tokens = make_tokens(folder)
        environ = {
            "REDIS_URL": valkey.url,
            "SCOREBOARD_JWKS_FILE": str(folder / "jwks.json"),
            "SCOREBOARD_UNKNOWN_KINDS": "default",
            "SCOREBOARD_ISSUER": ISSUER,
            "SCOREBOARD_AUDIENCE": AUDIENCE,
            "SCOREBOARD_RATE_LIMIT": "gateway",
            "SCOREBOARD_API_METRICS_PORT": "0",
            "SCOREBOARD_STREAM_CAP": "10000000",
            "SCOREBOARD_CONNECTIONS_PER_ADDRESS": "4096",
            "SCOREBOARD_LOG_LEVEL": "warning",
        }
        for count in map(int, connections.split(",")):
            for number in range(repeat):
                for name in names:
                    with redis.Redis.from_url(valkey.url) as plain:
                        plain.flushall()
                    asyncio.run(open_main(valkey.url))
                    plan = {
                        "connections": count,
                        "warm_s": 1.0,
                        "seconds": seconds,
                        "tokens": tokens,
                        "run": f"{name}-{count}-{number}",
                        "rate": rate,
                        "core": client_core,
                    }
                    with server(name, environ, server_core) as (pid, port):
                        result = measure(pid, plan | {"port": port})
                    runs.append({"server": name, "connections": count} | result)
                    click.echo(
                        json.dumps(runs[-1]) if as_json else ".", err=not as_json, nl=as_json
                    )
    if not as_json:
        click.echo("", err=True)
        report(runs, names)


def report(runs: list[dict[str, Any]], names: list[str]) -> None:
    """Print a table of medians, with the spread of the CPU figure."""
    click.echo(
        f"Python {platform.python_version()}, uvicorn {version('uvicorn')}, "
        f"litestar {version('litestar')}, {os.cpu_count()} cores"
    )
    click.echo(
        "| connections | server | CPU µs per update (min–max) | updates/s | p50 ms | p99 ms |"
    )
    click.echo("|---|---|---|---|---|---|")
    for count in sorted({run["connections"] for run in runs}):
        medians = {}
        for name in names:
            mine = [r for r in runs if r["server"] == name and r["connections"] == count]
            cpu = [run["cpu_us"] for run in mine]
            medians[name] = statistics.median(cpu)
            others = [
                statistics.median(r[what] for r in mine) for what in ("rate", "p50_ms", "p99_ms")
            ]
            click.echo(
                f"| {count} | {name} | {medians[name]:.0f} ({min(cpu):.0f}–{max(cpu):.0f}) "
                f"| {others[0]:,.0f} | {others[1]:.2f} | {others[2]:.2f} |"
            )
        if len(medians) > 1:
            other, own = (medians[name] for name in names)
            click.echo(f"| {count} | *ratio* | {own / other:.3f} | | | |")


if __name__ == "__main__":
    main()
